"""The table of client rows: does it fit, and is it updated in place?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.scaffold import scaffold
from fedjax_lite.engine import table_memory as memory


def linear(w, e, key):
    return 0.5 * ((e["x"] @ w) - 1.0) ** 2


def small_data(num_clients, dim=4):
    x = np.random.default_rng(0).normal(size=(num_clients, dim)).astype(np.float32)
    return fl.data.from_arrays({"x": x}, np.arange(num_clients), num_clients=num_clients)


def algorithm(loss=linear, **options):
    return scaffold(
        loss,
        0.1,
        plan=fl.Plan(batch_size=1),
        sampler=fl.uniform(10),
        strategy=options.pop("strategy", fl.chunked(2)),
        **options,
    )


def test_bytes_count_every_leaf_of_every_client():
    rows = {"w": jnp.zeros((3, 4)), "half": jnp.zeros(5, jnp.bfloat16)}
    assert memory.table_bytes(rows, 7) == 7 * (3 * 4 * 4 + 5 * 2)
    assert memory.table_bytes((), 7) == 0


def test_available_prefers_what_the_device_says():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    assert memory.available_bytes(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert memory.available_bytes(Device(None)) is None
    assert (memory.available_bytes(jax.local_devices(backend="cpu")[0]) or 0) > 2**20


def test_host_bytes_of_a_written_file(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       64 kB\nMemAvailable:   32 kB\n")
    assert memory.host_bytes(path) == 32 * 1024
    assert (memory.host_bytes(tmp_path / "absent") or 0) > 2**20  # from the system's page counts


def test_init_refuses_before_allocating(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    data = small_data(100)
    params = jnp.zeros(4)
    with pytest.raises(ValueError, match=r"1,600 bytes.*1,000 bytes.*bfloat16.*fewer.*host"):
        algorithm().init(jax.random.key(0), params, data)
    algorithm(table_dtype=jnp.bfloat16).init(jax.random.key(0), params, data)  # 800 bytes


def test_an_impossible_table_is_an_error_and_not_a_crash():
    """10,000 clients x 100 M parameters: 4 TB, refused without touching them."""
    rows = jax.ShapeDtypeStruct((10**8,), jnp.float32)
    with pytest.raises(ValueError, match="4,000,000,000,000 bytes"):
        memory.check_table(rows, 10_000, available=2**40)


def test_algorithms_without_rows_are_never_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    import optax

    algo = fl.fedavg(linear, optax.sgd(0.1), plan=fl.Plan(batch_size=1), sampler=fl.uniform(10))
    algo.init(jax.random.key(0), jnp.zeros(4), small_data(10))


def test_hundred_thousand_clients():
    data = small_data(100_000)
    algo, key = algorithm(), jax.random.key(0)
    step = jax.jit(algo.round, donate_argnums=1)
    state = algo.init(key, jnp.zeros(4), data)
    for _ in range(3):
        state, _ = step(key, state, data)
    touched = int((np.asarray(state.clients) != 0).any(1).sum())
    assert 20 <= touched <= 30
    mean = np.asarray(state.clients, np.float64).mean(0)
    np.testing.assert_allclose(state.server.control, mean, rtol=1e-4, atol=1e-9)


@pytest.mark.sample(1)
@pytest.mark.parametrize("strategy", [fl.sequential(), fl.chunked(2)], ids=lambda s: s.name)
def test_a_donated_table_is_updated_in_place(strategy):
    """1,000 clients x 1 M parameters, compiled only: no second table in the program's memory."""
    dim, num_clients = 1_000_000, 1000
    data = small_data(num_clients)
    algo = algorithm(
        lambda w, e, key: 0.5 * (w.sum() * e["x"][:, 0] - 1.0) ** 2,
        strategy=strategy,
    )
    tiny = jax.eval_shape(lambda: algo.init(jax.random.key(0), jnp.zeros(1), data))
    state = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(
            (*s.shape[:-1], dim) if s.shape[-1:] == (1,) else s.shape, s.dtype
        ),
        tiny,
    )
    assert state.clients.shape == (num_clients, dim)
    table = state.clients.size * state.clients.dtype.itemsize

    def memory_of(**options):
        step = jax.jit(algo.round, **options)
        return step.lower(jax.random.key(0), state, data).compile().memory_analysis()

    donated = memory_of(donate_argnums=1)
    assert donated.alias_size_in_bytes >= table
    assert donated.temp_size_in_bytes < 0.1 * table
    assert memory_of().alias_size_in_bytes < table  # the check can fail: not donated, not aliased


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_counts_with_what_it_has_taken_already(tmp_path, version):
    groups = tmp_path / "cgroup"
    groups.write_text("0::/job/step\n" if version == 2 else "4:memory:/job/step\n2:cpu:/\n")
    base = tmp_path / "fs" / ("" if version == 2 else "memory")
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    for folder, limit, used, cached in (("job", "1000", 700, 50), ("job/step", "500", 100, 20)):
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / names[0]).write_text(limit)
        (base / folder / names[1]).write_text(str(used))
        (base / folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")
    found = memory.group_bytes(groups, tmp_path / "fs")
    assert sorted(found) == [1000 - 700 + 50, 500 - 100 + 20]
    (base / "job" / names[0]).write_text("max")
    assert memory.group_bytes(groups, tmp_path / "fs") == [420]
    assert memory.group_bytes(tmp_path / "absent", tmp_path / "fs") == []
