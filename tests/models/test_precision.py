"""with_precision: how far off the result is, and what stays in float32 from round to round."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from narrow_models import MODELS, U, apart, examples, mean_of, norm, start

import fedjax_lite as fl
from fedjax_lite.engine.differentiable import differentiable
from fedjax_lite.models.precision import narrow_products, with_precision


def test_gradient_is_within_the_bound_of_rounding():
    """Logistic regression, entry by entry: every term of the error by its own bound.

    ``|dz| <= c |x| |w|`` with ``c = 2u + u^2``; ``|dp| <= p (1 - p) .. <= max |dz| / 2`` for the
    softmax; ``|dG| <= |x|^T |dg| (1 + c) + c |x|^T |g|`` for the gradient ``G = x^T g``.
    """
    model = fl.models.linear(4, (20,), init="lecun")
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(32, 20)).astype(np.float32), "y": rng.integers(0, 4, 32)}
    params = start(model)
    got = jax.jit(jax.grad(mean_of(with_precision(model), batch)))(params)["head"]["kernel"]
    c = 2 * U + U**2 + 1e-5  # 1e-5: float32's own rounding
    x, w = np.float64(batch["x"]), np.float64(params["head"]["kernel"])
    z = x @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    g = (p - np.eye(4)[batch["y"]]) / 32
    dz = (c * np.abs(x) @ np.abs(w)).max(1, keepdims=True)
    dg = dz / 2 / 32
    bound = np.abs(x).T @ np.broadcast_to(dg, g.shape) * (1 + c) + c * np.abs(x).T @ np.abs(g)
    error = np.abs(got - x.T @ g)
    assert (error <= bound).all()
    assert error.max() > 1e-5  # of float32 alone it would be about 1e-7


def running_sum(terms):
    total = ml_dtypes.bfloat16(0)
    for term in terms:
        total = ml_dtypes.bfloat16(total + term)
    return float(total)


def test_sums_of_many_small_terms_do_not_stall():
    """4096 terms of 1/256: a running sum in bfloat16 ends at 1, for 1 + 1/256 rounds to 1."""
    small = np.full(4096, 1 / 256, ml_dtypes.bfloat16)
    assert running_sum(small) == 1.0
    model = fl.models.from_functions(
        lambda key: jnp.full((4096, 1), 1 / 256),
        lambda w, x, key: x @ w,
        loss=lambda z, y: z[:, 0] / 256,
    )
    narrow, params = with_precision(model), model.init(jax.random.key(0))
    ones = {"x": jnp.ones((1, 4096)), "y": jnp.zeros(1)}
    assert float(narrow.predict(params, ones)[0, 0]) == 16.0
    # And in the gradient, a sum over 4096 examples of 1/256 each.
    many = {"x": jnp.ones((4096, 4096)), "y": jnp.zeros(4096)}
    grads = jax.grad(lambda w: narrow.loss(w, many, None).sum())(params)
    np.testing.assert_array_equal(grads, np.full((4096, 1), 16.0))


def test_master_weights_take_steps_below_their_bfloat16_grid():
    """From 1, 64 steps of 1/1024 each: as bfloat16 the weight would never leave 1."""
    model = fl.models.from_functions(
        lambda key: jnp.ones((1, 1)), lambda w, x, key: x @ w, loss=lambda z, y: -z[:, 0]
    )
    data = fl.data.from_arrays({"x": np.ones((64, 1)), "y": np.zeros(64)}, np.zeros(64, int))
    algo = fl.fedavg(
        with_precision(model).loss,
        optax.sgd(1 / 1024),
        plan=fl.Plan(batch_size=1),
        sampler=fl.everyone(),
    )
    state = algo.init(jax.random.key(0), model.init(None), data)
    state, _ = algo.round(jax.random.key(0), state, data)
    assert float(state.server.params[0, 0]) == 1 + 64 / 1024
    assert running_sum([ml_dtypes.bfloat16(1)] + [ml_dtypes.bfloat16(1 / 1024)] * 64) == 1.0


def tiny_population(name):
    data = {k: np.asarray(v) for k, v in examples(name, 24).items()}
    return fl.data.from_arrays(data, np.repeat([0, 1, 2], [12, 8, 4]))


@pytest.mark.sample(2, of="equal under all strategies")
def test_every_strategy_gives_the_same_round_in_float32():
    """Of convolutions and a matrix product."""
    model, data = MODELS["conv_net"](), tiny_population("conv_net")
    narrow, params, results = with_precision(model), start(model), []
    for strategy in (fl.vmapped(), fl.chunked(2), fl.sequential(), differentiable()):
        algo = fl.fedavg(
            narrow.loss,
            optax.sgd(0.1, momentum=0.9),
            plan=fl.Plan(batch_size=4),
            sampler=fl.everyone(),
            server_optimizer=optax.sgd(1.0, momentum=0.5),
            strategy=strategy,
        )
        state = algo.init(jax.random.key(0), params, data)
        state, _ = algo.round(jax.random.key(0), state, data)
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {leaf.dtype.name for leaf in floats} == {"float32"}
        results.append(state.server.params)
    moved = norm(apart(results[0], params))
    for other in results[1:]:
        # Sums in another order may fall on the other side of a rounding: a few ulps of bfloat16.
        assert norm(apart(results[0], other)) < 2 * U * moved


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name", ["ours", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linen norm", "nnx norm"))]
)
def test_running_statistics_are_float32(name):
    """Statistics of what no product has touched are those of float32, bit for bit."""

    def apply(params, x, key):
        x = fl.models.batch_norm(params["norm"], x, training=key is not None)
        return x.reshape(x.shape[0], -1) @ params["head"]

    def init(key):
        norms = fl.models.init_batch_norm(1, statistics="averaged")
        return {"norm": norms, "head": jax.random.normal(key, (64, 4))}

    ours = name == "ours"
    model = fl.models.from_functions(init, apply) if ours else MODELS[name]()
    data, params, after = tiny_population(name), start(model), []
    for one in (model, with_precision(model)):
        algo = fl.fedavg(
            one.loss,
            fl.models.with_statistics(optax.sgd(0.05)),
            plan=fl.Plan(batch_size=4),
            sampler=fl.everyone(),
        )
        state = algo.init(jax.random.key(0), params, data)
        state, _ = algo.round(jax.random.key(0), state, data)
        mask = fl.models.statistics_mask(params)
        trained = state.server.params
        found = [s for s, m in zip(jax.tree.leaves(trained), jax.tree.leaves(mask)) if m]
        assert len(found) == 2
        assert {leaf.dtype.name for leaf in found} == {"float32"}
        after.append(found)
        logits = jax.eval_shape(one.predict, trained, {"x": data.examples["x"]})
        assert logits.dtype == jnp.float32
    for wide, narrow in zip(*after):
        if ours:
            np.testing.assert_array_equal(wide, narrow)
        else:
            np.testing.assert_allclose(wide, narrow, rtol=0, atol=8 * U * np.abs(wide).max())


def test_raw_inputs_are_scaled_in_float32_and_rounded_once():
    """uint8 reaches the model as it is; a product reads ``bf((x / 255 - mean) / std)``."""
    model = fl.models.linear(2, (4,), init="lecun", mean=(0.4,), std=(0.2,))
    x = np.array([[0, 51, 100, 255]], np.uint8)
    params = {"head": {"kernel": jnp.eye(4, 2) + 0.0, "bias": jnp.zeros(2)}}
    got = with_precision(model).predict(params, {"x": x})
    scaled = ((x.astype(np.float32) / 255 - np.float32(0.4)) / np.float32(0.2)).astype(
        ml_dtypes.bfloat16
    )
    np.testing.assert_array_equal(got, scaled[:, :2].astype(np.float32))


def test_what_is_narrow_or_integer_already_stays():
    half, whole = jnp.ones((2, 2), jnp.bfloat16), jnp.ones((2, 2), jnp.int32)
    assert narrow_products(lambda x: x @ x)(half).dtype == jnp.bfloat16
    assert narrow_products(lambda x: x @ x)(whole).dtype == jnp.int32
    with jax.enable_x64(True):
        double = jnp.full((1, 1), 1 + 2.0**-10, jnp.float64)
        product = narrow_products(lambda x: x @ x)(double)
        assert (product.dtype, float(product[0, 0])) == (jnp.float64, 1.0)


def test_bad_arguments_are_named():
    model = MODELS["linear"]()
    with pytest.raises(TypeError, match="model must be a Model"):
        with_precision(model.loss)
    with pytest.raises(ValueError, match=r"float16.*loss scaling"):
        with_precision(model, "float16")
    with pytest.raises(ValueError, match="compute must be"):
        with_precision(model, "fp8")


def test_narrow_products_in_gradients_through_rounds():
    """Cotangents of several products are added up in the derivative of a derivative."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4)).astype(np.float32)
    data = fl.data.from_arrays({"x": x, "y": rng.integers(0, 3, 8)}, np.repeat([0, 1], 4))
    plain = fl.models.mlp((8,), num_classes=3, input_shape=(4,))
    key = jax.random.key(0)
    params = start(plain)

    def slope(model):
        def after(learning_rate):
            algo = fl.fedavg(
                model.loss,
                optax.sgd(learning_rate),
                plan=fl.Plan(batch_size=2),
                sampler=fl.everyone(),
                strategy=fl.differentiable(),
            )
            state = algo.init(key, params, data)
            state, _ = fl.unroll(algo, key, state, data, num_rounds=2)
            return model.loss(state.server.params, data.examples, key).mean()

        return jax.jit(jax.grad(after))(0.5)

    narrow, exact = slope(fl.models.with_precision(plain, "bfloat16")), slope(plain)
    assert narrow.dtype == jnp.float32
    # Four steps of products with relative error 2**-8 each, some of it cancelled in the slope.
    np.testing.assert_allclose(narrow, exact, rtol=0.1)
    assert float(narrow) != float(exact)
