"""Functions of JAX, tried on numbers of the host: nothing is compiled, no device is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

NESTED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of operations that call another function."""
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat")


def tried(
    function: Callable[..., Any], *args: Any, stand_in: float, anyhow: bool = True
) -> tuple[Any, bool]:
    """A function's results as numpy arrays, and whether it depends on something that is traced.

    Numbers that are traced around the call (the learning rate of a sweep) are replaced by a
    stand-in. Where numpy lacks an operation, JAX does it, one operation after the other.

    Args:
      function: of arrays.
      *args: numpy arrays, or trees of them.
      stand_in: what stands for traced numbers.
      anyhow: False raises where numpy lacks an operation.

    Returns:
      ``(results, traced)``.

    Raises:
      NotImplementedError, TypeError: see `anyhow`.

    Example:
      >>> tried(lambda x: jnp.where(x > 0, 2 * x, x), np.float32(3.0), stand_in=0.5)
      (array(6., dtype=float32), False)
      >>> found = []
      >>> _ = jax.make_jaxpr(lambda rate: found.append(
      ...     tried(lambda x: rate * x, np.float32(3.0), stand_in=0.5)) or rate)(1.0)
      >>> found
      [(array(1.5, dtype=float32), True)]
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    traced = [isinstance(const, jax.core.Tracer) for const in closed.consts]
    leaves = jax.tree.leaves(args)
    with jax.transfer_guard("allow"):
        consts = [
            np.full(c.shape, stand_in, c.dtype) if is_traced else c
            for c, is_traced in zip(closed.consts, traced)
        ]
        try:
            with np.errstate(all="ignore"):
                found = _evaluated(closed.jaxpr, [np.asarray(c) for c in consts], leaves)
        except (NotImplementedError, TypeError):  # keys, loops, rare operations
            if not anyhow:
                raise
            with jax.ensure_compile_time_eval():
                whole = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, [jnp.asarray(c) for c in consts]))
                found = [np.asarray(leaf) for leaf in whole(*leaves)]
    return jax.tree.unflatten(jax.tree.structure(shapes), found), any(traced)


def _evaluated(jaxpr: Any, consts: Any, args: Any) -> list[np.ndarray]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> np.ndarray:
        value = atom.val if hasattr(atom, "val") else known[atom]
        return np.asarray(value, atom.aval.dtype)

    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, [read(atom) for atom in equation.invars]
        if name in CALLS:
            inner = next(equation.params[p] for p in NESTED if p in equation.params)
            results = _evaluated(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given
            )
        elif name in OPERATIONS:
            results = [OPERATIONS[name](equation.params, *given)]
        else:
            raise NotImplementedError(name)
        for variable, result in zip(equation.outvars, results, strict=True):
            known[variable] = np.asarray(result, variable.aval.dtype)
    return [read(atom) for atom in jaxpr.outvars]


def _broadcast(params: Any, x: np.ndarray, *_: Any) -> np.ndarray:
    places = dict(zip(params["broadcast_dimensions"], x.shape))
    shape = [places.get(axis, 1) for axis in range(len(params["shape"]))]
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _divide(params: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.trunc(x / y) if np.issubdtype(x.dtype, np.integer) else x / y


def _iota(params: Any) -> np.ndarray:
    shape, axis = params["shape"], params["dimension"]
    line = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(line, shape)


def _slice(params: Any, x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    ends = zip(params["start_indices"], params["limit_indices"], strides)
    return x[tuple(slice(*end) for end in ends)]


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *given: function(*given)


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x: function(x, axis=tuple(params["axes"]))


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(function)
        for name, function in {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "neg": np.negative,
            "max": np.maximum,
            "min": np.minimum,
            "pow": np.power,
            "rem": np.fmod,
            "sign": np.sign,
            "abs": np.abs,
            "sqrt": np.sqrt,
            "square": np.square,
            "exp": np.exp,
            "log": np.log,
            "log1p": np.log1p,
            "expm1": np.expm1,
            "sin": np.sin,
            "cos": np.cos,
            "tanh": np.tanh,
            "floor": np.floor,
            "ceil": np.ceil,
            "is_finite": np.isfinite,
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "not": np.invert,
            "copy": np.copy,
        }.items()
    },
    **{
        name: _over(function)
        for name, function in {
            "reduce_sum": np.sum,
            "reduce_max": np.max,
            "reduce_min": np.min,
            "reduce_and": np.all,
            "reduce_or": np.any,
        }.items()
    },
    "div": _divide,
    "rsqrt": lambda params, x: 1 / np.sqrt(x),
    "integer_pow": lambda params, x: x ** np.asarray(params["y"], x.dtype),
    "select_n": lambda params, which, *cases: np.choose(which.astype(int), cases),
    "clamp": lambda params, low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": lambda params, x: x,  # what is kept has the result's own type
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, x, *_: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, axis=tuple(params["dimensions"])),
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "concatenate": lambda params, *given: np.concatenate(given, axis=params["dimension"]),
    "stack": lambda params, *given: np.stack(given, axis=params["axis"]),
    "iota": _iota,
    "slice": _slice,
}
"""By the name of the primitive: ``(params, *arrays) -> array``."""
