"""Strategies agree, batches visit every example once, masks leave no trace, memory is O(lanes)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.choose import choose, explain, padded_steps, planned_steps

STRATEGIES = {
    "vmapped": fl.vmapped(),
    "chunked2": fl.chunked(2),
    "chunked3": fl.chunked(3),
    "sequential": fl.sequential(),
    "auto": fl.auto(),
}
KEY = jax.random.key(0)
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2])


close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
same = chex.assert_trees_all_equal


def cohort(ids, mask=None):
    mask = np.ones(len(ids), bool) if mask is None else mask
    return fl.Cohort(jnp.asarray(ids, jnp.int32), jnp.asarray(mask))


# -- a stateful client and a stateful uplink --------------------------------------------------


def regression(w, e, key):
    """Noise from the batch's key, so that keys, too, must agree."""
    noise = 0.01 * jax.random.normal(key, e["y"].shape)
    return 0.5 * (e["x"] @ w["w"] + w["b"] + noise - e["y"]) ** 2


def stateful_client(loss):
    """Local SGD pulled by a velocity that each client keeps between rounds; random start."""
    gradient = fl.mean_grad(loss)

    def init(params):
        return {"velocity": jax.tree.map(jnp.zeros_like, params), "visits": jnp.int32(0)}

    def start(key, row, broadcast, info):
        jitter = 0.01 * jax.random.normal(key, broadcast["w"].shape)
        return {**broadcast, "w": broadcast["w"] + jitter}, row, info, jnp.float32(0)

    def step(broadcast, carry, batch):
        params, row, info, total = carry
        value, grad = gradient(params, batch)
        velocity = jax.tree.map(lambda v, g: 0.7 * v + g, row["velocity"], grad)
        params = jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity)
        return params, {**row, "velocity": velocity}, info, total + value

    def finish(broadcast, carry):
        params, row, info, total = carry
        value = jax.tree.map(jnp.subtract, broadcast, params)
        weight = jnp.where(info.num_steps > 0, info.size, 0).astype(jnp.float32)
        return {**row, "visits": row["visits"] + 1}, fl.Message(value, weight), {"total": total}

    return fl.ClientUpdate(init, start, step, finish)


def leaky_uplink():
    """Sends half of what it holds, keeps the rest, adds keyed noise."""

    def update(key, state, value):
        held = jax.tree.map(jnp.add, state, value)
        noise = 1e-3 * jax.random.normal(key)
        return jax.tree.map(lambda x: x / 2, held), jax.tree.map(lambda x: x / 2 + noise, held)

    return fl.Transform(lambda value: jax.tree.map(jnp.zeros_like, value), update)


def ragged(poison=None, poisoned=()):
    """Eight clients, one empty, shuffled rows; built directly, so that it may hold NaN."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(8), SIZES))
    x = rng.normal(size=(len(owners), 4)).astype(np.float32)
    y = rng.normal(size=len(owners)).astype(np.float32)
    if poison is not None:
        hit = np.isin(owners, poisoned)
        x[hit], y[hit] = poison, poison
    return FederatedDataset(
        examples={"x": jnp.asarray(x), "y": jnp.asarray(y), "i": jnp.arange(len(owners))},
        offsets=jnp.asarray(np.concatenate([[0], np.cumsum(SIZES)]), jnp.int32),
        order=jnp.asarray(np.argsort(owners, kind="stable"), jnp.int32),
        max_client_size=12,
    )


PARAMS = {"w": jnp.array([0.1, -0.2, 0.3, 0.4]), "b": jnp.array(0.5)}


def variable_epochs(key, client):
    """Zero to three epochs, drawn anew for every client and round."""
    return jax.random.randint(key, (), 0, 4)


@pytest.fixture(scope="module")
def algorithms():
    return {
        name: fl.federated_algorithm(
            stateful_client(regression),
            plan=fl.Plan(batch_size=3, epochs=variable_epochs),
            sampler=fl.uniform(6),
            server=fl.optimizer_server(optax.sgd(0.8, momentum=0.5)),
            uplink=leaky_uplink(),
            strategy=strategy,
        )
        for name, strategy in STRATEGIES.items()
    }


COHORTS = [
    cohort([0, 1, 2, 3, 4, 5]),
    cohort([6, 3, 1, 7, 0, 2], [True, False, True, True, True, False]),
    cohort([5, 4, 3, 2, 1, 0], [False] * 6),
    cohort([7, 0, 0, 0, 0, 0], [True] + [False] * 5),
    cohort([3, 6, 0, 5, 2, 7]),
]


def play(algo, data, cohorts=COHORTS, seed=0):
    key = jax.random.key(seed)
    state = algo.init(key, PARAMS, data)
    history = []
    for one in cohorts:
        state, metrics = algo.round(key, state, data, one)
        history.append((state, metrics))
    return history


@pytest.fixture(scope="module")
def reference(algorithms):
    return play(algorithms["vmapped"], ragged())


# -- strategies agree -------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "vmapped"])
def test_strategies_agree(algorithms, reference, name):
    for (state, metrics), (expected, other) in zip(play(algorithms[name], ragged()), reference):
        close(state, expected)
        close(metrics, other)


def test_the_comparison_is_not_vacuous(reference):
    final = reference[-1][0]
    assert float(abs(final.server.params["w"] - PARAMS["w"]).max()) > 1e-2
    # A visit is one in which the client did a step: some draw 0 epochs, client 1 has no data.
    visits = np.asarray(final.clients["visits"])
    there = np.sum(
        [np.isin(np.arange(8), np.asarray(c.ids)[np.asarray(c.mask)]) for c in COHORTS], 0
    )
    assert (visits <= there).all()
    assert visits[1] == 0
    assert there.sum() - there[1] > visits.sum() > 8
    steps = [int(metrics["num_steps"]) for _, metrics in reference]
    assert steps[2] == 0
    assert len(set(steps)) > 2
    chex.assert_tree_all_finite((final.server, final.clients))


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_of_the_absent_are_unchanged_bit_for_bit(algorithms, name):
    algo, data = algorithms[name], ragged()
    state = algo.init(KEY, PARAMS, data)
    for one in COHORTS:
        new, _ = algo.round(KEY, state, data, one)
        present = set(np.asarray(one.ids)[np.asarray(one.mask)].tolist())
        absent = [i for i in range(8) if i not in present]
        for table, before in ((new.clients, state.clients), (new.uplink, state.uplink)):
            same(
                jax.tree.map(lambda leaf: leaf[np.array(absent, int)], table),  # noqa: B023
                jax.tree.map(lambda leaf: leaf[np.array(absent, int)], before),  # noqa: B023
            )
        visits = np.asarray(new.clients["visits"] - state.clients["visits"])
        # Who does no step leaves its row as it was, all of it.
        before, after = (np.asarray(s.clients["velocity"]["w"]) for s in (state, new))
        assert visits.tolist() == (before != after).any(1).astype(int).tolist()
        assert set(np.flatnonzero(visits)) <= present - {1}
        state = new


@pytest.mark.parametrize("name", STRATEGIES)
def test_slots_may_be_permuted(algorithms, reference, name):
    rng = np.random.default_rng(4)
    turned = []
    for one in COHORTS:
        order = rng.permutation(6)
        turned.append(cohort(np.asarray(one.ids)[order], np.asarray(one.mask)[order]))
    for (state, metrics), (expected, other) in zip(
        play(algorithms[name], ragged(), turned), reference
    ):
        close(state, expected)
        close(metrics, other)


@pytest.mark.parametrize("name", STRATEGIES)
def test_masked_clients_with_nan_data_have_exactly_no_effect(algorithms, name):
    """Clients 3 and 2 are masked in the second cohort; 4 and 5 are not even in it."""
    for bad in (np.nan, np.inf):
        poisoned = play(algorithms[name], ragged(bad, [2, 3, 4, 5]), COHORTS[1:3])
        clean = play(algorithms[name], ragged(0.0, [2, 3, 4, 5]), COHORTS[1:3])
        for (state, metrics), (expected, other) in zip(poisoned, clean):
            same(state, expected)
            same(metrics, other)
            assert np.isfinite(state.server.params["w"]).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_client_does_the_same_whoever_else_takes_part(algorithms, name):
    algo, data = algorithms[name], ragged()
    state = algo.init(KEY, PARAMS, data)
    rows = []
    for ids, mask in (
        ([3, 0, 0, 0, 0, 0], [True] + [False] * 5),
        ([0, 1, 2, 3, 6, 7], None),
        ([5, 4, 6, 7, 0, 3], [True, False, False, True, True, True]),
    ):
        new, _ = algo.round(KEY, state, data, cohort(ids, mask))
        rows.append(jax.tree.map(lambda leaf: leaf[3], (new.clients, new.uplink)))
    close(rows[1], rows[0])
    close(rows[2], rows[0])


def test_two_seeds_differ_and_one_seed_repeats_bit_for_bit(algorithms):
    """Defects 15 and 16: sampling and batches are functions of the seed."""
    algo, data = algorithms["chunked2"], ragged()
    runs = []
    for seed in (1, 1, 2):
        key = jax.random.key(seed)
        state = algo.init(key, PARAMS, data)
        for _ in range(2):
            state, _ = algo.round(key, state, data)
        runs.append(state)
    same(runs[0], runs[1])
    assert runs[0].clients["visits"].tolist() != runs[2].clients["visits"].tolist()
    assert float(abs(runs[0].server.params["w"] - runs[2].server.params["w"]).max()) > 0


def test_state_keeps_structure_shapes_and_dtypes(algorithms):
    algo, data = algorithms["chunked2"], ragged()
    state = algo.init(KEY, PARAMS, data)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    new, _ = algo.round(KEY, state, data, COHORTS[0])
    newer, _ = algo.round(KEY, new, data, COHORTS[0])
    assert describe(new) == describe(newer)
    assert describe(state) == describe(new)


def test_amounts_below_zero_are_no_work(algorithms):
    """A function of the key may return anything; a negative count must mean the same everywhere."""
    data = ragged()
    plan = fl.Plan(batch_size=None, steps=lambda key, client: jnp.where(client % 2 == 0, -4, 2))
    results = []
    for name in ("vmapped", "chunked2"):
        algo = fl.federated_algorithm(
            stateful_client(regression),
            plan=plan,
            sampler=fl.everyone(),
            server=fl.optimizer_server(optax.sgd(1.0)),
            strategy=STRATEGIES[name],
        )
        one = cohort([0, 1, 2, 3, 4, 5], [True] * 5 + [False])
        results.append(algo.round(KEY, algo.init(KEY, PARAMS, data), data, one))
    (state, metrics), (expected, other) = results
    assert int(metrics["num_steps"]) == 2  # client 3 alone; 1 has no data, 5 is masked
    close(state, expected)
    close(metrics, other)


# -- which examples a client sees -------------------------------------------------------------


MAX_STEPS = 16


def recorder(batch_size):
    """A client whose row records the examples and the key word of each of its steps."""

    def init(params):
        return {
            "seen": jnp.full((MAX_STEPS, batch_size), -2, jnp.int32),
            "word": jnp.zeros(MAX_STEPS, jnp.uint32),
        }

    def start(key, row, broadcast, info):
        return init(None), jnp.int32(0)

    def step(broadcast, carry, batch):
        log, t = carry
        seen = jnp.where(batch.mask, batch.examples["i"], -1)
        log = {
            "seen": log["seen"].at[t].set(seen),
            "word": log["word"].at[t].set(jax.random.bits(batch.key, dtype=jnp.uint32)),
        }
        return log, t + 1

    def finish(broadcast, carry):
        return carry[0], fl.Message(jax.tree.map(jnp.zeros_like, broadcast), jnp.float32(1)), {}

    return fl.ClientUpdate(init, start, step, finish)


def recorded(plan, rounds=2, seeds=(0, 1), strategy=None, cohorts=(None,)):
    """rows[seed][round], each {"seen": [N, T, B], "word": [N, T]}."""
    data = ragged()
    width = data.max_client_size if plan.batch_size is None else plan.batch_size
    algo = fl.federated_algorithm(
        recorder(width),
        plan=plan,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )
    out = []
    for seed in seeds:
        key = jax.random.key(seed)
        state = algo.init(key, PARAMS, data)
        logs = []
        for r in range(rounds):
            state, _ = algo.round(key, state, data, cohorts[r % len(cohorts)])
            logs.append(jax.tree.map(np.asarray, state.clients))
        out.append(logs)
    return out


def epochs_of(log, client, batch_size, num_epochs):
    """The examples of each epoch in order, after the checks of shape and padding."""
    n = SIZES[client]
    per_epoch = -(-n // batch_size)
    seen = log["seen"][client]
    assert (seen[: num_epochs * per_epoch] != -2).all()
    assert (seen[num_epochs * per_epoch :] == -2).all(), "more steps than planned"
    orders = []
    for e in range(num_epochs):
        block = seen[e * per_epoch : (e + 1) * per_epoch].ravel()
        assert (block[:n] >= 0).all(), "padding before the end of the epoch"
        assert (block[n:] == -1).all()
        orders.append(block[:n].tolist())
    return orders


def owned(client):
    data = ragged()
    low, high = int(data.offsets[client]), int(data.offsets[client + 1])
    return sorted(np.asarray(data.order)[low:high].tolist())


@pytest.mark.parametrize("batch_size", [3, 12])
def test_every_example_exactly_once_an_epoch_in_a_new_order(batch_size):
    """Sizes 7, 0, 3, 12, 1, 5, 9, 2: some divide, some do not. Defects 15 to 17."""
    logs = recorded(fl.Plan(batch_size=batch_size, epochs=3))
    for client in range(8):
        orders = [
            order
            for seed in logs
            for log in seed
            for order in epochs_of(log, client, batch_size, 3)
        ]
        assert len(orders) == 12
        for order in orders:
            assert sorted(order) == owned(client)
        if SIZES[client] >= 7:  # a coincidence has probability 66 / 5040
            assert len(set(map(tuple, orders))) == 12, client


def test_keys_of_batches_are_all_different():
    logs = recorded(fl.Plan(batch_size=3, epochs=3))
    words = [
        word
        for seed in logs
        for log in seed
        for client in range(8)
        for word in log["word"][client, : 3 * -(-SIZES[client] // 3)]
    ]
    assert len(words) == 2 * 2 * 3 * sum(-(-SIZES // 3))
    assert len(set(words)) == len(words)


def test_whole_data_set_batches():
    logs = recorded(fl.Plan(batch_size=None, steps=2), rounds=1, seeds=(0,))[0][0]
    for client in range(8):
        for t in range(2 if SIZES[client] else 0):
            seen = logs["seen"][client, t]
            assert sorted(seen[seen >= 0].tolist()) == owned(client)
        assert (logs["seen"][client, 2 if SIZES[client] else 0 :] == -2).all()


def test_steps_may_stop_within_an_epoch_and_amounts_may_be_per_client():
    steps = np.array([0, 5, 1, 3, 4, 2, 7, 1])
    log = recorded(fl.Plan(batch_size=3, steps=steps), rounds=1, seeds=(0,))[0][0]
    for client in range(8):
        done = (log["seen"][client, :, 0] != -2).sum()
        assert done == (steps[client] if SIZES[client] else 0)
    first = log["seen"][3, :3].ravel()
    assert len(set(first.tolist())) == 9  # 3 of 4 batches of 12 examples: no repetition
    # Client 6: 9 examples, 3 batches an epoch, 7 steps: two whole epochs and a batch.
    seen = log["seen"][6]
    assert sorted(seen[:3].ravel()) == sorted(seen[3:6].ravel()) == owned(6)
    assert len(set(seen[6])) == 3


def test_the_same_batches_under_every_strategy_and_in_every_company():
    plan = fl.Plan(batch_size=4, epochs=2)
    alone = cohort([3, 0, 0, 0, 0, 0, 0, 0], [True] + [False] * 7)
    whole = recorded(plan, 2, (0,), STRATEGIES["vmapped"], (cohort(np.arange(8)),))[0]
    other = recorded(plan, 2, (0,), STRATEGIES["chunked3"], (cohort(np.arange(8)[::-1]), alone))[0]
    same(whole[0], other[0])
    same(jax.tree.map(lambda x: x[3], whole[1]), jax.tree.map(lambda x: x[3], other[1]))


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
