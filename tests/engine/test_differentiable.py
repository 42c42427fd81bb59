"""Gradients through rounds: closed forms, finite differences, and what may not become NaN."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.engine.differentiable import differentiable, scan_length
from fedjax_lite.run.unroll import unroll

PLAN = fl.Plan(batch_size=2, epochs=2)
SCANNED = differentiable()


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# -- quadratics, by hand ----------------------------------------------------------------------

A, B = np.array([1.0, 4.0]), np.array([-1.0, 2.0])
COUNTS = np.array([30, 10])


def quadratic_data():
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(2), COUNTS))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def after(algo, params, data, num_rounds, **options):
    key = jax.random.key(0)
    return unroll(algo, key, algo.init(key, params, data), data, num_rounds=num_rounds, **options)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("plan", "steps"),
    [
        (fl.Plan(batch_size=None, steps=5), (5, 5)),
        (fl.Plan(batch_size=10, epochs=2), (6, 2)),
        (fl.Plan(batch_size=10, steps=np.array([7, 2])), (7, 2)),
    ],
)
def test_derivative_of_fedavg_on_quadratics(plan, steps):
    """``x' = r x + c`` with ``r = sum p q, c = sum p (1 - q) b, q = (1 - eta a)^K``."""
    data, rate, num_rounds, start = quadratic_data(), 0.05, 4, 0.5
    k, p = np.array(steps), COUNTS / COUNTS.sum()
    q, dq = (1 - rate * A) ** k, -k * A * (1 - rate * A) ** (k - 1)
    r, dr = (p * q).sum(), (p * dq).sum()
    c, dc = (p * (1 - q) * B).sum(), -(p * dq * B).sum()
    x, by_rate, by_start = start, 0.0, 1.0
    for _ in range(num_rounds):
        x, by_rate, by_start = r * x + c, r * by_rate + dr * x + dc, r * by_start

    def final(rate, start):
        algo = fl.fedavg(
            fl.data.quadratic_loss, optax.sgd(rate), plan=plan, sampler=fl.everyone(),
            strategy=SCANNED,
        )  # fmt: skip
        return after(algo, start, data, num_rounds)[0].server.params

    value, grads = jax.jit(jax.value_and_grad(final, argnums=(0, 1)))(rate, start)
    np.testing.assert_allclose(value, x, rtol=1e-12)
    np.testing.assert_allclose(grads, [by_rate, by_start], rtol=1e-11)


def test_derivative_by_mixing_weights():
    """``x = sum w_i y_i / sum w_i``: ``dx/dw_i = (y_i - x) / sum w``."""
    data, rate, start = quadratic_data(), 0.05, 0.5
    y = B + (1 - rate * A) ** 5 * (start - B)

    def final(weights):
        algo = fl.fedavg(
            fl.data.quadratic_loss, optax.sgd(rate), plan=fl.Plan(batch_size=None, steps=5),
            sampler=fl.everyone(), weighting=lambda info: weights[info.id], strategy=SCANNED,
        )  # fmt: skip
        return after(algo, jnp.array(start), data, 1)[0].server.params

    weights = np.array([0.75, 0.5])
    x = (weights * y).sum() / weights.sum()
    got = jax.jit(jax.grad(final))(jnp.asarray(weights))
    np.testing.assert_allclose(got, (y - x) / weights.sum(), rtol=2e-6)  # weights are float32


# -- finite differences -----------------------------------------------------------------------


def loss(params, examples, key):
    return 0.5 * (jnp.tanh(examples["x"] @ params["w"] + params["b"]) - examples["y"]) ** 2


@functools.cache
def problem():
    data = testing.population()  # seven clients of 0 to 7 examples
    params = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.array(0.05)}
    rng = np.random.default_rng(1)
    held_out = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=20)}
    return data, params, held_out


SLOTS = {"plan": PLAN, "sampler": fl.uniform(4), "strategy": SCANNED}
WEIGHTS = jnp.array([1.0, 2.0, 0.5, 1.0, 1.5, 3.0, 0.25], jnp.float32)
DIRECTION = jnp.array([1.0, -1.0, 0.5, 1.0, 0.5, 2.0, -0.125], jnp.float32)


def fedavg(client, **options):
    return fl.fedavg(loss, client, **{**SLOTS, **options})


def fedprox(t):
    """Learning rate, mu, server learning rate and a mixture of mixing weights, all at once."""
    return fl.fedprox(
        loss, optax.sgd(t[0]), mu=t[1], server_optimizer=optax.sgd(t[2]),
        weighting=lambda info: (WEIGHTS + t[3] * DIRECTION)[info.id], **SLOTS,
    )  # fmt: skip


CASES = {
    "fedprox": ((0.3, 0.4, 0.8, 0.125), fedprox),
    "scaffold": ((0.3,), lambda t: fl.scaffold(loss, t[0], **SLOTS)),
}
MORE = {
    "fedavg": ((0.3,), lambda t: fedavg(optax.sgd(t[0]))),
    "adam": (
        (0.05, 0.05),
        lambda t: fedavg(optax.adam(t[0]), server_optimizer=fl.server.adam(t[1])),
    ),
    "clipped": ((0.3,), lambda t: fedavg(optax.sgd(t[0]), uplink=fl.clip(0.1))),
    "scaffold option 1": ((0.3,), lambda t: fl.scaffold(loss, t[0], option=1, **SLOTS)),
    "fednova": ((0.3,), lambda t: fl.fednova(loss, t[0], momentum=0.5, **SLOTS)),
    "feddyn": ((0.3, 0.2), lambda t: fl.feddyn(loss, optax.sgd(t[0]), alpha=t[1], **SLOTS)),
    # Its prologue's plan is made of traced numbers: the room must be named.
    "mime": ((0.3,), lambda t: fl.mime(loss, t[0], **{**SLOTS, "strategy": differentiable(8)})),
}


def outer(algo, params, num_rounds=3, **options):
    data, _, held_out = problem()
    state, _ = after(algo, params, data, num_rounds, **options)
    return loss(state.server.params, held_out, None).mean()


def check_gradient(value_and_grad, at, h=2.0**-16):
    """Central differences of fourth order; `h` times the directions is exact in float32, too."""
    got = np.asarray(value_and_grad(at)[1])
    for i, direction in enumerate(np.eye(len(at))):
        f = [float(value_and_grad(at + k * h * direction)[0]) for k in (-2, -1, 1, 2)]
        expected = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
        assert abs(expected) > 1e-4, i
        np.testing.assert_allclose(got[i], expected, rtol=1e-6, err_msg=f"entry {i}")
    return got


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_gradient_equals_finite_differences(name):
    at, make = {**CASES, **MORE}[name]
    _, params, _ = problem()
    check_gradient(jax.jit(jax.value_and_grad(lambda t: outer(make(t), params))), jnp.array(at))


@pytest.mark.slow
def test_gradient_by_initial_parameters_is_of_second_order():
    """MAML: the derivative of the trained model by the initial one, entry by entry."""
    data, params, held_out = problem()
    algo = fedavg(optax.sgd(0.3))
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def end(p):
        trained = after(algo, unravel(p), data, 2)[0].server.params
        return loss(trained, held_out, None).mean(), trained

    both = jax.jit(jax.value_and_grad(end, has_aux=True))
    full, trained = check_gradient(lambda p: (both(p)[0][0], both(p)[1]), flat), both(flat)[0][1]
    # Of first order it would be the held-out gradient at the trained model, which differs.
    x, far = held_out["x"], jnp.tanh(held_out["x"] @ trained["w"] + trained["b"])
    each = np.asarray((far - held_out["y"]) * (1 - far**2))
    first = {"w": (each[:, None] * x).mean(0), "b": each.mean()}
    assert not np.allclose(jax.flatten_util.ravel_pytree(first)[0], full, rtol=0.05)


@pytest.mark.slow
def test_reverse_mode_equals_forward_mode_through_another_strategy():
    """Forward mode follows any loop: here through sorted chunks, each to its own longest."""
    at, params = 0.3, problem()[1]

    def value(t, strategy):
        return outer(fedavg(optax.sgd(t), strategy=strategy), params)

    reverse = jax.jit(jax.value_and_grad(lambda t: value(t, SCANNED)))(at)
    forward = jax.jit(lambda t: jax.jvp(lambda t: value(t, fl.chunked(3)), (t,), (1.0,)))(at)
    np.testing.assert_allclose(reverse, forward, rtol=1e-11)
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.eval_shape(jax.grad(lambda t: value(t, fl.vmapped())), at)


# -- the same rounds --------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name", ["fedavg", pytest.param("scaffold variable work", marks=pytest.mark.slow)]
)
def test_rounds_equal_those_of_the_other_strategies(name):
    with jax.enable_x64(False):
        data, states = testing.population(), []
        # That the other strategies agree with one another is a law of all methods.
        for strategy in (SCANNED, differentiable(20, remat=False), fl.chunked(3)):
            algo = testing.ALGORITHMS[name](0.1, fl.uniform(4), strategy)
            params = testing.init_params(jax.random.key(7))
            states.append(after(algo, params, data, 3))
        for other in states[1:]:
            chex.assert_trees_all_close(states[0], other, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_remat_and_vmap_change_nothing_and_one_program_serves_all_rates():
    params = problem()[1]

    @chex.assert_max_traces(n=2)  # one with remat, one without
    def gradient(t, remat):
        strategy = differentiable(remat=remat)
        return jax.grad(
            lambda t: outer(fedavg(optax.sgd(t), strategy=strategy), params, remat=remat)
        )(t)

    rates = jnp.array([0.1, 0.2, 0.4])
    one = jax.jit(functools.partial(gradient, remat=False))
    each = [one(t) for t in rates]
    assert len(set(map(float, each))) == 3
    side_by_side = jax.jit(jax.vmap(functools.partial(gradient, remat=True)))(rates)
    np.testing.assert_allclose(side_by_side, each, rtol=1e-12)


@pytest.mark.slow
def test_remat_saves_memory():
    """One hidden layer of 256 for 16 steps of 64 examples: activations against parameters."""
    rng = np.random.default_rng(0)
    examples = {"x": rng.normal(size=(256, 2)), "y": rng.normal(size=256)}
    data = fl.data.from_arrays(examples, np.zeros(256, int))
    params = {"w": jnp.ones((2, 256)), "v": jnp.ones(256)}

    def wide(params, examples, key):
        return (jnp.tanh(examples["x"] @ params["w"]) @ params["v"] - examples["y"]) ** 2

    def temporary(remat):
        def final(t):
            algo = fl.fedavg(
                wide, optax.sgd(t), plan=fl.Plan(batch_size=64, epochs=4), sampler=fl.everyone(),
                strategy=differentiable(remat=remat),
            )  # fmt: skip
            return after(algo, params, data, 1, remat=False)[0].server.params["v"].sum()

        return jax.jit(jax.grad(final)).lower(0.1).compile().memory_analysis().temp_size_in_bytes

    activations = 16 * 64 * 256 * 8
    assert temporary(False) > activations
    assert temporary(True) < temporary(False) - activations / 2


# -- no NaN from what does not count ----------------------------------------------------------


def test_steps_that_do_not_count_cannot_spoil_the_gradient():
    """Client 0 stops where its loss has no derivative; a plain select would give 0 * NaN."""
    data = fl.data.from_arrays({"b": np.array([1.0, 100.0])}, [0, 1])

    def final(rate):
        algo = fl.fedavg(
            lambda w, e, key: jnp.sqrt((w - e["b"]) ** 2), optax.sgd(rate),
            plan=fl.Plan(batch_size=1, steps=np.array([1, 3])), sampler=fl.everyone(),
            strategy=SCANNED,
        )  # fmt: skip
        return after(algo, jnp.array(0.0), data, 1)[0].server.params

    assert np.isnan(jax.grad(lambda w: jnp.sqrt((w - 1.0) ** 2))(1.0))
    # One and three steps of length `rate`: x = (rate + 3 rate) / 2.
    assert [float(v) for v in jax.jit(jax.value_and_grad(final))(1.0)] == [2.0, 2.0]


def test_masked_and_empty_clients_leave_no_trace_in_gradients():
    """Client 5 is masked and all NaN, client 3 has no data (its rows would be those of 4)."""

    def final(t, params, data, cohort):
        algo = fedavg(optax.sgd(t))
        state = algo.init(jax.random.key(0), params, data)
        for _ in range(2):
            state, _ = algo.round(jax.random.key(0), state, data, cohort)
        return state.server.params["w"].sum()

    gradient = jax.jit(jax.grad(final, argnums=(0, 1)))
    for ids in ((5, 0, 3), (3, 5, 0)):
        cohort = fl.Cohort(jnp.array(ids, jnp.int32), jnp.array([i != 5 for i in ids]))
        poisoned, zeroed = (
            gradient(0.3, problem()[1], data, cohort)
            for data in (testing.population(poisoned=5), testing.population(zeroed=5))
        )
        chex.assert_tree_all_finite(poisoned)
        chex.assert_trees_all_equal(poisoned, zeroed)


def test_a_round_of_nobody_has_the_identity_as_its_derivative():
    data, params, _ = problem()
    nobody = fl.Cohort(jnp.array([5, 0], jnp.int32), jnp.zeros(2, bool))

    def final(t, params):
        algo = fedavg(optax.sgd(t))
        state = algo.init(jax.random.key(0), params, data)
        return algo.round(jax.random.key(0), state, data, nobody)[0].server.params["w"].sum()

    by_rate, by_params = jax.jit(jax.grad(final, argnums=(0, 1)))(0.3, params)
    assert float(by_rate) == 0
    np.testing.assert_array_equal(by_params["w"], np.ones(3))


# -- room for the steps -----------------------------------------------------------------------


def test_length_of_the_scan():
    array = np.array([1, 3])
    assert scan_length(fl.Plan(batch_size=4, epochs=3), 10, None) == 9
    assert scan_length(fl.Plan(batch_size=None, epochs=3), 10, None) == 3
    assert scan_length(fl.Plan(batch_size=4, steps=array), 10, None) == 3
    assert scan_length(fl.Plan(batch_size=4, epochs=array), 10, 5) == 5  # checked in the round
    assert scan_length(fl.Plan(batch_size=4, steps=lambda key, i: i), 10, 5) == 5
    for plan in (fl.Plan(batch_size=4, epochs=3), fl.Plan(batch_size=4, steps=9)):
        with pytest.raises(ValueError, match=r"at least 9.*got 8"):
            scan_length(plan, 10, 8)
    with pytest.raises(ValueError, match="max_steps must be given"):
        scan_length(fl.Plan(batch_size=4, epochs=lambda key, i: i), 10, None)


def test_a_round_that_does_not_fit_is_refused():
    data, params, _ = problem()
    algo = fedavg(optax.sgd(0.1), strategy=differentiable(7))
    state = algo.init(jax.random.key(0), params, data)
    with pytest.raises(ValueError, match=r"max_steps must be at least 8"):
        algo.round(jax.random.key(0), state, data)
    for bad, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="max_steps"):
            differentiable(bad)


@pytest.mark.parametrize("uplink", [fl.identity(), fl.clip(1.0)])
def test_steps_are_never_cut_off_unnoticed(uplink):
    """Client 1 asks for 4 steps of 3: not even a clip, which zeroes NaN, hides it."""
    data, params, _ = problem()
    plan = fl.Plan(batch_size=2, steps=lambda key, client: 3 + client)
    algo = fedavg(optax.sgd(0.1), plan=plan, strategy=differentiable(3), uplink=uplink)
    state = algo.init(jax.random.key(0), params, data)
    fits = fl.Cohort(jnp.array([0, 1], jnp.int32), jnp.array([True, False]))
    new, metrics = algo.round(jax.random.key(0), state, data, fits)
    assert np.isfinite(new.server.params["w"]).all()
    assert np.isfinite(metrics["train_loss"])
    new, metrics = algo.round(
        jax.random.key(0), state, data, fits._replace(mask=jnp.array([True, True]))
    )
    assert np.isnan(new.server.params["w"]).all()
    assert np.isnan(metrics["train_loss"])


# -- unroll -----------------------------------------------------------------------------------


def test_unroll_is_the_rounds_one_by_one():
    data, params, _ = problem()
    algo = fedavg(optax.sgd(0.2), strategy=fl.chunked(2))
    key = jax.random.key(3)
    state = algo.init(key, params, data)
    end, metrics = unroll(algo, key, state, data, num_rounds=3)
    for i in range(3):
        state, one = algo.round(key, state, data)
        assert float(metrics["train_loss"][i]) == pytest.approx(float(one["train_loss"]), rel=1e-6)
    np.testing.assert_allclose(end.server.params["w"], state.server.params["w"], rtol=1e-12)
    assert int(end.round) == 3
    assert metrics["num_steps"].shape == (3,)


def test_unroll_names_bad_arguments():
    data, params, _ = problem()
    algo = fedavg(optax.sgd(0.2))
    key = jax.random.key(0)
    state = algo.init(key, params, data)
    with pytest.raises(ValueError, match="num_rounds"):
        unroll(algo, key, state, data, num_rounds=0)
    with pytest.raises(TypeError, match="algo"):
        unroll(fl.fedavg, key, state, data, num_rounds=1)
    with pytest.raises(TypeError, match="key"):
        unroll(algo, jax.random.PRNGKey(0), state, data, num_rounds=1)
