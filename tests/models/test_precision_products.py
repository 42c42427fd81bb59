"""with_precision: which operations of a program are narrow, and which are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow_models import MODELS, U, apart, examples, mean_of, norm, start

from fedjax_lite.models.precision import inner_jaxprs, narrow_products, with_precision

PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation.params):
            yield from equations(inner)


def products(function, *args):
    return products_in(jax.make_jaxpr(function)(*args))


def products_in(closed):
    return [e for e in equations(closed.jaxpr) if e.primitive.name in PRODUCTS]


def types(equation):
    return [atom.aval.dtype.name for atom in (*equation.invars, *equation.outvars)]


QUICK = ("mlp", "cnn", "cnn xla", "linen norm")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_products_are_narrow_and_nothing_else_is(name):
    """Operands of every product bfloat16 in both directions, sums and all the rest float32."""
    model = MODELS[name]()
    narrow, batch = with_precision(model), jax.tree.map(jnp.asarray, examples(name))
    params = start(model)
    forward = products(mean_of(narrow, batch), params)
    traced = jax.jit(jax.value_and_grad(mean_of(narrow, batch))).trace(params)
    both = products_in(traced.jaxpr)
    assert len(forward) == len(products(mean_of(model, batch), params))
    assert len(both) >= 2 * len(forward)  # the first layer has no input gradient to compute
    for equation in both:
        assert types(equation)[:2] == ["bfloat16", "bfloat16"], equation
        if equation.primitive.name == "dot_general":
            assert equation.params["preferred_element_type"] == jnp.float32
            assert types(equation)[2] == "float32"
    allowed = {
        "broadcast_in_dim", "concatenate", "conv_general_dilated", "convert_element_type",
        "custom_vjp_call", "dot_general", "dynamic_slice", "dynamic_update_slice", "jit", "mul",
        "pad", "pjit", "reshape", "rev", "scan", "select_n", "squeeze", "transpose",
    }  # fmt: skip
    for equation in equations(traced.jaxpr.jaxpr):
        if any(getattr(atom.aval, "dtype", None) == jnp.bfloat16 for atom in equation.outvars):
            assert equation.primitive.name in allowed, equation
    lowered = traced.lower()
    assert "bf16" in lowered.as_text()

    value, grads = lowered.compile()(params)
    assert value.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}
    assert jax.eval_shape(narrow.predict, params, batch).dtype == jnp.float32

    # Off, for products are rounded; and not far off, though a ReLU near 0 may switch.
    expected = jax.jit(jax.grad(mean_of(model, batch)))(params)
    away = {
        key: norm(apart(grads[key], expected[key])) / norm(expected[key])
        for key in grads
        if "norm" not in name
    }
    for share in away.values():
        assert share < 40 * U, away
    if away:
        assert max(away.values()) > U / 16, away


@pytest.mark.parametrize("name", ["mlp", "cnn xla", "char_lstm"])
def test_tf32_and_float32_are_asked_for_in_both_directions(name):
    model, before = MODELS[name](), jax.config.jax_default_matmul_precision
    batch, params = jax.tree.map(jnp.asarray, examples(name)), start(model)
    plain = products(jax.grad(mean_of(model, batch)), params)
    assert all(equation.params["precision"] is None for equation in plain)
    expected = jax.jit(model.predict)(params, batch)
    for compute, precision in (
        ("tensorfloat32", jax.lax.Precision.HIGH),
        ("float32", jax.lax.Precision.HIGHEST),
    ):
        scoped = with_precision(model, compute)
        found = products(jax.value_and_grad(mean_of(scoped, batch)), params)
        assert len(found) > 2
        for equation in found:
            assert equation.params["precision"] == (precision, precision)
            assert set(types(equation)) == {"float32"}
        assert jax.config.jax_default_matmul_precision == before
        if jax.default_backend() == "cpu":
            np.testing.assert_array_equal(expected, jax.jit(scoped.predict)(params, batch))


def test_products_are_found_in_loops_branches_and_calls():
    w = jnp.full((2, 2), 1 + 2.0**-10)  # 1 in bfloat16

    def function(w, x):
        x = jax.checkpoint(lambda x: x @ w)(x)
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)
        x, stacked = jax.lax.scan(lambda x, s: (x @ w + s, x), x, jnp.zeros(2), reverse=True)
        x = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1]
        return jax.jit(lambda x: x @ w)(x) + stacked.sum()

    ones = jnp.ones((2, 2))
    # Seven products with a matrix of ones from ones: 2^7; the two stacked ones have 4 of 4 and 8.
    expected = 2.0**7 + 4 * (2.0**2 + 2.0**3)
    np.testing.assert_array_equal(narrow_products(function)(w, ones), np.full((2, 2), expected))
    assert float(function(w, ones)[0, 0]) > expected
    found = products(narrow_products(function), w, ones)
    assert {tuple(types(e)) for e in found} == {("bfloat16", "bfloat16", "float32")}


def test_batched_products_any_axes_and_derivatives_of_second_order():
    rng = np.random.default_rng(0)
    # Multiples of 1/4 up to 2: exact in bfloat16, so are the products.
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) / 4 for shape in ((3, 4, 5), (5, 3, 2)))

    def f(a, b):
        return jnp.einsum("bij,jbk->kbi", a, b)

    def energy(function):
        return lambda a, b: 0.5 * (function(a, b) ** 2).sum()

    narrow = narrow_products(f)
    np.testing.assert_array_equal(narrow(a, b), f(a, b))
    many = np.stack([a, -a])
    np.testing.assert_array_equal(
        jax.vmap(narrow, (0, None))(many, b), jax.vmap(f, (0, None))(many, b)
    )

    a, b = (rng.normal(size=x.shape).astype(np.float32) for x in (a, b))

    def second(function):
        slope = jax.grad(energy(function))
        return jax.grad(lambda a: (slope(a, b) * a).sum())(a)

    got, expected = jax.jit(lambda: second(narrow))(), jax.jit(lambda: second(f))()
    assert got.dtype == jnp.float32
    scale = np.abs(expected).max()
    assert 0 < np.abs(got - expected).max() < 6 * U * scale
    for equation in products(jax.grad(lambda a: (jax.grad(energy(narrow))(a, b) * a).sum()), a):
        assert types(equation) == ["bfloat16", "bfloat16", "float32"]
