"""What is known of a function that an evaluator made, so that `run` can tell a wrong split."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

from fedjax_lite.types import PyTree


class Scored(NamedTuple):
    """What an evaluation scores, and how its results are called."""

    name: str
    examples: PyTree
    """Leaves `[E, ...]`, common to all clients; None: every client has its own, in `data`."""
    data: Any
    """A population; None: there are `examples`."""
    results: tuple[str, ...]
    """Names of what it returns in any case."""


_scored: weakref.WeakKeyDictionary[Any, Scored] = weakref.WeakKeyDictionary()


def note(evaluate: Any, scored: Scored) -> None:
    """Remembers what a function scores, as long as the function is kept."""
    _scored[evaluate] = scored


def scored_by(evaluate: Any) -> Scored | None:
    """What a function scores that `evaluator` or `client_evaluator` made; None of any other.

    Example:
      >>> scored_by(None) is None
      True
    """
    try:
        return _scored.get(evaluate)
    except TypeError:  # a callable that cannot be referred to weakly is not one of ours
        return None


def results_of(evaluate: Any) -> tuple[str, ...]:
    """Names of what a function that an evaluator made returns; none of any other.

    Example:
      >>> results_of(None)
      ()
    """
    known = scored_by(evaluate)
    return () if known is None else known.results
