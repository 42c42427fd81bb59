"""The slots that every method passes on to a round, with their types, so that editors know them."""

from __future__ import annotations

from typing import Required, TypedDict

from fedjax_lite.aggregation.mean import Weighting
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
