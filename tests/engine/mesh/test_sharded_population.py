"""A population that is split over devices: owners compute, tables and slots stay in place."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from on_devices import (
    ALGORITHMS,
    CHUNKED,
    SIZES,
    close,
    collectives,
    compiled_round,
    four,
    on_one_device,
    one,
    population,
    sequential,
    sharded_algorithm,
    slots,
    three_rounds,
)

import fedjax_lite as fl
from fedjax_lite.engine import imbalance, init_state, place_state, shard_population
from fedjax_lite.run import checkpoint

KEY = jax.random.key(0)


# -- a population that is split over devices --------------------------------------------------


def real_rows(result):
    """A state without the rows behind the last client's, and the metrics beside it."""
    state, metrics = result
    rows = lambda tree: jax.tree.map(lambda leaf: leaf[: len(SIZES)], tree)  # noqa: E731
    return state._replace(clients=rows(state.clients), uplink=rows(state.uplink)), metrics


@pytest.mark.sample(1)
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
    split = shard_population(data, mesh=mesh)
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
    data = shard_population(population(), mesh=mesh)
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
    data = shard_population(population(), mesh=mesh)
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
        split = shard_population(data, mesh=mesh)
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
        split = shard_population(population(), mesh=mesh)
        state = init_state(algo, KEY, jnp.zeros(3), split, mesh=mesh)
        state, _ = fl.run(algo, KEY, state, split, num_rounds=num_rounds, **more)
        assert state.clients.addressable_shards[0].data.shape[0] == -(-len(SIZES) // num_devices)
    straight, data = on_one_device("scaffold")[0], population()
    for _ in range(3):
        straight, _ = sequential("scaffold").round(KEY, straight, data)
    close(real_rows((jax.device_get(state), ())), (jax.device_get(straight), ()))


@four
def test_data_of_another_mesh_are_refused():
    data = shard_population(population(), mesh=fl.client_mesh(jax.devices()[:2]))
    mesh = fl.client_mesh()
    algo = ALGORITHMS["fedavg"](**slots(fl.sharded(mesh)))
    with pytest.raises(ValueError, match="split over 2 devices, but the mesh has 4"):
        algo.round(KEY, algo.init(KEY, jnp.zeros(3), data), data)


def one_device():
    return fl.client_mesh(jax.devices()[:1])


@one
def test_owner_computes_on_one_device():
    data, mesh = population(), one_device()
    expected = on_one_device("scaffold")
    algo = ALGORITHMS["scaffold"](**slots(fl.sharded(mesh)))
    close(
        three_rounds(algo, shard_population(data, mesh=mesh)), expected
    )  # with algo.init as it is


@one
def test_the_three_forms_of_a_population_are_one():
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))  # not client by client
    x = rng.normal(size=(len(owners), 2))
    data = fl.data.from_arrays({"x": x}, owners, num_clients=len(SIZES))
    stored = {"x": x[np.argsort(owners, kind="stable")]}
    load = lambda low, high: {"x": stored["x"][low:high]}  # noqa: E731
    forms = [
        shard_population(data, mesh=one_device()),
        shard_population(stored, mesh=one_device(), sizes=SIZES),
        shard_population(load, mesh=one_device(), sizes=SIZES),
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
        shard_population(x, mesh=mesh)
    with pytest.raises(ValueError, match="left out"):
        shard_population(population(), mesh=mesh, sizes=SIZES)
    with pytest.raises(ValueError, match=r"sum\(sizes\) = 50"):
        shard_population(x, mesh=mesh, sizes=[50])
    with pytest.raises(ValueError, match="non-negative"):
        shard_population(x, mesh=mesh, sizes=[50, -1])
    with pytest.raises(ValueError, match="not all be 0"):
        shard_population(x, mesh=mesh, sizes=[0, 0])
    with pytest.raises(ValueError, match=r"49 examples for \(0, 49\), got 7"):
        shard_population(lambda low, high: {"x": np.zeros(min(7, high))}, mesh=mesh, sizes=[49])
    with pytest.raises(ValueError, match="NaN"):
        shard_population({"x": np.full(49, np.nan)}, mesh=mesh, sizes=[49])
    with pytest.raises(TypeError, match="client_mesh"):
        shard_population(x, mesh=4, sizes=[49])  # pyright: ignore[reportArgumentType]


@one
def test_a_split_population_needs_sharded_and_its_table():
    data, mesh = shard_population(population(), mesh=one_device()), one_device()
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
    assert imbalance(shard_population(data, mesh=one_device()), **everyone) == 1.0
    # Many equal clients: the formula of the docstring, to a third of the excess.
    equal = fl.data.from_arrays({"x": np.zeros(4000)}, np.arange(4000))
    got = imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=400, num_devices=8)
    assert got - 1 == pytest.approx(np.sqrt(2 * np.log(8) * 7 / 400), rel=0.35)
    with pytest.raises(ValueError, match="num_devices"):
        imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=400)
    with pytest.raises(ValueError, match="cohort_size"):
        imbalance(equal, plan=fl.Plan(batch_size=1), cohort_size=4001, num_devices=8)
