"""RowLayout: one client's row, any pytree, as a record of bytes."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import PyTree


class RowLayout:
    """Packs rows `[C, ...]` into records uint8 `[C, num_bytes]` and back, bit for bit.

    Args:
      row: one client's row, arrays or shapes.

    Raises:
      TypeError: if it holds a typed key.

    Example:
      >>> layout = RowLayout({"w": np.zeros(2, np.float32), "n": np.int8(0)})
      >>> layout.num_bytes
      9
      >>> rows = {"w": np.array([[0, 1], [2, 3]], np.float32), "n": np.array([1, 2], np.int8)}
      >>> layout.unpack(layout.pack(rows))["w"].tolist()
      [[0.0, 1.0], [2.0, 3.0]]
    """

    def __init__(self, row: PyTree) -> None:
        leaves, self._structure = jax.tree.flatten(row)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise TypeError(
                    "a row of a client on the host must hold plain arrays, got a typed key; "
                    "derive the key from the round's instead, or keep the table on the device"
                )
        self._leaves = [(np.dtype(leaf.dtype), tuple(leaf.shape)) for leaf in leaves]
        widths = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in self._leaves]
        ends = np.cumsum([0, *widths]).tolist()
        self._spans = list(itertools.pairwise(ends))
        self.num_bytes = int(ends[-1])

    def pack(self, rows: PyTree) -> np.ndarray:
        """Records of rows `[C, ...]`."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(rows)]
        records = np.empty((len(leaves[0]), self.num_bytes), np.uint8)
        for leaf, (dtype, shape), (low, high) in zip(leaves, self._leaves, self._spans):
            if leaf.dtype != dtype or leaf.shape[1:] != shape:
                raise ValueError(
                    f"rows of {dtype}{list(shape)} were expected, got {leaf.dtype}"
                    f"{list(leaf.shape[1:])}: a round must keep the shapes of its client rows"
                )
            if high > low:
                records[:, low:high] = (
                    np.ascontiguousarray(leaf).view(np.uint8).reshape(len(leaf), high - low)
                )
        return records

    def unpack(self, records: np.ndarray) -> PyTree:
        """Rows `[C, ...]` of records, as numpy arrays."""
        leaves: list[Any] = []
        for (dtype, shape), (low, high) in zip(self._leaves, self._spans):
            flat = np.ascontiguousarray(records[:, low:high]).reshape(-1)
            leaves.append(flat.view(dtype).reshape(len(records), *shape))
        return jax.tree.unflatten(self._structure, leaves)

    def describe(self) -> str:
        """Dtypes and shapes of a row, in order, such as ``float32[3], float32[]``."""
        return ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self._leaves)
