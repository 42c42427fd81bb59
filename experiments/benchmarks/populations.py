"""Rounds over a million clients on all cores, beside what the machine itself could do at best.

    python experiments/benchmarks/populations.py
    python experiments/benchmarks/populations.py --methods scaffold --repeats 5

1,000,000 clients of log-normal(1.5) sizes, mean 60, 32 bytes an example, in memory; cohorts of
1000, one epoch in batches of 10, a device a core (`use_cores`), all rounds of a call in one
program. Methods: FedAvg and SCAFFOLD on logistic regression, whose rows of a million clients are a
table in memory, and FedAvg on a 2NN. Beside a round's time stands its floor, the larger of

    bytes / memory bandwidth,  bytes = 12 P a step and 8 P a row of state, and the examples once
    FLOPs / sgemm,             FLOPs = examples * (3 * forward - first layer's input gradient)

with P parameters in 4 bytes each, read twice and written once a step, bandwidth measured by copying
a large array on all cores and sgemm by a large matrix product. Weights of P that fit into a cache
need no memory, so the first can be passed. Random bytes: speed does not depend on values. Writes
populations.json.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import call_seconds, check_choices, check_output, machine, parse, spread
from workloads import dense_macs, training_flop

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic

FEATURES, CLASSES, BATCH, RATE = 32, 10, 10, 0.05
HIDDEN = {"fedavg": (), "scaffold": (), "fedavg-2nn": (200, 200)}
"""Hidden layers of each method's network."""
ROUNDS = {"fedavg": 20, "scaffold": 5, "fedavg-2nn": 5}
"""Rounds in the shorter of two timed calls."""
LONGER = 5
"""Times as many in the longer one."""
COPIED_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The population and the methods."""

    methods: tuple[str, ...] = tuple(HIDDEN)
    """Methods: fedavg, scaffold, fedavg-2nn."""
    num_clients: int = 1_000_000
    """Clients in the population."""
    cohort_size: int = 1000
    """Clients that train in a round."""
    mean_size: float = 60.0
    """Examples of a client in the mean; at least 1 each."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Length of the run, and where results go."""

    repeats: int = 5
    """Turns of two timed calls; medians are reported."""
    output: Path = Path("outputs/benchmarks/populations.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds: 2000 clients, cohorts of 20; its figures mean nothing."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure."""


class Work(NamedTuple):
    """What a mean round does."""

    examples: float
    steps: float
    rows: float
    """Rows of clients' state that are read and written."""


def work_of(sizes: np.ndarray, cohort_size: int, *, stateful: bool) -> Work:
    """Expected work of a round with a uniform cohort.

    Example:
      >>> work_of(np.array([5, 15]), 1, stateful=False)
      Work(examples=10.0, steps=1.5, rows=0)
    """
    steps = np.ceil(sizes / BATCH)
    rows = cohort_size if stateful else 0
    return Work(float(cohort_size * sizes.mean()), float(cohort_size * steps.mean()), rows)


def floor_of(
    work: Work, num_params: int, flop_per_example: int, *, bandwidth: float, flops: float
) -> dict[str, float]:
    """Bytes and operations of a round, and the seconds that the machine needs for them at least.

    Args:
      work: of the round.
      num_params: P.
      flop_per_example: of training on one.
      bandwidth: bytes a second.
      flops: operations a second.

    Returns:
      ``bytes, flop, bytes_seconds, flop_seconds, seconds``, the last the larger of the two.

    Example:
      >>> found = floor_of(Work(10, 2, 1), 100, 300, bandwidth=1e3, flops=1e3)
      >>> found["bytes"], found["flop"], found["seconds"]  # 2 * 1200 + 800 + 10 * 33
      (3530.0, 3000.0, 3.53)
    """
    moved = 12.0 * num_params * work.steps + 8.0 * num_params * work.rows
    moved += work.examples * (FEATURES + 1)
    flop = float(work.examples * flop_per_example)
    times = (moved / bandwidth, flop / flops)
    return {
        "bytes": moved,
        "flop": flop,
        "bytes_seconds": times[0],
        "flop_seconds": times[1],
        "seconds": max(times),
    }


def memory_bandwidth(num_threads: int, num_calls: int = 5) -> float:
    """Bytes a second of copying, read and written, a thread a core; the best of a few calls.

    Example:
      >>> memory_bandwidth(1, num_calls=1) > 0
      True
    """
    source = np.ones(COPIED_BYTES // 8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, num_threads), np.array_split(target, num_threads)))
    best = float("inf")
    for _ in range(num_calls):
        threads = [threading.Thread(target=np.copyto, args=(to, of)) for of, to in parts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def product_flops(size: int = 2048, num_calls: int = 5) -> float:
    """Operations a second of float32 matrix products, one on every device at a time; the best.

    Example:
      >>> product_flops(64, num_calls=1) > 0
      True
    """
    rng = np.random.default_rng(0)
    pair = [rng.standard_normal((size, size), dtype=np.float32) for _ in range(2)]
    places = [jax.device_put(pair, device) for device in jax.local_devices()]
    dot = jax.jit(jnp.dot)
    jax.block_until_ready([dot(*two) for two in places])
    seconds = [call_seconds(lambda: [dot(*two) for two in places]) for _ in range(num_calls)]
    return len(places) * 2 * size**3 / min(seconds)


def population(flags: Flags) -> tuple[fl.data.FederatedDataset, np.ndarray]:
    """Random bytes, client by client, and the sizes `[N]`."""
    rng = np.random.default_rng(0)
    sigma = 1.5
    draws = rng.lognormal(np.log(flags.mean_size) - sigma**2 / 2, sigma, flags.num_clients)
    sizes = np.clip(np.round(draws), 1, 100 * flags.mean_size).astype(np.int64)
    total = int(sizes.sum())
    examples = {
        "x": rng.integers(0, 256, (total, FEATURES), dtype=np.uint8),
        "y": rng.integers(0, CLASSES, total, dtype=np.uint8),
    }
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return fl.data.from_arrays(examples, owners, num_clients=len(sizes)), sizes


def algorithm(method: str, model: fl.models.Model, cohort_size: int) -> fl.FederatedAlgorithm:
    """The method, one epoch in batches of 10."""
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=BATCH, epochs=1),
        "sampler": fl.uniform(cohort_size),
    }
    if method == "scaffold":
        return fl.scaffold(model.loss, RATE, **slots)
    return fl.fedavg(model.loss, optax.sgd(RATE), **slots)


def seconds_a_round(method: str, data: Any, flags: Flags) -> tuple[list[float], list[float], int]:
    """Seconds a round, and of a call before its rounds, of each turn, and the number of parameters.

    A call copies the state, which stays its caller's, and looks whether it is finite: with rows of
    a million clients that takes as long as many rounds. So a turn is two calls, one of them
    `LONGER` times as long: what it takes longer are rounds.
    """
    hidden = HIDDEN[method]
    model = fl.models.mlp(hidden, num_classes=CLASSES, input_shape=(FEATURES,))
    algo, key = algorithm(method, model, flags.cohort_size), jax.random.key(0)
    params = model.init(key)
    state, number = algo.init(key, params, data), 2 if flags.smoke else ROUNDS[method]
    rounds, starts, done = [], [], 0
    for _ in range(1 + flags.repeats):  # the first turn compiles, and lays the data
        took = []
        for length in (number, LONGER * number):
            done += length
            began = time.perf_counter()
            state, _ = fl.run(algo, key, state, data, num_rounds=done, every=length, progress=False)
            jax.block_until_ready(state)
            took.append(time.perf_counter() - began)
        rounds.append((took[1] - took[0]) / ((LONGER - 1) * number))
        starts.append(took[0] - number * rounds[-1])
    return rounds[1:], starts[1:], sum(leaf.size for leaf in jax.tree.leaves(params))


def main(flags: Flags) -> dict[str, Any]:
    """Times rounds of each method and prints them beside their floors."""
    check_choices("methods", flags.methods, list(HIDDEN))
    check_output(flags.output, flags.overwrite)
    if flags.smoke:
        cohort = min(flags.cohort_size, 20)
        flags = dataclasses.replace(flags, num_clients=2000, cohort_size=cohort, repeats=2)
    if not 1 <= flags.cohort_size <= flags.num_clients:
        raise ValueError(
            f"--cohort-size must lie in [1, {flags.num_clients}], got {flags.cohort_size}"
        )
    num_cores = fl.use_cores()
    data, sizes = population(flags)
    bandwidth = memory_bandwidth(num_cores)
    flops = product_flops()
    about = machine()
    print(
        f"{about['cpu']}, {num_cores} devices, {bandwidth / 1e9:.1f} GB/s, "
        f"sgemm {flops / 1e9:.0f} GFLOP/s; {len(sizes):,} clients, {sizes.sum():,} examples"
    )
    results: dict[str, Any] = {}
    for method in flags.methods:
        seconds, starts, num_params = seconds_a_round(method, data, flags)
        work = work_of(sizes, flags.cohort_size, stateful=method == "scaffold")
        widths = (FEATURES, *HIDDEN[method], CLASSES)
        floor = floor_of(
            work, num_params, training_flop(dense_macs(widths)), bandwidth=bandwidth, flops=flops
        )
        took = spread(seconds)
        results[method] = {
            "seconds": {**took, "all": seconds},
            "start_seconds": {**spread(starts), "all": starts},
            "num_params": num_params,
            **work._asdict(),
            "floor": floor,
            "times_floor": took["median"] / floor["seconds"],
        }
        print(
            f"{method:11s} {1e3 * took['median']:8.1f} ms a round "
            f"({1e3 * took['min']:.1f} .. {1e3 * took['max']:.1f}), floor: bytes "
            f"{1e3 * floor['bytes_seconds']:.2f} ms, FLOPs {1e3 * floor['flop_seconds']:.2f} ms, "
            f"{results[method]['times_floor']:.1f} x the larger; "
            f"{1e6 * took['median'] / work.steps:.1f} us a step; a call's start "
            f"{1e3 * spread(starts)['median']:.0f} ms",
            flush=True,
        )
    report = {
        "machine": about,
        "smoke": flags.smoke,
        "num_clients": flags.num_clients,
        "cohort_size": flags.cohort_size,
        "num_devices": num_cores,
        "bandwidth": bandwidth,
        "flops": flops,
        "methods": results,
    }
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.output, report)
    return report


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
