"""The table of a comparison: one row a group, figures over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.evaluate import summarize_clients
from fedjax_lite.report.groups import Group
from fedjax_lite.report.statistics import Interval, points, rising, t_interval, to_target, wire

COSTS = ("round", "bytes", "seconds")
SIMULATED = "simulated_seconds"
"""The column of runs with a clock, which is a cost like the others where there is one."""
LESS_IS_BETTER = frozenset(("loss", "error", "perplexity", "nll", "mse", "rmse", "mae"))
"""A column with one of these words in its name is to be small."""


def costs_of(groups: Sequence[Group]) -> tuple[str, ...]:
    """What reaching a target may cost: rounds, bytes, seconds; and simulated ones where recorded.

    Example:
      >>> from fedjax_lite.report.runs import Run
      >>> run = Run("a", [{"round": 1, "simulated_seconds": 2.0}])
      >>> costs_of([Group("a", [run], {})])
      ('round', 'bytes', 'seconds', 'simulated_seconds')
    """
    timed = any(SIMULATED in run.columns for group in groups for run in group.runs)
    return (*COSTS, SIMULATED) if timed else COSTS


class Metric(NamedTuple):
    """What is compared."""

    name: str
    largest: bool
    """Whether more is better."""

    @property
    def percent(self) -> bool:
        """Whether it is a fraction, shown in per cent."""
        return self.name.endswith("accuracy")


def choose_metric(groups: Sequence[Group], name: str | None) -> Metric:
    """The column to compare: `name`, else test accuracy, else any accuracy, else a loss.

    Raises:
      ValueError: if no run has such a column; the message lists those that are there.
    """
    columns = list(dict.fromkeys(c for g in groups for run in g.runs for c in run.columns))
    if name is not None and name not in columns:
        raise ValueError(f"metric must be a column of the runs, among {columns}, got {name!r}")
    found = name or next(
        (
            column
            for ending in ("test_accuracy", "_accuracy", "test_loss", "_loss")
            for column in columns
            if column.endswith(ending)
        ),
        None,
    )
    if found is None:
        raise ValueError(
            f"the runs have no *_accuracy and no *_loss to compare, only {columns}; hand "
            "evaluate=fl.evaluator(model, test) to fl.run, or name a column as metric"
        )
    words = set(found.lower().split("_"))
    return Metric(found, found.endswith("accuracy") or not words & LESS_IS_BETTER)


def choose_target(groups: Sequence[Group], metric: Metric) -> float | None:
    """The highest multiple of 5 % that every run reaches; None for losses, or where that is 0."""
    if not metric.percent:
        return None
    best = [
        rising(found[1])[-1]
        for group in groups
        for run in group.runs
        if (found := points(run, metric.name, "round")) is not None
    ]
    if not best or not np.isfinite(best).all():
        return None
    return math.floor(round(min(best) * 20, 9)) / 20 or None


def summarize(
    groups: Sequence[Group], metric: Metric, *, target: float | None, confidence: float
) -> list[dict[str, Any]]:
    """One row a group: what the page shows and `Comparison.table` holds.

    Args:
      groups: from `group_runs`.
      metric: from `choose_metric`.
      target: value of the metric to reach; None leaves those figures out.
      confidence: of the intervals.

    Returns:
      Rows with ``label``, ``num_seeds``, ``rounds`` (least and most), ``final`` and ``best``
      (`Interval`), ``worst`` (mean of the worst 10 % of clients), ``epsilon``, totals ``uplink``,
      ``downlink`` (bytes), ``seconds``, and with a target ``num_reached`` and ``to_round``,
      ``to_bytes``, ``to_seconds``; where a run has a clock ``simulated_seconds`` and
      ``to_simulated_seconds``; None where nothing is recorded.
    """
    table = []
    for group in groups:
        curves = [points(run, metric.name, "round") for run in group.runs]
        values = [found[1] for found in curves if found is not None]
        rounds = [run.num_rounds for run in group.runs]
        row: dict[str, Any] = {
            "label": group.label,
            "num_seeds": len(group.runs),
            "rounds": (min(rounds), max(rounds)),
            "final": _over([v[-1] for v in values], group, confidence),
            "best": _over(
                [rising(v, largest=metric.largest)[-1] for v in values], group, confidence
            ),
            "worst": _over(_worst(group), group, confidence),
            "epsilon": _over(_last(group, "epsilon"), group, confidence),
            "uplink": _over(_wired(group, "uplink"), group, confidence),
            "downlink": _over(_wired(group, "downlink"), group, confidence),
            "seconds": _over(_last(group, "seconds"), group, confidence),
        }
        if SIMULATED in costs_of(groups):
            row[SIMULATED] = _over(_last(group, SIMULATED), group, confidence)
        if target is not None:
            for cost in costs_of(groups):
                found = [points(run, metric.name, cost) for run in group.runs]
                crossings = [
                    to_target(*pair, target=target, largest=metric.largest)
                    for pair in found
                    if pair is not None
                ]
                reached = [c for c in crossings if math.isfinite(c)]
                if cost == "round":
                    row["num_reached"] = len(reached)
                row[f"to_{cost}"] = _over(reached, group, confidence)
        table.append(row)
    return table


def _over(values: Sequence[float], group: Group, confidence: float) -> Interval | None:
    """The interval where every seed has a value: the mean of the lucky ones would mislead."""
    if len(values) < len(group.runs) or not len(values):
        return None
    return t_interval(values, confidence=confidence)


def _last(group: Group, name: str) -> list[float]:
    found = [points(run, name, "round") for run in group.runs]
    return [float(pair[1][-1]) for pair in found if pair is not None]


def _wired(group: Group, direction: str) -> list[float]:
    found = [wire(run, direction) for run in group.runs]
    return [total[run.num_rounds] for total, run in zip(found, group.runs) if total is not None]


def _worst(group: Group) -> list[float]:
    return [
        summarize_clients(run.clients["accuracy"], np.ones(len(run.clients["accuracy"])))["worst"]
        for run in group.runs
        if "accuracy" in run.clients
    ]
