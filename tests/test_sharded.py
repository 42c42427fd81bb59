"""sharded(): equal results on several devices, equal shares of work, tables and slots in place.

A JAX process has the devices that it started with, so `test_with_four_devices` runs this file again
in a process of four; there the other tests do not skip.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fedjax_lite as fl
from fedjax_lite.engine.program import Work
from fedjax_lite.engine.sharded import deal

four = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices; see the last test")
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
    "fedadam": lambda **s: fl.fedadam(regression, optax.sgd(0.05), server_learning_rate=0.1, **s),
    "scaffold": lambda **s: fl.scaffold(regression, 0.05, **s),
    "mime": lambda **s: fl.mime(regression, 0.05, **s),
    "diagnosed": lambda **s: fl.fedavg(
        regression, optax.sgd(0.05), aggregator=fl.diagnosed(fl.mean()), **s
    ),
}


def three_rounds(algo, data, state=None):
    state = algo.init(KEY, jnp.zeros(3), data) if state is None else state
    rows = []
    for _ in range(3):
        state, metrics = algo.round(KEY, state, data)
        rows.append(metrics)
    return jax.device_get((state, rows))


def close(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), one, two)


# -- several devices ------------------------------------------------------------------------


@four
@pytest.mark.parametrize(
    ("name", "num_devices"), [*((name, 3) for name in ALGORITHMS), ("scaffold", 1), ("mime", 4)]
)
def test_equals_one_device(name, num_devices):
    data = population()
    mesh = fl.client_mesh(jax.devices()[:num_devices])
    expected = three_rounds(ALGORITHMS[name](**slots(fl.sequential())), data)
    got = three_rounds(ALGORITHMS[name](**slots(fl.sharded(mesh, fl.chunked(2)))), data)
    close(got, expected)


@four
@pytest.mark.parametrize("inner", [fl.vmapped(), fl.auto()], ids=lambda s: s.name)
def test_any_inner_strategy(inner):
    data = population()
    expected = three_rounds(ALGORITHMS["scaffold"](**slots(fl.sequential())), data)
    strategy = fl.sharded(fl.client_mesh(), inner)
    close(three_rounds(ALGORITHMS["scaffold"](**slots(strategy)), data), expected)


@four
def test_client_table_may_be_sharded_and_data_replicated():
    data = population()
    mesh = fl.client_mesh(jax.devices()[:2])  # the table's ten rows go into two
    algo = ALGORITHMS["scaffold"](**slots(fl.sharded(mesh)))
    expected = three_rounds(ALGORITHMS["scaffold"](**slots(fl.sequential())), data)
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh)
    rows = NamedSharding(mesh, PartitionSpec("clients"))
    state = state._replace(clients=jax.device_put(state.clients, rows))
    close(three_rounds(algo, fl.replicate(data, mesh), state), expected)


@four
def test_run_and_its_resume(tmp_path):
    data = population()
    algo = ALGORITHMS["scaffold"](**slots(fl.sharded(fl.client_mesh())))
    more = {"every": 2, "progress": False, "output_dir": tmp_path}
    init = lambda: algo.init(KEY, jnp.zeros(3), data)  # noqa: E731
    straight, _ = fl.run(algo, KEY, init(), data, num_rounds=6, every=2, progress=False)
    fl.run(algo, KEY, init(), data, num_rounds=4, **more)
    resumed, _ = fl.run(algo, KEY, init(), data, num_rounds=6, resume=True, **more)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((straight, resumed)))


@four
def test_no_collective_inside_the_local_loops():
    data = population()
    algo = ALGORITHMS["fedavg"](**slots(fl.sharded(fl.client_mesh(), fl.sequential())))
    state = algo.init(KEY, jnp.zeros(3), data)
    text = jax.jit(algo.round).lower(KEY, state, data).compile().as_text()
    computations = text.split("\n\n")
    loops = [line for line in text.splitlines() if " while(" in line]
    bodies = {line.split("body=%")[1].split(",")[0].split(")")[0] for line in loops}
    collectives = ("all-reduce", "all-gather", "collective-permute", "all-to-all")
    inside = [
        block
        for block in computations
        if any(block.lstrip("%").startswith(body) for body in bodies)
        and any(name in block for name in collectives)
    ]
    assert bodies
    assert "all-reduce" in text
    assert not inside


# -- on any machine -------------------------------------------------------------------------


@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_shares_of_work_are_equal_to_one_client(num_devices):
    rng = np.random.default_rng(num_devices)
    for _ in range(20):
        size = int(rng.integers(1, 40))
        steps = rng.integers(0, 1000, size)
        mask = rng.random(size) < 0.8
        steps = np.where(mask, steps, 0)
        places = jnp.arange(size, dtype=jnp.int32)
        work = Work(places, places, places, places, *map(jnp.asarray, (steps, steps, mask)))
        dealt = jax.device_get(deal(work, num_devices))
        share = -(-size // num_devices)
        assert dealt.mask.shape == (share * num_devices,)
        # Everyone who takes part is dealt exactly once, with what is his.
        np.testing.assert_array_equal(np.sort(dealt.slots[dealt.mask]), np.flatnonzero(mask))
        np.testing.assert_array_equal(dealt.num_steps[dealt.mask], steps[dealt.slots[dealt.mask]])
        totals = np.where(dealt.mask, dealt.num_steps, 0).reshape(num_devices, share).sum(1)
        assert totals.max() - totals.min() <= steps.max()


def test_bad_meshes_are_named():
    with pytest.raises(TypeError, match="client_mesh"):
        fl.sharded(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="clients"):
        fl.sharded(Mesh(np.asarray(jax.devices()[:1]), ("data",)))
    with pytest.raises(TypeError, match="inner"):
        fl.sharded(fl.client_mesh(), fl.vmapped)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() >= 4, reason="this is that process")
def test_with_four_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed, 1 skipped" in done.stdout
