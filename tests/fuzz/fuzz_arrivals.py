"""Valid arguments of `fl.arrivals`, by name."""

from typing import Any

import numpy as np

import fedjax_lite as fl

LATENCY = fl.arrivals.latency(compute=fl.arrivals.constant(1.0))
ARRIVALS: dict[str, dict[str, Any]] = {
    "arrivals.clocked": {"latency": LATENCY},
    "arrivals.constant": {"value": 2.0},
    "arrivals.exponential": {"mean": 2.0},
    "arrivals.failing": {"inner": LATENCY},
    "arrivals.half_normal": {"scale": 2.0},
    "arrivals.latency": {"compute": fl.arrivals.constant(1.0)},
    "arrivals.log_normal": {"median": 2.0},
    "arrivals.of_device": {"inner": fl.arrivals.exponential(1.0)},
    "arrivals.pareto": {"minimum": 1.0, "shape": 1.5},
    "arrivals.tiers": {"values": np.ones(2), "shares": np.ones(2)},
}
