"""q-FedAvg, AFL, TERM and FedMGDA+: published numbers, reductions, and what must not go wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.aggregation.min_norm import least_square, min_norm, onto_bounds
from fedjax_lite.aggregation.stacked import aggregate_stack
from fedjax_lite.verify.techniques import fair
from fedjax_lite.verify.testbeds import q2, quadratic, sweep, trajectory, whole

KEY = jax.random.key(0)
SGD = optax.sgd(0.05)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def made(name, *, steps=5, loss=quadratic, **options: Any) -> Any:
    options = {"sampler": fl.everyone(), **options}
    rate = 0.05 if name.startswith("q_") else SGD
    if name != "q_fedsgd":
        options = {"plan": whole(steps), **options}
    return getattr(fl, name)(loss, rate, **options)


def test_loops_and_minimisers_give_the_published_numbers():
    """KNOWN_ANSWERS 8, computed elsewhere; the library is held against the loops in verify."""
    np.testing.assert_allclose(fair.q_loop(2, 1.0), [0.2329888433, 0.4288872060], atol=6e-11)
    np.testing.assert_allclose(fair.q_loop(1, 2.0), [0.1335717701], atol=6e-11)
    np.testing.assert_allclose(fair.q_loop(500, 1.0)[-1], 1.0860012189, atol=6e-11)
    for q, x in ((0, 1.4), (0.1, 1.3426235054), (1, 1.1476890398), (5, 1.0415587104)):
        np.testing.assert_allclose(fair.q_optimum(q), x, atol=6e-11)
    for point, nearest in (
        ((0.55, 1.3), (0.125, 0.875)),
        ((1, 8.5), (0, 1)),
        ((0.6, 0.6, -0.1), (0.5, 0.5, 0)),
        ((-1, -2, -1.5), (0.75, 0, 0.25)),
    ):
        np.testing.assert_allclose(fair.simplex(np.array(point)), nearest, atol=1e-12)


def test_the_majority_no_longer_rules():
    """T4: two clients of 450 want 0, two of 50 want 3; known models and losses of the minority."""
    data = q2(np.ones(4), np.array([0.0, 0.0, 3.0, 3.0]), np.array([450, 450, 50, 50]))

    @jax.jit
    @jax.vmap
    def ends(q):
        algo = fl.q_fedsgd(quadratic, 0.5, q=q, sampler=fl.everyone(), weighting="examples")
        step = lambda _, state: algo.round(KEY, state, data)[0]  # noqa: E731
        state = algo.init(KEY, jnp.zeros(()), data)
        return jax.lax.fori_loop(0, 800, step, state).server.params

    found = np.asarray(ends(jnp.array([0.0, 1.0, 5.0])))
    np.testing.assert_allclose(found, [0.3, 0.9739994618, 1.3506853644], atol=1e-9)
    np.testing.assert_allclose(0.5 * (found[-1] - 3) ** 2, 1.3601, atol=1e-4)


def test_one_client_has_nobody_to_be_fair_to():
    """All but q's step length: the same as FedAvg, and with q to the same optimum."""
    data = q2(np.array([1.0]), np.array([-1.0]), np.array([3]))
    plain = trajectory(made("fedavg"), 3, data=data)
    options: Any
    for name, options in (
        ("afl", {"mixture_rate": 0.3}),
        ("term", {"tilt": 3.0}),
        ("fedmgda", {"normalise": False}),
    ):
        found = trajectory(made(name, **options), 3, data=data)
        np.testing.assert_allclose(found, plain, atol=1e-15, err_msg=name)
    end = trajectory(made("q_fedavg", q=1.0), 400, data=data)[-1]
    np.testing.assert_allclose(end, -1.0, atol=1e-9)


def rounds(algo, data, num_rounds=1, start=0.0):
    state = algo.init(KEY, jnp.array(start), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_a_loss_of_zero_is_guarded(q):
    """Client 0 is at its optimum: F = 0 and no update, so the other decides, by its own step."""
    data = q2(np.array([1.0, 4.0]), np.array([0.0, 2.0]))
    F, change = 8.0, 2 * (1 - 0.8**5) / 0.05
    h = q * F ** (q - 1) * change**2 + F**q / 0.05
    for name in ("q_fedavg", "q_fedsgd"):
        state, _ = rounds(made(name, q=q), data)
        assert np.isfinite(state.server.params)
        if name == "q_fedavg":
            np.testing.assert_allclose(state.server.params, F**q * change / h, rtol=1e-5)


def with_strength(name, strength, value):
    options: Any = {strength: value}
    return made(name, **options)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "strength"),
    [
        *(("q_fedavg", "q"), ("q_fedsgd", "q"), ("afl", "mixture_rate"), ("term", "tilt")),
        ("fedmgda", "deviation"),
    ],
)
def test_strengths_are_traced(name, strength):
    """One program for several values, equal to a program each."""
    values = (0.0, 0.7)
    many = sweep(lambda value: with_strength(name, strength, value), values, 2)
    each = [trajectory(with_strength(name, strength, v), 2)[-1] for v in values]
    np.testing.assert_allclose(many, each, atol=1e-12)
    assert abs(each[0] - each[1]) > 1e-6


def nan_where_negative(w, e, key):
    return jnp.where(e["b"] < 0, jnp.nan, quadratic(w, e, key))


def test_a_loss_that_is_nan_moves_no_lambda():
    state, _ = rounds(made("afl", mixture_rate=0.05, loss=nan_where_negative), q2())
    alone = 2 * (1 - 0.8**5)  # only the other client's update
    np.testing.assert_allclose(state.server.params, alone, atol=1e-12)
    raised = np.array([0.5, 0.5 + 0.05 * 8.0])
    np.testing.assert_allclose(state.server.mixture, fair.simplex(raised), atol=1e-12)


def test_a_client_without_weight_comes_back():
    """A rate so large that lambda is a corner: the other's loss is told and heard all the same."""
    algo = made("afl", steps=1, mixture_rate=10.0)
    corners = trajectory(algo, 40, read=lambda state: state.server.mixture)
    assert (corners.max(0) == 1.0).all()
    np.testing.assert_allclose(trajectory(algo, 40), fair.afl_loop(40, 10.0)[:, 0], atol=1e-12)


def test_afl_of_groups():
    """Two groups: as one client each, holding all of its group's examples."""
    split = q2(np.array([1.0, 1.0, 4.0]), np.array([-1.0, -1.0, 2.0]), np.array([10, 20, 10]))
    grouped = made("afl", mixture_rate=0.05, groups=[0, 0, 1])
    found = trajectory(grouped, 5, data=split, read=lambda s: (s.server.params, s.server.mixture))
    whole_groups = trajectory(
        made("afl", mixture_rate=0.05), 5, read=lambda s: (s.server.params, s.server.mixture)
    )
    for one, two in zip(found, whole_groups, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12)
    one_group = trajectory(made("afl", mixture_rate=0.05, groups=[0, 0]), 3)
    np.testing.assert_allclose(one_group, trajectory(made("fedavg"), 3), atol=1e-12)


def test_a_steep_tilt_is_the_worst_client_and_stays_finite():
    """Exponents of hundreds: models go to the minimax point x = 1, where both losses are 2."""
    algo = made("term", steps=1, tilt=60.0)
    path = trajectory(algo, 300)
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-20:], 1.0, atol=0.2)
    negative = trajectory(made("term", steps=1, tilt=-5.0), 200)[-1]
    assert abs(negative + 1) < 0.01  # the farther client is left out


# -- min-norm points ------------------------------------------------------------------------


def test_bounded_projection_is_the_nearest_point():
    """By brute force over a fine grid of the simplex between bounds."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 1, 201)
    corners = np.array([(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1 + 1e-9])
    for _ in range(5):
        low, high = rng.uniform(0, 0.3, 3), rng.uniform(0.4, 1, 3)
        point = rng.normal(size=3)
        allowed = corners[((corners >= low) & (corners <= high)).all(1)]
        best = ((allowed - point) ** 2).sum(1).min()
        found = np.asarray(onto_bounds(jnp.array(point), jnp.array(low), jnp.array(high)))
        np.testing.assert_allclose(found.sum(), 1, atol=1e-12)
        np.testing.assert_allclose(found, np.clip(found, low, high), atol=1e-12)
        assert ((found - point) ** 2).sum() <= best + 1e-12


def test_min_norm_direction_serves_everybody():
    """<d, u_i> >= |d|^2 for all i: the condition of optimality, which nothing else fulfils."""
    u = np.random.default_rng(1).normal(size=(6, 20))
    for normalise in (True, False):
        rows = u / np.linalg.norm(u, axis=1)[:, None] if normalise else u
        d = np.asarray(aggregate_stack(min_norm(normalise=normalise), u))
        assert (rows @ d).min() >= d @ d - 1e-9


def test_min_norm_by_brute_force_with_bounds():
    u = np.random.default_rng(2).normal(size=(3, 4))
    G, share, all_of_it = u @ u.T, np.full(3, 1 / 3), 0.2
    low, high = jnp.array(share - all_of_it), jnp.array(share + all_of_it)
    found = np.asarray(least_square(jnp.array(G), jnp.array(share), low, high, 500))
    grid = np.linspace(0, 1, 401)
    some = np.array([(a, b, 1 - a - b) for a in grid for b in grid])
    some = some[((some >= low) & (some <= high)).all(1)]
    assert found @ G @ found <= np.einsum("ni,ij,nj->n", some, G, some).min() + 1e-12


def test_a_zero_update_and_a_nan():
    u = np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 1.0]])
    np.testing.assert_allclose(aggregate_stack(min_norm(), u), 0, atol=1e-12)
    u[1] = np.nan
    np.testing.assert_allclose(aggregate_stack(min_norm(normalise=False), u), u[0], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("q_fedavg", {"q": -1.0}, "q must not be negative"),
        ("q_fedsgd", {"q": np.inf}, "q must be finite"),
        ("afl", {"mixture_rate": -0.1}, "mixture_rate must not be negative"),
        ("afl", {"mixture_rate": 0.1, "groups": [0.5, 1]}, "groups must be integers"),
        ("afl", {"mixture_rate": 0.1, "groups": [-1, 0]}, "groups must be integers"),
        ("term", {"tilt": np.nan}, "tilt must be finite"),
        ("fedmgda", {"deviation": 2.0}, "deviation must lie in"),
        ("fedmgda", {"aggregator": fl.median()}, "aggregator must be left out"),
    ],
)
def test_bad_arguments(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        made(name, **wrong)


def test_groups_must_be_one_a_client():
    with pytest.raises(ValueError, match="one integer a client, 2 of them, got 3"):
        made("afl", mixture_rate=0.1, groups=[0, 1, 2]).init(KEY, jnp.zeros(()), q2())
