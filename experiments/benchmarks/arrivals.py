"""What simulated time costs: a clock beside none, asynchronous beside synchronous client steps.

    python experiments/benchmarks/arrivals.py            # a minute on two cores
    python experiments/benchmarks/arrivals.py --smoke    # seconds

The same clients, network and local work: FedAvg with uniform cohorts, the same behind a clock with
a deadline, and FedBuff with a buffer as large as the cohort. Some rounds of each by turns, so that
what else the machine does meets all; figures are medians over turns of a ratio within one.
Bars: the clock adds at most 3 % to a round, and FedBuff does at least 70 % of the steps a second.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments

from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Sizes of the problem, and turns."""

    num_clients: int = 1000
    """Clients in the population."""
    cohort_size: int = 20
    """Clients in a round, and in a buffer."""
    examples: int = 200
    """Examples of each client."""
    turns: int = 9
    """How often each is timed."""
    rounds_per_turn: int = 5
    """Rounds in each turn."""
    smoke: bool = False
    """Small sizes, a few seconds in all."""


@dataclasses.dataclass(frozen=True)
class Flags(RunFlags):
    """All of them."""


def contestants(flags: Flags) -> tuple[dict[str, fl.FederatedAlgorithm], Any, Any]:
    """The algorithms by name, the population and the parameters."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(flags.num_clients), flags.examples)
    x = rng.standard_normal((len(owners), 64)).astype(np.float32)
    y = rng.integers(0, 10, len(owners)).astype(np.int32)
    data = fl.data.from_arrays({"x": x, "y": y}, owners)
    model = fl.models.mlp((200, 200), num_classes=10, input_shape=(64,))
    world, size = fl.arrivals, flags.cohort_size
    latency = world.latency(compute=world.of_device(world.log_normal(0.1, 1.0)))
    sgd, plan = optax.sgd(0.01), fl.Plan(batch_size=20)
    timed = fl.clocked(fl.uniform(size), latency, deadline=1e9)  # nobody is late: equal work
    return (
        {
            "synchronous": fl.fedavg(model.loss, sgd, plan=plan, sampler=fl.uniform(size)),
            "clocked": fl.fedavg(model.loss, sgd, plan=plan, sampler=timed),
            "asynchronous": fl.fedbuff(
                model.loss, sgd, plan=plan, concurrency=size, buffer=size, latency=latency
            ),
        },
        data,
        model.init(jax.random.key(1)),
    )


def main(flags: Flags) -> dict[str, float]:
    """Times all by turns and prints the two ratios."""
    if flags.smoke:
        small = {"num_clients": 20, "cohort_size": 3, "examples": 20}
        flags = shrunk(flags, turns=2, rounds_per_turn=1, **small)
    algorithms, data, params = contestants(flags)
    key = jax.random.key(0)
    states = {name: algo.init(key, params, data) for name, algo in algorithms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in algorithms}
    for turn in range(flags.turns + 1):
        for name, algo in algorithms.items():
            begun, steps = time.perf_counter(), 0
            for _ in range(flags.rounds_per_turn):
                states[name], metrics = algo.round(key, states[name], data)
                steps += int(metrics["num_steps"])
            jax.block_until_ready(states[name])
            if turn:  # the first one compiles
                seconds[name].append((time.perf_counter() - begun) / steps)
    pairs = list(zip(*seconds.values(), strict=True))
    found = {
        "clock_overhead": statistics.median(timed / plain for plain, timed, _ in pairs) - 1,
        "asynchronous_share": statistics.median(plain / free for plain, _, free in pairs),
    }
    for name, each in seconds.items():
        print(f"{name:14} {1 / statistics.median(each):10.0f} client steps a second")
    print(f"the clock adds {100 * found['clock_overhead']:.1f} % to a round (bar: 3 %)")
    share = 100 * found["asynchronous_share"]
    print(f"asynchronous: {share:.0f} % of the synchronous steps a second (bar: 70 %)")
    return found


if __name__ == "__main__":
    script(main, Flags, __doc__)
