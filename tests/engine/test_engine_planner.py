"""Planned and padded steps, what auto() chooses, one trace for all rounds, memory O(lanes)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ragged_clients import PARAMS, SIZES, close, ragged, regression

import fedjax_lite as fl
from fedjax_lite.engine.choose import choose, explain, padded_steps, planned_steps

KEY = jax.random.key(0)


# -- numbers of the planner -------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        fl.Plan(batch_size=3),
        fl.Plan(batch_size=None, epochs=4),
        fl.Plan(batch_size=5, epochs=np.arange(8)),
        fl.Plan(batch_size=5, steps=np.arange(8)[::-1].copy()),
        fl.Plan(batch_size=1, steps=6),
    ],
)
def test_planned_steps_are_those_of_the_plan(plan):
    ids = jnp.arange(8)
    real = jax.vmap(lambda i, n: plan.num_steps(KEY, i, n))(ids, jnp.asarray(SIZES))
    assert real.dtype == jnp.int32
    assert planned_steps(plan, SIZES).tolist() == real.tolist()


def test_planned_steps_by_hand():
    assert planned_steps(fl.Plan(batch_size=3, epochs=2), SIZES).tolist() == [
        2 * -(-int(n) // 3) for n in SIZES
    ]


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 8, 100])
def test_padded_steps_by_brute_force(lanes):
    rng = np.random.default_rng(lanes)
    for _ in range(20):
        steps = rng.integers(0, 30, rng.integers(1, 12))
        width = min(lanes, len(steps))
        queue = sorted(steps.tolist(), reverse=True)
        expected = sum(max(queue[i : i + width]) * width for i in range(0, len(queue), width))
        assert padded_steps(steps, lanes) == expected
        assert expected <= steps.sum() + width * steps.max()


def stub(sizes):
    owners = np.repeat(np.arange(len(sizes)), sizes)
    return fl.data.from_arrays({"y": np.zeros(len(owners))}, owners, num_clients=len(sizes))


@pytest.mark.parametrize(
    ("shape", "sizes", "platform", "size", "lanes"),
    [
        ((3, 3, 8, 8), [10] * 20, "cpu", 10, 1),
        ((2048, 2048), [10] * 20, "cpu", 10, 1),
        ((256, 257), [10] * 20, "cpu", 10, 1),
        ((256, 256), [10] * 20, "cpu", 10, 5),
        ((100, 10), [10] * 20, "cpu", 10, 5),
        ((100, 10), [10] * 20, "cpu", 3, 3),
        ((100, 10), [1] * 19 + [100], "cpu", 10, 1),
        ((100, 10), [10] * 20, "gpu", 10, 10),
        ((100, 10), [1] * 19 + [100], "gpu", 16, 2),
        ((100, 10), [1] * 19 + [100], "tpu", 4, 1),
    ],
)
def test_choice(shape, sizes, platform, size, lanes):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    choice = choose(params, stub(sizes), size, platform=platform)
    assert choice.num_lanes == lanes
    assert choice.reason.startswith(platform)
    assert choice.lane_bytes == 3 * lanes * int(np.prod(shape)) * 4


def test_explain_says_what_and_why():
    params = {"w": jnp.zeros((100, 10))}
    even = explain(
        params, stub([10] * 20), plan=fl.Plan(batch_size=5), cohort_size=10, platform="cpu"
    )
    assert "5 of 10 clients in lanes" in even
    assert "padded over real steps: 1.000" in even
    uneven = explain(
        params, stub([1] * 19 + [100]), plan=fl.Plan(batch_size=1), cohort_size=20, platform="gpu"
    )
    # Everyone takes part: (100 + 1) * 2 in the first chunk's two lanes ... = 2 * 100 + 9 * 2.
    assert f"padded over real steps: {218 / 119:.3f}" in uneven
    assert "times the mean" in uneven


@pytest.mark.parametrize("size", [0, 21])
def test_explain_checks_the_cohort(size):
    with pytest.raises(ValueError, match="cohort_size"):
        explain({"w": jnp.zeros(3)}, stub([1] * 20), plan=fl.Plan(batch_size=1), cohort_size=size)


# -- compilation and memory -------------------------------------------------------------------


def test_a_round_is_traced_once_over_rounds_schedules_and_seeds():
    """Defect 24."""
    traces = []

    def loss(w, e, key):
        traces.append(1)
        return 0.5 * (w - e["y"]) ** 2

    def data(seed):
        rng = np.random.default_rng(seed)
        owners = rng.permutation(np.repeat(np.arange(4), 5))
        return fl.data.from_arrays({"y": rng.normal(size=20).astype(np.float32)}, owners)

    algo = fl.fedavg(
        loss,
        lambda r: optax.sgd(0.1 * 0.9**r),
        plan=fl.Plan(batch_size=2),
        sampler=fl.uniform(2),
        server_optimizer=fl.server.adam(lambda r: 0.1 / (1 + r)),
    )
    state = algo.init(KEY, jnp.array(0.0), data(0))
    state, _ = algo.round(KEY, state, data(0))
    first = len(traces)
    assert first > 0
    for r in range(4):
        state, _ = algo.round(jax.random.key(r), state, data(r))
    assert len(traces) == first
    python_float = algo.init(KEY, 0.0, data(0))
    algo.round(KEY, python_float, data(0))
    assert len(traces) == first


def test_rounds_scan_under_jit():
    algo, data = (
        fl.fedavg(
            lambda w, e, key: 0.5 * (w - e["y"]) ** 2,
            optax.sgd(0.1),
            plan=fl.Plan(batch_size=None),
            sampler=fl.uniform(3),
        ),
        ragged(),
    )
    state = algo.init(KEY, jnp.array(0.0), data)
    scanned, _ = jax.jit(
        lambda s, d: jax.lax.scan(lambda s, _: algo.round(KEY, s, d), s, length=3)
    )(state, data)
    for _ in range(3):
        state, _ = algo.round(KEY, state, data)
    close(scanned, state)


NUM_PARAMS = 100_000


def temporary_bytes(strategy, cohort_size):
    data = fl.data.from_arrays({"y": np.zeros(2000, np.float32)}, np.arange(2000) // 2)
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * (w.mean() - e["y"]) ** 2,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=None),
        sampler=fl.uniform(cohort_size),
        strategy=strategy,
    )
    state = algo.init(KEY, jnp.zeros(NUM_PARAMS), data)
    compiled = jax.jit(algo.round).lower(KEY, state, data).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_lanes_not_with_the_cohort():
    small, large = temporary_bytes(fl.chunked(2), 10), temporary_bytes(fl.chunked(2), 1000)
    model = 4 * NUM_PARAMS
    assert small < 16 * model
    assert large - small < 1000 * 256  # the work list: ids, keys, metrics of a thousand clients
    assert large - small < model
    # The measure can fail: all lanes at once hold a thousand models.
    assert temporary_bytes(fl.vmapped(), 1000) > 900 * model


def test_init_does_not_alias_the_callers_parameters():
    """Donated state must not take the caller's arrays along, whatever a slot keeps of them."""
    keeps = fl.mean()._replace(init_state=lambda params: params)
    server = fl.optimizer_server(optax.sgd(1.0))._replace(init=lambda params, population: params)
    client = fl.local_sgd(regression, optax.sgd(0.1))._replace(init=lambda params: params)
    algo = fl.federated_algorithm(
        client,
        plan=fl.Plan(batch_size=2),
        sampler=fl.everyone(),
        server=server._replace(broadcast=lambda server: server),
        aggregator=keeps,
    )
    params = jax.tree.map(jnp.array, PARAMS)
    state = algo.init(KEY, params, ragged())
    pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    for name, part in state._asdict().items():
        held = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(part)}
        assert not held & pointers, name
