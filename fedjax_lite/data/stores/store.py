"""ExampleStore: clients' examples outside of the device, read for a few clients at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.dataset import check_examples
from fedjax_lite.data.population.owner_ids import check_unmasked

Arrays = Mapping[str, np.ndarray]
"""``{"x": [E, ...], "y": [E], ...}``."""


class Leaf(NamedTuple):
    """What one example holds under one name."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of it in one example."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class ExampleStore(Protocol):
    """Where the examples of a population lie; all that streaming asks of a format."""

    @property
    def sizes(self) -> np.ndarray:
        """int32 `[N]`, examples per client, in host memory."""
        ...

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        """Names of the arrays, and what one example holds of each."""
        ...

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """Writes the examples of `ids`, client after client, into the first rows of `out`.

        Called by one thread at a time. `out` has a row for each of these examples at least.
        """
        ...


class ArrayStore:
    """A store over arrays in host memory: a population that fits there, but not the device.

    Args:
      examples: a dict of arrays `[E, ...]`, client after client.
      sizes: `[N]`, examples of each client, in that order.

    Raises:
      TypeError: if `examples` is not a dict of arrays.
      ValueError: if the sizes do not add up to `E`, or values are not finite.

    Example:
      >>> store = ArrayStore({"x": np.arange(3.0)}, [1, 2])
      >>> out = {"x": np.zeros(2)}
      >>> store.read(np.array([1]), out)
      >>> out["x"].tolist()
      [1.0, 2.0]
    """

    def __init__(self, examples: Arrays, sizes: Any) -> None:
        self.sizes = check_sizes(sizes)
        examples = check_chunk(examples, self.sizes)
        self.offsets = offsets_of(self.sizes)
        self._arrays = examples

    @property
    def leaves(self) -> dict[str, Leaf]:
        """See `ExampleStore`."""
        return leaves_of(self._arrays)

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """See `ExampleStore`."""
        take_clients(self._arrays, self.offsets, ids, out)


def take_clients(source: Arrays, offsets: np.ndarray, ids: np.ndarray, out: Arrays) -> None:
    """Copies the examples of `ids` from `source`, stored client by client, into `out`."""
    rows = rows_of(offsets[ids], offsets[ids + 1])
    for name, array in source.items():
        # clip: the only mode that writes into `out` without a buffer. No row is out of range.
        np.take(array, rows, axis=0, out=out[name][: len(rows)], mode="clip")


def rows_of(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64: ``starts[0] .. ends[0] - 1, starts[1] .. ends[1] - 1, ...``.

    Example:
      >>> rows_of(np.array([5, 2]), np.array([7, 3])).tolist()
      [5, 6, 2]
    """
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """int64 `[N + 1]`: client `i` owns the examples ``offsets[i] .. offsets[i+1] - 1``.

    Example:
      >>> offsets_of(np.array([2, 0, 1])).tolist()
      [0, 2, 2, 3]
    """
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def check_sizes(sizes: Any) -> np.ndarray:
    """int32 `[N]` sizes that are right.

    Raises:
      TypeError: if they are not integers.
      ValueError: if there are none, one is masked or negative, or one client has more than int32
        can count.
    """
    check_unmasked(sizes, "sizes")
    sizes = np.asarray(sizes)
    if sizes.dtype.kind not in "iu":
        raise TypeError(f"sizes must be integers [N], got {sizes.dtype}")
    if sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"sizes must have shape [N] with N >= 1, got {list(sizes.shape)}")
    if sizes.min() < 0 or sizes.max() >= 2**31:
        raise ValueError(
            f"sizes must lie in [0, 2^31), got {sizes.min()}..{sizes.max()}; split such a client"
        )
    return sizes.astype(np.int32)


def check_chunk(examples: Any, sizes: Any) -> dict[str, np.ndarray]:
    """The examples of a few whole clients as arrays, checked as `from_arrays` checks its own.

    Raises:
      TypeError: if they are not a dict of numeric arrays.
      ValueError: if lengths differ from the sum of `sizes`, or values are not finite.
    """
    if not isinstance(examples, Mapping) or not all(isinstance(name, str) for name in examples):
        raise TypeError(f"examples must be a dict of arrays, got {type(examples).__name__}")
    for name, array in examples.items():
        check_unmasked(array, f"examples[{name!r}]")
    arrays = {name: np.asarray(array) for name, array in examples.items()}
    total = int(np.sum(sizes, dtype=np.int64))
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"examples[{name!r}] must be bool, integer or float as numpy has them, got "
                f"{array.dtype}; store float16 or float32 and cast in the loss"
            )
        if array.ndim == 0 or len(array) != total:
            raise ValueError(
                f"examples[{name!r}] must have sum(sizes) = {total} rows, got shape "
                f"{list(array.shape)}"
            )
    if total:
        check_examples(arrays)
    elif not arrays:
        raise ValueError("examples must hold at least one array, got an empty dict")
    return arrays


def leaves_of(arrays: Arrays) -> dict[str, Leaf]:
    """What one example of these arrays `[E, ...]` holds."""
    return {name: Leaf(array.dtype, array.shape[1:]) for name, array in arrays.items()}


def example_bytes(leaves: Mapping[str, Leaf]) -> int:
    """Bytes of one example.

    Example:
      >>> example_bytes({"x": Leaf(np.dtype("uint8"), (32,)), "y": Leaf(np.dtype("int32"), ())})
      36
    """
    return sum(leaf.num_bytes for leaf in leaves.values())


def chunks(
    store: ExampleStore, *, max_bytes: int = 2**26
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """All clients of a store in order, a few whole clients at a time: what writers take.

    Args:
      store: any store.
      max_bytes: of the examples at a time; a larger client comes alone.

    Yields:
      ``(sizes [k], {name: [sum(sizes), ...]})``.

    Example:
      >>> store = ArrayStore({"x": np.arange(3.0)}, [1, 2])
      >>> [(sizes.tolist(), part["x"].tolist()) for sizes, part in chunks(store, max_bytes=8)]
      [([1], [0.0]), ([2], [1.0, 2.0])]
    """
    if any(not hasattr(store, name) for name in ("sizes", "leaves", "read")):
        raise TypeError(
            f"store must hold sizes, leaves and read(), got {shown(store)}; make it with "
            "fl.data.ArrayStore(examples, sizes) or fl.data.open_streamed(folder)"
        )
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}; give 2**26")
    return _chunks(store, max_bytes)


def _chunks(
    store: ExampleStore, max_bytes: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    offsets, per_example = offsets_of(store.sizes), max(example_bytes(store.leaves), 1)
    num_clients, low = len(store.sizes), 0
    while low < num_clients:
        limit = offsets[low] + max_bytes // per_example
        high = int(np.searchsorted(offsets, limit, side="right")) - 1
        high = min(max(high, low + 1), num_clients)
        sizes = store.sizes[low:high]
        out = {
            name: np.zeros((int(sizes.sum()), *leaf.shape), leaf.dtype)
            for name, leaf in store.leaves.items()
        }
        store.read(np.arange(low, high), out)
        yield sizes, out
        low = high
