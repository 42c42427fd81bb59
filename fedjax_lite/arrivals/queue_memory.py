"""What asynchronous training keeps beside the model, in bytes, before it begins."""

from __future__ import annotations

from typing import NamedTuple

import jax

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_tree
from fedjax_lite.types import PyTree


class QueueBytes(NamedTuple):
    """Bytes of an asynchronous run, beside those of the same method with a sampler."""

    versions: int
    """Models that clients in flight may hold."""
    events: int
    """Who is in flight, who has come, and who is busy."""

    @property
    def total(self) -> int:
        """Both."""
        return self.versions + self.events


def queue_bytes(sent: PyTree, *, concurrency: int, buffer: int, num_clients: int) -> QueueBytes:
    r"""The memory formula of asynchronous training.

    With `C` clients in flight, a buffer of `K` messages, `N` clients and `b` bytes that a client is
    sent:

    .. math::
        \text{versions} = C\,b, \qquad \text{events} = 21\, C + 13\, K + N + 61

    in floats of 32 bits. All of it is state, which a run holds once: rounds write into it where it
    lies, and `fedjax_lite.forecast` of a compiled run counts it among the arguments.

    Args:
      sent: what a client downloads, arrays or shapes: the model, and what else the method sends.
      concurrency: `C`.
      buffer: `K`.
      num_clients: `N`.

    Returns:
      `QueueBytes`.

    Raises:
      ValueError: if a number is below 1.

    Example:
      >>> import numpy as np
      >>> queue_bytes(np.zeros(1000, np.float32), concurrency=100, buffer=10, num_clients=5000)
      QueueBytes(versions=400000, events=7291)
    """
    check_tree(sent, "sent")
    for name, count in (
        ("concurrency", concurrency),
        ("buffer", buffer),
        ("num_clients", num_clients),
    ):
        check_count(count, name, minimum=1)
    model = trees.num_bits(jax.eval_shape(lambda tree: tree, sent)) // 8
    return QueueBytes(concurrency * model, 21 * concurrency + 13 * buffer + num_clients + 61)
