"""FedNova's normalisation vectors, directions and fixed points, in closed form."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.fednova import fednova, normalizer, nova_client

A, B = np.array([1.0, 4.0]), np.array([-1.0, 2.0])
N = np.array([30, 10])
P = N / N.sum()
ETA = 0.05
TAU = np.array([20, 2])
KEY = jax.random.key


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def linear(w, e, key):
    return w * e["a"] * e["b"]


def q2_data(counts: Any = N):
    owners = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners, num_clients=2)


def make(rate: Any = ETA, *, steps: Any = TAU, loss=quadratic, **options):
    plan = fl.Plan(batch_size=None, steps=steps)
    return fednova(loss, rate, plan=plan, sampler=fl.everyone(), **options)


def one_round(algo, x=0.0, data=None):
    data = q2_data() if data is None else data
    state, metrics = algo.round(KEY(0), algo.init(KEY(0), jnp.asarray(x), data), data)
    return float(state.server.params), metrics


@functools.cache
def compiled():
    """``(rate, momentum, mu, steps, x) -> x+``: one program for all the settings below."""

    @jax.jit
    def step(rate, momentum, mu, steps, x, data):
        algo = make(rate, steps=steps, momentum=momentum, mu=mu)
        return algo.round(KEY(0), algo.init(KEY(0), x, data), data)[0].server.params

    return step


def run(rate, steps, x, *, momentum=0.0, mu=0.0):
    return float(compiled()(rate, momentum, mu, jnp.asarray(steps), jnp.array(x), q2_data()))


def fixed_point_of(rate, steps, **options):
    """On quadratics a round is affine in x, so two rounds give its fixed point."""
    at_zero, at_one = (run(rate, steps, x, **options) for x in (0.0, 1.0))
    return at_zero / (1 - (at_one - at_zero))


def fixed_point(s, weights=P):
    return (weights * s * B).sum() / (weights * s).sum()


# -- normalisation vectors ------------------------------------------------------------------


def coefficients(num_steps, momentum, alpha):
    """Brute force: how far each gradient alone moves ``(x - y) / eta``."""
    columns = []
    for j in range(num_steps):
        moved = velocity = 0.0
        for t in range(num_steps):
            velocity = momentum * velocity + (t == j) - alpha * moved
            moved += velocity
        columns.append(moved)
    return np.array(columns)


def test_norms_of_momentum():
    got = [float(normalizer(tau, momentum=0.9)) for tau in (1, 2, 3, 10)]
    np.testing.assert_allclose(got, [1.0, 2.9, 5.61, 41.381059609], atol=5e-10)
    for tau in (1, 2, 3, 10, 50):
        for rho in (0.5, 0.9, 0.99):
            terms = (1 - rho ** (tau - np.arange(tau))) / (1 - rho)
            closed = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
            np.testing.assert_allclose(closed, terms.sum(), rtol=1e-9)
            np.testing.assert_allclose(normalizer(tau, momentum=rho), terms.sum(), rtol=1e-12)
            np.testing.assert_allclose(coefficients(tau, rho, 0.0), terms, rtol=1e-12)


def test_norms_of_the_proximal_term():
    assert abs(float(normalizer(3, alpha=0.05)) - 2.8525) < 1e-12
    for tau in (1, 2, 7, 40):
        for alpha in (1e-9, 0.05, 0.9):
            terms = (1 - alpha) ** (tau - 1 - np.arange(tau))
            np.testing.assert_allclose(normalizer(tau, alpha=alpha), terms.sum(), rtol=1e-12)
            np.testing.assert_allclose(coefficients(tau, 0.0, alpha), terms, rtol=1e-12)


def test_norms_of_sgd_and_of_momentum_with_proximal_term():
    assert [float(normalizer(tau)) for tau in (0, 1, 20)] == [0, 1, 20]
    assert float(normalizer(4, momentum=1.0)) == 1 + 2 + 3 + 4
    expected = coefficients(6, 0.5, 0.05)
    assert (expected > 0).all()
    np.testing.assert_allclose(normalizer(6, momentum=0.5, alpha=0.05), expected.sum(), rtol=1e-12)


def test_norms_are_precise_in_float32_where_the_closed_form_cancels():
    with jax.enable_x64(False):
        got = normalizer(3, alpha=1e-6), normalizer(3, momentum=0.9999)
    expected = coefficients(3, 0.0, 1e-6).sum(), coefficients(3, 0.9999, 0.0).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# -- what a client sends --------------------------------------------------------------------


def sent(client, steps, index, loss_data=(A, B)):
    """The message of one client of Q2 after some steps from x = 0."""
    a, b = (jnp.asarray(values[index : index + 1]) for values in loss_data)
    batch = fl.Batch({"a": a, "b": b}, jnp.ones(1, bool), None)
    x = jnp.array(0.0)
    info = fl.ClientInfo(*(jnp.int32(v) for v in (index, N[index], steps, 0)))
    carry = client.start(KEY(0), (), x, info)
    for _ in range(steps):
        carry = client.step(x, carry, batch)
    return client.finish(x, carry)[1]


def test_directions_of_sgd():
    messages = [sent(nova_client(quadratic, ETA), k, i) for i, k in enumerate(TAU)]
    got = np.array([float(m.value.direction) for m in messages]) / ETA
    np.testing.assert_allclose(got, [0.6415140776, -7.2], atol=5e-11)
    assert [float(m.value.tau) for m in messages] == [20, 2]
    assert [float(m.weight) for m in messages] == [30, 10]


def test_directions_with_momentum():
    messages = [sent(nova_client(quadratic, ETA, momentum=0.9), 2, i) for i in range(2)]
    got = np.array([float(m.value.direction) for m in messages])
    np.testing.assert_allclose(got * 2.9, [0.1425, -1.08], atol=1e-12)  # x - y
    np.testing.assert_allclose(got / ETA, [0.9827586207, -7.4482758621], atol=5e-11)
    np.testing.assert_allclose([float(m.value.tau) for m in messages], 2.9, rtol=1e-12)


def test_proximal_term_divides_by_its_norm_and_scales_by_steps():
    message = sent(nova_client(quadratic, ETA, mu=1.0), 3, 1)
    y = 0.0
    for _ in range(3):
        y -= ETA * (4 * (y - 2) + 1.0 * y)
    np.testing.assert_allclose(message.value.direction, -y / 2.8525, rtol=1e-12)
    assert float(message.value.tau) == 3


def test_constant_gradients_are_sent_as_they_are():
    """Whatever optimizer and amount of work: this is what the normalisation is for."""
    for momentum in (0.0, 0.7):
        for mu in (0.0, 0.8):
            client = nova_client(linear, ETA, momentum=momentum, mu=mu)
            for steps in (1, 4, 9):
                direction = sent(client, steps, 1).value.direction
                np.testing.assert_allclose(direction, ETA * A[1] * B[1], rtol=1e-12)


def test_no_steps_weigh_nothing_and_give_no_nan():
    message = sent(nova_client(quadratic, ETA, momentum=0.9, mu=0.1), 0, 0)
    assert (float(message.value.direction), float(message.value.tau)) == (0, 0)
    assert float(message.weight) == 0


# -- rounds ---------------------------------------------------------------------------------


def test_round_one_with_unequal_work():
    x, metrics = one_round(make())
    np.testing.assert_allclose(metrics["tau_eff"], 15.5, rtol=1e-7)
    assert abs(x - 1.0221199424) < 5e-11
    d = (1 - (1 - ETA * A) ** TAU) / (ETA * TAU) * -B
    np.testing.assert_allclose(x, -15.5 * ETA * (P @ d), rtol=1e-12)
    average, _ = one_round(
        fl.fedavg(
            quadratic,
            optax.sgd(ETA),
            plan=fl.Plan(batch_size=None, steps=TAU),
            sampler=fl.everyone(),
        )
    )
    assert abs(average - -0.3011355582) < 5e-11


def test_uniform_weights_are_not_example_weights():
    x, metrics = one_round(make(weighting="uniform"))
    d = (1 - (1 - ETA * A) ** TAU) / (ETA * TAU) * -B
    assert float(metrics["tau_eff"]) == 11
    np.testing.assert_allclose(x, -11 * ETA * d.mean(), rtol=1e-12)
    # Defect 9: p = 1 / m, or N / K in its place, where examples are asked for.
    assert abs(x - 1.0221199424) > 0.1


def test_linear_losses_give_the_gradient_of_the_mean_loss():
    g = np.array([1.0, -2.0])
    owners = np.repeat([0, 1], N)
    data = fl.data.from_arrays({"a": np.ones(40), "b": g[owners]}, owners)
    x, _ = one_round(make(loss=linear), data=data)
    assert abs(-x / (ETA * 15.5) - 0.25) < 1e-13
    plan = fl.Plan(batch_size=None, steps=TAU)
    algo = fl.fedavg(linear, optax.sgd(ETA), plan=plan, sampler=fl.everyone())
    average, _ = one_round(algo, data=data)
    assert abs(-average / (ETA * 15.5) - 0.9032258065) < 5e-11


def test_fixed_point():
    got = fixed_point_of(ETA, TAU)
    assert abs(got - 0.9549131032) < 5e-11
    assert abs(got - fixed_point((1 - (1 - ETA * A) ** TAU) / TAU)) < 1e-12
    assert abs(run(ETA, TAU, got) - got) < 1e-13


def test_error_falls_as_the_rate():
    rates = np.array([1e-2, 1e-3, 1e-4])
    errors = np.array([fixed_point_of(rate, TAU) - 5 / 7 for rate in rates])
    np.testing.assert_allclose(abs(errors), [5.376e-2, 5.497e-3, 5.509e-4], rtol=1e-4)
    expected = [fixed_point((1 - (1 - r * A) ** TAU) / TAU) - 5 / 7 for r in rates]
    np.testing.assert_allclose(errors, expected, rtol=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_work_is_fedavg(momentum):
    optimizer = optax.sgd(ETA, momentum=momentum)
    average = fl.fedavg(
        quadratic, optimizer, plan=fl.Plan(batch_size=None, steps=5), sampler=fl.everyone()
    )
    for x in (0.0, 3.0):
        expected, _ = one_round(average, x)
        np.testing.assert_allclose(run(ETA, [5, 5], x, momentum=momentum), expected, rtol=1e-12)


def test_equal_work_with_proximal_term_is_fedprox_scaled():
    y = np.zeros(2)
    for _ in range(5):
        y = y - ETA * (A * (y - B) + 1.0 * y)
    norm = (1 - (1 - ETA) ** 5) / ETA
    np.testing.assert_allclose(run(ETA, [5, 5], 0.0, mu=1.0), 5 / norm * (P @ y), rtol=1e-12)


@pytest.mark.parametrize(
    ("momentum", "mu", "steps"), [(0.9, 0.0, (6, 2)), (0.0, 2.0, (6, 2)), (0.6, 0.5, (4, 1))]
)
def test_rounds_of_every_local_solver_against_numpy(momentum, mu, steps):
    x, direction, tau_eff = 0.5, 0.0, 0.0
    for a, b, p, k in zip(A, B, P, steps, strict=True):
        y, velocity = x, 0.0
        for _ in range(k):
            velocity = momentum * velocity + a * (y - b) + mu * (y - x)
            y -= ETA * velocity
        direction += p * (x - y) / coefficients(k, momentum, ETA * mu).sum()
        tau_eff += p * coefficients(k, momentum, 0.0).sum()  # k without momentum
    got = run(ETA, steps, x, momentum=momentum, mu=mu)
    np.testing.assert_allclose(got, x - tau_eff * direction, rtol=1e-12)
    # What is zero for certain takes another path through the code than a traced zero.
    static, metrics = one_round(make(steps=np.array(steps), momentum=momentum, mu=mu), x)
    np.testing.assert_allclose(static, got, rtol=1e-12)
    np.testing.assert_allclose(metrics["tau_eff"], tau_eff, rtol=1e-6)


def test_clients_without_steps_or_data_leave_no_trace():
    alone = one_round(make(steps=np.array([3, 3])), 0.5, q2_data([30, 0]))
    idle = one_round(make(steps=np.array([3, 0])), 0.5)
    y = -1 + (1 - ETA) ** 3 * 1.5
    for x, metrics in (alone, idle):
        np.testing.assert_allclose(x, y, rtol=1e-12)
        assert float(metrics["tau_eff"]) == 3
    x, _ = one_round(make(steps=lambda key, client: 0), 0.5)
    assert x == 0.5


def test_a_schedule_over_rounds_and_a_server_optimizer():
    algo = make(lambda r: ETA * 0.5**r, mu=1.0, server_optimizer=optax.sgd(2.0))
    data = q2_data()
    state, x = algo.init(KEY(0), jnp.array(0.0), data), 0.0
    for r in range(2):
        state, _ = algo.round(KEY(0), state, data)
        x = x + 2 * (run(ETA * 0.5**r, TAU, x, mu=1.0) - x)
        np.testing.assert_allclose(state.server.params, x, rtol=1e-12)


@pytest.mark.sample(5, of="reductions to another method")
def test_ragged_population_with_equal_steps_is_fedavg_in_float32():
    with jax.enable_x64(False):
        data = testing.population()
        slots = {"plan": fl.Plan(batch_size=2, steps=3), "sampler": fl.uniform(4)}
        algos = [
            fl.fedavg(testing.loss, optax.sgd(ETA), **slots),
            fednova(testing.loss, ETA, **slots),
        ]
        params = testing.init_params(KEY(7))
        states = [algo.init(KEY(0), params, data) for algo in algos]
        for _ in range(3):
            states = [a.round(KEY(0), s, data)[0] for a, s in zip(algos, states, strict=True)]
        params = [state.server.params for state in states]
        chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)


def test_directions_keep_half_precision():
    client = nova_client(quadratic, ETA)
    x = jnp.array(0.0, jnp.bfloat16)
    carry = client.start(KEY(0), (), x, fl.ClientInfo(*map(jnp.int32, (0, 1, 0, 0))))
    assert client.finish(x, carry)[1].value.direction.dtype == jnp.bfloat16


def test_errors():
    for options, match in (
        ({"rate": 0.0}, r"learning_rate must be positive, got 0.0"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\]"),
        ({"mu": -1.0}, "mu must not be negative"),
        ({"rate": 0.5, "mu": 2.0}, r"learning_rate \* mu must be below 1, got 0.5 \* 2.0"),
    ):
        with pytest.raises(ValueError, match=match):
            make(**options)
    with pytest.raises(TypeError, match="learning_rate must be a number"):
        make(optax.sgd(0.1))
