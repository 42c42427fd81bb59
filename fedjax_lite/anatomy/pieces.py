"""Reading a part's closures: which factory made it, with which settings, from which other parts.

Parts are NamedTuples of functions, so nothing carries a name. But a function knows the factory that
it was defined in (``krum.<locals>.rule``), and its closure holds the factory's arguments. Only
attributes are read here: nothing is called, traced or imported. What a closure does not hold is
left out.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

from fedjax_lite.checked import UNCHECKED
from fedjax_lite.types import Sampler

PACKAGE = "fedjax_lite"
PLUMBING = frozenset(
    (
        "by_code",
        "compressor",
        "from_functions",
        "keep_counts",
        "mean_grad",
        "mean_loss",
        "membership",
        "narrow_products",
        "need_clients",
        "over_tree",
    )
    + ("rate_of_round", "refuse_statistics", "resolve_optimizer", "stacked", "stateless")
    + ("weight_by", "wide_zeros", "with_counts", "zero_sum")
)
"""Factories that others are built with: a part is named after them only if nobody else is found."""
ALIASES = {
    "drive_code": "drive",
    "levels_code": "stochastic_levels",
    "qsgd_code": "qsgd",
    "sign_code": "scaled_sign",
    "ternary_code": "ternary",
}
"""Formats of messages, and the transforms of the same module that they belong to."""
SILENT = ("jax", "jaxlib", "functools", "builtins", "optax", "contextlib")
"""Modules that no part is named after here; `optimizers` reads optax."""


class Piece(NamedTuple):
    """A part of a round, read."""

    name: str
    """The factory's public name, or what the user called it."""
    module: str
    settings: dict[str, Any]
    """Arguments of the factory, as far as closures hold them, without other parts."""
    parts: dict[str, Any]
    """Arguments that are parts themselves, or tuples of parts; not yet read."""
    found: dict[str, Any]
    """Everything that the closures hold, by the variable's name."""
    own: bool = False
    """Made outside the package."""


class Step(NamedTuple):
    """A function that the closures lead to."""

    module: str
    factory: str
    """The outermost function that it was defined in; "" for a function at a module's top level."""
    name: str
    cells: dict[str, Any]


def read(part: Any) -> Piece:
    """Which factory made a part, and with what.

    Args:
      part: a NamedTuple of functions (a sampler, an aggregator, an attack ...) or one function.

    Returns:
      Its `Piece`; one that was made outside the package is named after the user's function.

    Example:
      >>> from fedjax_lite.aggregation import bucketing, krum
      >>> piece = read(bucketing(2, inner=krum(1)))
      >>> piece.name, piece.settings, read(piece.parts["inner"]).name
      ('bucketing', {'bucket_size': 2}, 'krum')
    """
    functions = _functions(part)
    # A wrapper that replaces one field leaves the others as they were: the farthest reach is its.
    functions.sort(key=_reach, reverse=True)
    walked = list(steps(functions))
    name, module, own = _maker(walked, part)
    cells: dict[str, Any] = {}
    # What the factory itself was given goes before what others call by the same name.
    for step in sorted(walked, key=lambda step: step.factory != name):
        if step.module.split(".")[0] not in SILENT:
            for key, value in step.cells.items():
                cells.setdefault(key, value)
    if not own and (replaced := _replaced(part)):
        step = step_of(unwrapped(getattr(part, replaced[0])))
        rest = part._replace(**dict.fromkeys(replaced))
        called = "" if step.name == "<lambda>" and not step.factory else step.factory or step.name
        return Piece(called, step.module, {}, {"rest": rest} if is_part(rest) else {}, cells, True)
    known = parameters(module, name)
    parts = {key: value for key, value in cells.items() if is_part(value) and (own or key in known)}
    settings = {} if own else {k: v for k, v in cells.items() if k in known and k not in parts}
    return Piece(name, module, settings, parts, cells, own)


def steps(functions: list[Callable], *, into_parts: bool = False) -> Iterator[Step]:
    """All functions that the closures of some lead to, outermost first.

    Args:
      functions: where to begin.
      into_parts: also through the parts that a factory was given; else they end the way.

    Example:
      >>> from fedjax_lite.transforms import clip
      >>> [(step.factory, step.cells) for step in steps([clip(2.0).update])]
      [('clip', {'max_norm': 2.0})]
    """
    seen: set[int] = set()
    waiting: list[Any] = list(reversed(functions))
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        value = unwrapped(value) if callable(value) else value
        if isinstance(value, FunctionType):
            step = step_of(value)
            yield step
            plumbing = step.factory in PLUMBING
            known = () if plumbing else parameters(step.module, step.factory)
            silent = step.module.split(".")[0] in SILENT
            own = not silent and step.module.split(".")[0] != PACKAGE
            inner = []
            for key, cell in step.cells.items():
                if not into_parts and is_part(cell) and (own or key in known):
                    continue
                inner.append(cell)
            waiting.extend(reversed(inner))
        elif isinstance(value, tuple):
            waiting.extend(reversed([v for v in value if callable(v) or isinstance(v, tuple)]))


def step_of(function: FunctionType) -> Step:
    """What one function says of itself.

    Example:
      >>> def make(a):
      ...     return lambda: a
      >>> step_of(make(3))[1:]
      ('make', '<lambda>', {'a': 3})
    """
    function = getattr(function, UNCHECKED, function)
    outer, _, rest = function.__qualname__.partition(".<locals>.")
    cells: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # not assigned (yet)
            continue
    return Step(function.__module__ or "", outer if rest else "", function.__name__, cells)


def unwrapped(value: Any) -> Any:
    """The plain function behind ``jit``, caches, partials and bound methods.

    Example:
      >>> import jax
      >>> def double(x):
      ...     return 2 * x
      >>> unwrapped(functools.partial(jax.jit(double))) is double
      True
    """
    for _ in range(32):
        if isinstance(value, FunctionType):
            return getattr(value, UNCHECKED, value)
        if isinstance(value, functools.partial):
            value = value.func
        elif inspect.ismethod(value):
            value = value.__func__
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            break
    return value


def is_part(value: Any) -> bool:
    """Whether this is a NamedTuple of functions, or a plain tuple or list of such.

    Example:
      >>> from fedjax_lite.sampling import everyone
      >>> is_part(everyone()), is_part((everyone(),)), is_part((1, 2))
      (True, True, False)
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(callable(field) or is_part(field) for field in value)
    return isinstance(value, tuple | list) and bool(value) and all(is_part(v) for v in value)


def parameters(module: str, name: str) -> tuple[str, ...]:
    """Names of a function's parameters; () where it is not found (nothing is imported for it).

    Example:
      >>> parameters("fedjax_lite.sampling", "dropout")
      ('sampler', 'rate')
    """
    function = factory_of(module, name)
    return tuple(inspect.signature(function).parameters) if function else ()


def factory_of(module: str, name: str) -> FunctionType | None:
    """The function of that name in a module that is already imported.

    Example:
      >>> factory_of("fedjax_lite.sampling", "dropout").__name__
      'dropout'
    """
    function = getattr(sys.modules.get(module), name, None) if name else None
    function = inspect.unwrap(function) if callable(function) else None
    return function if isinstance(function, FunctionType) else None


def _functions(part: Any) -> list[Callable]:
    if isinstance(part, Sampler) and callable(part.sample):
        return [part.sample]  # its init may be a check of another sampler
    if isinstance(part, tuple):
        return [field for field in part if callable(field)]
    return [part] if callable(part) else []


def _replaced(part: Any) -> list[str]:
    """Fields of a part of ours in which there is a function of the user's."""
    if not hasattr(part, "_fields"):
        return []
    outside = []
    for field in part._fields:
        function = getattr(part, field)
        function = unwrapped(function) if callable(function) else None
        if isinstance(function, FunctionType):
            top = (function.__module__ or "").split(".")[0]
            if top not in (PACKAGE, *SILENT):
                outside.append(field)
    return outside


def _reach(function: Callable) -> int:
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        value = waiting.pop()
        value = unwrapped(value) if callable(value) else value
        if id(value) in seen:
            continue
        if isinstance(value, FunctionType):
            seen.add(id(value))
            waiting.extend(step_of(value).cells.values())
        elif isinstance(value, tuple | list):
            waiting.extend(v for v in value if callable(v) or isinstance(v, tuple | list))
    return len(seen)


def _maker(walked: list[Step], part: Any) -> tuple[str, str, bool]:
    """Name and module of who made a part, and whether that is the user."""
    fallback: tuple[str, str, bool] | None = None
    for step in walked:
        top = step.module.split(".")[0]
        if top in SILENT:
            continue
        if top != PACKAGE:
            name = step.factory or step.name
            return ("" if name == "<lambda>" else name), step.module, True
        name = _public(step)
        if name in PLUMBING:
            fallback = fallback or (name, step.module, False)
        elif name:
            return name, step.module, False
    if fallback:
        return fallback
    if walked:
        return walked[0].name.strip("<>"), walked[0].module, False
    kind = type(part)
    return kind.__name__, kind.__module__, kind.__module__.split(".")[0] != PACKAGE


def _public(step: Step) -> str:
    name = step.factory
    if name == "_lowest":
        return "krum" if step.cells.get("num_selected") == 1 else "multi_krum"
    name = ALIASES.get(name, name)
    return "" if name.startswith("_") or not factory_of(step.module, name) else name
