"""A device a core against one device with all cores, on small models.

    python experiments/benchmarks/processes.py

Three ways to use the same two cores, each a fresh command, in turns: one process with one device;
one process with a device a core, as `use_cores` makes them; two processes of one core each (the
launcher, gloo on loopback). Writes processes.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import check_choices, check_output, machine, parse, spread
from workloads import WORKLOADS

import fedjax_lite as fl
from fedjax_lite.hosts import distributed
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.rounds import rounds_of

WAYS = ("one device", "a device a core", "two processes")
ROUNDS = {"logreg": 200, "lognormal": 10, "2nn": 20, "pfl-cnn": 1}


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The workloads to measure."""

    workloads: tuple[str, ...] = ("logreg", "lognormal", "2nn", "pfl-cnn")
    """Workloads of workloads.py: logreg, lognormal, 2nn, pfl-cnn."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    repeats: int = 3
    """Fresh commands of each way, in turns; each reports the median of `calls` calls."""
    calls: int = 5
    """Timed calls in each command, after one that compiles."""
    output: Path = Path("outputs/benchmarks/processes.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds on tiny sizes; its figures mean nothing."""
    child: str = ""
    """Internal: the workload that this process measures."""
    cores: bool = False
    """Internal: whether each core is a device of this process."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure."""


def child(name: str, flags: Flags) -> None:
    """Times calls of many rounds and prints one JSON line."""
    if flags.cores:
        fl.use_cores()
    distributed.initialize()
    workload = WORKLOADS[name].smoke() if flags.smoke else WORKLOADS[name]
    num_rounds = 2 if flags.smoke else ROUNDS[name]
    data, key = workload.population(), jax.random.key(0)
    params = workload.model().init(key)
    if jax.process_count() > 1:
        mesh = fl.client_mesh()
        algo = workload.algorithm(fl.sharded(mesh))
        data = fl.replicate(data, mesh=mesh)
        state = fl.init_state(algo, key, params, data, mesh=mesh)
    else:
        algo = workload.algorithm(fl.auto())
        state = algo.init(key, params, data)
    rounds = rounds_of(algo, key, data, capacity=num_rounds)
    seconds = []
    for _ in range(1 + flags.calls):
        mine = rounds.start(state)
        began = time.perf_counter()
        mine, _ = rounds.advance(mine, num_rounds)
        jax.block_until_ready(mine)
        seconds.append((time.perf_counter() - began) / num_rounds)
    if distributed.is_coordinator():
        result = {
            "seconds": float(np.median(seconds[1:])),
            "checksum": float(
                sum(np.abs(x).sum() for x in jax.tree.leaves(distributed.local(mine).server.params))
            ),
        }
        print("RESULT " + json.dumps(result), flush=True)


def command(way: str, name: str, flags: Flags) -> tuple[list[str], dict[str, str]]:
    """How one way is started."""
    arguments = [__file__, "--child", name, "--calls", str(flags.calls)]
    arguments += ["--smoke"] * flags.smoke
    environment = dict(os.environ)
    if way == "two processes":
        launcher = ["-m", "fedjax_lite.hosts.launch", "--num-processes", "2", "--cores", "1"]
        return [sys.executable, *launcher, *arguments], environment
    arguments += ["--cores"] * (way == "a device a core")
    return [sys.executable, *arguments], environment


def check(flags: Flags) -> None:
    """Raises for workloads that are not there."""
    check_choices("workloads", flags.workloads, list(ROUNDS))
    check_choices("child", [flags.child] if flags.child else [], list(ROUNDS))


def main(flags: Flags) -> None:
    """Runs all ways in turns and prints ratios to one device."""
    check(flags)
    if flags.child:
        child(flags.child, flags)
        return
    check_output(flags.output, flags.overwrite)
    results: dict[str, Any] = {}
    for name in flags.workloads:
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        sums: dict[str, float] = {}
        for _ in range(flags.repeats):
            for way in WAYS:
                words, environment = command(way, name, flags)
                done = subprocess.run(
                    words, env=environment, capture_output=True, text=True, timeout=600
                )
                lines = [li for li in done.stdout.splitlines() if "RESULT " in li]
                if done.returncode or not lines:
                    sys.exit(f"error: {way}, {name}: {done.stdout}{done.stderr}"[-3000:])
                found = json.loads(lines[-1].partition("RESULT ")[2])
                times[way].append(found["seconds"])
                sums[way] = found["checksum"]
        if not np.allclose(list(sums.values()), sums[WAYS[0]], rtol=1e-3):
            sys.exit(f"error: the ways end in different models: {sums}")
        rows = {way: {**spread(values), "all": values} for way, values in times.items()}
        base = rows[WAYS[0]]["median"]
        for way in WAYS:
            rows[way]["times_faster"] = base / rows[way]["median"]
            s = rows[way]
            print(
                f"{name:10s} {way:19s} {1e3 * s['median']:8.3f} ms a round "
                f"({1e3 * s['min']:.3f} .. {1e3 * s['max']:.3f})  {s['times_faster']:.2f} x",
                flush=True,
            )
        results[name] = rows
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(
        flags.output, {"machine": machine(), "smoke": flags.smoke, "workloads": results}
    )


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
