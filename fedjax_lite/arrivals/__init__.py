"""Simulated time: how long clients are away, who is there, and what a server does about it."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.arrivals.asynchronous import asynchronous
    from fedjax_lite.arrivals.availability import Availability, day_and_night
    from fedjax_lite.arrivals.ca2fl import ca2fl
    from fedjax_lite.arrivals.clock import Clock, clocked
    from fedjax_lite.arrivals.edge_clock import EdgeClock, edge_clocked
    from fedjax_lite.arrivals.fedasync import fedasync
    from fedjax_lite.arrivals.fedbuff import fedbuff
    from fedjax_lite.arrivals.latency import Latency, Seconds, failing, latency
    from fedjax_lite.arrivals.quantities import (
        Quantity,
        constant,
        exponential,
        half_normal,
        log_normal,
        of_device,
        pareto,
        per_client,
        product,
        tiers,
    )
    from fedjax_lite.arrivals.queue import in_flight
    from fedjax_lite.arrivals.queue_memory import QueueBytes, queue_bytes
    from fedjax_lite.arrivals.staleness import hinge, polynomial, undiscounted
    from fedjax_lite.arrivals.synthetic_trace import sample_trace, synthetic_trace
    from fedjax_lite.arrivals.trace import (
        Hours,
        Speeds,
        Trace,
        trace_availability,
        trace_latency,
        trace_schedule,
    )
    from fedjax_lite.arrivals.trace_files import read_trace, write_trace
    from fedjax_lite.round.errand import Traffic

__all__ = [
    "Availability",
    "Clock",
    "EdgeClock",
    "Hours",
    "Latency",
    "Quantity",
    "QueueBytes",
    "Seconds",
    "Speeds",
    "Trace",
    "Traffic",
    "asynchronous",
    "ca2fl",
    "clocked",
    "constant",
    "day_and_night",
    "edge_clocked",
    "exponential",
    "failing",
    "fedasync",
    "fedbuff",
    "half_normal",
    "hinge",
    "in_flight",
    "latency",
    "log_normal",
    "of_device",
    "pareto",
    "per_client",
    "polynomial",
    "product",
    "queue_bytes",
    "read_trace",
    "sample_trace",
    "synthetic_trace",
    "tiers",
    "trace_availability",
    "trace_latency",
    "trace_schedule",
    "undiscounted",
    "write_trace",
]

load_when_asked(__name__)
