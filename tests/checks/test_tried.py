"""tried(): the numbers that JAX itself computes, without a compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.checks.tried import OPERATIONS, tried

X = np.array([[0.5, -1.25, 3.0], [2.0, 0.0, -0.5]], np.float32)
N = np.array([7, -7, 3], np.int32)
FUNCTIONS = {
    "arithmetic": lambda x, i: (x + 2 * x - x / 3, -x, x**3, abs(x) ** 0.5, i // 2, i % 4, i * i),
    "comparisons": lambda x, i: (
        jnp.where(x > 0, x, 2 * x), x == 0, (x < 1) & ~(x >= 0) | (x <= -1), i != 3,
    ),
    "functions": lambda x, i: [
        f(jnp.abs(x) + 0.5)
        for f in (jnp.exp, jnp.log, jnp.sqrt, jax.lax.rsqrt, jnp.sin, jnp.cos, jnp.tanh, jnp.floor)
    ],
    "reductions": lambda x, i: (x.sum(), x.max(1), x.min(0), (x > 0).all(), (x > 1).any(1)),
    "shapes": lambda x, i: (
        x.T, x.reshape(3, 2), x[None], x[:, 1], x[0, ::2], jnp.concatenate([x, x], 1),
        jnp.broadcast_to(x[:, :1], (2, 5)), jnp.stack([x, -x], 1), jnp.arange(5) * i[0],
    ),
    "clips": lambda x, i: (jnp.clip(x, -1, 1), jax.lax.clamp(0.0, x, 1.0), jnp.maximum(x, 0)),
    "types": lambda x, i: (x.astype(jnp.int32), i.astype(float), x.astype(jnp.bfloat16), i > 0),
    "nested": lambda x, i: jax.jit(lambda x: jax.nn.relu(x) + jax.nn.sigmoid(x) * 0)(x),
    "batched": lambda x, i: jax.vmap(lambda row, n: row * n.astype(float))(x.T, i),
    "not finite": lambda x, i: (x / 0, jnp.isfinite(x / 0), jnp.where(x > 0, 1 / x, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_are_those_of_jax(name):
    function = FUNCTIONS[name]
    found, traced = tried(function, X, N, stand_in=0.5, anyhow=name == "nested")
    expected = jax.jit(function)(X, N)
    assert not traced
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(
            mine.astype(float), np.asarray(theirs, float), rtol=2e-6, atol=1e-7
        )


def test_every_operation_is_compared():
    """By the primitives that the functions above consist of."""

    def primitives(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    yield from primitives(getattr(value, "jaxpr", value))

    seen = {
        name
        for function in FUNCTIONS.values()
        for name in primitives(jax.make_jaxpr(function)(X, N).jaxpr)
    }
    rare = {"log1p", "expm1", "ceil", "rem", "expand_dims", "copy", "reduce_and", "reduce_or"}
    assert set(OPERATIONS) - seen <= rare | {"square", "clamp", "stack", "integer_pow", "is_finite"}


def test_what_numpy_lacks_is_done_by_jax_or_refused():
    def loops(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: 2 * y, x)

    np.testing.assert_array_equal(tried(loops, X, stand_in=0.5)[0], 8 * X)
    with pytest.raises(NotImplementedError, match=r"while|scan"):
        tried(loops, X, stand_in=0.5, anyhow=False)


def test_traced_numbers_are_stood_in_for_and_leak_nowhere():
    found = []

    def program(rate):
        found.append(tried(lambda x: rate * x, X, stand_in=0.25))
        return rate

    with jax.checking_leaks(), jax.transfer_guard("disallow"):
        jax.jit(program).lower(jax.ShapeDtypeStruct((), np.float32))
    np.testing.assert_array_equal(found[0][0], 0.25 * X)
    assert found[0][1]
