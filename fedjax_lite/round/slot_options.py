"""The slots that every method passes on to a round, with their types, so that editors know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Required, TypedDict

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.arguments import shown
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.types import Aggregator, Mechanism, Sampler, Transform


class SlotOptions(TypedDict, total=False):
    """Keyword arguments of a method that go on to `federated_algorithm` as they are."""

    aggregator: Aggregator | None
    """What becomes of the messages; default `mean()`."""
    uplink: Transform | None
    """What happens to a message on the wire."""
    downlink: Downlink | Transform | None
    """What happens to the broadcast on the wire."""
    privacy: Mechanism | None
    """A mechanism, which brings its own sampler and aggregator."""
    strategy: Strategy | None
    """How the cohort is executed; default `auto()`."""


class FedAvgOptions(SlotOptions, total=False):
    """Keyword arguments of a method that go on to `fedavg`."""

    plan: Required[Plan]
    sampler: Sampler | None
    weighting: Weighting


def refuse_privacy(slots: Mapping[str, Any], method: str, why: str) -> None:
    """Raises ValueError where a mechanism is joined with a method that no bound covers.

    Args:
      slots: what goes on to `federated_algorithm`.
      method: its name.
      why: what of it the mechanism does not bound.

    Example:
      >>> refuse_privacy({"privacy": None}, "afl", "weights follow the losses")
    """
    if slots.get("privacy") is not None:
        raise ValueError(
            f"privacy does not cover {method}, got {shown(slots['privacy'])}: {why}; use fedavg, "
            "or a method of personal models, whose clients are bounded alike"
        )
