"""Streamed runs: equal to runs in memory, resumed byte for byte, within the stated memory."""

import functools
import gc
import signal
import threading
import time

import chex
import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.stores.npy_store import write_streamed
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.engine import client_mesh, replicate, sharded
from fedjax_lite.run import checkpoint
from fedjax_lite.run.history import read_rows
from fedjax_lite.stream import HostTable, StreamedDataset, open_streamed, streamed_bytes
from fedjax_lite.stream.memory import bucket
from fedjax_lite.stream.prefetch import StreamedRounds

KEY = jax.random.key(0)
N = 40


def examples(num_clients=N, seed=0):
    """Least squares with client drift; client 3 has no data. Stored client by client."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(1 + rng.lognormal(1.5, 1.0, num_clients).astype(int), 60)
    sizes[3] = 0
    x = rng.normal(size=(sizes.sum(), 3)).astype(np.float32)
    weights = rng.normal(size=(num_clients, 3)).astype(np.float32)
    y = (x * np.repeat(weights, sizes, axis=0)).sum(1)
    return {"x": x, "y": y}, sizes


def loss(params, batch, key):
    return 0.5 * (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def params():
    return {"w": jnp.full(3, 0.1), "b": jnp.zeros(())}


def pair(**options):
    arrays, sizes = examples()
    memory = fl.data.from_arrays(arrays, np.repeat(np.arange(N), sizes), num_clients=N)
    return memory, StreamedDataset(ArrayStore(arrays, sizes), **options)


PLAN = fl.Plan(batch_size=4, epochs=2)
SAMPLERS = {
    "uniform": fl.uniform(9),
    "dropout": fl.dropout(fl.uniform(12), 0.4),
    "poisson": fl.poisson(0.2),
    "weighted": fl.weighted(8),
    "everyone": fl.everyone(),
}
ALGORITHMS = {
    "fedavg": lambda **s: fl.fedavg(loss, optax.sgd(0.05), **s),
    "fedadam": lambda **s: fl.fedadam(loss, optax.sgd(0.05), server_learning_rate=0.1, **s),
    "fedprox": lambda **s: fl.fedprox(loss, optax.sgd(0.05), mu=0.1, **s),
    "fednova": lambda **s: fl.fednova(loss, 0.05, **s),
    "scaffold": lambda **s: fl.scaffold(loss, 0.05, **s),
    "mime": lambda **s: fl.mime(loss, 0.05, **s),
}


@functools.cache
def make(name, sampler="uniform", **slots):
    """Cached, so that tests share compiled programs."""
    return ALGORITHMS[name](plan=PLAN, sampler=SAMPLERS[sampler], **slots)


def begin(algo, data):
    return algo.init(KEY, params(), data)


def go(algo, state, data, num_rounds=7, every=3, **options):
    return fl.run(
        algo, KEY, state, data, num_rounds=num_rounds, every=every, progress=False, **options
    )


def bare(rows):
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


def whole(state):
    """The state with its tables as arrays `[N, ...]`."""
    full = lambda t: t.rows(np.arange(N)) if isinstance(t, HostTable) else t  # noqa: E731
    return state._replace(clients=full(state.clients), uplink=full(state.uplink))


def raw(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole(state))]


def assert_close(streamed, in_memory, tolerance=2e-6):
    chex.assert_trees_all_close(
        *(whole(streamed), whole(in_memory)), rtol=tolerance, atol=tolerance
    )


FAST = [("fedavg", "uniform"), ("scaffold", "dropout")]
SLOW = (
    [(name, "uniform") for name in ALGORITHMS if name != "fedavg"]
    + [("fedavg", sampler) for sampler in SAMPLERS if sampler != "uniform"]
    + [("scaffold", "poisson")]
)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("name", "sampler"),
    FAST + [pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW],
)
def test_equals_the_run_in_memory(name, sampler):
    memory, streamed = pair()
    algo = make(name, sampler)
    there, rows_there = go(algo, begin(algo, memory), memory)
    here, rows_here = go(algo, begin(algo, streamed), streamed)
    assert jax.tree.structure(here) == jax.tree.structure(there)
    for a, b in zip(rows_here, rows_there, strict=True):
        assert a.keys() == b.keys()
        assert (a["num_clients"], a["num_steps"]) == (b["num_clients"], b["num_steps"])
    assert_close(here, there)
    assert raw(here._replace(server=()))[-1:] == raw(there._replace(server=()))[-1:]  # sampler


def test_cohorts_are_those_of_the_round():
    memory, streamed = pair()
    algo = make("fedavg", "dropout")
    state, seen = begin(algo, memory), []
    cohort = streamed.cohort

    class Spy:
        timings = streamed.timings
        sizes = streamed.sizes

        def cohort(self, ids, mask, **options):
            seen.append((ids, mask))
            return cohort(ids, mask, **options)

    rounds = StreamedRounds(algo, KEY, Spy(), capacity=4)
    rounds.advance(rounds.start(state), 4)
    for number, (ids, mask) in enumerate(seen[:4]):
        _, expected = algo.sample(KEY, np.int32(number), (), jnp.asarray(streamed.sizes))
        np.testing.assert_array_equal(mask, expected.mask)
        np.testing.assert_array_equal(ids[mask], np.asarray(expected.ids)[mask])


@pytest.mark.sample(2)
@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize(
    "sampler",
    ["dropout", *(pytest.param(s, marks=pytest.mark.slow) for s in ("uniform", "everyone"))],
)
def test_rows_outside_of_the_device_change_nothing(place, sampler, tmp_path):
    """Cohorts of 9 to 40 of 40 clients: most follow themselves within two rounds."""
    options = {"state_dir": tmp_path} if place == "disk" else {}
    _, on_device = pair()
    _, elsewhere = pair(state=place, **options)
    algo = make("scaffold", sampler)
    there, rows_there = go(algo, begin(algo, on_device), on_device, num_rounds=11)
    here, rows_here = go(algo, begin(algo, elsewhere), elsewhere, num_rounds=11)
    assert isinstance(here.clients, HostTable)
    assert_close(here, there, 1e-6)
    touched = np.unique(np.nonzero(np.asarray(there.clients["w"]).any(1))[0])
    assert here.clients.num_touched >= len(touched) > 5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[touched], rtol=1e-6, atol=1e-7),
        here.clients.rows(touched),
        there.clients,
    )
    assert [r["num_steps"] for r in rows_here] == [r["num_steps"] for r in rows_there]


@pytest.mark.sample(2)
@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_runs_in_parts_give_the_same_bytes(place, tmp_path):
    """By state, by checkpoint, and whatever the grouping of rounds into calls."""
    algo = make("scaffold", "dropout")

    def data(name):
        return pair(state=place, **({"state_dir": tmp_path / name} if place == "disk" else {}))[1]

    straight, rows = go(algo, begin(algo, data("a")), data("a"), num_rounds=9, every=9)
    parts, first = data("b"), begin(algo, data("b"))
    half, _ = go(algo, first, parts, num_rounds=4, every=2)
    remembered = raw(half)
    rest, _ = go(algo, half, parts, num_rounds=9, every=2)
    assert raw(rest) == raw(straight)
    assert raw(half) == remembered  # the caller's state is not destroyed
    again, _ = go(algo, half, parts, num_rounds=9, every=5)
    assert raw(again) == raw(straight)
    assert raw(rest) == raw(straight)
    assert raw(first) == raw(begin(algo, data("b")))
    saved = data("c")
    go(algo, begin(algo, saved), saved, num_rounds=4, every=2, output_dir=tmp_path / "out")
    gc.collect()
    resumed, found = go(
        algo, begin(algo, saved), saved, num_rounds=9, every=2, output_dir=tmp_path / "out",
        resume=True,
    )  # fmt: skip
    assert raw(resumed) == raw(straight)
    assert bare(found) == bare(rows)


def at_place(place, folder):
    return pair(state=place, **({"state_dir": folder} if place == "disk" else {}))[1]


def first_row(state):
    return {"first": float(state.clients.rows([0])["b"][0])}


def killed_run(place, folder, last):
    """What the processes do that are killed; from round `last` on they wait for it."""

    def slow(state):
        time.sleep(0.02)
        forked.hold(int(state.round), last)
        return first_row(state)

    data, algo = at_place(place, folder / "rows"), make("scaffold", "dropout")
    go(
        algo, begin(algo, data), data, num_rounds=80, every=2, evaluate=slow,
        output_dir=folder / "out", resume=True,
    )  # fmt: skip


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("place", ["host", "disk"])
def test_sigkill_at_any_moment_changes_no_byte(place, tmp_path):
    algo, rng = make("scaffold", "dropout"), np.random.default_rng()
    calm = at_place(place, tmp_path / "calm")
    expected, rows = go(algo, begin(algo, calm), calm, num_rounds=80, every=2, evaluate=first_row)
    checkpoints = tmp_path / "out" / "checkpoints"

    def reached():
        return max(checkpoint.steps(checkpoints), default=0)

    moments = []
    for _ in range(4):
        before = reached()
        child = forked.start(killed_run, place, tmp_path, before + 18)
        while child.is_alive() and reached() < before + 4:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.2)))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        moments.append(reached())
    assert moments[-1] < 80
    child = forked.start(killed_run, place, tmp_path, forked.FOREVER)
    child.join(timeout=300)
    assert child.exitcode == 0
    last = at_place(place, tmp_path / "rows")
    state = checkpoint.restore(checkpoints, begin(algo, last))
    assert raw(state) == raw(expected), moments
    assert bare(read_rows(tmp_path / "out" / "metrics.jsonl")) == bare(rows), moments


def stream_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fedjax_lite-stream")]


def assert_no_thread_stays():
    deadline = time.monotonic() + 60
    while stream_threads() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not stream_threads()


class Failing(ArrayStore):
    """A store that fails at its n-th read."""

    fail_at = 5

    def read(self, ids, out):
        self.fail_at -= 1
        if self.fail_at < 0:
            raise OSError("the disk is gone")
        super().read(ids, out)


def test_errors_of_the_thread_are_raised_and_nothing_stays():
    arrays, sizes = examples()
    data, algo = StreamedDataset(Failing(arrays, sizes)), make("fedavg")
    with pytest.raises(OSError, match="the disk is gone"):
        go(algo, begin(algo, data), data, num_rounds=20, every=10)
    assert_no_thread_stays()
    _, fine = pair()
    go(algo, begin(algo, fine), fine)
    assert_no_thread_stays()


def test_a_failing_round_and_an_interrupt_leave_nothing():
    _, data = pair()
    algo = make("fedavg")
    state = begin(algo, data)

    def broken(key, state, data, cohort=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(algo._replace(round=broken), state, data)
    assert_no_thread_stays()


def test_what_cannot_be_streamed_says_so():
    _, data = pair()
    algo = make("fedavg")
    state = begin(algo, data)
    with pytest.raises(ValueError, match="algo must have `sample`"):
        go(algo._replace(sample=None), state, data)
    with pytest.raises(ValueError, match="state must be"):
        pair(state="tape")
    with pytest.raises(ValueError, match="state_dir goes with"):
        pair(state="disk")
    rounds = data.rounds(algo, KEY, capacity=2)
    rounds.start(state)
    with pytest.raises(ValueError, match="the state that start"):
        rounds.advance(state._replace(round=jnp.int32(3)), 1)


def test_a_spent_table_says_so():
    _, data = pair(state="host")
    algo = make("scaffold")
    states = []

    def keep(state):
        states.append(state)
        return {}

    final, _ = go(algo, begin(algo, data), data, num_rounds=4, every=2, evaluate=keep)
    with pytest.raises(RuntimeError, match="was spent"):
        states[0].clients.rows([0])
    assert final.clients.rows([0, 1])["w"].shape == (2, 3)


def test_auto_chooses_as_in_memory():
    memory, streamed = pair()
    from fedjax_lite.engine.choose import choose

    one = streamed.cohort(np.arange(9), np.ones(9, bool))
    for platform in ("cpu", "gpu"):
        assert choose(params(), one, 9, platform=platform) == choose(
            params(), memory, 9, platform=platform
        )


@pytest.mark.parametrize("count", [0, 1, 64, 65, 90, 91, 127, 128, 129, 1000, 10**6 + 1, 2**30 + 1])
def test_buckets_hold_with_little_padding(count):
    size = bucket(count)
    assert size >= max(count, 64)
    assert size <= max(64, np.ceil(count * np.sqrt(2)) + 1)
    assert bucket(size) == size


def test_a_cohort_with_empty_slots():
    arrays, sizes = examples()
    _, data = pair()
    ids, mask = np.array([5, 3, 99, 0, -1]), np.array([True, True, True, False, True])
    cohort = data.cohort(ids, mask)
    np.testing.assert_array_equal(np.diff(cohort.offsets), [sizes[5], 0, 0, 0, 0])
    low = sizes[:5].sum()
    np.testing.assert_array_equal(
        cohort.examples["y"][: sizes[5]], arrays["y"][low : low + sizes[5]]
    )
    assert not np.asarray(cohort.examples["y"][sizes[5] :]).any()


class Watch:
    """The most bytes of live arrays of some dtypes, beyond those that were there before.

    One thread: two would keep alive what the other counts.
    """

    def __init__(self, *dtypes):
        self.most, self._stop = dict.fromkeys(map(jnp.dtype, dtypes), 0), threading.Event()
        self._before = self._live()

    def _live(self):
        held = jax.live_arrays()
        return {d: sum(x.nbytes for x in held if x.dtype == d) for d in self.most}

    def _look(self):
        while not self._stop.is_set():
            for dtype, now in self._live().items():
                self.most[dtype] = max(self.most[dtype], now - self._before[dtype])

    def __enter__(self):
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_memory_is_what_the_formula_says(tmp_path):
    """Of 400 clients' uint8 examples, at most three cohorts are on the device at any time; of
    their bfloat16 rows at most five."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 40, 400)
    x = rng.integers(0, 255, (sizes.sum(), 256), dtype=np.uint8)
    write_streamed(tmp_path / "data", [(sizes, {"x": x})])
    data = open_streamed(tmp_path / "data", state="host")
    algo = fl.scaffold(
        lambda p, b, key: ((b["x"] / 255.0) @ p - 1.0) ** 2,
        1e-3,
        plan=fl.Plan(batch_size=8),
        sampler=fl.uniform(20),
        table_dtype=jnp.bfloat16,
    )
    cohort = data.cohort(np.arange(20), np.ones(20, bool))
    count = int(sizes[:20].sum())
    buffer = cohort.examples["x"].nbytes + cohort.offsets.nbytes
    assert cohort.examples["x"].shape[0] == bucket(count)
    leaves, row = data.store.leaves, jnp.zeros(256, jnp.bfloat16)
    options = {"cohort_size": 20, "cohort_examples": count}
    plain = streamed_bytes(sizes, leaves, **options)
    assert plain.device == 3 * buffer + jnp.asarray(data.sizes).nbytes
    on_host = streamed_bytes(sizes, leaves, row=row, state="host", **options)
    assert on_host.device - plain.device == 5 * 20 * row.nbytes
    on_device = streamed_bytes(sizes, leaves, row=row, **options)
    assert on_device.device - plain.device == (400 + 2 * 20) * row.nbytes
    del cohort
    reads, read = [], data.store.read

    def watched(ids, out):
        reads.append(int(sizes[ids].sum()))
        read(ids, out)

    data.store.read = watched
    state = algo.init(KEY, jnp.zeros(256), data)
    with Watch(jnp.uint8, jnp.bfloat16) as watch:
        state, _ = go(algo, state, data, num_rounds=30, every=10)
    of_examples, of_rows = watch.most.values()
    largest = max(bucket(count) for count in reads) * 256
    assert largest <= of_examples <= 3 * largest
    assert 20 * row.nbytes <= of_rows <= 5 * 20 * row.nbytes
    touched = state.clients.num_touched
    slots = state.clients.store.num_bytes // row.nbytes
    assert touched <= slots <= 1.25 * touched + 4 * 20
    # The default takes a cohort larger than all that were drawn.
    assert max(reads) <= sizes.mean() * 20 + 4 * sizes.std() * 20**0.5
    default = streamed_bytes(sizes, leaves, cohort_size=20, row=row, state="host")
    assert of_examples + of_rows <= default.device


def test_more_examples_than_int32_counts():
    class Huge:
        sizes = np.full(3, 2**30, np.int32)
        leaves = ArrayStore({"x": np.zeros(1, np.uint8)}, [1]).leaves

        def read(self, ids, out):
            raise AssertionError("not to be read")

    data = StreamedDataset(Huge())
    assert data.num_examples == 3 * 2**30
    with pytest.raises(ValueError, match="smaller cohort"):
        data.cohort(np.arange(3), np.ones(3, bool))


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_several_devices():
    memory, streamed = pair()
    host = pair(state="host")[1]
    mesh = client_mesh(jax.devices()[:2])
    one, several = make("scaffold"), make("scaffold", strategy=sharded(mesh))
    expected, _ = go(one, begin(one, memory), memory)
    for place in (lambda state: state, lambda state: replicate(state, mesh)):
        got, _ = go(several, place(begin(several, streamed)), streamed)
        assert_close(got, expected, 1e-5)
    got, _ = go(several, begin(several, host), host)
    assert_close(got, expected, 1e-5)


def test_a_round_sees_the_cohort_as_it_was_drawn():
    """Ids of clients that dropped out, and of slots that are none, reach the aggregator."""
    memory, streamed = pair()
    ids = jnp.array([5, 39, 17, 99, -1], jnp.int32)
    mask = jnp.array([True, False, True, True, True])
    seen = []

    def watched():
        inner = fl.mean()

        def finish(key, state, acc, cohort):
            note = lambda *c: seen.append([np.asarray(x).tolist() for x in c])  # noqa: E731
            jax.debug.callback(note, *cohort[:2])
            return inner.finish(key, state, acc, cohort)

        return inner._replace(finish=finish)

    sampler = fl.Sampler(lambda n: (), lambda key, state, sizes: (state, fl.Cohort(ids, mask)))
    for name, data in (("memory", memory), ("stream", streamed)):
        algo = fl.scaffold(loss, 0.05, plan=PLAN, sampler=sampler, aggregator=watched())
        state, _ = go(algo, begin(algo, data), data, num_rounds=1)
        jax.effects_barrier()
        seen.append((name, raw(state._replace(server=()))))
    expected = [ids.tolist(), [True, False, True, False, False]]
    assert seen[0] == seen[2] == expected
    assert seen[1][1] == seen[3][1]


def test_a_streamed_round_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr("fedjax_lite.engine.peak_memory.available_bytes", lambda device: 100)
    data = StreamedDataset(ArrayStore({"b": np.arange(4, dtype=np.float32)}, [1, 1, 1, 1]))
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=1),
        sampler=fl.uniform(2),
    )
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="run out of memory"):
        fl.run(algo, key, algo.init(key, jnp.array(0.0), data), data, num_rounds=1, progress=False)
