"""Batch statistics of linen and nnx networks, against loops that are written with flax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batch_statistics import LinenNet, NnxNet, X, ema, one_round
from flax import linen

import fedjax_lite as fl
from fedjax_lite.models import from_functions, from_linen, from_nnx
from fedjax_lite.models.batch_norm import (
    batch_norm,
    from_moments,
    init_batch_norm,
    statistics_mask,
    with_statistics,
)
from fedjax_lite.models.layers import dense, init_affine

KEY = jax.random.key(0)


def start(model):
    """Parameters by one program, where the initialisers alone would be dozens."""
    return jax.jit(model.init)(KEY)


EXAMPLES = {"x": jnp.asarray(X, jnp.float32), "y": jnp.array([0, 1, 0, 1, 1, 0])}


@jax.jit
def plain_linen_step(variables, x, y, rate):
    """One step of SGD as flax's own guide writes it: mutable batch_stats beside params."""
    module = LinenNet()

    def objective(params):
        logits, new = module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    grad, new = jax.grad(objective, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - rate * g, variables["params"], grad)
    return {"params": params, **new}


def test_linen_averaged_equals_a_loop_written_with_flax():
    model = from_linen(LinenNet(), EXAMPLES["x"], statistics="averaged")
    params = start(model)
    assert sorted(params) == ["BatchNorm_0", "Block_0", "Dense_0"]
    assert sorted(params["Block_0"]["BatchNorm_0"]) == ["batch_stats", "bias"]
    data = fl.data.from_arrays(EXAMPLES, [0] * 6)
    algo = fl.fedavg(
        model.loss,
        with_statistics(optax.sgd(0.1)),
        plan=fl.Plan(batch_size=None, steps=4),
        sampler=fl.everyone(),
    )
    got = one_round(algo, params, data).server.params
    variables = dict(jax.jit(LinenNet().init)(KEY, EXAMPLES["x"]))
    for _ in range(4):
        variables = plain_linen_step(variables, EXAMPLES["x"], EXAMPLES["y"], 0.1)
    for path in (("BatchNorm_0",), ("Block_0", "BatchNorm_0")):
        ours, theirs = got, variables["batch_stats"]
        for name in path:
            ours, theirs = ours[name], theirs[name]
        mean, variance = from_moments(ours["batch_stats"])
        np.testing.assert_allclose(mean, theirs["mean"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(variance, theirs["var"], rtol=1e-4)
    np.testing.assert_allclose(
        got["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"], rtol=1e-4, atol=1e-6
    )
    theirs = jax.jit(LinenNet().apply)(variables, EXAMPLES["x"])
    np.testing.assert_allclose(jax.jit(model.predict)(got, EXAMPLES), theirs, atol=1e-4)


def test_nnx_averaged_follows_the_forward_pass():
    model = from_nnx(NnxNet, statistics="averaged")
    params = start(model)
    tx = with_statistics(optax.sgd(0.1))

    @jax.jit
    def step(params):
        grad = jax.grad(lambda p: model.loss(p, EXAMPLES, KEY).mean())(params)
        return optax.apply_updates(params, tx.update(grad, tx.init(params), params)[0])

    begun = params
    for _ in range(3):
        params = step(params)
    mean, variance = ema([X] * 3, np.zeros(3), np.ones(3))
    got = from_moments(params["first"]["batch_stats"])
    np.testing.assert_allclose(got[0], mean, rtol=1e-5)
    np.testing.assert_allclose(got[1], variance, rtol=1e-5)
    assert params["norms"][0].keys() == {"bias", "batch_stats"}
    # In evaluation the very first prediction is that of mean 0 and variance 1.
    first, dense_, head = (jax.tree.map(np.asarray, begun[n]) for n in ("first", "dense", "head"))
    h = (X / np.sqrt(1 + 1e-5) * first["scale"]) @ dense_["kernel"] / np.sqrt(1 + 1e-5)
    want = np.maximum(h, 0) @ head["kernel"]
    np.testing.assert_allclose(jax.jit(model.predict)(begun, EXAMPLES), want, atol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_batch_policy_of_flax_keeps_no_state_and_depends_on_the_batch(kind):
    if kind == "linen":
        model = from_linen(LinenNet(), EXAMPLES["x"], statistics="batch")
    else:
        model = from_nnx(NnxNet, statistics="batch")
    params, predict = start(model), jax.jit(model.predict)
    assert not any(jax.tree.leaves(statistics_mask(params)))
    whole, alone = predict(params, EXAMPLES), predict(params, {"x": X[:3].astype(np.float32)})
    assert not np.allclose(whole[:3], alone, atol=1e-3)
    # Invariant to shift and scale of the inputs, as no running average could be.
    moved = {"x": (5.0 * X + 3.0).astype(np.float32), "y": EXAMPLES["y"]}
    np.testing.assert_allclose(predict(params, moved), whole, atol=2e-3)
    assert np.isfinite(jax.jit(model.loss)(params, EXAMPLES, KEY)).all()


def test_batch_policy_refuses_dropout_behind_the_same_flag():
    with pytest.raises(ValueError, match="separate arguments"):
        from_linen(LinenNet(rate=0.5), EXAMPLES["x"], statistics="batch")


def test_other_state_is_refused():
    class Spectral(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool = False):
            return linen.SpectralNorm(linen.Dense(2))(x, update_stats=train)

    class Counter(linen.Module):
        @linen.compact
        def __call__(self, x):
            self.variable("memory", "n", lambda: jnp.zeros(()))
            return linen.Dense(2)(x)

    with pytest.raises(ValueError, match="pairs of a running mean and var"):
        from_linen(Spectral(), EXAMPLES["x"], statistics="averaged")
    with pytest.raises(ValueError, match="memory"):
        from_linen(Counter(), EXAMPLES["x"], statistics="averaged")


# -- learning ------------------------------------------------------------------------------


def digits_model(statistics):
    def init(key):
        first, second = jax.random.split(key)
        return {
            "first": init_affine(first, (64, 32)),
            "norm": init_batch_norm(32, statistics=statistics),
            "head": init_affine(second, (32, 10)),
        }

    def apply(params, x, key):
        x = dense(params["first"], x.reshape(x.shape[0], -1))
        x = jax.nn.relu(batch_norm(params["norm"], x, training=key is not None))
        return dense(params["head"], x)

    return from_functions(init, apply)


@pytest.fixture(scope="module")
def digits():
    train, test = fl.data.load("digits")
    return fl.data.partition(train, fl.data.dirichlet(alpha=1.0, num_clients=5, seed=0)), test


@pytest.mark.sample(2, of="accuracy of an independent run")
@pytest.mark.parametrize("policy", ["averaged", "batch"])
def test_fedavg_learns_digits(digits, policy):
    data, test = digits
    model = digits_model(policy)
    optimizer = with_statistics(optax.sgd(0.1)) if policy == "averaged" else optax.sgd(0.1)
    plan = fl.Plan(batch_size=20, epochs=2)
    algo = fl.fedavg(model.loss, optimizer, plan=plan, sampler=fl.everyone())
    state = one_round(algo, start(model), data, 5)
    score = fl.evaluator(model, test)(state)
    assert score["test_accuracy"] > 0.8  # chance is 0.1
    assert np.isfinite(score["test_loss"])
