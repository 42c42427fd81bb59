"""LoRA on models of this library, of flax linen and of nnx: what moves, and by how much."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import fedjax_lite as fl
from fedjax_lite.models import (
    Adapted,
    LowRank,
    dense_kernels,
    lora,
    merged,
    stacked_adapters,
    unmerged,
)


class Attends(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8, name="embed")(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x)
        return linen.Dense(3, name="head")(x.mean(1))


class AttendsNnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(4, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x + self.attention(x)
        return self.head(x.mean(1))


X = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
EXAMPLES = {"x": X, "y": np.array([0, 1, 2, 0, 1])}
MODELS = {
    "linen": lambda: fl.models.from_linen(Attends(), X[:1], raw_inputs=True),
    "nnx": lambda: fl.models.from_nnx(lambda rngs: AttendsNnx(rngs), raw_inputs=True),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", MODELS)
def test_every_dense_and_attention_kernel_of_flax_gets_an_adapter(kind):
    model = MODELS[kind]()
    base = jax.jit(model.init)(jax.random.key(0))
    adapted = lora(model, base, rank=2, alpha=6.0)
    params = adapted.init(jax.random.key(1))
    predictions = {one: jax.jit(one.predict) for one in (model, adapted)}
    shapes = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.adapters)
        if path[-1].name == "a"
    }
    # Inputs of query, key, value are the 8 features, of out 2 heads of 4.
    layers = ("query", "key", "value", "out")
    expected = {f"attention.{name}.kernel": (8, 2) for name in layers}
    assert shapes == {**expected, "embed.kernel": (4, 2), "head.kernel": (8, 2)}
    # Before training: the base, to the bit.
    np.testing.assert_array_equal(
        predictions[adapted](params, EXAMPLES), predictions[model](base, EXAMPLES)
    )
    losses = [
        jax.jit(one.loss)(of, EXAMPLES, None) for one, of in ((adapted, params), (model, base))
    ]
    np.testing.assert_array_equal(*losses)
    assert float(params.scale) == 3.0
    # A query kernel moves by scale * A B, seen as a matrix [8, 2 * 4].
    pair = params.adapters["attention"]["query"]["kernel"]
    b = np.random.default_rng(1).normal(size=pair.b.shape).astype(np.float32)
    params.adapters["attention"]["query"]["kernel"] = LowRank(pair.a, jnp.asarray(b))
    kernel = np.asarray(base["attention"]["query"]["kernel"])
    np.testing.assert_allclose(
        merged(params)["attention"]["query"]["kernel"],
        kernel + 3 * (np.asarray(pair.a) @ b).reshape(8, 2, 4),
        rtol=1e-5,
        atol=1e-6,
    )
    whole = merged(params)
    np.testing.assert_array_equal(
        predictions[adapted](params, EXAMPLES), predictions[model](whole, EXAMPLES)
    )
    back = unmerged(whole, params)
    chex.assert_trees_all_close(back.base, base, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_product():
    """dA = s dW B', dB = s A' dW, by numpy from the gradient of the merged model."""
    model = fl.models.mlp((), num_classes=3, input_shape=(4,))
    base = jax.jit(model.init)(jax.random.key(0))
    adapted = lora(model, base, rank=2, alpha=1.0)
    params = adapted.init(jax.random.key(1))
    pair = params.adapters["head"]["kernel"]
    params.adapters["head"]["kernel"] = pair = LowRank(pair.a, jnp.ones_like(pair.b))
    examples = {"x": X[:, 0], "y": EXAMPLES["y"]}

    def slope(loss):
        return jax.jit(jax.grad(lambda p: loss(p, examples, None).sum()))

    whole = np.asarray(slope(model.loss)(merged(params))["head"]["kernel"])
    found = slope(adapted.loss)(params).adapters["head"]["kernel"]
    np.testing.assert_allclose(found.a, 0.5 * whole @ np.asarray(pair.b).T, rtol=1e-5)
    np.testing.assert_allclose(found.b, 0.5 * np.asarray(pair.a).T @ whole, rtol=1e-5)


def test_any_tree_is_adapted_by_path():
    base = {"blocks": [{"mix": jnp.ones((2, 3, 4))}, {"mix": jnp.ones((2, 3, 4))}], "e": jnp.eye(5)}
    model = fl.models.from_functions(lambda key: base, lambda w, x, key: x)
    choose = lambda path, leaf: {"blocks.1.mix": 2, "e": 1}.get(path, 0)  # noqa: E731
    params = lora(model, base, rank=1, layers=choose).init(jax.random.key(0))
    assert params.adapters["blocks"][0]["mix"] is None
    assert jax.tree.map(jnp.shape, params.adapters["blocks"][1]["mix"]) == ((6, 1), (1, 4))
    assert jax.tree.map(jnp.shape, params.adapters["e"]) == ((5, 1), (1, 5))


def test_known_answers_of_averaging():
    """B1 A1 = e1 e1', B2 A2 = e2 e2': what is true, and what the naive mean makes of it."""
    eye = np.eye(2, dtype=np.float32)
    clients = LowRank(eye[:, :, None], eye[:, None, :])

    @jax.jit
    def both(clients, weights):
        stack = stacked_adapters({"w": clients, "b": None}, weights)
        sent = fl.Message(clients, weights)
        rule = fl.algorithms.mean_of_products()
        acc = rule.init(jax.tree.map(lambda leaf: leaf[0], sent), 2)
        acc = rule.add(acc, sent, jnp.arange(2), jnp.ones(2, bool))
        return stack, rule.finish(jax.random.key(0), (), acc, None)[1]

    for weights, naive in (
        ([1.0, 1.0], [[0.25, 0.25], [0.25, 0.25]]),
        ([3.0, 1.0], [[0.5625, 0.1875], [0.1875, 0.0625]]),
    ):
        shares = np.array(weights) / np.sum(weights)
        stack, found = jax.device_get(both(clients, np.array(weights, np.float32)))
        assert stack["b"] is None
        np.testing.assert_allclose(stack["w"].a @ stack["w"].b, np.diag(shares), atol=1e-7)
        np.testing.assert_allclose(found.factors.a @ found.factors.b, naive, atol=1e-7)
        np.testing.assert_allclose(found.products, np.diag(shares), atol=1e-7)


def test_a_bottleneck_is_its_formula():
    params = fl.models.init_bottleneck(jax.random.key(0), 4, 2)
    np.testing.assert_array_equal(fl.models.bottleneck(params, X), X)
    params["up"] = {"kernel": jnp.arange(8.0).reshape(2, 4), "bias": jnp.ones(4)}
    hidden = np.asarray(jax.nn.gelu(X @ np.asarray(params["down"]["kernel"])))
    expected = X + hidden @ np.arange(8.0).reshape(2, 4) + 1
    np.testing.assert_allclose(fl.models.bottleneck(params, X), expected, rtol=1e-5, atol=1e-6)


def test_wrong_input():
    model = fl.models.linear(3, (4,))
    base = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="rank must be"):
        lora(model, base, rank=0)
    with pytest.raises(ValueError, match="alpha must be"):
        lora(model, base, rank=1, alpha=0.0)
    with pytest.raises(ValueError, match=r"layers chose none of base's leaves, got \['head.bias'"):
        lora(model, base, rank=1, layers=dense_kernels("attention"))
    with pytest.raises(TypeError, match="layers must return how many leading axes"):
        lora(model, base, rank=1, layers=lambda path, leaf: True)
    with pytest.raises(ValueError, match=r"leave an axis of outputs, got 2 of head\.kernel"):
        lora(model, base, rank=1, layers=lambda path, leaf: 2 * (leaf.ndim == 2))
    with pytest.raises(TypeError, match="model must be a Model"):
        lora(model.loss, base, rank=1)
    with pytest.raises(TypeError, match="params must be an Adapted, got a dict"):
        merged(base)
    traced = jax.jit(lambda alpha: lora(model, base, rank=2, alpha=alpha).init(jax.random.key(0)))
    assert float(traced(4.0).scale) == 2.0
    assert isinstance(traced(4.0), Adapted)
    assert optax.tree.norm(traced(4.0).adapters) > 0
