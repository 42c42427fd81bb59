"""FedProx and its proximal term against steps and fixed points that can be written down."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.fedprox import WithMu, adaptive_client, adaptive_mu, fedprox
from fedjax_lite.objectives.proximal import proximal
from fedjax_lite.round.server import standing_still

A, B = np.array([1.0, 4.0]), np.array([-1.0, 2.0])
N = np.array([30, 10])
P = N / N.sum()
ETA = 0.05
KEY = jax.random.key


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2_data():
    """`N[i]` copies of (a_i, b_i), shuffled: every minibatch has the exact gradient."""
    owners = np.random.default_rng(0).permutation(np.repeat([0, 1], N))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


@pytest.fixture
def q2():
    with jax.enable_x64(True):
        yield q2_data()


def make(mu, *, steps, rate=ETA, factory=fedprox, **slots):
    """FedProx on Q2 with full batches and everyone."""
    return factory(
        quadratic,
        optax.sgd(rate),
        mu=mu,
        plan=fl.Plan(batch_size=None, steps=steps),
        sampler=fl.everyone(),
        **slots,
    )


def round_from(algo, x, data):
    state = algo.init(KEY(0), jnp.asarray(x), data)
    return float(algo.round(KEY(0), state, data)[0].server.params)


def fixed_point(s, weights=P):
    return (weights * s * B).sum() / (weights * s).sum()


# -- the transform --------------------------------------------------------------------------


def no_half(mu):
    """Planted: the gradient of mu |y - x|^2."""
    return proximal(2 * mu)


def no_square(mu):
    """Planted: the gradient of mu / 2 |y - x|, with the sign of 0 taken as 0."""

    def update(updates, state, params: Any = None, *, anchor, **extra):
        return updates + mu / 2 * jnp.sign(params - anchor), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def against_itself(mu):
    """Planted: the model is compared with itself, so that the term is always zero."""

    def update(updates, state, params: Any = None, *, anchor, **extra):
        return updates + mu * (params - params), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def local_models(transform, num_steps):
    """The clients' models on Q2 from x = 0."""
    tx = optax.chain(transform, optax.sgd(ETA))
    y = anchor = jnp.zeros(2)
    state = tx.init(y)
    for _ in range(num_steps):
        updates, state = tx.update(A * (y - B), state, y, anchor=anchor)
        y = optax.apply_updates(y, updates)
    return np.asarray(y)


def test_two_steps_and_the_wrong_variants(q2):
    np.testing.assert_allclose(local_models(proximal(1.0), 1), [-0.05, 0.4], atol=1e-15)
    right = local_models(proximal(1.0), 2)
    np.testing.assert_allclose(right, [-0.095, 0.7], atol=1e-15)
    np.testing.assert_allclose(local_models(proximal(0.0), 2), [-0.0975, 0.72], atol=1e-15)
    for planted, expected in (
        (no_half, [-0.0925, 0.68]),
        (no_square, [-0.0725, 0.695]),
        (against_itself, [-0.0975, 0.72]),
    ):
        wrong = local_models(planted(1.0), 2)
        np.testing.assert_allclose(wrong, expected, atol=1e-15)
        assert (abs(wrong - right) > 1e-3).all()


def test_step_two_depends_on_mu_and_step_one_does_not(q2):
    one = [local_models(proximal(mu), 1) for mu in (0.0, 0.1, 1.0)]
    two = [local_models(proximal(mu), 2) for mu in (0.0, 0.1, 1.0)]
    np.testing.assert_array_equal(one[0], one[2])
    # mu (y_1 - x) eta, nothing else, is what mu adds to the second step.
    for mu, y in zip((0.1, 1.0), two[1:], strict=True):
        np.testing.assert_allclose(two[0] - y, ETA * mu * one[0], atol=1e-15)


def test_the_gradient_is_that_of_the_penalty_by_differences(q2):
    mu, rng = 0.7, np.random.default_rng(0)
    anchor = {"w": jnp.asarray(rng.normal(size=(2, 2))), "b": jnp.asarray(rng.normal(size=3))}
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), anchor)

    def objective(y):
        gaps = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), y, anchor)
        return jnp.sin(y["w"]).sum() + mu / 2 * sum(jax.tree.leaves(gaps))

    plain = {"w": jnp.cos(params["w"]), "b": jnp.zeros(3)}
    tx = proximal(mu)
    got, _ = tx.update(plain, tx.init(params), params, anchor=anchor)
    for name, leaf in params.items():
        for index in np.ndindex(leaf.shape):
            up = {**params, name: leaf.at[index].add(1e-6)}
            down = {**params, name: leaf.at[index].add(-1e-6)}
            slope = (objective(up) - objective(down)) / 2e-6
            assert abs(got[name][index] - slope) < 1e-8
    # At the anchor itself the term is zero: no norm, no NaN.
    at_anchor, _ = tx.update(plain, tx.init(anchor), anchor, anchor=anchor)
    chex.assert_trees_all_equal(at_anchor, plain)


def test_what_follows_in_the_chain_sees_the_whole_gradient():
    tx = optax.chain(proximal(2.0), optax.clip_by_global_norm(1.0))
    y, anchor = jnp.array([2.0]), jnp.array([0.0])
    assert float(tx.update(jnp.array([0.1]), tx.init(y), y, anchor=anchor)[0][0]) == 1.0


def test_an_array_mu_keeps_half_precision():
    g = jnp.ones(2, jnp.bfloat16)
    got, _ = proximal(jnp.float32(0.5)).update(g, (), 2 * g, anchor=g)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), 1.5)


def test_errors_of_the_transform_name_the_remedy():
    tx, x = proximal(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match=r"anchor must be given.*anchor=x.*local_sgd"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match=r"anchor must be given"):
        optax.chain(tx, optax.sgd(0.1)).update(x, (optax.EmptyState(),) * 2, x)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(x, tx.init(x), anchor=x)
    with pytest.raises(ValueError, match=r"mu must not be negative, got -0\.1"):
        proximal(-0.1)
    with pytest.raises(ValueError, match="mu must not be negative"):
        make(-1.0, steps=1)
    with pytest.raises(TypeError, match="client_optimizer"):
        fedprox(quadratic, optax.sgd, mu=0.1, plan=fl.Plan(batch_size=1), sampler=fl.everyone())


# -- the algorithm --------------------------------------------------------------------------


def test_round_one_and_defect_three(q2):
    for mu, local in ((1.0, [-0.095, 0.7]), (0.0, [-0.0975, 0.72])):
        assert abs(round_from(make(mu, steps=2), 0.0, q2) - P @ local) < 1e-15


def compiled_fixed_points(steps, cases, data, weighting="examples"):
    """Fixed points for several (mu, rate), all out of one compiled program."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one_round(mu, rate, x):
        algo = make(mu, steps=steps, rate=rate, weighting=weighting)
        return algo.round(KEY(0), algo.init(KEY(0), x, data), data)[0].server.params

    found = []
    for mu, rate in cases:
        at_zero, at_one = (float(one_round(mu, rate, jnp.array(x))) for x in (0.0, 1.0))
        found.append(at_zero / (1 - (at_one - at_zero)))
    return found


def test_fixed_points_of_five_steps(q2):
    cases = [(1.0, ETA), (0.1, ETA), (0.0, ETA)]
    got = compiled_fixed_points(5, cases, q2)
    np.testing.assert_allclose(got, [0.4949664995, 0.4931307623, 0.4929637737], atol=5e-11)
    expected = [fixed_point((1 - (1 - rate * (A + mu)) ** 5) * A / (A + mu)) for mu, rate in cases]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_fixed_points_of_the_exact_prox(q2):
    mus = (1.0, 0.1, 10.0)
    got = compiled_fixed_points(700, [(mu, ETA) for mu in mus], q2)
    np.testing.assert_allclose(got, [0.0434782609, -0.2095808383, 0.5348837209], atol=5e-11)
    np.testing.assert_allclose(got, [fixed_point(A / (A + mu)) for mu in mus], atol=1e-12)


def test_fixed_point_of_the_exact_prox_with_uniform_weights(q2):
    got = compiled_fixed_points(700, [(1.0, ETA)], q2, weighting="uniform")
    np.testing.assert_allclose(got, [0.8461538462], atol=5e-11)


def test_large_mu_tends_to_the_optimum_and_its_update_to_zero(q2):
    mus = np.array([1e2, 1e3, 1e4])
    got = compiled_fixed_points(60, [(mu, 0.5 / mu) for mu in mus], q2)
    errors = abs(np.array(got) - 5 / 7)
    np.testing.assert_allclose(errors * mus, errors[-1] * mus[-1], rtol=0.05)  # O(1 / mu)
    assert errors[-1] < 1e-3
    updates = [round_from(make(mu, steps=60, rate=0.5 / mu), 0.0, q2) for mu in mus]
    gradient = (P * A * B).sum()  # to first order the update is minus the gradient at 0, over mu
    np.testing.assert_allclose(updates * mus, [gradient] * 3, rtol=0.1)


@pytest.mark.sample(5, of="reductions to another method")
@pytest.mark.parametrize("sampler", [fl.everyone(), fl.uniform(4)])
def test_mu_zero_is_fedavg_in_every_bit(sampler):
    data, plan = testing.population(), fl.Plan(batch_size=2, epochs=2)
    slots = {"plan": plan, "sampler": sampler, "strategy": fl.chunked(2)}
    optimizer = optax.sgd(0.05, momentum=0.9)
    algos = [
        fl.fedavg(testing.loss, optimizer, **slots),
        fedprox(testing.loss, optimizer, mu=0.0, **slots),
    ]
    states = [algo.init(KEY(0), testing.init_params(KEY(7)), data) for algo in algos]
    for _ in range(3):
        states = [
            algo.round(KEY(0), state, data)[0] for algo, state in zip(algos, states, strict=True)
        ]
    for a, b in zip(*(jax.tree.leaves(s.server.params) for s in states), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    moved = jax.tree.leaves(states[0].server.params)[0]
    assert (moved != jax.tree.leaves(testing.init_params(KEY(7)))[0]).any()


def test_a_schedule_over_rounds(q2):
    algo = fedprox(
        quadratic,
        lambda r: optax.sgd(jnp.where(r == 0, ETA, 0.0)),
        mu=1.0,
        plan=fl.Plan(batch_size=None, steps=2),
        sampler=fl.everyone(),
    )
    state = algo.init(KEY(0), jnp.array(0.0), q2)
    state, _ = algo.round(KEY(0), state, q2)
    assert abs(float(state.server.params) - P @ [-0.095, 0.7]) < 1e-15
    after, _ = algo.round(KEY(0), state, q2)
    assert float(after.server.params) == float(state.server.params)


# -- adaptive mu ----------------------------------------------------------------------------


def feed(server, losses, mask=True):
    """mu after each round with these losses at the broadcast model."""
    state, seen = server.init(jnp.zeros(2), None), []
    cohort = fl.Cohort(jnp.arange(2, dtype=jnp.int32), jnp.array([mask, False]))
    for loss in losses:
        metrics = {"anchor_loss": fl.Mean(jnp.array([3 * loss, np.nan]), jnp.array([3.0, 1.0]))}
        state = server.update(KEY(0), state, jnp.ones(2), cohort, metrics)
        seen.append(round(float(server.broadcast(state).mu), 5))
    return seen, state


def test_mu_follows_the_loss():
    server = adaptive_mu(fl.optimizer_server(optax.sgd(1.0)), mu=0.2)
    # The first loss compares with nothing; five falls in a row lower mu, then counting restarts.
    falls = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]
    assert feed(server, falls)[0] == [0.2] * 5 + [0.1] * 5 + [0.0]
    # A rise, or a loss that stays, breaks the row; NaN counts as a rise and is not remembered.
    assert feed(server, [5.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0, 1.0])[0] == [0.2] + [0.3] * 7
    assert feed(server, [5.0, np.nan, 4.0, 6.0])[0] == [0.2, 0.3, 0.3, 0.4]
    assert feed(adaptive_mu(fl.optimizer_server(optax.sgd(1.0)), mu=0.0, increment=0.5, patience=1),
                [3.0, 2.0, 4.0, 1.0, 0.5])[0] == [0.0, 0.0, 0.5, 0.0, 0.0]  # fmt: skip


def test_nobody_changes_nothing():
    server = adaptive_mu(fl.optimizer_server(optax.sgd(1.0)), mu=0.2)
    seen, state = feed(standing_still(server), [5.0, 6.0], mask=False)
    assert seen == [0.2, 0.2]
    assert int(state.num_decreases) == -1
    np.testing.assert_array_equal(state.params, 0.0)


def test_adaptive_rounds_are_those_of_the_mu_they_broadcast(q2):
    algo = make(1.0, steps=3, rate=0.6, adaptive=True)  # beyond 2 / (4 + 1): overshoots
    state = algo.init(KEY(0), jnp.array(0.0), q2)
    x, mu, last = 0.0, 1.0, np.inf
    for _ in range(4):
        state, metrics = algo.round(KEY(0), state, q2)
        loss = (P * A / 2 * (x - B) ** 2).sum()
        np.testing.assert_allclose(metrics["anchor_loss"], loss, rtol=1e-6)  # float32 metric
        np.testing.assert_allclose(metrics["mu"], mu, rtol=1e-12)
        y = np.full(2, x)
        for _ in range(3):
            y = y - 0.6 * (A * (y - B) + mu * (y - x))
        mu = mu + 0.1 if loss > last else mu
        x, last = P @ y, loss
        np.testing.assert_allclose(state.server.params, x, rtol=1e-12)
    np.testing.assert_allclose(state.server.mu, mu, rtol=1e-12)
    assert mu > 1, "the loss never rose: the test shows nothing"


def test_errors_of_adaptive_mu():
    inner = fl.optimizer_server(optax.sgd(1.0))
    with pytest.raises(TypeError, match="server must be a ServerUpdate"):
        adaptive_mu(optax.sgd(1.0), mu=0.1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mu": -0.1}, "mu must not be negative"),
        ({"mu": 0.1, "increment": -1.0}, "increment must not be negative"),
        ({"mu": 0.1, "patience": 0}, "patience must be at least 1"),
    ]
    for options, match in wrong:
        with pytest.raises(ValueError, match=match):
            adaptive_mu(inner, **options)
    server = adaptive_mu(inner, mu=0.1)
    state = server.init(jnp.zeros(2), None)
    assert isinstance(server.broadcast(state), WithMu)
    cohort = fl.Cohort(jnp.arange(1), jnp.ones(1, bool))
    with pytest.raises(ValueError, match=r"\['train_loss'\], got 'anchor_loss'.*adaptive_client"):
        server.update(None, state, jnp.zeros(2), cohort, {"train_loss": jnp.ones(1)})
    with pytest.raises(TypeError, match="client_optimizer"):
        adaptive_client(quadratic, 0.1)
