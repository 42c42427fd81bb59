"""Rounds of fedjax_lite beside other simulators' in one run: same model, data, batches, machine.

    python experiments/benchmarks/peers.py
    python experiments/benchmarks/peers.py --workloads logreg --systems ours pfl --repeats 9
    python experiments/benchmarks/peers.py --smoke --output outputs/benchmarks/peers_smoke.json

Systems: ours (`fl.fedavg` and `fl.run`), loop (a Python loop over clients with jitted steps),
fedjax (FedJAX's own such loop), pfl (pfl-research on PyTorch), flwr (Flower's simulation on ray,
clients in PyTorch), blazefl (BlazeFL on PyTorch) and, where sizes are uneven, padded (our own
`vmapped()`: every client as long as the longest). All but ours, loop and padded get environments of
their own, made with pip below --env-dir; one that cannot be made is a line in the table that says
why. What a peer does differently is at the head of its program in peers_programs/.

Every system is a process that lives through the workload and does k rounds on command, the same
clients in the same rounds: pfl by `FederatedAlgorithm.run` with the total raised by k, Flower by
`FedAvg.start` with k rounds inside one running simulation, so that neither pays its start again.
All may use the same cores. A first round (cold: from the start of the process) and a turn that is
not counted come first; where a system has variants (a device a core or one with all of them,
threads, processes, form of convolutions) the fastest one is kept. Then the systems take turns while
the others are stopped. Figures are medians with quartiles; ratios are taken turn by turn.
Afterwards all systems train the same clients with full batches and no dropout, and must reach our
model.
"""

from __future__ import annotations

import dataclasses
import datetime
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from measure import machine, parse
from peers_programs.compare import SYSTEMS, Bench
from peers_programs.environments import default_folder
from peers_programs.exports import SETTINGS

from fedjax_lite.run.files import save_json_atomic

Row = dict[str, Any]
TARGETS = (
    ("pfl-cnn", "pfl", 1.3),
    ("pfl-cnn", "flwr", 2.3),
    ("logreg", "pfl", 20.0),
    ("logreg", "flwr", 120.0),
    ("lognormal", "pfl", 6.0),
    ("lognormal", "loop", 2.0),
    ("lognormal", "padded", 8.0),
)
"""Workload, system, and how many times longer its round must take than ours."""


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The workloads and systems that are compared, and their turns."""

    workloads: tuple[Literal["pfl-cnn", "logreg", "lenet", "lognormal"], ...] = (
        "pfl-cnn",
        "logreg",
        "lenet",
        "lognormal",
    )
    """Federated settings; lenet takes as long as the three others."""
    systems: tuple[Literal["ours", "padded", "loop", "fedjax", "pfl", "flwr", "blazefl"], ...] = (
        "ours",
        "padded",
        "loop",
        "fedjax",
        "pfl",
        "flwr",
        "blazefl",
    )
    """Systems that take part; see below."""
    rounds_per_turn: int | None = None
    """Rounds in a turn; by default a sensible number for each workload."""
    env_dir: Path = dataclasses.field(default_factory=default_folder)
    """Folder of the peers' Python environments."""
    agreement: bool = True
    """Check that all systems compute the same model; --no-agreement leaves it out."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    repeats: int = 5
    """Turns of each system (of lenet at most 3)."""
    num_threads: int = 2
    """Cores that every system may use."""
    output: Path = dataclasses.field(
        default_factory=lambda: Path(f"experiments/results/peers_{datetime.date.today()}.json")
    )
    """File for the report, JSON; by default named by the day, and the tables show every run."""
    overwrite: bool = False
    """Replace an earlier report there."""
    smoke: bool = False
    """Shrinks everything to a minute or two; its figures mean nothing, and no target is judged."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure, and how often."""


def targets(results: dict[str, Any], *, judge: bool = True) -> list[Row]:
    """The speed targets, measured values and whether they are met.

    Args:
      results: workloads by name, each with "rows".
      judge: False leaves `passed` None, where sizes were shrunk.

    Returns:
      Rows of ``name, measured, bound, passed``; both of the last are None where a system was not
      measured.
    """
    found: list[Row] = []
    for workload, system, bound in TARGETS:
        rows = results.get(workload, {}).get("rows", [])
        ratio = next((r.get("ratio") for r in rows if r["system"] == system), None)
        value = None if ratio is None else ratio["median"]
        passed = None if value is None or not judge else value >= bound
        name = f"{workload}: times faster than {system}"
        found.append({"name": name, "measured": value, "bound": bound, "passed": passed})
    for workload, result in results.items():
        for row in result["rows"]:
            name = f"{workload}: {row['system']} reaches our model (difference over change)"
            if "agrees" in row:
                value = row["agreement"] / (row["largest_change"] or 1.0)
                found.append(
                    {"name": name, "measured": value, "bound": None, "passed": row["agrees"]}
                )
            elif "agreement_error" in row:
                found.append({"name": name, "measured": None, "bound": None, "passed": False})
    return found


def print_table(results: dict[str, Any]) -> None:
    """All rows in one table."""
    print(
        f"\n{'workload':10s} {'system':7s} {'variant':14s} {'ms a round (quartiles)':>31s} "
        f"{'to ours (quartiles)':>24s} {'cold':>8s} {'agreement':>10s}  versions"
    )
    for name, result in results.items():
        for row in result["rows"]:
            head = f"{name:10s} {row['system']:7s} "
            if "ms_per_round" not in row:
                print(f"{head}not measured: {row['error']}")
                continue
            shown = quartiles(row["ms_per_round"])
            versus = quartiles(row["ratio"]) if "ratio" in row else ""
            agreement = f"{row['agreement']:.1e}" if "agreement" in row else ""
            versions = ", ".join(f"{key} {value}" for key, value in row["versions"].items())
            print(
                f"{head}{row['variant']:14s} {shown:>31s} {versus:>24s} "
                f"{row['cold_seconds']:6.1f} s {agreement:>10s}  {versions}"
            )


def quartiles(values: dict[str, float]) -> str:
    """Median and quartiles of `measure.spread`, for the table."""
    return f"{values['median']:.2f} ({values['quartile_1']:.2f} .. {values['quartile_3']:.2f})"


def print_targets(found: list[Row], smoke: bool) -> None:
    """One line a target."""
    print("\ntargets" + (" (speed not judged: --smoke shrinks the workloads)" if smoke else ""))
    for target in found:
        value, bound = target["measured"], target["bound"]
        verdict = {True: "PASS", False: "FAIL", None: "----"}[target["passed"]]
        shown = "not measured" if value is None else f"{value:.3g}"
        print(f"{verdict}  {target['name']}: {shown}" + (f" (>= {bound:g})" if bound else ""))


def check(flags: Flags) -> None:
    """Raises ValueError where flags do not fit, FileExistsError where a report is in the way."""
    for name, given, known in (
        ("workloads", flags.workloads, SETTINGS),
        ("systems", flags.systems, SYSTEMS),
    ):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"--{name} must be among {list(known)}, got {unknown}")
    for name in ("repeats", "rounds_per_turn", "num_threads"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if flags.output.exists() and not flags.overwrite:
        raise FileExistsError(f"--output {flags.output} is there already; --overwrite replaces it")


def main(flags: Flags) -> dict[str, Any]:
    """Measures what is asked for, prints the table and the targets, writes the JSON file."""
    check(flags)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    print(f"{about['cpu']}, {about['num_usable_cores']} cores, load {about['load_average']}")
    results: dict[str, Any] = {}
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        bench = Bench(
            Path(temporary),
            flags.env_dir,
            repeats=flags.repeats,
            num_threads=flags.num_threads,
            rounds_per_turn=flags.rounds_per_turn,
        )
        for name in dict.fromkeys(flags.workloads):
            setting = SETTINGS[name].smoke() if flags.smoke else SETTINGS[name]
            summary = setting.workload.summary
            print(f"{name}: {'shrunk from: ' if flags.smoke else ''}{summary}", flush=True)
            result = bench.measure(name, setting, tuple(dict.fromkeys(flags.systems)))
            if flags.agreement:
                bench.agree(name, setting, result["rows"])
            results[name] = {"summary": summary, **result}
            report = {
                **about,
                "smoke": flags.smoke,
                "num_threads": flags.num_threads,
                "workloads": results,
                "targets": targets(results, judge=not flags.smoke),
            }
            save_json_atomic(flags.output, report)
    print_table(results)
    print_targets(report["targets"], flags.smoke)
    print(f"\nwritten to {flags.output}")
    return report


if __name__ == "__main__":
    # As an exception, so that the workers are ended: frozen ones would stay for ever.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
