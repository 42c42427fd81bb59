"""Metric: what an evaluation measures of examples, and the number that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import Made
from fedjax_lite.types import Array, PyTree

TAKEN = ("loss", "accuracy", "size", "all", "groups")
"""What evaluations call their own figures."""


class Metric(NamedTuple):
    """A figure of sums over examples: parts of a data set merge by ``+``.

    The evaluation masks and adds: examples that do not count (padding, no label) are absent from
    every sum, whatever `measure` makes of them. Sums are kept for every client, every group and
    all examples; int32 for bools and integers, else float32, and float64 from there on.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_error = Metric(
      ...     lambda outputs, e: {"sum": (outputs - e["y"]) ** 2, "count": jnp.ones_like(e["y"])},
      ...     lambda sums: sums["sum"] / sums["count"],
      ...     higher_is_better=False,
      ... )
      >>> squared_error.result({"sum": np.array([3.0]), "count": np.array([2.0])}).tolist()
      [1.5]
    """

    measure: Callable[[Array, Any], PyTree]
    """``(outputs, examples) ->`` per-example quantities, leaves `[B, ...]`; outputs are what
    ``model.predict`` returns. Traced."""
    result: Callable[[PyTree], Any]
    """``(sums) ->`` numbers `[n]`, or `[n, K]`: of the sums of `n` clients or groups at once, numpy
    arrays with leaves `[n, ...]`. 0/0 may stay what it is."""
    higher_is_better: bool = True
    """Which end is the worst of clients."""
    made: Made | None = None
    """Which factory made it; None: your own."""


class HostMetric(NamedTuple):
    """A figure that is no function of sums: every example's quantities go to the host.

    They are O(examples) there, and merge by concatenation.
    """

    measure: Callable[[Array, Any], PyTree]
    """As of a `Metric`: per-example quantities, leaves `[B, ...]`."""
    result: Callable[[PyTree, np.ndarray, int], Any]
    """``(values, units, num_units) ->`` numbers `[num_units]`: numpy leaves `[E, ...]` of the
    examples that count, and the client or group, int64 `[E]`, that each belongs to."""
    higher_is_better: bool = True
    """Which end is the worst of clients."""
    made: Made | None = None
    """Which factory made it; None: your own."""


Named = tuple[tuple[str, Metric | HostMetric], ...]


def named(metrics: Mapping[str, Any] | None) -> Named:
    """What was given as ``metrics=``, as something that a program can be compiled for.

    Raises:
      TypeError: if it is no dict of metrics.
      ValueError: if a name is one that evaluations use already.

    Example:
      >>> named(None), [name for name, _ in named({"f1": Metric(len, len)})]
      ((), ['f1'])
    """
    if metrics is None:
        return ()
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics must be a dict of metrics, got {shown(metrics)}; give "
            'metrics={"f1": fl.metrics.f1(10)}'
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"metrics must be named by strings, got {name!r}; give 'f1'")
        if name in TAKEN:
            raise ValueError(
                f"metrics must not be named {name!r}, which an evaluation has already; choose "
                f"another name, such as 'my_{name}'"
            )
        if not isinstance(metric, Metric | HostMetric):
            called = "; was a factory not called?" if callable(metric) else ""
            raise TypeError(
                f"metrics[{name!r}] must be a Metric, got {shown(metric)}{called}; for example "
                "fl.metrics.f1(10)"
            )
    # Without the note of who made it, which differs between two calls of a factory.
    return tuple((name, metric._replace(made=None)) for name, metric in metrics.items())
