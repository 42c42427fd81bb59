"""Streams stay within the memory that is stated, and are refused where that is too little."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streamed_pairs import go

import fedjax_lite as fl
from fedjax_lite.data.stores.npy_store import write_streamed
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream import StreamedDataset, open_streamed, streamed_bytes
from fedjax_lite.stream.memory import bucket

KEY = jax.random.key(0)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 90, 91, 127, 128, 129, 1000, 10**6 + 1, 2**30 + 1])
def test_buckets_hold_with_little_padding(count):
    size = bucket(count)
    assert size >= max(count, 64)
    assert size <= max(64, np.ceil(count * np.sqrt(2)) + 1)
    assert bucket(size) == size


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
