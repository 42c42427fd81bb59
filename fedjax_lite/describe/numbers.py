"""Numbers, arrays and functions in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.made import maker_of
from fedjax_lite.describe.notes import called, is_ours, plain

LIBRARIES = ("jax", "jaxlib", "functools", "builtins", "optax", "contextlib")
"""Whose functions are nobody's own."""


def figure(value: Any) -> str:
    """A setting in words: short, and without memory addresses.

    Args:
      value: a number, an array, a name, a function ...

    Returns:
      A phrase; arrays with more than five numbers are told by their shape.

    Example:
      >>> figure(0.30000001192), figure(100000), figure([1, 3]), figure(np.zeros(7))
      ('0.3', '100000', '[1, 3]', 'an array [7]')
      >>> from textwrap import dedent  # a function from elsewhere
      >>> figure(dedent)
      'your own `dedent` (textwrap)'
    """
    if isinstance(value, jax.core.Tracer):
        return "a traced value"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _number(float(value))
    if isinstance(value, str):
        return value
    if isinstance(value, jax.Array | np.ndarray):
        return _array(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return _array(np.asarray(value)) if _numeric(value) else f"{len(value)} values"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{figure(k)}: {figure(v)}" for k, v in value.items()) + "}"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, np.dtype):
        return value.name
    if callable(value):
        return function_words(value)
    return f"a {type(value).__name__}"


def function_words(function: Callable) -> str:
    """A function in words: one that a factory signed by its call, others by name and module.

    Example:
      >>> from fedjax_lite.aggregation import inverse_variance
      >>> function_words(inverse_variance([1.0, 2.0], floor=0.5))
      'inverse_variance(variances [1, 2], floor 0.5, per_example no)'
      >>> from textwrap import dedent  # a function from elsewhere
      >>> function_words(dedent)
      'your own `dedent` (textwrap)'
    """
    note = maker_of(function)
    if note is not None:
        given = note.arguments.items()
        shown = ", ".join(f"{k} {figure(v)}" for k, v in given if v is not None)
        if not is_ours(note.module):
            return f"your own `{note.name}` ({note.module})"
        return f"{note.name}({shown})" if shown else note.name
    name, module = called(function)
    inner = getattr(plain(function), "__qualname__", name) != name
    if is_ours(module):
        return f"a function of {module}" if inner else name
    if module.split(".")[0] in LIBRARIES:
        return f"a function of {module.split('.')[0]}" if inner else f"`{name}` ({module})"
    return f"your own `{name}` ({module})" if name else f"your own function ({module})"


def measured(number: Any) -> str:
    """A number that was found by trials; NaN stands for one that is traced.

    Example:
      >>> measured(0.0999993), measured(float("nan"))
      ('0.1', 'a traced value')
    """
    if not isinstance(number, float):
        return figure(number)
    return "a traced value" if math.isnan(number) else figure(rounded(number))


def rounded(number: float) -> float:
    """The fewest digits: Adam's own rounding in float32 moves a rate by some millionths.

    Example:
      >>> rounded(0.0999993), rounded(0.12345)
      (0.1, 0.12345)
    """
    shorter = (float(f"{number:.{digits}g}") for digits in range(1, 7))
    return next((x for x in shorter if abs(x - number) < 2e-5 * abs(number)), number)


def _number(value: float) -> str:
    """The fewest digits that tell a number up to the rounding of float32, six at most."""
    for digits in range(1, 6):
        near = float(f"{value:.{digits}g}")
        if abs(near - value) <= 2e-6 * abs(value):
            return f"{near:.6g}"
    return f"{value:.6g}"


def _array(value: Any) -> str:
    shape = list(value.shape)
    if value.size > 5:
        return f"an array {shape}"
    if isinstance(value, jax.Array):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return "a key"
        if not value.is_fully_addressable or value.is_deleted():
            return f"an array {shape}"
    numbers = [figure(number) for number in np.asarray(value).ravel().tolist()]
    return f"[{', '.join(numbers)}]" if shape else numbers[0]


def _numeric(value: Any) -> bool:
    return all(isinstance(v, int | float | np.number) for v in value)
