"""Products with adapted kernels, factor by factor: equal to the whole kernel's, and cheaper."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_lite as fl
from fedjax_lite.models import LowRank, lora, merged
from fedjax_lite.models.low_rank_products import MovedKernel, by_factors


def moved(rng, inputs, outputs, rank, dtype=np.float64):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return MovedKernel(draw(*inputs, *outputs), draw(*inputs, rank), draw(rank, *outputs))


def uses(w, x, heads):
    """What models do with kernels: layers, loops, branches, transposes, norms, attention's axes."""
    hidden = jax.nn.relu(jnp.dot(x, w["dense"]))  # a layer, inside of a jitted function
    hidden = jax.jit(lambda x, w: jnp.tanh(x @ w))(hidden, w["square"])
    hidden = jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(h @ w["square"]), hidden)
    hidden = jax.checkpoint(lambda h, w: jnp.cos(h @ w))(hidden, w["square"])
    several = jnp.tensordot(heads, w["out"], 2)  # [B, 2, 4] x [2, 4, 3]
    tied = hidden @ w["dense"].T
    norm = jnp.linalg.norm(w["dense"]) + w["plain"].sum()
    return several.sum() + (tied**2).sum() + norm


def test_values_and_gradients_are_those_of_the_whole_kernels():
    """By the same function of ``base + a b``, to 1e-9, whatever is done to the kernels."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {
            "dense": moved(rng, (6,), (5,), 2),
            "square": moved(rng, (5,), (5,), 1),
            "out": moved(rng, (2, 4), (3,), 2),
            "plain": jnp.asarray(rng.normal(size=3)),
        }
        x, heads = rng.normal(size=(3, 6)), rng.normal(size=(3, 2, 4))
        is_moved = lambda node: isinstance(node, MovedKernel)  # noqa: E731

        def whole(params):
            fold = lambda w: w.merged() if is_moved(w) else w  # noqa: E731
            return uses(jax.tree.map(fold, params, is_leaf=is_moved), x, heads)

        split = lambda p: by_factors(uses)(p, x, heads)  # noqa: E731
        both = jax.jit(lambda p: (jax.value_and_grad(whole)(p), jax.value_and_grad(split)(p)))
        expected, found = both(params)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)
        # A function of one axis of clients, each with factors of its own on the one base.
        lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
        each = jax.jit(jax.vmap(split))(lanes)
        twice = whole(jax.tree.map(lambda leaf: 2 * leaf, params))
        np.testing.assert_allclose(each, [expected[0], twice], rtol=1e-9)


def test_narrow_kernels_stay_narrow():
    kernel = moved(np.random.default_rng(1), (4,), (4,), 1, jnp.bfloat16)
    found = by_factors(lambda w, x: x @ w)(kernel, jnp.ones((2, 4), jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    half = by_factors(lambda w, x: x @ w.astype(jnp.float32))(kernel, jnp.ones((2, 4)))
    base, a, b = (np.asarray(leaf, float) for leaf in kernel)
    np.testing.assert_allclose(half, np.ones((2, 4)) @ (base + a @ b), rtol=1e-5)


def shapes_of_products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_of_products(inner)


def test_a_step_makes_no_whole_kernel_and_costs_less_than_fedavgs():
    """Of a batch of 8 on kernels [64, 32] and [32, 4]: multiplications counted by hand.

    A step of FedAvg multiplies ``8 (2 * 64 * 32 + 3 * 32 * 4)`` numbers. LoRA's leaves the kernels'
    gradients out, ``8 (64 * 32 + 2 * 32 * 4)``, and adds at most three thin pairs a layer.
    """
    model = fl.models.mlp((32,), num_classes=4, input_shape=(64,))
    base = model.init(jax.random.key(0))
    adapted = lora(model, base, rank=2)
    examples = {"x": jnp.ones((8, 64)), "y": jnp.zeros(8, jnp.int32)}
    params = adapted.init(jax.random.key(1))
    steps = {
        "whole": (lambda w: model.loss(w, examples, None).sum(), base),
        "factors": (
            lambda w: adapted.loss(params._replace(adapters=w), examples, None).sum(),
            params.adapters,
        ),
    }
    costs, shapes = {}, {}
    for name, (total, trained) in steps.items():
        step = jax.grad(total)
        costs[name] = jax.jit(step).lower(trained).compile().cost_analysis()["flops"]
        shapes[name] = set(shapes_of_products(jax.make_jaxpr(step)(trained).jaxpr))
    kernels = {(64, 32), (32, 64), (32, 4), (4, 32)}
    assert shapes["whole"] & kernels
    assert not shapes["factors"] & kernels
    by_hand = 8 * (64 * 32 + 2 * 32 * 4) + 3 * 8 * 2 * ((64 + 32) + (32 + 4))
    assert costs["factors"] < 2 * by_hand * 1.2  # a multiplication and an addition, and the rest
    assert costs["factors"] < 0.85 * costs["whole"]


def test_a_large_batch_folds_adapters_of_high_rank_in():
    """``3 T r (m + n) > 3 m n r + T m n`` at T = 100, m = n = 4, r = 4: 9600 > 1792."""
    model = fl.models.linear(4, (4,), init="he")
    adapted = lora(model, model.init(jax.random.key(0)), rank=4)
    params = adapted.init(jax.random.key(1))
    params.adapters["head"]["kernel"] = LowRank(params.adapters["head"]["kernel"].a, jnp.eye(4))

    def both(params, examples):
        whole = model.loss(merged(params), examples, None)
        return adapted.loss(params, examples, None), whole

    for rows, folded in ((100, True), (1, False)):
        examples = {"x": jnp.ones((rows, 4)), "y": jnp.zeros(rows, jnp.int32)}
        traced = jax.make_jaxpr(adapted.loss)(params, examples, None)
        assert ((4, 4) in shapes_of_products(traced.jaxpr)) == folded
        np.testing.assert_allclose(*jax.jit(both)(params, examples), rtol=1e-5)
