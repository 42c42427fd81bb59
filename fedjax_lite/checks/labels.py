"""Labels against the outputs of a model: on the host, at every call, not only while tracing."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_lite.checks.label_words import labels_beyond, warn_of_negative
from fedjax_lite.types import PyTree


class Seen(NamedTuple):
    """What the host has seen of an array of integer labels."""

    low: int
    high: int


class _Entry:
    def __init__(self, labels: Any, seen: Seen | None) -> None:
        self.labels, self.seen, self.warned = weakref.ref(labels), seen, False


_entries: dict[int, _Entry] = {}
"""By identity: a device array never changes, so it is read once however many rounds use it."""


class Outputs:
    """How many outputs the programs of an algorithm have, as tracing has found.

    A compiled program does not look at labels, and a round that was traced is not traced again
    for other data: what tracing learnt is kept here, and every later call compares its labels
    with it on the host. Programs differ by the shapes of the model that they are for.
    """

    def __init__(self) -> None:
        self.by_model: dict[Any, int] = {}
        self.least: int | None = None

    def note(self, model: Any, num_outputs: int) -> None:
        """A program for a model of these shapes asks for labels below `num_outputs`."""
        self.by_model[model] = min(num_outputs, self.by_model.get(model, num_outputs))
        self.least = min(self.by_model.values())

    def check(self, labels: Any, server: PyTree, *, quiet: bool = False) -> None:
        """Compares labels with the outputs of the program for a model like that of `server`.

        Args:
          labels: of the data at hand.
          server: the server's state.
          quiet: negative labels were warned of already.

        Raises:
          ValueError: if a label is beyond the outputs.

        Warns:
          UserWarning: once for each array of labels `[E]` of which some are negative.
        """
        if self.least is None:
            return
        entry = _entry(labels)
        if entry is None or entry.seen is None:
            return
        untold = entry.seen.low < 0 and labels.ndim == 1 and not (entry.warned or quiet)
        if entry.seen.high >= self.least or untold:
            number = self.by_model.get(shapes_of(server))
            if number is None:
                return
            if entry.seen.high >= number:
                raise ValueError(labels_beyond(labels, number, entry.seen))
            if untold:
                entry.warned = True
                warn_of_negative(labels, entry.seen.low)


class _Watch(NamedTuple):
    outputs: Outputs
    server: PyTree
    labels: Any
    """The arrays behind traced labels, where they are known; else None."""


_WATCHES: ContextVar[tuple[_Watch, ...]] = ContextVar("programs being called", default=())
_LABELS: ContextVar[Any] = ContextVar("labels handed to a loss", default=None)
_outputs: weakref.WeakKeyDictionary[Any, Outputs] = weakref.WeakKeyDictionary()


def outputs_of(program: Callable[..., Any]) -> Outputs:
    """What is known of a round, one object for each function; kept as long as the function is.

    Example:
      >>> outputs_of(len) is outputs_of(len)
      True
    """
    try:
        return _outputs.setdefault(program, Outputs())
    except TypeError:  # cannot be referred to weakly: known for this call only
        return Outputs()


@contextlib.contextmanager
def watching(
    outputs: Outputs, server: PyTree, examples: PyTree, *, quiet: bool = False
) -> Iterator[None]:
    """While a program is called or traced: its labels are compared with what is known of it.

    Before, where an earlier trace has learnt the number of outputs; while it is traced, when a
    loss meets its labels (`check_classes`); and after, for a program around others that were
    traced before. Traced examples are passed over: a context around this one may know the arrays.

    Args:
      outputs: what is known of the program, `outputs_of` of it.
      server: the server's state that it is given; its shapes tell models apart.
      examples: what it is given, as a rule a dict with "y".
      quiet: negative labels of these data were warned of already.

    Raises:
      ValueError: if a label is beyond the model's outputs.

    Example:
      >>> with watching(Outputs(), (), {"y": np.array([0, 1])}):
      ...     pass
    """
    labels = examples.get("y") if isinstance(examples, Mapping) else None
    if isinstance(labels, jax.core.Tracer):
        labels = None
    if labels is not None:
        seen_in(labels)  # now: processes that look together cannot do so inside a trace
        outputs.check(labels, server, quiet=quiet)
    around = _WATCHES.get()
    token = _WATCHES.set((*around, _Watch(outputs, server, labels)))
    try:
        yield
    finally:
        _WATCHES.reset(token)
    if around:  # a program that was traced earlier tells those around it what it knows
        number = outputs.by_model.get(shapes_of(server)) if outputs.by_model else None
        if number is not None:
            for outer in around:
                outer.outputs.note(shapes_of(outer.server), number)
    if labels is not None:
        outputs.check(labels, server, quiet=quiet)


@contextlib.contextmanager
def labels_of(examples: PyTree) -> Iterator[None]:
    """In this context a loss is called on `examples`: only their own "y" is compared with the data.

    A loss that maps labels to others (coarse classes, one against all) is none of our business.

    Args:
      examples: what the loss is given.

    Example:
      >>> with labels_of({"y": np.array([0, 1])}):
      ...     pass
    """
    token = _LABELS.set(examples.get("y") if isinstance(examples, Mapping) else None)
    try:
        yield
    finally:
        _LABELS.reset(token)


def check_classes(y: Any, num_classes: int) -> None:
    """A loss meets its labels while it is traced: notes its outputs, and looks at the data at hand.

    Costs nothing outside tracing, and nothing is known outside `watching` and `labels_of`.

    Args:
      y: labels as the loss sees them.
      num_classes: outputs of the model.

    Raises:
      ValueError: if a label is `num_classes` or more.

    Example:
      >>> data = {"y": np.array([1, 2, 3])}
      >>> with watching(Outputs(), (), data), labels_of(data):
      ...     check_classes(data["y"], 3)
      Traceback (most recent call last):
      ...
      ValueError: labels must lie in [0, 3), one for each output of the model, but examples['y'] \
holds 1..3 (first beyond in row 2); number the classes from 0, y - 1, or give the model \
num_classes=4
    """
    watches = _WATCHES.get()
    if not watches or y is not _LABELS.get():
        return
    for watch in watches:
        watch.outputs.note(shapes_of(watch.server), num_classes)
    labels = next((w.labels for w in reversed(watches) if w.labels is not None), None)
    found = None if labels is None else seen_in(labels)
    if found is not None and found.high >= num_classes:
        raise ValueError(labels_beyond(labels, num_classes, found))


def seen_in(labels: Any) -> Seen | None:
    """The lowest and the highest of integer labels; None where they cannot be looked at.

    An array on the device is read once.

    Example:
      >>> seen_in(np.array([1, 3])), seen_in(np.array([0.5]))
      (Seen(low=1, high=3), None)
    """
    entry = _entry(labels)
    return None if entry is None else entry.seen


def shapes_of(tree: PyTree) -> tuple[Any, ...]:
    """What tells models apart: structure and shapes.

    Example:
      >>> shapes_of({"w": np.zeros(3)}) == shapes_of({"w": np.zeros(4)})
      False
    """
    leaves, structure = jax.tree.flatten(tree)
    return (structure, *(jnp.shape(leaf) for leaf in leaves))


def _entry(labels: Any) -> _Entry | None:
    if labels is None or isinstance(labels, jax.core.Tracer) or not hasattr(labels, "dtype"):
        return None
    if not jnp.issubdtype(labels.dtype, jnp.integer) or not labels.size:
        return None
    entry = _entries.get(id(labels))
    if entry is None or entry.labels() is not labels:
        number = id(labels)
        entry = _Entry(labels, _read(labels))
        weakref.finalize(labels, _entries.pop, number, None)
        _entries[number] = entry
    elif not isinstance(labels, jax.Array):  # may have been written to since
        entry.seen = _read(labels)
    return entry


def _read(labels: Any) -> Seen | None:
    if isinstance(labels, jax.Array) and labels.is_fully_replicated:
        labels = labels.addressable_data(0)  # each process has a copy, of one device
    if isinstance(labels, jax.Array) and not labels.is_fully_addressable:
        if not isinstance(labels.sharding, NamedSharding):
            return None
        # Other processes hold the rest: all of them ask together, and all get the same answer.
        everywhere = NamedSharding(labels.sharding.mesh, PartitionSpec())
        low, high = jax.jit(lambda y: (y.min(), y.max()), out_shardings=everywhere)(labels)
        if isinstance(low, jax.core.Tracer):  # inside a trace that closes over the array
            return None
        return Seen(int(low), int(high))
    values = np.asarray(jax.device_get(labels))
    return Seen(int(values.min()), int(values.max()))
