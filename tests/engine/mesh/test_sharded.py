"""sharded(): equal results on several devices, equal shares of work, tables and slots in place.

A JAX process has the devices that it started with, so `test_with_four_devices` starts a process of
four, which runs what skips here, and what other files have for several devices, too.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fedjax_lite as fl
from fedjax_lite.engine import imbalance, init_state, place_state, shard_population
from fedjax_lite.engine.mesh.sharded import deal
from fedjax_lite.engine.program import Work
from fedjax_lite.run import checkpoint

FOUR = jax.device_count() >= 4
four = pytest.mark.skipif(not FOUR, reason="needs four devices; see the last test")
one = pytest.mark.skipif(FOUR, reason="needs one device")
KEY = jax.random.key(0)
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2, 4, 6])


def population():
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.normal(size=(len(owners), 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + owners / 10
    examples = {"x": x, "y": y.astype(np.float32)}
    return fl.data.from_arrays(examples, owners, num_clients=len(SIZES))


def regression(w, e, key):
    return 0.5 * (e["x"] @ w - e["y"] + 0.01 * jax.random.normal(key, e["y"].shape)) ** 2


def slots(strategy, size=7):
    sampler = fl.dropout(fl.uniform(size), 0.2)
    return {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": sampler, "strategy": strategy}


ALGORITHMS = {
    "fedavg": lambda **s: fl.fedavg(regression, optax.sgd(0.05), **s),
    "scaffold": lambda **s: fl.scaffold(regression, 0.05, **s),
    "mime": lambda **s: fl.mime(regression, 0.05, **s),
    "diagnosed fedadam": lambda **s: fl.fedadam(
        regression,
        optax.sgd(0.05),
        server_learning_rate=0.1,
        aggregator=fl.diagnosed(fl.mean()),
        **s,
    ),
}


@functools.cache
def sharded_algorithm(name, num_devices, inner=None):
    """Cached, so that tests share compiled programs; with its mesh."""
    mesh = fl.client_mesh(jax.devices()[:num_devices])
    return ALGORITHMS[name](**slots(fl.sharded(mesh, inner))), mesh


CHUNKED = fl.chunked(2)


def three_rounds(algo, data, state=None):
    state = algo.init(KEY, jnp.zeros(3), data) if state is None else state
    rows = []
    for _ in range(3):
        state, metrics = algo.round(KEY, state, data)
        rows.append(metrics)
    return jax.device_get((state, rows))


@functools.cache
def sequential(name):
    return ALGORITHMS[name](**slots(fl.sequential()))


@functools.cache
def on_one_device(name):
    """What every strategy must give."""
    return three_rounds(sequential(name), population())


close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


# -- several devices ------------------------------------------------------------------------


@pytest.mark.sample(3)
@four
@pytest.mark.parametrize(
    ("name", "num_devices"),
    [*((name, 3) for name in ALGORITHMS if name != "mime"), ("scaffold", 1), ("mime", 4)],
)
def test_equals_one_device(name, num_devices):
    data = population()
    expected = on_one_device(name)
    algo, mesh = sharded_algorithm(name, num_devices, CHUNKED)
    state = None
    if name != "fedavg":  # whose state of one device costs a second program: its first round's
        state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh)
    close(three_rounds(algo, data, state), expected)


@pytest.mark.sample(1)
@four
@pytest.mark.parametrize("inner", [fl.vmapped(), fl.auto()], ids=lambda s: s.name)
def test_any_inner_strategy(inner):
    data = population()
    expected = on_one_device("scaffold")
    algo, mesh = sharded_algorithm("scaffold", 4, inner)
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh)
    close(three_rounds(algo, data, state), expected)


@four
def test_client_table_may_be_sharded_and_data_replicated():
    data = population()
    algo, mesh = sharded_algorithm("scaffold", 2)  # the table's ten rows go into two
    expected = on_one_device("scaffold")
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh)
    rows = NamedSharding(mesh, PartitionSpec("clients"))
    state = state._replace(clients=jax.device_put(state.clients, rows))
    close(three_rounds(algo, fl.replicate(data, mesh), state), expected)


@four
def test_run_and_its_resume(tmp_path):
    data = population()
    algo, _ = sharded_algorithm("scaffold", 4)
    more = {"every": 2, "progress": False, "output_dir": tmp_path}
    init = lambda: algo.init(KEY, jnp.zeros(3), data)  # noqa: E731
    straight, _ = fl.run(algo, KEY, init(), data, num_rounds=6, every=2, progress=False)
    fl.run(algo, KEY, init(), data, num_rounds=4, **more)
    resumed, _ = fl.run(algo, KEY, init(), data, num_rounds=6, resume=True, **more)
    chex.assert_trees_all_equal(*jax.device_get((straight, resumed)))


COLLECTIVES = re.compile(r" (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)")


def collectives(compiled):
    """Of a compiled program: its collectives by computation, and the computations within loops."""
    blocks = {}
    for block in compiled.as_text().split("\n\n"):
        head = re.match(r"(?:ENTRY )?%([\w.-]+) \(", block)
        if head:
            blocks[head[1]] = block
    loops = set(re.findall(r"(?:body|condition)=%([\w.-]+)", compiled.as_text()))
    inside, new = set(), loops
    while new:
        inside |= new
        called = {name for block in new for name in re.findall(r"%([\w.-]+)", blocks[block])}
        new = (called & blocks.keys()) - inside
    found = {
        name: [line for line in block.splitlines() if COLLECTIVES.search(line)]
        for name, block in blocks.items()
    }
    return {name: lines for name, lines in found.items() if lines}, inside


def compiled_round(algo, state, data):
    return jax.jit(algo.round).lower(KEY, state, data).compile()


@four
def test_no_collective_inside_the_local_loops():
    data = population()
    algo = ALGORITHMS["fedavg"](**slots(fl.sharded(fl.client_mesh(), fl.sequential())))
    found, inside = collectives(compiled_round(algo, algo.init(KEY, jnp.zeros(3), data), data))
    assert inside
    assert any("all-reduce" in line for lines in found.values() for line in lines)
    assert not found.keys() & inside


# -- a population that is split over devices --------------------------------------------------


def real_rows(result):
    """A state without the rows behind the last client's, and the metrics beside it."""
    state, metrics = result
    rows = lambda tree: jax.tree.map(lambda leaf: leaf[: len(SIZES)], tree)  # noqa: E731
    return state._replace(clients=rows(state.clients), uplink=rows(state.uplink)), metrics


@pytest.mark.sample(2)
@four
@pytest.mark.parametrize(
    ("name", "num_devices", "inner"),
    [
        ("scaffold", 4, CHUNKED),
        ("mime", 2, None),
        ("diagnosed fedadam", 4, fl.vmapped()),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_owners_compute_the_same(name, num_devices, inner):
    data, expected = population(), on_one_device(name)
    algo, mesh = sharded_algorithm(name, num_devices, inner)
    split = shard_population(data, mesh)
    state = init_state(algo, KEY, jnp.zeros(3), split, mesh=mesh)
    got, metrics = three_rounds(algo, split, state)
    close(real_rows((got, metrics)), expected)
    for row, wanted in zip(metrics, expected[1], strict=True):  # the same cohorts and steps
        assert row["num_steps"] == wanted["num_steps"]
        assert row["num_clients"] == wanted["num_clients"]
    # Rows that belong to nobody stay as they were.
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[len(SIZES) :], 0), got.clients)


@four
def test_nothing_but_the_sum_travels():
    algo, mesh = sharded_algorithm("scaffold", 4, CHUNKED)
    data = shard_population(population(), mesh)
    state = init_state(algo, KEY, jnp.zeros(3), data, mesh=mesh)
    compiled = compiled_round(algo, state, data)
    found, inside = collectives(compiled)
    assert inside
    assert not found.keys() & inside
    lines = [line for lines in found.values() for line in lines]
    assert lines
    assert all(" all-reduce" in line for line in lines), lines
    # One message for all: the accumulator (two models, their weight) and seven metrics [C] (total
    # and count of the loss, weight, bits, entropy, whether it counts, steps); never rows.
    shapes = [s for line in lines for s in re.findall(r"[fsu]32\[([\d,]*)\]", line.split("(")[0])]
    assert shapes == [str(3 + 3 + 1 + 7 * 7)]
    table = compiled.output_shardings[0].clients
    assert table.is_equivalent_to(NamedSharding(mesh, PartitionSpec("clients")), 2)


@four
def test_bytes_of_a_device():
    algo, mesh = sharded_algorithm("scaffold", 4)
    data = shard_population(population(), mesh)
    state = init_state(algo, KEY, jnp.zeros(3), data, mesh=mesh)
    block = 3  # ceil(10 / 4)
    largest = max(int(SIZES[i : i + block].sum()) for i in range(0, len(SIZES), block))
    example, row = 3 * 4 + 4, 3 * 4
    expected = example * largest + 4 * (block + 1) + 4 * len(SIZES) + row * block
    for d in range(4):
        held = [leaf.addressable_shards[d] for leaf in jax.tree.leaves((data, state.clients))]
        assert {shard.device for shard in held} == {mesh.devices[d]}
        assert sum(shard.data.nbytes for shard in held) == expected


@four
def test_checkpoints_between_device_counts(tmp_path):
    """Tables of 12, 10, 12 and 10 rows for ten clients on 4, 2, 3 devices and one."""
    data, first = population(), None
    for number, num_devices in enumerate([4, 2, 3, 1, 4]):
        algo, mesh = sharded_algorithm("scaffold", num_devices, CHUNKED)
        split = shard_population(data, mesh)
        state = init_state(algo, KEY, jnp.zeros(3), split, mesh=mesh)
        if first is None:
            state, _ = three_rounds_kept(algo, split, state)
            first = real_rows((jax.device_get(state), ()))
        else:
            folder = tmp_path / str(number - 1)
            state = checkpoint.restore(folder, state, num_clients=len(SIZES))
            chex.assert_trees_all_equal(real_rows((jax.device_get(state), ())), first)
        assert len(state.clients.sharding.device_set) == num_devices
        assert state.clients.shape[0] == num_devices * -(-len(SIZES) // num_devices)
        checkpoint.save(tmp_path / str(number), state, step=3, num_clients=len(SIZES))
    with pytest.raises(ValueError, match="of 10 clients, this run has 11"):
        checkpoint.restore(tmp_path / "0", state, num_clients=11)


def three_rounds_kept(algo, data, state):
    for _ in range(3):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


@four
def test_run_on_a_split_population_and_its_resume_on_fewer_devices(tmp_path):
    more = {"every": 2, "progress": False, "output_dir": tmp_path, "resume": True}
    for num_rounds, num_devices in ((4, 4), (6, 2)):
        algo, mesh = sharded_algorithm("scaffold", num_devices)
        split = shard_population(population(), mesh)
        state = init_state(algo, KEY, jnp.zeros(3), split, mesh=mesh)
        state, _ = fl.run(algo, KEY, state, split, num_rounds=num_rounds, **more)
        assert state.clients.addressable_shards[0].data.shape[0] == -(-len(SIZES) // num_devices)
    straight, data = on_one_device("scaffold")[0], population()
    for _ in range(3):
        straight, _ = sequential("scaffold").round(KEY, straight, data)
    close(real_rows((jax.device_get(state), ())), (jax.device_get(straight), ()))


@four
def test_data_of_another_mesh_are_refused():
    data = shard_population(population(), fl.client_mesh(jax.devices()[:2]))
    mesh = fl.client_mesh()
    algo = ALGORITHMS["fedavg"](**slots(fl.sharded(mesh)))
    with pytest.raises(ValueError, match="split over 2 devices, but the mesh has 4"):
        algo.round(KEY, algo.init(KEY, jnp.zeros(3), data), data)


# -- on any machine -------------------------------------------------------------------------


@one
@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_shares_of_work_are_equal_to_one_client(num_devices):
    rng = np.random.default_rng(num_devices)
    dealt_of = jax.jit(jax.vmap(lambda work: deal(work, num_devices)))
    # Fewer than devices, as many, a multiple of them, and not.
    for size in sorted({1, 2, num_devices, 24, 37}):
        steps = rng.integers(0, 1000, (20, size))
        mask = rng.random((20, size)) < 0.8
        steps = np.where(mask, steps, 0)
        places = np.broadcast_to(np.arange(size, dtype=np.int32), (20, size))
        works = Work(places, places, places, places, steps, steps, mask)
        share = -(-size // num_devices)
        all_dealt = jax.device_get(dealt_of(works))
        assert all_dealt.mask.shape == (20, share * num_devices)
        for draw in range(20):
            dealt = jax.tree.map(lambda leaf: leaf[draw], all_dealt)  # noqa: B023
            taking_part, counts = mask[draw], steps[draw]
            # Everyone who takes part is dealt exactly once, with what is his.
            np.testing.assert_array_equal(
                np.sort(dealt.slots[dealt.mask]), np.flatnonzero(taking_part)
            )
            np.testing.assert_array_equal(
                dealt.num_steps[dealt.mask], counts[dealt.slots[dealt.mask]]
            )
            totals = np.where(dealt.mask, dealt.num_steps, 0).reshape(num_devices, share).sum(1)
            assert totals.max() - totals.min() <= counts.max()


@one
def test_bad_meshes_are_named():
    with pytest.raises(TypeError, match="client_mesh"):
        fl.sharded(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="clients"):
        fl.sharded(Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    with pytest.raises(TypeError, match="inner"):
        fl.sharded(fl.client_mesh(), fl.vmapped)  # pyright: ignore[reportArgumentType]


def one_device():
    return fl.client_mesh(jax.devices()[:1])


@one
def test_owner_computes_on_one_device():
    data, mesh = population(), one_device()
    expected = on_one_device("scaffold")
    algo = ALGORITHMS["scaffold"](**slots(fl.sharded(mesh)))
    close(three_rounds(algo, shard_population(data, mesh)), expected)  # with algo.init as it is


@one
def test_the_three_forms_of_a_population_are_one():
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))  # not client by client
    x = rng.normal(size=(len(owners), 2))
    data = fl.data.from_arrays({"x": x}, owners, num_clients=len(SIZES))
    stored = {"x": x[np.argsort(owners, kind="stable")]}
    load = lambda low, high: {"x": stored["x"][low:high]}  # noqa: E731
    forms = [
        shard_population(data, one_device()),
        shard_population(stored, one_device(), sizes=SIZES),
        shard_population(load, one_device(), sizes=SIZES),
    ]
    for form in forms:
        np.testing.assert_array_equal(form.examples["x"], stored["x"].astype(np.float32))
        np.testing.assert_array_equal(form.sizes, SIZES)
        np.testing.assert_array_equal(form.block_offsets, np.concatenate([[0], np.cumsum(SIZES)]))
        assert form.max_client_size == SIZES.max()
        assert (form.num_clients, form.num_rows, form.block_size) == (10, 10, 10)


@one
def test_bad_populations_are_named():
    x, mesh = {"x": np.zeros(49)}, one_device()
    with pytest.raises(ValueError, match="sizes must be given"):
        shard_population(x, mesh)
    with pytest.raises(ValueError, match="left out"):
        shard_population(population(), mesh, sizes=SIZES)
    with pytest.raises(ValueError, match=r"sum\(sizes\) = 50"):
        shard_population(x, mesh, sizes=[50])
    with pytest.raises(ValueError, match="non-negative"):
        shard_population(x, mesh, sizes=[50, -1])
    with pytest.raises(ValueError, match="not all be 0"):
        shard_population(x, mesh, sizes=[0, 0])
    with pytest.raises(ValueError, match=r"49 examples for \(0, 49\), got 7"):
        shard_population(lambda low, high: {"x": np.zeros(min(7, high))}, mesh, sizes=[49])
    with pytest.raises(ValueError, match="NaN"):
        shard_population({"x": np.full(49, np.nan)}, mesh, sizes=[49])
    with pytest.raises(TypeError, match="client_mesh"):
        shard_population(x, 4, sizes=[49])  # pyright: ignore[reportArgumentType]


@one
def test_a_split_population_needs_sharded_and_its_table():
    data, mesh = shard_population(population(), one_device()), one_device()
    algo = ALGORITHMS["fedavg"](**slots(fl.sequential()))
    with pytest.raises(TypeError, match="sharded"):
        algo.round(KEY, algo.init(KEY, jnp.zeros(3), data), data)
    algo = ALGORITHMS["scaffold"](**slots(fl.sharded(mesh)))
    state = algo.init(KEY, jnp.zeros(3), data)
    short = state._replace(clients=state.clients[:4])
    with pytest.raises(ValueError, match="must have 10 rows, got 4"):
        algo.round(KEY, short, data)
    with pytest.raises(ValueError, match="must have 10 rows"):
        place_state(short, data, mesh=mesh)


@one
def test_imbalance_is_that_of_the_loads():
    data = population()
    blocks = [SIZES[:3], SIZES[3:6], SIZES[6:9], SIZES[9:]]
    loads = [sum(-(-n // 2) for n in block) for block in blocks]
    everyone = {"plan": fl.Plan(batch_size=2), "cohort_size": 10}
    expected = max(loads) / np.mean(loads)
    assert imbalance(data, num_devices=4, **everyone) == pytest.approx(expected)
    assert imbalance(data, num_devices=1, **everyone) == 1.0
    assert imbalance(shard_population(data, one_device()), **everyone) == 1.0
    # Many equal clients: the formula of the docstring, to a third of the excess.
    equal = fl.data.from_arrays({"x": np.zeros(4000)}, np.arange(4000))
    got = imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=400, num_devices=8)
    assert got - 1 == pytest.approx(np.sqrt(2 * np.log(8) * 7 / 400), rel=0.35)
    with pytest.raises(ValueError, match="num_devices"):
        imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=400)
    with pytest.raises(ValueError, match="cohort_size"):
        imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=4001, num_devices=8)


@pytest.mark.slow
@one
def test_with_four_devices():
    """One process for all files: starting one costs as much as several of its tests."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    here = Path(__file__).parents[2]
    elsewhere = (
        "stream/test_streaming.py::test_several_devices",
        "laws/test_slots_under_strategies.py",
    )
    elsewhere += ("privacy/test_dp_adaptive.py::test_several_devices_agree",)
    elsewhere += ("evaluate/test_metrics.py::test_populations_on_devices_agree_with_numpy",)
    tests = [__file__, *(str(here / name) for name in elsewhere)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsp", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for name in ("engine/mesh/test_sharded.py", *elsewhere):
        assert f"PASSED tests/{name}" in done.stdout
    reasons = re.findall(r"^SKIPPED .*: (.*)$", done.stdout, re.MULTILINE)
    assert set(reasons) == {"needs one device"}, done.stdout[-4000:]
