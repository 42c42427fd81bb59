"""What it costs to compile one round of every registered algorithm, part by part.

    python experiments/benchmarks/compiling.py
    python experiments/benchmarks/compiling.py --algorithms fedavg scaffold fedlora

The laws' tiny problem (a linear model, seven clients, four a round, two lanes), so that the figures
show what a method adds: tracing, lowering and XLA apart, in seconds of this process's CPU, of all
its threads together, since a compiler waits for nothing. Medians of several turns, all caches
emptied before each. "times fedavg" compares with the plain average. Writes compiling.json.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
from measure import check_choices, check_no_compilation_cache, check_output, machine, parse

from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.testing.algorithm_laws import start
from fedjax_lite.testing.registry import ALGORITHMS

PARTS = ("trace", "lower", "xla")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The algorithms to compile."""

    algorithms: tuple[str, ...] = ("all",)
    """Names of the laws' registry, or all; fedavg is always among them."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Length of the run, and where results go."""

    repeats: int = 3
    """Turns; medians are reported."""
    output: Path = Path("outputs/benchmarks/compiling.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """One turn; its figures mean little."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """All flags of the script."""


def cost(name: str) -> dict[str, float]:
    """CPU seconds of the parts for one algorithm, its round compiled from nothing."""
    jax.clear_caches()
    algo, key, state, data = start(ALGORITHMS[name])  # its own small programs are not counted
    at = [time.process_time()]
    traced = jax.jit(algo.round).trace(key, state, data)
    at.append(time.process_time())
    lowered = traced.lower()
    at.append(time.process_time())
    lowered.compile()
    at.append(time.process_time())
    return {part: at[i + 1] - at[i] for i, part in enumerate(PARTS)} | {"all": at[-1] - at[0]}


def main(flags: Flags) -> None:
    """Compiles all in turns and prints the costliest first."""
    check_choices("algorithms", flags.algorithms, ["all", *ALGORITHMS])
    check_output(flags.output, flags.overwrite)
    check_no_compilation_cache()
    chosen = list(ALGORITHMS) if "all" in flags.algorithms else list(flags.algorithms)
    chosen = list(dict.fromkeys(["fedavg", *chosen]))
    cost("fedavg")  # what the first compilation of a process costs is not a method's
    turns = [
        {name: cost(name) for name in chosen} for _ in range(1 if flags.smoke else flags.repeats)
    ]
    rows: dict[str, dict[str, Any]] = {
        name: {
            part: statistics.median(turn[name][part] for turn in turns) for part in (*PARTS, "all")
        }
        for name in chosen
    }
    for row in rows.values():
        row["times_fedavg"] = row["all"] / rows["fedavg"]["all"]
    for name in sorted(chosen, key=lambda name: -rows[name]["all"]):
        row = rows[name]
        parts = ", ".join(f"{part} {row[part]:.2f}" for part in PARTS)
        print(f"{name:30s} {row['all']:6.2f} s ({parts})  {row['times_fedavg']:.2f} x fedavg")
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.output, {"machine": machine(), "smoke": flags.smoke, "algorithms": rows})


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
