"""What partitioners ask of their arguments; every message names the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks import arguments as checks


def check_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Returns `value` as an int of at least `minimum`.

    Raises:
      TypeError: if it is not an integer.
      ValueError: if it is below `minimum`, or beyond int32 unless it is a seed.
    """
    checks.check_count(value, name, minimum=minimum)
    return int(value)


def check_seed(seed: Any) -> int:
    """Returns `seed` as a non-negative int, for ``np.random.default_rng``."""
    return check_count("seed", seed, minimum=0)


def check_real(name: str, value: Any, *, above: float | None = None, remedy: str) -> float:
    """Returns `value` as a finite float, greater than `above` where that is given.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is NaN, infinite or not above the bound; the message ends in `remedy`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {checks.shown(value)}; {remedy}")
    number = float(value)
    if not math.isfinite(number) or (above is not None and number <= above):
        bound = "a finite number" if above is None else f"a finite number > {above:g}"
        raise ValueError(f"{name} must be {bound}, got {value!r}; {remedy}")
    return number


def check_alpha(name: str, value: Any) -> float:
    """Returns a Dirichlet concentration: finite and greater than 0."""
    remedy = "small values (0.1) skew, large ones (1e6) come near IID"
    return check_real(name, value, above=0.0, remedy=remedy)


def check_capacity(num_examples: int, num_clients: int, min_size: int) -> None:
    """Checks that every client can have `min_size` of the examples.

    Raises:
      ValueError: if ``num_clients * min_size > num_examples``.
    """
    if num_clients * min_size > num_examples:
        raise ValueError(
            f"num_clients * min_size = {num_clients} * {min_size} = {num_clients * min_size} "
            f"examples are asked for, but there are only {num_examples}; lower num_clients to at "
            f"most {num_examples // min_size}, or lower min_size"
        )


def column(
    examples: Any, key: str, *, keyword: str, convert: Callable[[Any], np.ndarray] = np.asarray
) -> np.ndarray:
    """Returns the array under `key`, one entry per example, `[E]`.

    Raises:
      TypeError: if the examples are not a mapping.
      ValueError: if the key is absent or the array is not `[E]`; `keyword` is the argument to fix.
    """
    if not isinstance(examples, Mapping):
        raise TypeError(
            "examples must be a dict of arrays such as {'x': ..., 'y': ...}, "
            f"got {type(examples).__name__}"
        )
    if key not in examples:
        raise ValueError(
            f"{keyword}={key!r} is not among the examples' keys {sorted(map(str, examples))}; "
            f"name one of them by {keyword}=..."
        )
    values = convert(examples[key])
    if values.ndim != 1:
        hint = "one entry per example is needed"
        if values.ndim == 2 and values.dtype.kind in "iufb" and _is_one_hot(values):
            hint = f"these look like one-hot labels: pass examples[{key!r}].argmax(axis=-1)"
        raise ValueError(f"examples[{key!r}] must be [E], got shape {list(values.shape)}; {hint}")
    if values.size == 0:
        raise ValueError(f"examples[{key!r}] must not be empty: there is nothing to partition")
    return values


def class_index(
    examples: Any, label: str, *, keyword: str = "label"
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the classes that are present.

    Args:
      examples: dict of arrays, leaves `[E, ...]`.
      label: the key of the integer labels `[E]`.
      keyword: the caller's argument that names the key, for messages.

    Returns:
      ``(classes, index)``: the sorted distinct labels `[K]`, and int64 `[E]` with
      ``classes[index] == labels``. Labels that do not occur take no part.

    Raises:
      TypeError: if labels are not integers (or bools).
      ValueError: if the key is absent, labels are not `[E]`, or one is negative.
    """
    labels = column(examples, label, keyword=keyword)
    if labels.dtype.kind not in "iub":
        hint = "number the classes, e.g. with np.unique(labels, return_inverse=True)[1]"
        if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)):
            hint = f"pass examples[{label!r}].astype(np.int32)"
        raise TypeError(f"examples[{label!r}] must be integer labels, got {labels.dtype}; {hint}")
    classes, index = np.unique(labels, return_inverse=True)
    if classes[0] < 0:
        raise ValueError(
            f"examples[{label!r}] must be labels >= 0, got {classes[0]}; "
            "drop unlabelled examples or renumber the classes"
        )
    return classes, index.reshape(-1).astype(np.int64)


def _is_one_hot(values: np.ndarray) -> bool:
    rows = values[:1000]
    return bool(np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(axis=-1) == 1))
