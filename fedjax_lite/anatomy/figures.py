"""Numbers, arrays and functions in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from fedjax_lite.anatomy.pieces import PACKAGE, SILENT, read, step_of, unwrapped


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
    """A function in words: the package's and optax's by their factory, others as the user's own.

    Example:
      >>> function_words(optax.exponential_decay(0.1, 10, 0.9))
      'optax.exponential_decay(init_value 0.1, transition_steps 10, decay_rate 0.9)'
    """
    plain: Any = unwrapped(function)
    if not hasattr(plain, "__qualname__") or not hasattr(plain, "__code__"):
        kind = type(plain)
        return f"your own `{kind.__name__}` ({kind.__module__})"
    step = step_of(plain)
    top = step.module.split(".")[0]
    if top == "optax":
        return optax_words(step.factory or step.name, step.cells)
    if top == PACKAGE:
        piece = read(plain)
        if piece.own:
            return f"your own `{piece.name or 'function'}` ({piece.module})"
        if piece.name != "lambda":
            shown = [f"{k} {figure(v)}" for k, v in piece.settings.items() if v is not None]
            return f"{piece.name}({', '.join(shown)})" if shown else piece.name
    if top in SILENT:
        return f"`{step.factory or step.name}` ({step.module})"
    name = plain.__name__
    if name == "<lambda>":
        return f"your own function ({step.module})"
    return f"your own `{name}` ({step.module})"


def optax_words(name: str, cells: dict[str, Any]) -> str:
    """An optax factory with those of its arguments that say something.

    Example:
      >>> optax_words("clip_by_global_norm", {"max_norm": 1.0})
      'optax.clip_by_global_norm(max_norm 1)'
    """
    if name == "polynomial_schedule" and _equal(cells.get("power"), 1):
        name = "linear_schedule"  # which optax makes as a polynomial one
    if name == "join_schedules" and "schedules" in cells:
        parts = [figure(part) for part in cells["schedules"]]
        starts = [figure(step) for step in cells.get("boundaries", ())]
        later = [f"from {step} on {part}" for step, part in zip(starts, parts[1:])]
        return f"optax.join_schedules({', '.join([*parts[:1], *later])})"
    if name == "piecewise_interpolate_schedule" and "boundaries" in cells:
        scales = dict(zip(cells["boundaries"], cells.get("scales", ())))
        kind = getattr(cells.get("interpolate_fn"), "__name__", "").split("_")[1:2]
        cells = {**cells, "boundaries_and_scales": scales}
        cells |= {"interpolate_type": kind[0]} if kind else {}
    factory = getattr(optax, name, None) or getattr(optax.schedules, name, None)
    if factory is None or not callable(factory):
        return f"optax's {name.strip('<>')}"
    signature = inspect.signature(factory).parameters
    shown = []
    for key, parameter in signature.items():
        value = cells.get(key)
        if value is None or callable(value) or _equal(value, parameter.default):
            continue
        shown.append(f"{key} {figure(value)}")
    return f"optax.{name}({', '.join(shown)})" if shown else f"optax.{name}"


def within(function: Any) -> str:
    """What of optax a function of the user's is made with, as far as its code and closure say.

    Example:
      >>> from types import FunctionType  # a function from elsewhere
      >>> code = (lambda round: optax.sgd(0.1 / round)).__code__
      >>> within(FunctionType(code, {"optax": optax, "__name__": "script"})), within(optax.adam)
      (', which uses optax.sgd', '')
    """
    plain: Any = unwrapped(function)
    if not hasattr(plain, "__code__") or step_of(plain).module.split(".")[0] in (PACKAGE, *SILENT):
        return ""
    names, known = plain.__code__.co_names, plain.__globals__
    values = {**{n: known[n] for n in names if n in known}, **step_of(plain).cells}
    found = [function_words(value) for value in values.values() if _of_optax(value)]
    if any(value is optax for value in values.values()):
        found += [f"optax.{n}" for n in names if callable(getattr(optax, n, None))]
    return f", which uses {' and '.join(dict.fromkeys(found))}" if found else ""


def _of_optax(value: Any) -> bool:
    return callable(value) and (getattr(value, "__module__", None) or "").startswith("optax.")


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


def _equal(value: Any, default: Any) -> bool:
    return isinstance(value, int | float | str | bool) and value == default
