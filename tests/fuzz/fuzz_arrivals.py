"""Valid arguments of `fl.arrivals`, by name."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_world import FEDAVG

import fedjax_lite as fl

LATENCY = fl.arrivals.latency(compute=fl.arrivals.constant(1.0))
TRACE = Path(fl.arrivals.__file__).parent / "sample_trace.json"
IN_FLIGHT: dict[str, Any] = {"concurrency": 2, "latency": LATENCY}
ARRIVALS: dict[str, dict[str, Any]] = {
    "asynchronous": {"algorithm": FEDAVG, **IN_FLIGHT, "buffer": 2},
    "ca2fl": {**IN_FLIGHT, "buffer": 2},
    "fedasync": IN_FLIGHT,
    "fedbuff": {**IN_FLIGHT, "buffer": 2},
    "clocked": {"latency": LATENCY},
    "arrivals.edge_clocked": {
        "latency": LATENCY,
        "edges": [0, 1, 0, 1, 0, 1],
        "edge_rounds": 2,
    },
    "arrivals.in_flight": {**IN_FLIGHT, "buffer": 2},
    "arrivals.constant": {"value": 2.0},
    "arrivals.exponential": {"mean": 2.0},
    "arrivals.failing": {"inner": LATENCY},
    "arrivals.half_normal": {"scale": 2.0},
    "arrivals.latency": {"compute": fl.arrivals.constant(1.0)},
    "arrivals.log_normal": {"median": 2.0},
    "arrivals.of_device": {"inner": fl.arrivals.exponential(1.0)},
    "arrivals.pareto": {"minimum": 1.0, "shape": 1.5},
    "arrivals.queue_bytes": {
        "sent": np.zeros(3, np.float32),
        "concurrency": 2,
        "buffer": 2,
        "num_clients": 7,
    },
    "arrivals.trace_latency": {"trace": fl.arrivals.synthetic_trace(3), "batch_size": 2},
    "arrivals.trace_availability": {"trace": fl.arrivals.synthetic_trace(3)},
    "arrivals.trace_schedule": {"trace": fl.arrivals.synthetic_trace(3)},
    "arrivals.write_trace": {
        "trace": fl.arrivals.synthetic_trace(3),
        "path": str(Path(tempfile.gettempdir()) / f"fuzz_trace_{os.getpid()}.npz"),
    },
    "arrivals.tiers": {"values": np.ones(2), "shares": np.ones(2)},
}
