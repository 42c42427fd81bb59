"""Centralised training and clients on their own, against numpy loops and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.baselines import (
    centralised,
    client_models,
    gap_to_baseline,
    local_only,
    pooled,
)

A, B, N, ETA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05
P = N / N.sum()


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def global_loss(x):
    return P @ (0.5 * A * (x - B) ** 2)


def shuffled_q2(seed=0):
    owners = np.random.default_rng(seed).permutation(np.repeat([0, 1], N))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def models(algo, data, num_rounds, x=0.0):
    state = algo.init(jax.random.key(0), jnp.array(x), data)
    found = []
    for _ in range(num_rounds):
        state, _ = algo.round(jax.random.key(0), state, data)
        found.append(float(state.server.params))
    return state, np.array(found)


# -- pooled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
def test_pooled_holds_every_example_once_and_copies_none(shuffled):
    owners = np.array([2, 0, 2, 1, 2]) if shuffled else np.array([0, 0, 1, 2, 2])
    data = fl.data.from_arrays({"x": np.arange(5.0)}, owners, num_clients=4)
    union = pooled(data)
    assert (union.num_clients, union.sizes.tolist(), union.max_client_size) == (1, [5], 5)
    assert union.examples["x"] is data.examples["x"]
    assert sorted(union.client(0)["x"].tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(TypeError, match="FederatedDataset"):
        pooled({"x": np.arange(5.0)})


# -- centralised ----------------------------------------------------------------------------


def test_full_batches_on_the_union_are_gradient_descent():
    algo = centralised(quadratic, optax.sgd(ETA), plan=fl.Plan(batch_size=None))
    _, got = models(algo, shuffled_q2(), 10)
    # dF/dx = 1.75 (x - 5/7)
    np.testing.assert_allclose(got, 5 / 7 * (1 - 0.9125 ** np.arange(1, 11)), atol=1e-12)


def test_minibatches_on_the_union_are_the_loop_over_these_batches():
    """Each example is its own coordinate, so the model shows which examples made which step."""
    size, batch = 25, 10
    owners = np.random.default_rng(0).integers(0, 4, size)
    data = fl.data.from_arrays({"i": np.arange(size)}, owners, num_clients=4)
    rates = np.array([1.0, 100.0, 10000.0])
    algo = centralised(
        lambda w, e, key: w[e["i"]],
        optax.sgd(lambda step: jnp.asarray(rates)[step]),
        plan=fl.Plan(batch_size=batch),
    )
    state = algo.init(jax.random.key(0), jnp.zeros(size), data)
    got = -np.asarray(algo.round(jax.random.key(0), state, data)[0].server.params)
    # Every example once: ten with rate 1 / 10, ten with 100 / 10, and five with 10000 / 5.
    np.testing.assert_allclose(np.sort(got), np.repeat(rates / [10, 10, 5], [10, 10, 5]))
    first = set(np.flatnonzero(got < 1).tolist())
    assert len({owners[i] for i in first}) > 1, "batches are mixed over clients"


def test_momentum_lives_on_between_rounds_or_restarts():
    data, plan = shuffled_q2(), fl.Plan(batch_size=None, steps=3)
    for keep in (True, False):
        algo = centralised(quadratic, optax.sgd(ETA, momentum=0.9), plan=plan, keep_optimizer=keep)
        _, got = models(algo, data, 4)
        x, v, expected = 0.0, 0.0, []
        for _ in range(4):
            v = v if keep else 0.0
            for _ in range(3):
                v = 0.9 * v + 1.75 * (x - 5 / 7)
                x -= ETA * v
            expected.append(x)
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_restarted_it_is_fedavg_with_one_client():
    data, optimizer, plan = shuffled_q2(), optax.adam(0.01), fl.Plan(batch_size=7)
    algo = centralised(quadratic, optimizer, plan=plan, keep_optimizer=False)
    averaging = fl.fedavg(quadratic, optimizer, plan=plan, sampler=fl.everyone())
    _, got = models(algo, data, 3)
    _, expected = models(averaging, pooled(data), 3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


def test_centralised_takes_no_cohort():
    data = shuffled_q2()
    algo = centralised(quadratic, optax.sgd(ETA), plan=fl.Plan(batch_size=None))
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    with pytest.raises(ValueError, match="no cohort"):
        algo.round(jax.random.key(0), state, data, fl.Cohort(jnp.arange(1), jnp.ones(1, bool)))


# -- local only -----------------------------------------------------------------------------


def test_local_only_reaches_the_local_optima():
    algo = local_only(
        quadratic, optax.sgd(ETA), plan=fl.Plan(batch_size=None, steps=5), sampler=fl.everyone()
    )
    state, _ = models(algo, shuffled_q2(), 2)
    np.testing.assert_allclose(client_models(state), B + (1 - ETA * A) ** 10 * (0 - B), atol=1e-12)
    state, served = models(algo, shuffled_q2(), 150)
    np.testing.assert_allclose(client_models(state), B, atol=1e-12)
    np.testing.assert_allclose([global_loss(x) for x in B], [4.5, 3.375], atol=1e-12)
    got = [global_loss(x) for x in np.asarray(client_models(state))]
    np.testing.assert_allclose(got, [4.5, 3.375], atol=1e-9)
    assert (served == 0).all(), "the server's model is the initial one"


def test_nothing_is_sent_and_who_stays_away_stays_as_he_is():
    algo = local_only(
        quadratic,
        optax.sgd(ETA, momentum=0.9),
        plan=fl.Plan(batch_size=None),
        sampler=fl.everyone(),
    )
    data = shuffled_q2()
    state = algo.init(jax.random.key(0), jnp.array(0.5), data)
    cohort = fl.Cohort(jnp.arange(2, dtype=jnp.int32), jnp.array([False, True]))
    x, v = 0.5, 0.0
    for _ in range(3):
        state, metrics = algo.round(jax.random.key(0), state, data, cohort)
        v = 0.9 * v + 4 * (x - 2)
        x -= ETA * v
    np.testing.assert_allclose(client_models(state), [0.5, x], atol=1e-12)
    assert float(metrics["uplink_bits"]) == 0.0


def test_restarted_optimizers():
    algo = local_only(
        quadratic,
        optax.sgd(ETA, momentum=0.9),
        plan=fl.Plan(batch_size=None),
        sampler=fl.everyone(),
        keep_optimizer=False,
    )
    state, _ = models(algo, shuffled_q2(), 3)
    np.testing.assert_allclose(client_models(state), B + (1 - ETA * A) ** 3 * -B, atol=1e-12)


@pytest.mark.sample(1, of="laws that test_laws.py leaves out")
@pytest.mark.slow
def test_local_only_obeys_the_laws_that_need_no_shared_model():
    def make(rate, sampler, strategy):
        return local_only(
            testing.loss,
            optax.sgd(rate, momentum=0.9),
            plan=fl.Plan(batch_size=2),
            sampler=sampler,
            strategy=strategy,
        )

    laws = [
        "structure_is_stable",
        "scan_equals_calls",
        "strategies_agree",
        "keys_are_used_once",
        "slots_do_not_matter",
        "masked_clients_leave_no_trace",
        "empty_cohort_changes_nothing",
        "caller_keeps_its_arrays",
    ]
    with jax.enable_x64(False):
        testing.check_algorithm(make, laws=laws)


def test_client_models_of_another_algorithm():
    algo = fl.fedavg(quadratic, optax.sgd(ETA), plan=fl.Plan(batch_size=5), sampler=fl.everyone())
    state = algo.init(jax.random.key(0), jnp.array(0.0), shuffled_q2())
    with pytest.raises(TypeError, match="local_only"):
        client_models(state)


# -- the gap --------------------------------------------------------------------------------


def test_gap_of_fedavg_to_centralised_on_q2():
    """FedAvg's fixed point loses 1.75 / 2 * error^2 against the optimum."""
    data, plan = shuffled_q2(), fl.Plan(batch_size=None, steps=5)
    histories = []
    for algo in (
        fl.fedavg(quadratic, optax.sgd(ETA), plan=plan, sampler=fl.everyone()),
        centralised(quadratic, optax.sgd(ETA), plan=plan),
    ):
        state = algo.init(jax.random.key(0), jnp.array(0.0), data)
        _, history = fl.run(
            algo,
            jax.random.key(0),
            state,
            data,
            num_rounds=80,
            every=40,
            progress=False,
            evaluate=lambda state: {"global_loss": float(global_loss(float(state.server.params)))},
        )
        histories.append(history)
    gaps = gap_to_baseline(*histories, metrics=["global_loss"])
    s = 1 - (1 - ETA * A) ** 5
    error = (P * s * B).sum() / (P * s).sum() - 5 / 7
    assert gaps[-1]["round"] == 80
    assert abs(gaps[-1]["global_loss_gap"] - 0.5 * 1.75 * error**2) < 1e-9


def test_gap_matches_rounds_by_number():
    mine = [{"round": r, "test_loss": r / 10, "seconds": 1.0} for r in (1, 2, 4)]
    theirs = [{"round": r, "test_loss": 0.1, "test_accuracy": 0.5} for r in (2, 3, 4)]
    gaps = gap_to_baseline(mine, theirs)
    assert [sorted(gap) for gap in gaps] == [["round", "test_loss_gap"]] * 2
    np.testing.assert_allclose([gap["test_loss_gap"] for gap in gaps], [0.1, 0.3])
    with pytest.raises(ValueError, match="share no round"):
        gap_to_baseline(mine, [{"round": 9}])
    with pytest.raises(ValueError, match="test_accuracy"):
        gap_to_baseline(mine, theirs, metrics=["test_accuracy"])
