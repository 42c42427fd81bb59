"""What a streamed run holds in memory, stated before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import check_tree
from fedjax_lite.data.stores.store import Leaf, example_bytes
from fedjax_lite.stream.layout import RowLayout
from fedjax_lite.types import PyTree

NUM_BUFFERS = 3
"""Cohorts on the device at a time: one trains, one waits for its turn, one is being fetched."""
NUM_ROW_BUFFERS = 5
"""Row buffers of a cohort: the three of `NUM_BUFFERS`, and what two rounds have returned (one on
its way to the host)."""


class StreamedBytes(NamedTuple):
    """Bytes of a streamed run, beside those of model, optimizer and lanes."""

    device: int
    """Cohorts' data, sizes, and client rows on the device."""
    host: int
    """Sizes and offsets, cohorts on their way, client rows in host memory. The pages of files that
    the system caches are not counted: it gives them back when asked."""
    disk: int
    """Client rows on disk, when every client has taken part."""


def streamed_bytes(
    sizes: np.ndarray,
    leaves: Mapping[str, Leaf],
    *,
    cohort_size: int,
    row: PyTree = None,
    state: str = "device",
    cohort_examples: int | None = None,
) -> StreamedBytes:
    r"""The memory formula of streaming.

    With `b` bytes an example, `r` bytes a row, `N` clients, a cohort of `C` clients and
    ``B = bucket(examples of the cohort)``:

    .. math::
        \text{buffer} &= B b + 4 (C + 1) \\
        \text{device} &= 3 \cdot \text{buffer} + 4 N
                         + (N + 2 C) r \text{ (state="device")}
                         \text{ or } 5 C r \text{ (else)} \\
        \text{host}   &= 16 N + \text{buffer} + 8 B
                         + [1.25 N r + 6 C r + 9 N \text{ (state="host")}]
                         \text{ or } [2 C r + 9 N \text{ (state="disk")}]

    and the model's part on top. On a CPU device and host are the same memory: their sum counts.
    A split (`fedjax_lite.data.with_splits`) takes as much again, by its own sizes, without rows.

    Args:
      sizes: int `[N]`.
      leaves: what one example holds, ``store.leaves``.
      cohort_size: `C`.
      row: one client's row (client and uplink state, arrays or shapes); None for none.
      state: where rows lie: "device", "host" or "disk".
      cohort_examples: examples of a cohort. Default: what a uniform cohort exceeds with a
        probability of about 3e-5: four standard deviations above its mean.

    Returns:
      `StreamedBytes`.

    Example:
      >>> leaf = Leaf(np.dtype(np.float32), (2,))
      >>> streamed_bytes(np.full(1000, 10), {"x": leaf}, cohort_size=10).device
      7204
    """
    num_clients = len(sizes)
    if cohort_examples is None:
        spread = float(np.std(sizes)) * math.sqrt(cohort_size)
        cohort_examples = math.ceil(float(np.mean(sizes)) * cohort_size + 4 * spread)
    if state not in ("device", "host", "disk"):
        raise ValueError(f"state must be one of 'device', 'host' and 'disk', got {state!r}")
    if row is not None:
        check_tree(row, "row")
    if cohort_examples < 0:
        raise ValueError(f"cohort_examples must be 0 or more, got {cohort_examples}; or None")
    rows = bucket(cohort_examples)
    buffer = rows * example_bytes(leaves) + 4 * (cohort_size + 1)
    row_bytes = 0 if row is None else RowLayout(row).num_bytes
    device = NUM_BUFFERS * buffer + 4 * num_clients
    host = 16 * num_clients + buffer + 8 * rows
    if state == "device":
        device += (num_clients + 2 * cohort_size) * row_bytes
    elif row_bytes:
        device += NUM_ROW_BUFFERS * cohort_size * row_bytes
        # Two indexes and who has written; the slots that are kept free (see RowStore.allocate).
        host += 9 * num_clients + 2 * cohort_size * row_bytes
        if state == "host":
            host += num_clients * row_bytes * 5 // 4 + 4 * cohort_size * row_bytes
    disk = num_clients * row_bytes * 5 // 4 if state == "disk" else 0
    return StreamedBytes(device, host, disk)


def bucket(count: int) -> int:
    r"""Rows of a buffer for `count` examples: 64, or the next power of :math:`\sqrt 2`.

    It depends on the cohort alone, so a resumed run compiles and computes the same. A buffer has at
    most 42 % padding, and a run compiles one program for each bucket that it meets.

    Example:
      >>> [bucket(count) for count in (0, 64, 65, 91, 1000, 1025)]
      [64, 64, 90, 128, 1024, 1448]
    """
    full = 1 << max(count - 1, 63).bit_length()
    half = math.isqrt(full * full // 2)
    return half if count <= half and half >= 64 else full
