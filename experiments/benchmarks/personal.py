"""What a round of personal methods and adapters costs, in rounds of FedAvg with as many steps.

    python experiments/benchmarks/personal.py --output personal.json
    python experiments/benchmarks/personal.py --workloads 2nn --smoke

All methods have the workload's batches, cohort and learning rate, and as many local steps in a
round as FedAvg: FedRep half of them on the head and half on the body, Ditto both models' steps on
the same batches, Per-FedAvg with the Hessian's factor (its batch is dealt out in three), LoRA of
rank 4 on all dense layers. Scans of rounds are timed in turns on one device; ratios are paired by
turn, so drift cancels. Bars: Ditto at most 2.1, FedRep 1.1, Per-FedAvg 3.5, LoRA 1.0. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from measure import alternate, check_choices, check_output, machine, parse, spread
from workloads import WORKLOADS, Workload

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic

BARS = {"ditto": 2.1, "fedrep": 1.1, "per_fedavg": 3.5, "lora": 1.0}
"""Most rounds of FedAvg that a round may cost, medians."""
METHODS = ("fedavg", *BARS)
CHOICES = ("2nn", "pfl-cnn")
"""Workloads whose clients are of one size and whose model has a body under its head."""


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What to measure."""

    workloads: tuple[str, ...] = ("2nn",)
    """Models and clients: 2nn, pfl-cnn."""
    repeats: int = 9
    """Calls of each method, in turns."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Where results go."""

    output: Path = Path("outputs/benchmarks/personal.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds; its figures mean nothing."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure, and where results go."""


def algorithms(work: Workload) -> dict[str, tuple[fl.FederatedAlgorithm, fl.models.Model]]:
    """The methods by name, FedAvg first, each with the model whose parameters it trains."""
    model, rate = work.model(), work.learning_rate
    steps = max(2, work.num_examples // work.num_clients // work.batch_size // 2 * 2)
    plan = fl.Plan(work.batch_size, steps=steps)
    half = fl.Plan(work.batch_size, steps=steps // 2)
    loss, sgd = model.loss, optax.sgd(rate)
    slots: dict[str, Any] = {"sampler": work.sampler(), "weighting": work.weighting}
    adapted = fl.models.lora(model, model.init(jax.random.key(1)), rank=4)
    return {
        "fedavg": (fl.fedavg(loss, sgd, plan=plan, **slots), model),
        "ditto": (fl.ditto(loss, sgd, pull=0.1, plan=plan, **slots), model),
        "fedrep": (fl.fedrep(loss, sgd, plan=half, head_plan=half, **slots), model),
        # The second derivative makes it diverge at the others' rate; a step costs the same at any.
        "per_fedavg": (
            fl.per_fedavg(loss, optax.sgd(rate / 10), alpha=rate / 10, plan=plan, **slots),
            model,
        ),
        "lora": (fl.fedlora(adapted.loss, sgd, plan=plan, **slots), adapted),
    }


def price(work: Workload, *, repeats: int) -> list[dict[str, Any]]:
    """Times scans of rounds in turns, states donated from call to call.

    Args:
      work: the workload.
      repeats: calls of each.

    Returns:
      One row a method: ``method, seconds, ratio, bar``.

    Raises:
      RuntimeError: if parameters diverged.
    """
    data, key = work.population(), jax.random.key(0)
    states: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, (algo, model) in algorithms(work).items():

        def rounds(key: Any, state: Any, data: Any, algo: Any = algo) -> Any:
            one = lambda s, _: (algo.round(key, s, data)[0], None)  # noqa: E731
            return jax.lax.scan(one, state, length=work.num_rounds)[0]

        program = jax.jit(rounds, donate_argnums=1)
        states[name] = program(key, algo.init(key, model.init(key), data), data)

        def call(name: str = name, program: Any = program) -> Any:
            states[name] = program(key, states[name], data)
            return states[name]

        calls[name] = call
        print(f"  {name}: compiled", flush=True)
    seconds = alternate(calls, repeats=repeats)
    rows = []
    for name, times in seconds.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[name].server)):
            raise RuntimeError(f"{name} diverged; lower the workload's learning_rate")
        ratios = [mine / base for mine, base in zip(times, seconds["fedavg"], strict=True)]
        rows.append(
            {
                "method": name,
                "seconds": {**spread(times), "all": times},
                "ratio": spread(ratios),
                "bar": BARS.get(name),
            }
        )
    return rows


def print_rows(rows: list[dict[str, Any]], *, judge: bool) -> None:
    """One line a method, with its bar."""
    print(f"\n{'method':10s} {'seconds a call':>26s} {'over FedAvg':>24s}  bar")
    for row in rows:
        time, ratio, bar = row["seconds"], row["ratio"], row["bar"]
        verdict = ""
        if bar is not None:
            verdict = f"{bar:.1f}"
            if judge:
                verdict += " PASS" if ratio["median"] <= bar else " FAIL"
        print(
            f"{row['method']:10s} "
            f"{time['median']:9.4f} ({time['min']:.4f} .. {time['max']:.4f}) "
            f"{ratio['median']:7.3f} ({ratio['min']:.3f} .. {ratio['max']:.3f})  {verdict}"
        )


def main(flags: Flags) -> None:
    """Times the workloads one after the other."""
    check_choices("workloads", flags.workloads, list(CHOICES))
    check_output(flags.output, flags.overwrite)
    results: dict[str, Any] = {}
    for name in flags.workloads:
        work = WORKLOADS[name].smoke() if flags.smoke else WORKLOADS[name]
        print(f"{name}: {work.summary}", flush=True)
        results[name] = price(work, repeats=2 if flags.smoke else flags.repeats)
        print_rows(results[name], judge=not flags.smoke)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(
        flags.output, {"machine": machine(), "smoke": flags.smoke, "workloads": results}
    )


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
