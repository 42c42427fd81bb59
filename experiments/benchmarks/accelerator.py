"""What auto() must know of an accelerator: convolution form, precision, lanes, loops, packing.

    python experiments/benchmarks/accelerator.py            # on the machine with the GPU or TPU
    python experiments/benchmarks/accelerator.py --smoke    # anywhere, in seconds; no figures

Four tables, each measured in turns and written to accelerator.json with device and versions:

1. forms: one round of a CNN at each number of lanes, as XLA's grouped convolution or as slices
   and one matmul, in float32, tf32 and bfloat16;
2. loops: the same round with a traced number of steps (chunked) and with a fixed one
   (differentiable), which tells what a dynamic trip count costs;
3. packing: sorted chunks against lanes that take the next client (packed), on even and on
   log-normal sizes; DESIGN.md takes `packed` into the engine above 1.2;
4. run: pfl-research's CIFAR-10 configuration for 1,500 rounds by the best of table 1 (aim: 20 s).
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from measure import alternate, check_output, machine, parse, spread
from packed import packed
from workloads import WORKLOADS, Workload

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic

Row = dict[str, Any]
FORMS = ("matmul", "xla")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The tables to measure."""

    tables: tuple[Literal["forms", "loops", "packing", "run"], ...] = (
        "forms",
        "loops",
        "packing",
        "run",
    )
    """Tables to measure: convolution forms, loops, packing, a whole run."""
    lanes: tuple[int, ...] = (1, 5, 10, 25, 50)
    """Clients that train at the same time, a point each."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    num_rounds: int = 1500
    """Rounds of the last table."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    repeats: int = 5
    """Measured calls of each program, in turns."""
    max_seconds: float = 480.0
    """No further program is begun after so many seconds; what is missing is listed."""
    output: Path = Path("outputs/benchmarks/accelerator.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds on tiny sizes; its figures mean nothing."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, TrainingFlags, RunFlags):
    """Which tables to measure."""


class Clock:
    """The time that is left for the whole script."""

    def __init__(self, max_seconds: float) -> None:
        self.end = time.perf_counter() + max_seconds

    @property
    def over(self) -> bool:
        """Whether no further program may begin."""
        return time.perf_counter() > self.end


def pfl_model(form: Any, precision: Any) -> fl.models.Model:
    """pfl-research's CNN with a convolution form and a precision."""
    model = fl.models.pfl_cnn(mean=(0.5,) * 3, std=(0.29,) * 3, form=form)
    return fl.models.with_precision(model, precision)


def timed(
    programs: dict[str, tuple[fl.FederatedAlgorithm, Any]],
    model: fl.models.Model,
    *,
    flags: Flags,
    clock: Clock,
) -> tuple[dict[str, Row], list[str]]:
    """Seconds of one round of each program, in turns; and the names that were left out."""
    key = jax.random.key(0)
    calls: dict[str, Any] = {}
    left_out, rows = [], {}
    for name, (algo, data) in programs.items():
        if clock.over:
            left_out.append(name)
            continue
        state = algo.init(key, model.init(key), data)
        began = time.perf_counter()
        try:
            compiled = jax.jit(algo.round).lower(key, state, data).compile()
            predicted = fl.forecast(compiled)
            if predicted is not None and not predicted.fits:
                left_out.append(f"{name}: does not fit")
                continue
            _, metrics = jax.block_until_ready(compiled(key, state, data))
        except jax.errors.JaxRuntimeError as error:  # the device or its compiler refused it
            left_out.append(f"{name}: {str(error).splitlines()[0][:200]}")
            continue
        rows[name] = {
            "first_seconds": time.perf_counter() - began,
            "num_steps": int(metrics["num_steps"]),
            "peak_bytes": None if predicted is None else predicted.peak_bytes,
        }
        calls[name] = lambda compiled=compiled, state=state, data=data: compiled(key, state, data)
        print(f"  {name}: first round in {rows[name]['first_seconds']:.1f} s", flush=True)
    for name, seconds in alternate(calls, repeats=flags.repeats).items():
        rows[name]["seconds"] = {**spread(seconds), "all": seconds}
    return rows, left_out


def strategy_of(lanes: int, cohort_size: int) -> fl.engine.Strategy:
    """As many lanes; the whole cohort without sorting."""
    return fl.vmapped() if lanes >= cohort_size else fl.chunked(lanes)


def forms(workload: Workload, flags: Flags, clock: Clock) -> tuple[dict[str, Row], list[str]]:
    """Convolution form x precision x lanes."""
    data = workload.population()
    programs = {}
    for lanes, form, precision in itertools.product(flags.lanes, FORMS, PRECISIONS):
        model = pfl_model(form, precision)
        algo = algorithm(workload, model, strategy_of(lanes, workload.cohort_size))
        programs[f"{form}, {precision}, {lanes} lanes"] = (algo, data)
    return timed(programs, pfl_model("auto", "float32"), flags=flags, clock=clock)


def loops(workload: Workload, flags: Flags, clock: Clock) -> tuple[dict[str, Row], list[str]]:
    """A traced number of steps against a fixed one, whole cohort in lanes, both forms."""
    data = workload.population()
    programs = {}
    for form in FORMS:
        model = pfl_model(form, "float32")
        for strategy in (fl.vmapped(), fl.differentiable(remat=False)):
            programs[f"{form}, {strategy.name}"] = (algorithm(workload, model, strategy), data)
    return timed(programs, pfl_model("auto", "float32"), flags=flags, clock=clock)


def packing(workload: Workload, flags: Flags, clock: Clock) -> tuple[dict[str, Row], list[str]]:
    """packed(L) against chunked(L), on even and on log-normal sizes."""
    skewed = dataclasses.replace(workload, deal=WORKLOADS["lognormal"].deal)
    model = pfl_model("auto", "float32")
    programs = {}
    for sizes, case in (("even", workload), ("log-normal", skewed)):
        data = case.population()
        for lanes in flags.lanes:
            for strategy in (fl.chunked(lanes), packed(lanes)):
                algo = algorithm(case, model, strategy)
                programs[f"{sizes}, {strategy.name}"] = (algo, data)
    return timed(programs, model, flags=flags, clock=clock)


def algorithm(
    workload: Workload, model: fl.models.Model, strategy: fl.engine.Strategy
) -> fl.FederatedAlgorithm:
    """FedAvg as the workload has it."""
    return fl.fedavg(
        model.loss,
        optax.sgd(workload.learning_rate),
        plan=workload.plan(),
        sampler=workload.sampler(),
        weighting=workload.weighting,
        strategy=strategy,
    )


def whole_run(workload: Workload, flags: Flags, best: str) -> Row:
    """All rounds of the configuration by `fl.run`, without evaluation."""
    form, precision, lanes = best.split(", ")
    strategy = strategy_of(int(lanes.split()[0]), workload.cohort_size)
    model = pfl_model(form, precision)
    algo = algorithm(workload, model, strategy)
    data, key = workload.population(), jax.random.key(0)
    num_rounds = 4 if flags.smoke else flags.num_rounds
    every = min(100, num_rounds)
    state = algo.init(key, model.init(key), data)
    seconds = []
    for _ in range(2):  # the first one compiles
        began = time.perf_counter()
        end, _ = fl.run(algo, key, state, data, num_rounds=num_rounds, every=every, progress=False)
        jax.block_until_ready(end)
        seconds.append(time.perf_counter() - began)
    finite = all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(end.server.params))
    return {
        "variant": best,
        "num_rounds": num_rounds,
        "cold_seconds": seconds[0],
        "warm_seconds": seconds[1],
        "finite": finite,
    }


def print_rows(title: str, rows: dict[str, Row], left_out: list[str]) -> None:
    """A table, fastest first."""
    print(f"\n{title}: seconds a round, median (least .. most)")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["seconds"]["median"]):
        s = row["seconds"]
        print(f"  {name:38s} {s['median']:9.5f} ({s['min']:.5f} .. {s['max']:.5f})")
    if left_out:
        print(f"  not measured: {'; '.join(left_out)}")


def main(flags: Flags) -> dict[str, Any]:
    """Measures the tables and writes them after each."""
    check_output(flags.output, flags.overwrite)
    workload = WORKLOADS["pfl-cnn"].smoke() if flags.smoke else WORKLOADS["pfl-cnn"]
    if flags.smoke:
        flags = dataclasses.replace(flags, lanes=(1, 5), repeats=1)
    clock = Clock(flags.max_seconds)
    result: dict[str, Any] = {
        "machine": machine(),
        "device": jax.local_devices()[0].device_kind,
        "workload": workload.summary,
        "smoke": flags.smoke,
    }
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in (("forms", forms), ("loops", loops), ("packing", packing)):
        if name in flags.tables:
            rows, left_out = measure(workload, flags, clock)
            print_rows(name, rows, left_out)
            result[name] = {"rows": rows, "left_out": left_out}
            save_json_atomic(flags.output, result)
    if "run" in flags.tables:
        table = result.get("forms", {}).get("rows", {})
        exact = {n: r for n, r in table.items() if "float32" in n.split(", ")}
        if not exact:
            sys.exit("error: the table `run` needs the table `forms` in the same call")
        best = min(exact, key=lambda name: exact[name]["seconds"]["median"])
        result["run"] = whole_run(workload, flags, best)
        print(f"\n{best}: {result['run']}")
        save_json_atomic(flags.output, result)
    return result


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
