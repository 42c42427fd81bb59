"""with_precision(): a model whose products run in a chosen precision, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import Literal as Constant

from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.models.model import Model
from fedjax_lite.models.products import narrow_conv, narrow_dot
from fedjax_lite.types import Array, Key, Params, PyTree

Compute = Literal["float32", "tensorfloat32", "bfloat16"]


@made
def with_precision(model: Model, compute: Compute = "bfloat16") -> Model:
    r"""Runs a model's matrix products and convolutions in a chosen precision.

    "bfloat16" rounds the operands of every product to bfloat16, forward and backward, and adds
    up in float32; `C = A B` becomes

    .. math::
        C &= \mathrm{bf}(A)\, \mathrm{bf}(B), \\
        \bar A &= \mathrm{bf}(\bar C)\, \mathrm{bf}(B)^\top, \qquad
        \bar B = \mathrm{bf}(A)^\top\, \mathrm{bf}(\bar C)

    so that a product is off by at most :math:`2u + u^2` of :math:`|A|\,|B|` with ``u = 2**-8``,
    however many terms it has. Everything else stays as it is, in float32: parameters and their
    gradients, biases, normalisation and its statistics (also the running ones of `batch_norm`),
    softmax and loss, and with them the clients' optimizers, the aggregate and the server. Inputs
    of uint8 reach the model raw; what it makes of them is rounded where a product reads it.
    What is kept for the backward pass of a product takes half the memory.

    "tensorfloat32" and "float32" are ``jax.default_matmul_precision`` for this model alone. On
    NVIDIA GPUs tf32 is the default already, and on TPUs one pass of bfloat16 is; "float32" is full
    precision on every device. On a CPU the two change nothing, and "bfloat16" rounds as on an
    accelerator (so that its accuracy can be measured) but is not faster.

    The functions are traced and their products replaced, inside loops, branches and `checkpoint`
    as well, so it works for any model that JAX can trace, layers of flax included. A convolution
    in XLA's form (not the matmul form of `conv`) has its result rounded to bfloat16 once more.
    Products inside a ``custom_jvp`` or ``custom_vjp`` function, or a hand-written kernel, keep the
    precision that its author gave them. With "bfloat16" derivatives are by reverse mode, of any
    order; not ``jax.jvp``.
    float16 is not offered: its range would need the loss to be scaled.

    Args:
      model: any `Model`.
      compute: "float32", "tensorfloat32" or "bfloat16".

    Returns:
      A `Model` of the same parameters; losses and logits have the dtype that they had.

    Raises:
      TypeError: if `model` is no `Model`.
      ValueError: if `compute` is unknown.

    Example:
      >>> from fedjax_lite.models.functions import from_functions
      >>> model = from_functions(lambda key: jnp.ones((1, 2)), lambda w, x, key: x @ w)
      >>> x = {"x": jnp.array([[1 + 2.0**-7], [1 + 2.0**-10]])}
      >>> (with_precision(model, "bfloat16").predict(jnp.ones((1, 2)), x)[:, 0] - 1).tolist()
      [0.0078125, 0.0]

    Reference: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740; Kalamkar
    et al., "A Study of BFLOAT16 for Deep Learning Training", 2019, arXiv:1905.12322.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"model must be a Model, got {model!r}; with_precision(model), not its loss"
        )
    if compute == "float16":
        raise ValueError(
            "compute must not be float16: gradients below 6e-8 would vanish without loss scaling; "
            "'bfloat16' has float32's range"
        )
    if compute not in ("float32", "tensorfloat32", "bfloat16"):
        raise ValueError(
            f"compute must be 'float32', 'tensorfloat32' or 'bfloat16', got {compute!r}"
        )
    change = narrow_products if compute == "bfloat16" else lambda f: _scoped(f, compute)
    loss, predict = change(model.loss), change(model.predict)

    def losses(params: Params, examples: PyTree, key: Key | None) -> Array:
        return loss(params, examples, key)

    losses = keep_counts(losses, model.loss)
    return Model(init=model.init, loss=losses, predict=lambda params, xs: predict(params, xs))


def _scoped(function: Callable, precision: str) -> Callable:
    """`function` with the precision as the default of the products that it asks for."""

    def scoped(*args: Any) -> Any:
        # A product remembers its precision, so derivatives taken outside have it too.
        with jax.default_matmul_precision(precision):
            return function(*args)

    return scoped


def narrow_products(function: Callable, dtype: Any = jnp.bfloat16) -> Callable:
    """The same function with every product on operands of a narrow dtype; see `with_precision`.

    Args:
      function: of pytrees of arrays.
      dtype: of the operands.

    Returns:
      A function of the same arguments; the dtypes of its results are unchanged.

    Example:
      >>> square = narrow_products(lambda x: jnp.dot(x, x))
      >>> float(square(jnp.array([1 + 2.0**-10]))), square(jnp.ones(1)).dtype.name
      (1.0, 'float32')
    """

    def narrowed(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), dtype)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return narrowed


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], dtype: Any) -> list[Any]:
    """Runs a jaxpr equation by equation, products replaced."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Constant) else values[atom]

    for equation in jaxpr.eqns:
        results = _run(equation, [read(atom) for atom in equation.invars], dtype)
        values.update(zip(equation.outvars, results))
    return [read(atom) for atom in jaxpr.outvars]


def _run(equation: JaxprEqn, values: list[Any], dtype: Any) -> Sequence[Any]:
    """One equation; those that hold functions are rebuilt from JAX's own loops and branches."""
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS and _is_wide(equation):
        return [PRODUCTS[name](*values, params=params, dtype=dtype)]
    rebuild = REBUILT.get(name)
    if rebuild is None or not any(map(_has_product, inner_jaxprs(params))):
        bound = equation.primitive.get_bind_params(params)
        # Until jax 0.9 functions came apart from the parameters.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        with equation.ctx.manager:
            results = equation.primitive.bind(*functions, *values, **params)
        return results if equation.primitive.multiple_results else [results]
    return rebuild(equation, values, lambda inner: _as_function(inner, dtype))


def _as_function(inner: Jaxpr | ClosedJaxpr, dtype: Any) -> Callable[..., list[Any]]:
    jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
    return lambda *args: _evaluate(jaxpr, consts, args, dtype)


def _call(equation: JaxprEqn, values: list[Any], function: Callable) -> Sequence[Any]:
    params = equation.params
    return function(params["jaxpr"])(*values)


def _checkpoint(equation: JaxprEqn, values: list[Any], function: Callable) -> Sequence[Any]:
    params = equation.params
    options = {"prevent_cse": params["prevent_cse"], "policy": params["policy"]}
    return jax.checkpoint(function(params["jaxpr"]), **options)(*values)


def _cond(equation: JaxprEqn, values: list[Any], function: Callable) -> Sequence[Any]:
    params = equation.params
    index, *operands = values
    return jax.lax.switch(index, [function(branch) for branch in params["branches"]], *operands)


def _while(equation: JaxprEqn, values: list[Any], function: Callable) -> Sequence[Any]:
    params = equation.params
    test, body = function(params["cond_jaxpr"]), function(params["body_jaxpr"])
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    of_test, rest = values[:num_test], values[num_test:]
    of_body, carry = rest[:num_body], rest[num_body:]
    return jax.lax.while_loop(
        lambda carry: test(*of_test, *carry)[0], lambda carry: body(*of_body, *carry), carry
    )


def _scan(equation: JaxprEqn, values: list[Any], function: Callable) -> Sequence[Any]:
    # Bound again with another body of the same types: what says which of the values are carried
    # differs between versions of JAX.
    old = equation.params["jaxpr"]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in old.in_avals]
    body = jax.make_jaxpr(function(old))(*shapes)
    return equation.primitive.bind(*values, **{**equation.params, "jaxpr": body})


PRODUCTS: dict[str, Callable] = {
    "dot_general": narrow_dot,
    "conv_general_dilated": narrow_conv,
}
REBUILT: dict[str, Callable] = {
    "jit": _call,
    "pjit": _call,
    "checkpoint": _checkpoint,
    "remat": _checkpoint,
    "remat2": _checkpoint,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
}


def _is_wide(equation: JaxprEqn) -> bool:
    """Whether a product has operands wider than 16 bits; narrower ones were the model's wish."""
    dtypes = [atom.aval.dtype for atom in equation.invars]
    return all(jnp.issubdtype(d, jnp.floating) and d.itemsize > 2 for d in dtypes)


def _has_product(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in PRODUCTS or any(map(_has_product, inner_jaxprs(equation.params)))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters: bodies of loops, branches, calls.

    Example:
      >>> closed = jax.make_jaxpr(jax.jit(lambda x: x + 1))(1.0)
      >>> [len(jaxpr.eqns) for jaxpr in inner_jaxprs(closed.eqns[0].params)]
      [1]
    """
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
