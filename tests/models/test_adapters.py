"""Models made of flax modules and plain functions equal direct computation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fedjax_lite.models import cross_entropy, from_functions, from_linen, from_nnx

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
EXAMPLES = {"x": X, "y": jnp.array([0, 1, 2, 0, 1])}


class LinenNet(linen.Module):
    rate: float = 0.5
    norm: bool = False

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.relu(linen.Dense(16)(x))
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(3)(linen.Dropout(self.rate, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs, norm=False):
        self.dense1 = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.dense1(x))
        if self.norm is not None:
            x = self.norm(x)
        return self.head(self.dropout(x))


def numpy_logits(first, second):
    first, second = jax.tree.map(np.asarray, (first, second))
    hidden = np.maximum(np.asarray(X) @ first["kernel"] + first["bias"], 0)
    return hidden @ second["kernel"] + second["bias"]


def linen_model():
    model = from_linen(LinenNet(), X)
    params = jax.jit(model.init)(KEY)
    return model, params, (params["Dense_0"], params["Dense_1"])


def nnx_model():
    model = from_nnx(lambda rngs: NnxNet(rngs))
    params = jax.jit(model.init)(KEY)
    return model, params, (params["dense1"], params["head"])


@pytest.mark.parametrize("make", [linen_model, nnx_model])
def test_loss_equals_direct_computation(make):
    model, params, layers = make()
    expected = numpy_logits(*layers)
    np.testing.assert_allclose(jax.jit(model.predict)(params, EXAMPLES), expected, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(model.loss)(params, EXAMPLES, None),
        jax.jit(cross_entropy)(expected, EXAMPLES["y"]),
        atol=1e-5,
    )


@pytest.mark.parametrize("make", [linen_model, nnx_model])
def test_parameters_are_plain_dicts_of_arrays(make):
    _, params, _ = make()
    assert type(params) is dict
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 4
    assert all(type(leaf) is type(jnp.ones(1)) for leaf in leaves)


@pytest.mark.parametrize("make", [linen_model, nnx_model])
def test_dropout_uses_the_key(make):
    model, params, _ = make()
    loss = jax.jit(model.loss)
    first, again, other = (loss(params, EXAMPLES, key) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    still = loss(params, EXAMPLES, None)
    np.testing.assert_array_equal(still, loss(params, EXAMPLES, None))
    assert (np.asarray(first) != np.asarray(still)).any()


@pytest.mark.parametrize("make", [linen_model, nnx_model])
def test_gradient_per_client_under_vmap(make):
    model, params, _ = make()
    clients = jax.tree.map(lambda leaf: np.stack([leaf, 2 * np.asarray(leaf)]), params)
    keys = jax.random.split(KEY, 2)

    def gradient(params, key):
        return jax.grad(lambda p: model.loss(p, EXAMPLES, key).mean())(params)

    both, alone = jax.jit(jax.vmap(gradient))(clients, keys), jax.jit(gradient)
    for i in range(2):
        one = alone(jax.tree.map(lambda leaf, i=i: leaf[i], clients), keys[i])
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], both)
        chex.assert_trees_all_close(mine, one, rtol=1e-7, atol=1e-5)


def test_batch_statistics_are_refused():
    with pytest.raises(ValueError, match="undecided use of batch statistics is an error"):
        from_linen(LinenNet(norm=True), X)
    with pytest.raises(ValueError, match="undecided use of batch statistics is an error"):
        from_nnx(lambda rngs: NnxNet(rngs, norm=True))


def test_linen_with_named_arguments_and_scaled_images():
    class Flat(linen.Module):
        @linen.compact
        def __call__(self, x, mode):
            return linen.Dense(2)(x.reshape(x.shape[0], -1)) * (2.0 if mode == "train" else 1.0)

    images = jnp.full((3, 2, 2, 1), 255, jnp.uint8)
    model = from_linen(
        Flat(), images, train_kwargs={"mode": "train"}, eval_kwargs={"mode": "eval"},
        mean=(0.5,), std=(0.25,),
    )  # fmt: skip
    params = model.init(KEY)
    expected = (jnp.full((3, 4), 2.0)) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(model.predict(params, {"x": images}), expected, rtol=1e-5)
    losses = model.loss(params, {"x": images, "y": jnp.zeros(3, int)}, KEY)
    np.testing.assert_allclose(losses, cross_entropy(2 * expected, jnp.zeros(3, int)), rtol=1e-5)


def test_nnx_draws_another_start_from_another_key():
    model = from_nnx(lambda rngs: NnxNet(rngs))
    init = jax.jit(model.init)
    kernels = [init(key)["head"]["kernel"] for key in jax.random.split(KEY, 2)]
    assert (np.asarray(kernels[0]) != np.asarray(kernels[1])).all()


def test_functions_on_any_pytree():
    model = from_functions(
        lambda key: (jax.random.normal(key, (4, 3)), [jnp.zeros(3)]),
        lambda params, x, key: x @ params[0] + params[1][0] + (0.0 if key is None else 1.0),
        loss=lambda logits, y: jnp.square(logits[:, 0] - y),
    )
    params = model.init(KEY)
    first = np.asarray(X @ params[0])[:, 0]
    y = np.asarray(EXAMPLES["y"])
    np.testing.assert_allclose(model.loss(params, EXAMPLES, None), (first - y) ** 2, rtol=1e-5)
    np.testing.assert_allclose(model.loss(params, EXAMPLES, KEY), (first + 1 - y) ** 2, rtol=1e-5)


def test_errors():
    with pytest.raises(TypeError, match="from_nnx"):
        from_linen(lambda x: x, X)
    with pytest.raises(TypeError, match=r"nnx\.Module"):
        from_nnx(lambda rngs: 3)
    with pytest.raises(ValueError, match="raw_inputs"):
        from_functions(lambda key: 0, lambda p, x, key: x, mean=(0.5,), raw_inputs=True)
