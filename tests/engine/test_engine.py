"""Strategies agree, masks leave no trace, seeds differ and states keep their shapes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ragged_clients import PARAMS, STRATEGIES, close, cohort, ragged, regression, same

import fedjax_lite as fl

KEY = jax.random.key(0)


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


@pytest.mark.sample(1)
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


@pytest.mark.sample(3)
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
