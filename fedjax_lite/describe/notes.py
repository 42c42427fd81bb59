"""Reading a part: who made it, with which settings, from which other parts.

All of it is on the note that a factory leaves on what it makes (`fedjax_lite.checks.made`). A part
without one, or with other functions than its factory put there, is the user's own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from fedjax_lite.checks.made import Made, maker_of

PACKAGE = "fedjax_lite"
SECONDARY = frozenset(("accountant", "with_strategy", "slots", "name", "kinds", "counts"))
"""Fields that say nothing of what a part does with a value."""


class Piece(NamedTuple):
    """A part of a round, read."""

    name: str
    """The factory's, or what the user called it."""
    module: str
    arguments: dict[str, Any]
    """Of the factory."""
    note: Made | None
    """Of the factory; None: there is none."""
    own: bool
    """Made outside the package, wholly or in some of its functions."""

    @property
    def parts(self) -> dict[str, Any]:
        """Arguments that are parts themselves, or tuples of parts; not yet read."""
        return {name: value for name, value in self.arguments.items() if is_part(value)}

    @property
    def settings(self) -> dict[str, Any]:
        """The other arguments."""
        return {name: value for name, value in self.arguments.items() if not is_part(value)}


def read(part: Any) -> Piece:
    """Who made a part, and with what.

    Args:
      part: a NamedTuple of functions (a sampler, an aggregator, an attack ...) or one function.

    Returns:
      Its `Piece`; one that nobody signed is named after its function that is not the package's.

    Example:
      >>> from fedjax_lite.aggregation import bucketing, krum
      >>> piece = read(bucketing(2, inner=krum(1)))
      >>> piece.name, piece.settings["bucket_size"], read(piece.parts["inner"]).name
      ('bucketing', 2, 'krum')
    """
    note = maker_of(part)
    if note is None:
        name, module = called(part)
        return Piece(name, module, {}, None, True)
    replaced = replaced_in(part, note)
    if replaced:
        name, module = called(getattr(part, replaced[0]))
        return Piece(name, module, {"rest": _as_made(part, note)}, note, True)
    return Piece(note.name, note.module, note.arguments, note, not is_ours(note.module))


def replaced_in(part: Any, note: Made) -> list[str]:
    """Fields of a part that hold another function than its factory put there.

    Example:
      >>> from fedjax_lite.transforms import clip
      >>> part = clip(1.0)
      >>> replaced_in(part, part.made), replaced_in(part._replace(init=len), part.made)
      ([], ['init'])
    """
    changed = (name for name in note.replaced(part) if name not in SECONDARY)
    return [n for n in changed if plain(getattr(part, n)) is not plain(note.fields[n])]


def notes_of(part: Any) -> Iterator[Made]:
    """The notes on a part, the last word first, then those of the factories inside.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavgm(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                   plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> [note.name for note in notes_of(algo)]
      ['fedavgm', 'fedavg', 'federated_algorithm']
    """
    note = maker_of(part)
    while note is not None:
        yield note
        note = note.before


def called(value: Any) -> tuple[str, str]:
    """Name and module of what somebody wrote himself: of the outermost function around it.

    Of a part: of its first function that is not the package's. "" where it has no name.

    Example:
      >>> def make():
      ...     return lambda: 3
      >>> called(make())[0], called(lambda: 3)[0]
      ('make', '')
    """
    if isinstance(value, tuple):
        functions = [field for field in value if callable(field)]
        outside = [f for f in functions if not is_ours(called(f)[1])]
        named = [f for f in outside if getattr(plain(f), "__name__", "") != "<lambda>"]
        return called((named or outside or functions)[0]) if functions else _class(value)
    function = plain(value)
    if not hasattr(function, "__qualname__") or not hasattr(function, "__module__"):
        return _class(value)
    name = function.__qualname__.partition(".<locals>.")[0]
    return "" if "<lambda>" in name else name, function.__module__ or ""


def plain(function: Any) -> Any:
    """The function behind ``jit``, decorators and partials without arguments.

    Example:
      >>> import jax
      >>> plain(functools.partial(jax.jit(len))) is len
      True
    """
    value: Any = function
    while True:
        if isinstance(value, functools.partial) and not (value.args or value.keywords):
            value = value.func
        elif inspect.ismethod(value):
            value = value.__func__
        elif (inner := getattr(value, "__wrapped__", None)) is not None:
            value = inner
        else:
            return value


def is_part(value: Any) -> bool:
    """Whether this is a NamedTuple of functions, or a plain tuple or list of such.

    Example:
      >>> from fedjax_lite.round.sampling import everyone
      >>> is_part(everyone()), is_part((everyone(),)), is_part((1, 2))
      (True, True, False)
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(callable(field) or is_part(field) for field in value)
    return isinstance(value, tuple | list) and bool(value) and all(is_part(v) for v in value)


def is_ours(module: str | None) -> bool:
    """Whether a module is the package's.

    Example:
      >>> is_ours("fedjax_lite.round.server"), is_ours("__main__")
      (True, False)
    """
    return (module or "").split(".")[0] == PACKAGE


def _as_made(part: Any, note: Made) -> Any:
    fields = {name: value for name, value in note.fields.items() if hasattr(part, name)}
    return part._replace(**fields)


def _class(value: Any) -> tuple[str, str]:
    return type(value).__name__, type(value).__module__
