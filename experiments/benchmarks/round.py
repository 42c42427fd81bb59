"""Speed of whole federated rounds, by workload and by execution strategy.

    python experiments/benchmarks/round.py
    python experiments/benchmarks/round.py --workloads logreg lognormal --repeats 9
    python experiments/benchmarks/round.py --workloads pfl-cnn --strategies auto --algorithms all
    python experiments/benchmarks/round.py --smoke

Each program is one jitted lax.scan of k rounds (sampling, local training, aggregation and server
step) of FedAvg on random data. Data, key and state are arguments; the state is not donated, so
every call starts from the same state, draws the same cohorts and does the same work, whatever the
strategy. One call warms up, then the strategies take turns. Cold = trace + compile + first call in
this process with JAX's caches emptied; importing JAX, making data and parameters are not in it.
GFLOP/s count real examples by the analytic cost of the model's matrix products; their share is of
the best float32 matrix product (2048^3) that this machine reached in the same run.
With --algorithms, rounds of FedProx, SCAFFOLD and others on pfl's CNN are timed against FedAvg's.
Writes round.json (round_smoke.json) to the output folder.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from algorithms import PRICED, price, print_prices
from measure import (
    Yardstick,
    alternate,
    check_no_compilation_cache,
    compile_cold,
    machine,
    parse,
    spread,
)
from shared.flags import strategy as strategy_of
from workloads import WORKLOADS, Workload

import fedjax_lite as fl
from fedjax_lite.engine.choose import choose, padded_steps, planned_steps
from fedjax_lite.run.files import save_json_atomic

Row = dict[str, Any]
SMOKE_STRATEGIES = ("vmapped", "sequential", "auto")
"""Compiling is all that a smoke run takes, so three of them."""


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The workloads, strategies and algorithms to measure."""

    workloads: tuple[Literal["2nn", "pfl-cnn", "logreg", "lognormal"], ...] = (
        "2nn",
        "pfl-cnn",
        "logreg",
        "lognormal",
    )
    """Federated settings; vmapped pfl-cnn needs about 2 GB."""
    strategies: tuple[str, ...] = ()
    """Strategies: vmapped, sequential, chunked:L, auto; by default a sensible set for each
    workload."""
    algorithms: tuple[str, ...] = ()
    """Algorithms whose rounds on pfl's CNN are timed against FedAvg's: all, or among fedprox,
    scaffold, fednova, feddyn, mimelite; and FedAvg with clip_qsgd, clip_top_k, median, secure_mean.
    Those with a client table (scaffold, feddyn) take 7 GB each."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    repeats: int = 5
    """Measured calls of each program, in turns."""
    output_dir: Path = Path("outputs/benchmarks")
    """Folder for round.json; an earlier one is replaced."""
    smoke: bool = False
    """A run of seconds on tiny sizes; its figures mean nothing, and no target is judged."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure, and how often."""


def measure_workload(
    workload: Workload, strategies: tuple[str, ...], *, repeats: int, yardstick: Yardstick
) -> list[Row]:
    """One row for each strategy; timed in turns.

    Raises:
      RuntimeError: if a program did other work than was planned, or its parameters diverged.
    """
    data, key = workload.population(), jax.random.key(0)
    params = workload.model().init(key)
    steps, examples = planned_work(workload, data, key)
    rows: dict[str, Row] = {}
    calls: dict[str, Any] = {}
    reference = None
    for name in strategies:
        algo = workload.algorithm(strategy_of(name))
        state = algo.init(key, params, data)

        def program(key: Any, state: Any, data: Any, algo: Any = algo) -> Any:
            rounds = workload.num_rounds
            return jax.lax.scan(lambda s, _: algo.round(key, s, data), state, None, length=rounds)

        cold = compile_cold(program, key, state, data)
        end, metrics = cold.first
        leaves = jax.device_get(jax.tree.leaves(end.server.params))
        reference = leaves if reference is None else reference
        real_steps = int(np.asarray(metrics["num_steps"]).sum())
        check_work(name, real_steps, int(steps.sum()), leaves)
        lanes = num_lanes(name, params, data, workload.cohort_size)
        padded = sum(padded_steps(of_round, lanes) for of_round in steps)
        rows[name] = {
            "strategy": name,
            "num_lanes": lanes,
            "num_rounds": workload.num_rounds,
            "num_examples": examples,
            "real_steps": real_steps,
            "padded_steps": padded,
            "padded_over_real": padded / real_steps,
            "gflop": examples * workload.flop_per_example / 1e9,
            "compile_seconds": cold.compile_seconds,
            "cold_seconds": cold.cold_seconds,
            "temp_bytes": cold.temp_bytes,
            "max_difference": max(
                float(np.abs(a - b).max()) for a, b in zip(leaves, reference, strict=True)
            ),
        }
        calls[name] = lambda compiled=cold.compiled, state=state: compiled(key, state, data)
        print(f"  {name}: compiled and run in {cold.cold_seconds:.1f} s", flush=True)
    seconds = alternate(calls, repeats=repeats, between=yardstick.measure)
    for name, row in rows.items():
        row["seconds"] = {**spread(seconds[name]), "all": seconds[name]}
    return list(rows.values())


def planned_work(
    workload: Workload, data: fl.data.FederatedDataset, key: jax.Array
) -> tuple[np.ndarray, int]:
    """What the cohorts of the first rounds have to do, by the key's own draws.

    Args:
      workload: its sampler keeps no state.
      data: the population.
      key: the run's key.

    Returns:
      Steps, int `[num_rounds, C]`, and the number of examples trained on in all rounds.
    """
    draw = workload.algorithm(fl.sequential()).sample
    assert draw is not None
    rounds = (draw(key, jnp.int32(r), (), data.sizes)[1] for r in range(workload.num_rounds))
    ids = np.stack([np.asarray(cohort.ids) for cohort in rounds])
    counts = np.asarray(data.sizes)
    return planned_steps(workload.plan(), counts)[ids], int(counts[ids].sum())


def num_lanes(name: str, params: Any, data: fl.data.FederatedDataset, cohort_size: int) -> int:
    """Clients that the named strategy trains side by side."""
    if name == "auto":
        return choose(params, data, cohort_size).num_lanes
    if name == "vmapped":
        return cohort_size
    return 1 if name == "sequential" else min(int(name.removeprefix("chunked:")), cohort_size)


def check_work(name: str, real_steps: int, planned: int, leaves: list[np.ndarray]) -> None:
    """Raises RuntimeError where a figure of speed would be of something else."""
    if real_steps != planned:
        raise RuntimeError(
            f"{name} did {real_steps} local steps, but the cohorts drawn here have {planned}; "
            "planned_work no longer draws what federated_algorithm draws"
        )
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise RuntimeError(f"{name} diverged; lower the workload's learning_rate")


def add_rates(row: Row, sgemm_gflops: float) -> None:
    """Adds figures per second of the median call, and the share of the matrix product."""
    median = row["seconds"]["median"]
    row["rounds_per_second"] = row["num_rounds"] / median
    row["examples_per_second"] = row["num_examples"] / median
    row["gflops"] = row["gflop"] / median
    row["share_of_sgemm"] = row["gflops"] / sgemm_gflops


def targets(
    results: dict[str, Any], algorithms: Sequence[Row] = (), *, judge: bool = True
) -> list[Row]:
    """The speed targets, measured values and whether they are met.

    Args:
      results: workloads by name, each with "rows".
      algorithms: rows of `price`.
      judge: False leaves `passed` None, where sizes were shrunk.

    Returns:
      Rows of ``name, strategy, measured, bound, passed``; a target whose workload or strategy was
      not measured has None for both.
    """

    def row(workload: str, strategy: str) -> Row | None:
        rows = results.get(workload, {}).get("rows", [])
        return next((r for r in rows if r["strategy"] == strategy), None)

    found: list[Row] = []

    def add(name: str, value: float | None, sense: str, bound: float) -> None:
        passed = None
        if value is not None and judge:
            passed = value >= bound if sense == ">=" else value <= bound
        found.append(
            {"name": name, "measured": value, "sense": sense, "bound": bound, "passed": passed}
        )

    cnn, logreg, skewed = (row(name, "auto") for name in ("pfl-cnn", "logreg", "lognormal"))
    vmapped = row("lognormal", "vmapped")
    share = cnn["share_of_sgemm"] if cnn else None
    add("pfl-cnn, auto: share of sgemm", share, ">=", 0.5)
    warm = logreg["seconds"]["median"] if logreg else None
    add("logreg, auto: seconds for 100 rounds, warm", warm, "<=", 0.4)
    cold = logreg["cold_seconds"] if logreg else None
    add("logreg, auto: seconds for 100 rounds, cold", cold, "<=", 5.0)
    ratio = skewed["padded_over_real"] if skewed else None
    add("log-normal, auto: padded over real steps", ratio, "<=", 1.1)
    faster = None
    if skewed and vmapped:  # paired by turn, so that drift cancels
        pairs = zip(vmapped["seconds"]["all"], skewed["seconds"]["all"], strict=True)
        faster = float(np.median([slow / fast for slow, fast in pairs]))
    add("log-normal, auto: times faster than vmapped", faster, ">=", 5.0)
    prices = {row["algorithm"]: row["ratio"]["median"] for row in algorithms}
    for algorithm in ("fedprox", "scaffold"):
        if algorithm in prices:
            add(f"pfl-cnn, {algorithm}: over FedAvg", prices[algorithm], "<=", 1.3)
    for slot, bound in (("clip_qsgd", 1.5), ("clip_top_k", 1.5), ("median", 2.5)):
        if slot in prices:
            add(f"pfl-cnn, {slot}: over FedAvg", prices[slot], "<=", bound)
    return found


def print_table(results: dict[str, Any], sgemm: Row) -> None:
    """All rows in one table; seconds a call as median (least .. most)."""
    columns = (
        f"{'workload':10s} {'strategy':11s} {'lanes':>5s} {'rounds':>6s} "
        f"{'seconds a call':>24s} {'rounds/s':>9s} {'examples/s':>10s} {'GFLOP/s':>8s} "
        f"{'of sgemm':>8s} {'padded':>7s} {'compile':>8s} {'cold':>7s} {'temp MiB':>9s}"
    )
    # A best far above the median says that the machine was not quiet.
    typical = sgemm["calls"]["median"]
    print(f"\nsgemm: best {sgemm['gflops']:.1f}, median {typical:.1f} GFLOP/s\n{columns}")
    for name, result in results.items():
        for row in result["rows"]:
            time, temp = row["seconds"], row["temp_bytes"]
            call = f"{time['median']:.4f} ({time['min']:.4f} .. {time['max']:.4f})"
            print(
                f"{name:10s} {row['strategy']:11s} {row['num_lanes']:5d} {row['num_rounds']:6d} "
                f"{call:>24s} {row['rounds_per_second']:9.3f} {row['examples_per_second']:10.0f} "
                f"{row['gflops']:8.2f} {row['share_of_sgemm']:8.1%} {row['padded_over_real']:7.3f} "
                f"{row['compile_seconds']:6.2f} s {row['cold_seconds']:5.1f} s "
                f"{math.nan if temp is None else temp / 2**20:9.1f}"
            )


def print_targets(found: list[Row], smoke: bool) -> None:
    """One line a target."""
    print("\ntargets" + (" (not judged: --smoke shrinks the workloads)" if smoke else ""))
    for target in found:
        value, passed = target["measured"], target["passed"]
        verdict = {True: "PASS", False: "FAIL", None: "----"}[passed]
        shown = "not measured" if value is None else f"{value:.3f}"
        print(f"{verdict}  {target['name']}: {shown} ({target['sense']} {target['bound']:g})")


def main(flags: Flags) -> dict[str, Any]:
    """Measures what is asked for, prints the table and the targets, writes the JSON file.

    Raises:
      ValueError: if a name is unknown, `repeats` is below 1, or JAX caches programs on the disk.
    """
    unknown = [name for name in flags.workloads if name not in WORKLOADS]
    if unknown or not flags.workloads:
        raise ValueError(f"--workloads must be among {sorted(WORKLOADS)}, got {unknown}")
    if flags.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {flags.repeats}")
    for name in flags.strategies:
        strategy_of(name)
    check_no_compilation_cache()
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    path = flags.output_dir / ("round_smoke.json" if flags.smoke else "round.json")
    about = machine()
    print(f"{about['cpu']}, {about['num_usable_cores']} cores, load {about['load_average']}")
    yardstick = Yardstick(128 if flags.smoke else 2048)
    results: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for name in dict.fromkeys(flags.workloads):
        workload = WORKLOADS[name].smoke() if flags.smoke else WORKLOADS[name]
        print(f"{name}: {'shrunk from: ' if flags.smoke else ''}{workload.summary}", flush=True)
        usual = SMOKE_STRATEGIES if flags.smoke else workload.strategies
        strategies = tuple(dict.fromkeys(flags.strategies or usual))
        rows = measure_workload(workload, strategies, repeats=flags.repeats, yardstick=yardstick)
        results[name] = {
            "summary": workload.summary,
            "num_clients": workload.num_clients,
            "num_examples": workload.num_examples,
            "cohort_size": workload.cohort_size,
            "batch_size": workload.batch_size,
            "flop_per_example": workload.flop_per_example,
            "rows": rows,
        }
        # All shares are of the best product of the run so far; the file grows by workload.
        for result in results.values():
            for row in result["rows"]:
                add_rates(row, yardstick.best)
        report = {
            **about,
            "smoke": flags.smoke,
            "repeats": flags.repeats,
            "state_donated": False,
            "sgemm": {
                "size": yardstick.size,
                "gflops": yardstick.best,
                "calls": spread(yardstick.all),
            },
            "workloads": results,
            "targets": targets(results, judge=not flags.smoke),
        }
        save_json_atomic(path, report)
    if flags.algorithms:
        cnn = WORKLOADS["pfl-cnn"].smoke() if flags.smoke else WORKLOADS["pfl-cnn"]
        print(f"algorithms on pfl-cnn: {cnn.summary}", flush=True)
        names = PRICED if "all" in flags.algorithms else flags.algorithms
        report["algorithms"] = price(cnn, names, repeats=flags.repeats)
        report["targets"] = targets(results, report["algorithms"], judge=not flags.smoke)
        save_json_atomic(path, report)
    print_table(results, report["sgemm"])
    if flags.algorithms:
        print_prices(report["algorithms"])
    print_targets(report["targets"], flags.smoke)
    print(f"\nwritten to {path}")
    return report


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
