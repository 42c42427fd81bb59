"""Model: a network as three pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fedjax_lite.checks.made import Made
from fedjax_lite.types import Array, Key, Params, PyTree


class Model(NamedTuple):
    """A network and its loss as pure functions of examples such as ``{"x": ..., "y": ...}``."""

    init: Callable[[Key], Params]
    """``(key) -> params``."""
    loss: Callable[[Params, PyTree, Key | None], Array]
    """``(params, examples, key) -> [B]``, one loss per example; key None: no dropout."""
    predict: Callable[[Params, PyTree], Array]
    """``(params, examples) ->`` logits `[B, classes]` (or `[B, T, classes]`), without dropout."""
    made: Made | None = None
    """Which factory made it; None: your own."""
