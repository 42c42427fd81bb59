"""Products with adapted kernels, factor by factor: a step of LoRA that never sees a whole kernel.

With `T` rows `x [T, m]`, a kernel `[m, n]` and rank `r`, FedAvg's step has the products `x W`,
`x' g` and `g W'`. Folding the adapters in first, ``x (W + A B)``, keeps all three (the gradient of
a whole kernel is made only to be multiplied by `A'` and `B'`) and adds `3 m n r` multiplications;
``x W + (x A) B`` leaves `x' g` out and adds `3 T r (m + n)`. In the compiled round of McMahan's 2NN
(batches of 10, rank 4, ``cost_analysis()``) that makes 0.54 of FedAvg's floating-point operations,
1.26 with adapters folded in; of the small convolutional net of ``benchmarks/personal.py`` 0.34 and
0.40. What remains beside FedAvg are eight products a layer in place of three, most of them thin, so
on small layers time falls less than the count of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn
from jax.extend.core import Literal as Constant

from fedjax_lite.types import Array, Params


class MovedKernel(NamedTuple):
    """A kernel that stands for ``base + a b``, which is not computed."""

    base: Array
    """`[*inputs, *outputs]`."""
    a: Array
    """`[*inputs, r]`."""
    b: Array
    """`[r, *outputs]`."""

    @property
    def num_inputs(self) -> int:
        """How many leading axes are inputs."""
        return self.a.ndim - 1

    def merged(self) -> Array:
        """The kernel itself.

        Example:
          >>> MovedKernel(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((1, 2))).merged().tolist()
          [[2.0, 1.0], [1.0, 2.0]]
        """
        return self.base + jnp.tensordot(self.a, self.b, 1).astype(self.base.dtype)


def by_factors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of parameters, some of whose leaves may be `MovedKernel`s.

    The function is traced on whole kernels and done again with each product ``x kernel`` in two
    parts, wherever that takes fewer multiplications with its derivatives. A kernel that anything
    else is done to (a transpose, a norm, a loop around it) is merged there.

    Args:
      function: ``(params, *args)`` of pytrees of arrays.

    Returns:
      A function of ``(params, *args)``.

    Example:
      >>> kernel = MovedKernel(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((1, 2)))
      >>> by_factors(lambda w, x: x @ w["w"])({"w": kernel}, jnp.array([[1.0, 3.0]])).tolist()
      [[5.0, 7.0]]
    """

    def split(params: Params, *args: Any) -> Any:
        given = jax.tree.leaves(params, is_leaf=_is_moved)
        whole = jax.tree.map(lambda w: w.base if _is_moved(w) else w, params, is_leaf=_is_moved)
        closed, shape = jax.make_jaxpr(function, return_shape=True)(whole, *args)
        values = [*given, *jax.tree.leaves(args)]
        found = map(_whole, _evaluate(closed.jaxpr, closed.consts, values))
        return jax.tree.unflatten(jax.tree.structure(shape), list(found))

    return split


def saves(num_rows: int, kernel: MovedKernel) -> bool:
    r"""Whether two thin products take fewer multiplications than folding the adapters in.

    .. math::  3\, T r (m + n) \le 3\, m n r + T m n

    Args:
      num_rows: `T`.
      kernel: arrays or shapes.

    Example:
      >>> kernel = MovedKernel(jnp.ones((784, 200)), jnp.ones((784, 4)), jnp.ones((4, 200)))
      >>> saves(10, kernel)
      True
      >>> saves(10**6, MovedKernel(jnp.eye(4), jnp.eye(4), jnp.eye(4)))
      False
    """
    rank = kernel.b.shape[0]
    m, n = kernel.a.size // rank, kernel.b.size // rank
    return 3 * num_rows * rank * (m + n) <= 3 * m * n * rank + num_rows * m * n


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr equation by equation; values may be moved kernels."""
    values: dict[Any, Any] = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
    )

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Constant) else values[atom]

    for equation in jaxpr.eqns:
        results = _run(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run(equation: JaxprEqn, values: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if any(map(_is_moved, values)):
        if name in ("jit", "pjit"):
            return _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, values)
        if name == "convert_element_type":
            dtype = params["new_dtype"]
            return [MovedKernel(*(leaf.astype(dtype) for leaf in values[0]))]
        if name == "dot_general":
            x, kernel = values
            if _is_layer(x, kernel, params["dimension_numbers"]):
                return [_two_parts(x, kernel, params)]
    bound = equation.primitive.get_bind_params(params)
    # Until jax 0.9 functions came apart from the parameters.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        results = equation.primitive.bind(*functions, *map(_whole, values), **params)
    return results if equation.primitive.multiple_results else [results]


def _is_layer(x: Any, kernel: Any, dimension_numbers: Any) -> bool:
    """Whether a product sums over the inputs of a moved kernel, and is better done in parts."""
    (over_x, over_kernel), batch = dimension_numbers
    if _is_moved(x) or batch != ((), ()):
        return False
    if sorted(over_kernel) != list(range(kernel.num_inputs)):
        return False
    rows = [size for axis, size in enumerate(x.shape) if axis not in over_x]
    return saves(math.prod(rows), kernel)


def _two_parts(x: Array, kernel: MovedKernel, params: dict[str, Any]) -> Array:
    """``x base + (x a) b``; the first is the product that the model asked for, to the bit."""
    straight = jax.lax.dot_general(x, kernel.base, **_options(params))
    thin = jax.lax.dot_general(x, kernel.a, **_options(params))
    numbers = (((thin.ndim - 1,), (0,)), ((), ()))
    options = _options(params) | {"dimension_numbers": numbers}
    return straight + jax.lax.dot_general(thin, kernel.b, **options)


def _options(params: dict[str, Any]) -> dict[str, Any]:
    names = ("dimension_numbers", "precision", "preferred_element_type")
    return {name: params[name] for name in names}


def _is_moved(value: Any) -> bool:
    return isinstance(value, MovedKernel)


def _whole(value: Any) -> Any:
    return value.merged() if _is_moved(value) else value
