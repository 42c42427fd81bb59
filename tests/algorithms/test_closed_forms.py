"""FedSGD and FedAvg against trajectories and fixed points that can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

A, B = np.array([1.0, 4.0]), np.array([-1.0, 2.0])
N = np.array([30, 10])
P = N / N.sum()
ETA = 0.05


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2_data(counts=N, a=A, b=B):
    """`counts[i]` copies of (a_i, b_i), shuffled: every minibatch has the exact gradient."""
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return fl.data.from_arrays({"a": a[owners], "b": b[owners]}, owners)


def iterate(algo, params, data, num_rounds, seed=0):
    """Models after each round."""
    state = algo.init(jax.random.key(seed), params, data)
    models = []
    for _ in range(num_rounds):
        state, _ = algo.round(jax.random.key(seed), state, data)
        models.append(jax.tree.map(np.asarray, state.server.params))
    return models


def fedavg(plan, *, learning_rate=ETA, **slots):
    return fl.fedavg(quadratic, optax.sgd(learning_rate), plan=plan, sampler=fl.everyone(), **slots)


def fixed_point(s, weights=P):
    return (weights * s * B).sum() / (weights * s).sum()


def numpy_round(x, steps, weights=P, eta=ETA):
    """One round of FedAvg on Q2, step by step."""
    local = []
    for a, b, k in zip(A, B, steps, strict=True):
        y = x
        for _ in range(k):
            y -= eta * a * (y - b)
        local.append(y)
    return (weights * np.array(local)).sum()


# -- Q2 -------------------------------------------------------------------------------------


def test_fedsgd_follows_its_geometric_trajectory():
    algo = fl.fedsgd(quadratic, optax.sgd(ETA), sampler=fl.everyone())
    got = np.array(iterate(algo, jnp.array(0.0), q2_data(), 10))
    contraction = 1 - ETA * (P * A).sum()
    expected = 5 / 7 * (1 - contraction ** np.arange(1, 11))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[:3], [0.0625, 0.11953125, 0.171572265625], atol=1e-12)
    assert abs(got[9] - 0.4283945748) < 1e-9


def test_fedsgd_is_stable_just_below_two_over_the_curvature():
    for rate, stable in ((1.13, True), (1.16, False)):
        algo = fl.fedsgd(quadratic, optax.sgd(rate), sampler=fl.everyone())
        error = abs(np.array(iterate(algo, jnp.array(0.0), q2_data(), 60)) - 5 / 7)
        assert (error[-1] < error[0]) == stable, rate


def test_fedavg_five_steps():
    got = np.array(
        iterate(fedavg(fl.Plan(batch_size=None, steps=5)), jnp.array(0.0), q2_data(), 80)
    )
    np.testing.assert_allclose(got[:3], [0.1664957031, 0.2767584321, 0.3497805531], atol=5e-11)
    assert abs(got[-1] - 0.4929637737) < 5e-11
    assert abs(got[-1] - fixed_point(1 - (1 - ETA * A) ** 5)) < 1e-12
    errors = got[:10] - got[-1]
    np.testing.assert_allclose(errors[1:] / errors[:-1], 0.6622557031, atol=1e-9)


def test_five_epochs_of_whole_batches_are_five_steps():
    steps = iterate(fedavg(fl.Plan(batch_size=None, steps=5)), jnp.array(0.0), q2_data(), 2)
    epochs = iterate(fedavg(fl.Plan(batch_size=None, epochs=5)), jnp.array(0.0), q2_data(), 2)
    np.testing.assert_array_equal(steps, epochs)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("plan", "weighting", "steps", "limit"),
    [
        (fl.Plan(batch_size=7, steps=5), "examples", (5, 5), 0.4929637737),
        (fl.Plan(batch_size=None, steps=5), "uniform", (5, 5), 1.2447104240),
        (
            fl.Plan(batch_size=10, steps=np.array([20, 2])),
            "examples",
            (20, 2),
            -0.5272575904,
        ),
        (fl.Plan(batch_size=10, epochs=1), "examples", (3, 1), -0.0443957794),
        (
            fl.Plan(batch_size=10, epochs=np.array([2, 0])),
            "examples",
            (6, 0),
            -1.0,  # client 1 does nothing, weighs nothing
        ),
    ],
)
def test_fixed_points_on_q2(plan, weighting, steps, limit):
    weights = {"examples": N, "uniform": np.ones(2)}[weighting] * (np.array(steps) > 0)
    weights = weights / weights.sum()
    got = np.array(iterate(fedavg(plan, weighting=weighting), jnp.array(0.0), q2_data(), 150))
    x, expected = 0.0, []
    for _ in range(4):
        x = numpy_round(x, steps, weights)
        expected.append(x)
    np.testing.assert_allclose(got[:4], expected, atol=1e-12)
    assert abs(got[-1] - limit) < 2e-9 if steps != (6, 0) else abs(got[-1] + 1) < 1e-9
    assert abs(got[-1] - fixed_point(1 - (1 - ETA * A) ** np.array(steps), weights)) < 1e-9


def test_first_round_of_one_epoch_in_batches_of_ten():
    got = iterate(fedavg(fl.Plan(batch_size=10)), jnp.array(0.0), q2_data(), 1)
    assert abs(got[0] - -0.00696875) < 1e-12


def test_weights_of_ones_own():
    own = jnp.array([1.0, 3.0])
    got = iterate(
        fedavg(fl.Plan(batch_size=None, steps=5), weighting=lambda info: own[info.id]),
        jnp.array(0.0),
        q2_data(),
        2,
    )
    x = numpy_round(0.0, (5, 5), np.array([0.25, 0.75]))
    np.testing.assert_allclose(got, [x, numpy_round(x, (5, 5), np.array([0.25, 0.75]))], atol=1e-12)


def test_limit_of_small_rates_with_unequal_work():
    plan = fl.Plan(batch_size=None, steps=np.array([20, 2]))
    algo = fedavg(plan, learning_rate=1e-4)
    # Start at the limit's neighbourhood: the fixed point moves off it by O(eta).
    got = iterate(algo, jnp.array(-0.6470588235), q2_data(), 40)[-1]
    assert abs(got - -0.6470588235) < 1e-3


def test_partial_participation_normalises_over_the_cohort():
    algo = fedavg(fl.Plan(batch_size=None, steps=5))
    data = q2_data()
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    for mask, client in (([False, True], 1), ([True, False], 0)):
        cohort = fl.Cohort(jnp.arange(2, dtype=jnp.int32), jnp.array(mask))
        new, metrics = algo.round(jax.random.key(0), state, data, cohort)
        expected = B[client] * (1 - (1 - ETA * A[client]) ** 5)
        assert abs(float(new.server.params) - expected) < 1e-12
        assert int(metrics["num_clients"]) == 1
        assert int(metrics["num_steps"]) == 5
        # Each loss before its step, the mean over the five of them.
        path = B[client] + (1 - ETA * A[client]) ** np.arange(5) * (0 - B[client])
        loss = (0.5 * A[client] * (path - B[client]) ** 2).mean()
        np.testing.assert_allclose(metrics["train_loss"], loss, rtol=1e-6)


def test_train_loss_weighs_examples_not_batches():
    """F(0) = 2.375 over 40 examples, although client 0 sends three times as many of them."""
    algo = fl.fedsgd(quadratic, optax.sgd(ETA), sampler=fl.everyone())
    data = q2_data()
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    _, metrics = algo.round(jax.random.key(0), state, data)
    np.testing.assert_allclose(metrics["train_loss"], 2.375, rtol=1e-6)


def test_tyranny_of_the_majority():
    b, counts = np.array([0.0, 0.0, 3.0, 3.0]), np.array([450, 450, 50, 50])
    data = q2_data(counts, np.ones(4), b)
    algo = fedavg(fl.Plan(batch_size=None, steps=1), learning_rate=0.5)
    x = float(iterate(algo, jnp.array(2.0), data, 60)[-1])
    assert abs(x - 0.3) < 1e-12
    np.testing.assert_allclose(
        [0.5 * x**2, 0.5 * (x - 3) ** 2, 0.5 * 2**2, 0.5 * (2 - 3) ** 2], [0.045, 3.645, 2.0, 0.5]
    )


# -- M2 -------------------------------------------------------------------------------------

H = np.array([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 4.0]]])
W = np.array([[1.0, -1.0], [-2.0, 3.0]])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("steps", "limit"),
    [
        ((1, 1), (-0.27868852, 0.98360656)),
        ((5, 5), (0.0279546381, 0.5460699263)),
        ((3, 7), (-0.4207277539, 0.9926456077)),
    ],
)
def test_fixed_points_with_non_commuting_hessians(steps, limit):
    owners = np.repeat([0, 1], [3, 1])
    data = fl.data.from_arrays({"h": H[owners], "w": W[owners]}, owners)

    def loss(x, e, key):
        d = x - e["w"]
        return 0.5 * jnp.einsum("bi,bij,bj->b", d, e["h"], d)

    algo = fl.fedavg(
        loss,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=2, steps=np.array(steps)),
        sampler=fl.everyone(),
    )
    got = iterate(algo, jnp.zeros(2), data, 250)[-1]
    q = [np.eye(2) - np.linalg.matrix_power(np.eye(2) - 0.1 * h, k) for h, k in zip(H, steps)]
    weighted = [p * m for p, m in zip((0.75, 0.25), q)]
    exact = np.linalg.solve(sum(weighted), sum(m @ w for m, w in zip(weighted, W)))
    np.testing.assert_allclose(got, exact, atol=1e-10)
    np.testing.assert_allclose(got, limit, atol=6e-9)


# -- partial batches ------------------------------------------------------------------------


def linear_in_examples(w, e, key):
    """Gradient of example i: the i-th unit vector; a step of rate 1 records its weights."""
    return w[e["i"]]


@pytest.mark.sample(3)
@pytest.mark.parametrize(("n", "size"), [(25, 10), (25, 25), (25, 30), (25, None), (7, 3), (1, 10)])
def test_partial_batch_is_the_mean_over_its_real_examples(n, size):
    data = fl.data.from_arrays({"i": np.arange(n)}, np.zeros(n, int))
    algo = fl.fedavg(
        linear_in_examples, optax.sgd(1.0), plan=fl.Plan(batch_size=size), sampler=fl.everyone()
    )
    got = -iterate(algo, jnp.zeros(n), data, 1)[0]
    size = n if size is None else size
    full, rest = divmod(n, size)
    expected = np.sort(
        np.concatenate([np.full(full * size, 1 / size), np.full(rest, 1 / max(rest, 1))])
    )
    np.testing.assert_allclose(np.sort(got), expected, rtol=1e-12)


def test_pooled_gradient_of_ragged_clients():
    """Batches at least as large as the largest client: one step on everything."""
    sizes = np.array([25, 7, 1])
    owners = np.repeat(np.arange(3), sizes)
    rng = np.random.default_rng(1)
    b = rng.normal(size=33)
    data = fl.data.from_arrays({"a": np.ones(33), "b": b}, owners)
    # One step on everything: the pooled gradient. x - mean of all 33, not a mean of client means.
    for plan in (fl.Plan(batch_size=None), fl.Plan(batch_size=25), fl.Plan(batch_size=64)):
        got = iterate(fedavg(plan, learning_rate=0.3), jnp.array(2.0), data, 1)[0]
        assert abs(got - (2.0 - 0.3 * (2.0 - b.mean()))) < 1e-12


# -- reductions -----------------------------------------------------------------------------


def softmax_problem():
    rng = np.random.default_rng(3)
    sizes = np.array([13, 1, 7, 20, 4])
    owners = rng.permutation(np.repeat(np.arange(5), sizes))
    x = rng.normal(size=(sizes.sum(), 6))
    y = rng.integers(0, 3, sizes.sum())
    return x, y, owners


def softmax_loss(params, e, key):
    logits = e["x"] @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, e["y"])


def numpy_softmax_grad(w, b, x, y):
    logits = x @ w + b
    z = np.exp(logits - logits.max(1, keepdims=True))
    delta = (z / z.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
    return x.T @ delta, delta.sum(0)


def test_one_full_batch_step_of_everyone_is_centralised_descent():
    x, y, owners = softmax_problem()
    data = fl.data.from_arrays({"x": x, "y": y}, owners)
    params = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}
    averaging = fl.fedavg(
        softmax_loss, optax.sgd(0.5), plan=fl.Plan(batch_size=None), sampler=fl.everyone()
    )
    sgd = fl.fedsgd(softmax_loss, optax.sgd(0.5), sampler=fl.everyone())
    w, b = np.zeros((6, 3)), np.zeros(3)
    for got, other in zip(iterate(averaging, params, data, 10), iterate(sgd, params, data, 10)):
        gw, gb = numpy_softmax_grad(w, b, x, y)
        w, b = w - 0.5 * gw, b - 0.5 * gb
        np.testing.assert_allclose(got["w"], w, atol=1e-10)
        np.testing.assert_allclose(got["b"], b, atol=1e-10)
        np.testing.assert_allclose(other["w"], w, atol=1e-10)


def test_the_same_in_float32():
    x, y, owners = softmax_problem()
    with jax.enable_x64(False):
        data = fl.data.from_arrays({"x": x.astype(np.float32), "y": y.astype(np.int32)}, owners)
        algo = fl.fedavg(
            softmax_loss, optax.sgd(0.5), plan=fl.Plan(batch_size=None), sampler=fl.everyone()
        )
        got = iterate(algo, {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}, data, 10)[-1]
    w, b = np.zeros((6, 3)), np.zeros(3)
    for _ in range(10):
        gw, gb = numpy_softmax_grad(w, b, x, y)
        w, b = w - 0.5 * gw, b - 0.5 * gb
    assert got["w"].dtype == np.float32
    np.testing.assert_allclose(got["w"], w, atol=1e-6)
    np.testing.assert_allclose(got["b"], b, atol=1e-6)


def test_one_client_is_a_plain_loop_that_restarts_its_momentum():
    x, y, _ = softmax_problem()
    data = fl.data.from_arrays({"x": x, "y": y}, np.zeros(len(y), int))
    algo = fl.fedavg(
        softmax_loss,
        optax.sgd(0.2, momentum=0.9),
        plan=fl.Plan(batch_size=None, steps=4),
        sampler=fl.everyone(),
    )
    got = iterate(algo, {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}, data, 3)
    w, b = np.zeros((6, 3)), np.zeros(3)
    for model in got:
        vw, vb = np.zeros_like(w), np.zeros_like(b)
        for _ in range(4):
            gw, gb = numpy_softmax_grad(w, b, x, y)
            vw, vb = gw + 0.9 * vw, gb + 0.9 * vb
            w, b = w - 0.2 * vw, b - 0.2 * vb
        np.testing.assert_allclose(model["w"], w, atol=1e-10)
        np.testing.assert_allclose(model["b"], b, atol=1e-10)


def test_schedule_over_rounds_against_a_hand_iterated_loop():
    algo = fl.fedavg(
        quadratic,
        lambda r: optax.sgd(0.2 * 0.5**r),
        plan=fl.Plan(batch_size=None, steps=3),
        sampler=fl.everyone(),
    )
    got = iterate(algo, jnp.array(0.0), q2_data(), 6)
    x, expected = 0.0, []
    for r in range(6):
        x = numpy_round(x, (3, 3), eta=0.2 * 0.5**r)
        expected.append(x)
    np.testing.assert_allclose(got, expected, atol=1e-7)  # 0.5**int32 is float32 in JAX


def test_schedule_over_local_steps_restarts_every_round():
    rates = np.array([0.1, 0.05, 0.025])
    algo = fl.fedavg(
        quadratic,
        optax.sgd(lambda step: jnp.asarray(rates)[step]),
        plan=fl.Plan(batch_size=None, steps=3),
        sampler=fl.everyone(),
    )
    got = iterate(algo, jnp.array(0.0), q2_data(), 3)
    shrink = np.prod([1 - rate * A for rate in rates], axis=0)
    x = 0.0
    for model in got:
        x = (P * (B + shrink * (x - B))).sum()
        assert abs(model - x) < 1e-12


def test_fedsgd_sees_the_exact_gradient_however_large_the_parameters():
    """x - (x - g) is 0 in float32 where x = 1024 and g = 1e-5: the gradient itself must be sent."""
    with jax.enable_x64(False):
        data = fl.data.from_arrays({"g": np.full(4, 1e-5, np.float32)}, [0, 0, 1, 1])
        algo = fl.fedsgd(lambda w, e, key: w * e["g"], optax.sgd(1e7), sampler=fl.everyone())
        got = iterate(algo, jnp.array(1024.0), data, 1)[0]
    np.testing.assert_allclose(got, 1024.0 - 100.0, rtol=1e-6)
