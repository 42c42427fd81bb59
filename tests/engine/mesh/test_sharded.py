"""sharded(): equal results on several devices, equal shares of work.

A JAX process has the devices that it started with, so `test_with_four_devices` starts a process of
four, which runs what skips here, and what other files have for several devices, too.
"""

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
from on_devices import (
    ALGORITHMS,
    CHUNKED,
    close,
    collectives,
    compiled_round,
    four,
    on_one_device,
    one,
    population,
    regression,
    sharded_algorithm,
    slots,
    three_rounds,
)

import fedjax_lite as fl
from fedjax_lite.engine.mesh.sharded import deal
from fedjax_lite.engine.program import Work
from fedjax_lite.testing import registry
from fedjax_lite.testing.algorithm_laws import FOUR as OF_FOUR
from fedjax_lite.testing.algorithm_laws import build, problem, rounds, start

KEY = jax.random.key(0)


# -- several devices ------------------------------------------------------------------------


@pytest.mark.sample(1)
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
        state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh=mesh)
    close(three_rounds(algo, data, state), expected)


@pytest.mark.sample(1)
@four
@pytest.mark.parametrize("inner", [fl.vmapped(), fl.auto()], ids=lambda s: s.name)
def test_any_inner_strategy(inner):
    data = population()
    expected = on_one_device("scaffold")
    algo, mesh = sharded_algorithm("scaffold", 4, inner)
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh=mesh)
    close(three_rounds(algo, data, state), expected)


@four
def test_client_table_may_be_sharded_and_data_replicated():
    data = population()
    algo, mesh = sharded_algorithm("scaffold", 2)  # the table's ten rows go into two
    expected = on_one_device("scaffold")
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh=mesh)
    rows = NamedSharding(mesh, PartitionSpec("clients"))
    state = state._replace(clients=jax.device_put(state.clients, rows))
    close(three_rounds(algo, fl.replicate(data, mesh=mesh), state), expected)


@four
def test_run_and_its_resume(tmp_path):
    data = population()
    algo, mesh = sharded_algorithm("scaffold", 4)
    more = {"every": 2, "progress": False, "output_dir": tmp_path}
    init = lambda: fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh=mesh)  # noqa: E731
    straight, _ = fl.run(algo, KEY, init(), data, num_rounds=6, every=2, progress=False)
    fl.run(algo, KEY, init(), data, num_rounds=4, **more)
    resumed, _ = fl.run(algo, KEY, init(), data, num_rounds=6, resume=True, **more)
    chex.assert_trees_all_equal(*jax.device_get((straight, resumed)))


@four
def test_no_collective_inside_the_local_loops():
    data = population()
    algo = ALGORITHMS["fedavg"](**slots(fl.sharded(fl.client_mesh(), fl.sequential())))
    found, inside = collectives(compiled_round(algo, algo.init(KEY, jnp.zeros(3), data), data))
    assert inside
    assert any("all-reduce" in line for lines in found.values() for line in lines)
    assert not found.keys() & inside


@pytest.mark.sample(16)
@four
@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_every_registered_method_is_dealt(name):
    """Traced, not compiled: what closes over arrays of a round is refused inside of a device."""
    mesh = fl.client_mesh()
    whole = NamedSharding(mesh, PartitionSpec())

    def replicated(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    algo = build(registry.ALGORITHMS[name], OF_FOUR, fl.sharded(mesh))
    key, params, data = problem(False, None, None)
    state = jax.eval_shape(lambda: algo.init(key, params, data))
    state, data = jax.tree.map(replicated, (state, data))
    assert "shard_map" in str(jax.jit(algo.round).trace(key, state, data).jaxpr)


@pytest.mark.sample(1)
@four
@pytest.mark.parametrize("name", ["fedbuff", "fedasync"])
def test_asynchronous_rounds_equal_those_of_one_device(name):
    """Messages are weighed by their staleness where they are added, and FedAsync moves them."""
    mesh = fl.client_mesh()
    algo, key, state, data = start(registry.ALGORITHMS[name], strategy=CHUNKED)
    expected = rounds(algo, key, state, data).server.params
    algo, key, state, data = start(registry.ALGORITHMS[name], strategy=fl.sharded(mesh))
    found = rounds(algo, key, *fl.replicate((state, data), mesh=mesh)).server.params
    close(found, expected)


def chosen_by_loss(strategy):
    """Samplers around one another: one learns from losses, a clock, a count of who came."""
    away = fl.arrivals.latency(overhead=fl.arrivals.exponential(1.0))
    learning = fl.selection.oort(6, seconds=np.arange(1.0, 11.0), patience=4.0)
    sampler = fl.selection.counted(fl.clocked(learning, away, keep=4), of="trained")
    return fl.fedavg(**{**slots(strategy), "sampler": sampler}, **TRAINING)


def chosen_in_a_first_pass(strategy):
    """Of four candidates, drawn by their sizes, two train, weighed by how often they are drawn."""
    sampler = fl.selection.importance(4)
    plain = fl.fedavg(**{**slots(strategy), "sampler": sampler}, **TRAINING)
    return fl.selection.power_of_choice(
        fl.selection.unbiased(plain), regression, cohort_size=2, model=lambda sent: sent[0]
    )


TRAINING = {"loss": regression, "client_optimizer": optax.sgd(0.05)}


@pytest.mark.sample(1)
@four
@pytest.mark.parametrize("make", [chosen_by_loss, chosen_in_a_first_pass])
def test_samplers_choose_alike_on_several_devices(make):
    """What devices measured decides who comes: models, counts, clocks and every metric."""
    mesh, data = fl.client_mesh(), population()
    expected = three_rounds(make(CHUNKED), data)
    algo = make(fl.sharded(mesh, CHUNKED))
    state = fl.replicate(algo.init(KEY, jnp.zeros(3), data), mesh=mesh)
    close(three_rounds(algo, fl.replicate(data, mesh=mesh), state), expected)


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
    elsewhere += ("algorithms/personal/test_personal_composed.py::test_several_devices",)
    elsewhere += ("engine/test_phase_splits.py::test_on_devices",)
    elsewhere += ("privacy/test_dp_adaptive.py::test_several_devices_agree",)
    elsewhere += ("evaluate/test_metrics.py::test_populations_on_devices_agree_with_numpy",)
    elsewhere += ("evaluate/test_fine_tuned.py::test_populations_on_devices",)
    elsewhere += ("parties/test_wires_combined.py::test_several_devices",)
    elsewhere += ("parties/test_wires_combined.py::test_columns_on_several_devices",)
    files = ("engine/mesh/test_sharded.py", "engine/mesh/test_sharded_population.py", *elsewhere)
    tests = [str(here / name) for name in files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsp", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    for name in files:
        assert f"PASSED tests/{name}" in done.stdout
    reasons = re.findall(r"^SKIPPED .*: (.*)$", done.stdout, re.MULTILINE)
    assert set(reasons) == {"needs one device"}, done.stdout[-4000:]
