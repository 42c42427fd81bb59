"""The words and numbers that stand in tables of results."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = ("what", "published", "here", "remark", "command")
"""Of a table beside published numbers."""
NAMES = {"fedavg": "FedAvg", "fedavgm": "FedAvgM", "fedprox": "FedProx", "scaffold": "SCAFFOLD",
         "fednova": "FedNova", "feddyn": "FedDyn", "mime": "Mime", "centralised": "centralised",
         "fedprox 0": "FedProx mu=0", "fedsgd": "FedSGD"}  # fmt: skip
WORKLOADS = {"pfl-cnn": "pfl's CIFAR-10 CNN, cohort 50",
             "logreg": "logistic regression, cohort 10",
             "2nn": "2NN, cohort 10",
             "lognormal": "2NN, log-normal(1.5) sizes, cohort 100"}  # fmt: skip


def number(value: float | None, digits: int = 0) -> str:
    """A number with as many digits, halves away from zero; a dash where none is known.

    A share of 2,000 images such as 43.15 % is rounded as one reads it, not as its binary form.

    Args:
      value: None and what is not finite have no number.
      digits: after the point.

    Returns:
      The text.

    Example:
      >>> number(43.15, 1), number(None), number(-0.0004, 3)
      ('43.2', '-', '0.000')
    """
    if value is None or not math.isfinite(value):
        return "-"
    exact = decimal.Decimal(repr(float(value)))
    rounded = exact.quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP)
    return str(rounded + 0)  # no sign before zeros


def spread(
    values: Sequence[float | None], digits: int = 1, *, factor: float = 1.0, unit: str = ""
) -> str:
    """Mean and sample standard deviation over seeds, or the one value.

    Args:
      values: one a seed.
      digits: after the point.
      factor: what values are multiplied by; 100 for per cent.
      unit: what is written behind the number, with its space.

    Returns:
      ``mean ± deviation (n seeds)``.

    Example:
      >>> spread([0.5, 0.7], factor=100, unit=" %"), spread([0.5])
      ('60.0 ± 14.1 % (2 seeds)', '0.5 (1 seed)')
    """
    known = factor * np.array([math.nan if v is None else v for v in values])
    if len(known) == 1:
        return f"{number(known[0], digits)}{unit} (1 seed)"
    mean, deviation = number(known.mean(), digits), number(known.std(ddof=1), digits)
    return f"{mean} ± {deviation}{unit} ({len(known)} seeds)"


def over_seeds(values: Iterable[float | None], digits: int = 1, factor: float = 1.0) -> str:
    """`spread` without words, for tables that have a column of the number of seeds.

    Args:
      values: one a seed; a dash where none is known.
      digits: after the point.
      factor: what values are multiplied by; 100 for per cent.

    Returns:
      ``mean ± deviation``, or the one value.

    Example:
      >>> over_seeds([0.5, 0.7], 1, 100), over_seeds([0.5]), over_seeds([None])
      ('60.0 ± 14.1', '0.5', '-')
    """
    found = list(values)
    return "-" if None in found else spread(found, digits, factor=factor).partition(" (")[0]


def compared(published: float, ours: float | None, *, unit: str, fewer: bool = False) -> str:
    """Says in words whether ours falls short of the published figure.

    Args:
      published: the paper's.
      ours: None or not finite where a run never arrived.
      unit: of the difference, such as "points" or "rounds"; "times" of a ratio: its difference is
        of no use and left out.
      fewer: less is better.

    Returns:
      One phrase.

    Example:
      >>> compared(76.9, 70.0, unit="points")
      'falls short by 6.9 points'
      >>> compared(87, 32, unit="rounds", fewer=True)
      'better than published, by 55 rounds'
    """
    if ours is None or not math.isfinite(ours):
        return "falls short: not reached"
    gain = published - ours if fewer else ours - published
    size = number(abs(gain), 0 if unit == "rounds" else 1)
    if float(size) == 0:
        return "as published"
    unit = unit.removesuffix("s") if size == "1" else unit
    if unit == "times":
        return "better than published" if gain > 0 else "falls short"
    return (
        f"better than published, by {size} {unit}" if gain > 0 else f"falls short by {size} {unit}"
    )


def provenance(name: str, document: Mapping[str, Any]) -> str:
    """Where a table's numbers come from: the file, the software, and the machine as recorded."""
    machine = document.get("machine", document)
    made = machine.get("versions", {})
    parts = [f"jax {made['jax']}", f"Python {made['python']}"] if "jax" in made else []
    if "cpu" in machine and "num_cores" in machine:
        load = machine.get("load_average", [math.nan])[0]
        parts.append(f"{machine['num_cores']} cores of {machine['cpu']}, load {load:.1f}")
    elif "platform" in made:
        parts.append(made["platform"])
    if "date" in machine:
        parts.append(machine["date"][:10])
    return f"Numbers: `experiments/results/{name}.json`" + "".join(f"; {p}" for p in parts) + "."


def ranged(values: Sequence[float], digits: int | None = None) -> str:
    """The least and the most of several runs, never the better one alone; or the one value.

    Args:
      values: one a run.
      digits: after the point; None: three digits in all, see `short`.

    Returns:
      ``least to most``, or one number where all runs read the same.

    Example:
      >>> ranged([1.57, 1.01], 2), ranged([20.3])
      ('1.01 to 1.57', '20.3')
    """
    ends = [short(v) if digits is None else number(v, digits) for v in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def at(document: Mapping[str, Any]) -> str:
    """The day and the processor of a run, for the row or the list that shows it.

    Example:
      >>> at({"machine": {"date": "2026-11-21T12:31:37+00:00", "cpu": "AMD EPYC"}})
      '2026-11-21, AMD EPYC'
    """
    machine = document.get("machine", document)
    return f"{machine['date'][:10]}, {machine['cpu']}"


def short(value: float) -> str:
    """Three digits, no exponent."""
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def against(group: Mapping[str, Any], published: float, ours: float | None) -> str:
    """As `compared`, by the rule of a group of published figures."""
    return compared(published, ours, unit=group["unit"], fewer=group["better"] == "fewer")


def cited(group: Mapping[str, Any]) -> str:
    """Where published figures are from: the paper, the mark, the place."""
    place = f", {group['where']}" if "where" in group else ""
    return f"{group['paper']} [{group['mark']}]{place}"


def as_published(group: Mapping[str, Any], used: Mapping[str, Any]) -> bool:
    """Whether a run is the published setting: a preset's name does not say what flags changed."""
    return all(used.get(name) == value for name, value in group["setting"].items())
