"""Examples that are no arrays: iterators, lists of examples, one data set per client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def check_not_iterator(data: Any, name: str) -> None:
    """Raises TypeError where data would be read one by one: a round takes arrays.

    Example:
      >>> check_not_iterator([1, 2], "data")
    """
    loader = hasattr(data, "__iter__") and type(data).__name__.endswith(("Loader", "Dataset"))
    if isinstance(data, Iterator) or (loader and not hasattr(data, "shape")):
        raise TypeError(
            f"{name} must be arrays, got {type(data).__name__}, which is read one by one; collect "
            'it first, {"x": np.stack(images), "y": np.array(labels)}, and name the owners in '
            "client_ids; for data larger than memory see fedjax_lite.data.write_streamed"
        )


def check_arrays(examples: Any) -> None:
    """Raises TypeError where examples are not pooled arrays `[E, ...]`, with the way to pool them.

    Args:
      examples: a pytree, of arrays if all is well.

    Raises:
      TypeError: for an iterator, a list of examples, a data set per client, or nested lists.

    Example:
      >>> check_arrays([{"x": 1.0, "y": 0}, {"x": 2.0, "y": 1}])
      Traceback (most recent call last):
      ...
      TypeError: examples must be pooled arrays [E, ...], got a list of dicts; stack them, \
{"x": np.stack([e["x"] for e in examples]), ...}, and name each one's owner in client_ids
    """
    check_not_iterator(examples, "examples")
    values = list(examples.values()) if isinstance(examples, Mapping) else examples
    if not isinstance(values, list | tuple) or not values:
        return
    if all(isinstance(v, Mapping) for v in values) and len({frozenset(v) for v in values}) == 1:
        whole = any(np.ndim(leaf) for leaf in values[0].values() if not isinstance(leaf, Mapping))
        if isinstance(examples, Mapping) and whole:
            raise TypeError(
                "examples must be pooled arrays [E, ...], got one dict per client; concatenate "
                'them, {"x": np.concatenate([c["x"] for c in examples.values()]), ...}, with '
                "client_ids = np.repeat(list(examples), sizes)"
            )
        if not isinstance(examples, Mapping):
            raise TypeError(
                "examples must be pooled arrays [E, ...], got a list of dicts; stack them, "
                '{"x": np.stack([e["x"] for e in examples]), ...}, and name each one\'s owner in '
                "client_ids"
            )
    names = examples if isinstance(examples, Mapping) else range(len(values))
    for name, value in zip(names, values):
        check_not_iterator(value, f"examples[{name!r}]")
        if isinstance(examples, Mapping) and isinstance(value, list) and np.ndim(value[:1] or 0):
            if not hasattr(value[0], "dtype") or np.ndim(value[0]) == 0:
                raise TypeError(
                    f"examples[{name!r}] must be an array [E, ...], got a Python list of "
                    f"{len(value)}; make it one: np.asarray(examples[{name!r}])"
                )
            raise TypeError(
                f"examples[{name!r}] must be one array [E, ...], got a list of {len(value)} "
                f"arrays; stack them: np.stack(examples[{name!r}])"
            )
