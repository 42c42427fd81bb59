"""Figures over seeds: Student's interval, curves on common rounds, what it takes to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.report.runs import Run

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over seeds and the half width of its confidence interval."""

    mean: float
    half: float
    """NaN for fewer than two seeds: one run says nothing of the spread."""
    num_seeds: int


class Curve(NamedTuple):
    """A metric over the rounds that all runs of a group have."""

    x: np.ndarray
    """`[P]`, the mean over seeds."""
    mean: np.ndarray
    """`[P]`."""
    half: np.ndarray
    """`[P]`, half width of the interval; NaN for one seed."""
    num_seeds: int


def t_interval(values: Any, *, confidence: float = CONFIDENCE) -> Interval:
    r"""The mean of independent runs and Student's confidence interval of it.

    .. math:: \bar a \pm t_{n-1,\,(1+\gamma)/2}\; s / \sqrt n,
        \qquad s^2 = \tfrac{1}{n-1} \textstyle\sum_i (a_i - \bar a)^2

    (an interval of the mean; not the standard error, and not the spread of the runs).

    Args:
      values: `[n]`, one number a seed; a NaN makes the result NaN.
      confidence: gamma, in (0, 1).

    Returns:
      An `Interval`.

    Raises:
      ValueError: if there is no value or `confidence` is out of range.

    Example:
      >>> mean, half, num = t_interval([1.0, 2.0, 3.0])
      >>> mean, round(half, 4), num
      (2.0, 2.4841, 3)

    Reference: Student, "The Probable Error of a Mean", Biometrika, 1908.
    """
    mean, half = _t_interval(np.asarray(values, np.float64)[:, None], confidence)
    return Interval(float(mean[0]), float(half[0]), len(np.asarray(values)))


def _t_interval(table: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths of the columns of `[n, P]`."""
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence must lie in (0, 1), such as 0.95, got {confidence}; give a share"
        )
    num = len(table)
    if num == 0:
        raise ValueError("values must hold at least one number, got none")
    with np.errstate(invalid="ignore"):  # a run that diverged to infinity has no spread: NaN
        mean = table.mean(0)
        if num == 1:
            return mean, np.full(mean.shape, math.nan)
        from scipy.stats import t

        factor = float(t.ppf((1 + confidence) / 2, num - 1)) / math.sqrt(num)
        return mean, factor * table.std(0, ddof=1)


def ends(mean: Any, half: Any, *, fraction: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of an interval, cut to [0, 1] for the mean of a fraction, which cannot leave it.

    Args:
      mean: a number or `[P]`; where a mean lies outside [0, 1] it is no fraction: nothing is cut.
      half: half width, of the same shape; NaN gives NaN.
      fraction: whether the figure is one, such as an accuracy.

    Example:
      >>> low, high = ends(0.5, 1.3, fraction=True)
      >>> float(low), float(high)
      (0.0, 1.0)
    """
    mean = np.asarray(mean, np.float64)
    low, high = mean - half, mean + half
    if not fraction:
        return low, high
    inside = (mean >= 0) & (mean <= 1)
    return np.where(inside, np.maximum(low, 0), low), np.where(inside, np.minimum(high, 1), high)


def rising(values: Any, *, largest: bool = True) -> np.ndarray:
    """The best value so far: an accuracy curve made monotone, as McMahan et al. do.

    Example:
      >>> rising([0.2, 0.6, 0.5, 0.7]).tolist()
      [0.2, 0.6, 0.6, 0.7]
    """
    values = np.asarray(values, np.float64)
    return np.fmax.accumulate(values) if largest else np.fmin.accumulate(values)


def to_target(x: Any, values: Any, *, target: float, largest: bool = True) -> float:
    """Where a curve first reaches a target: rounds, bytes or seconds, wall-clock or simulated.

    The curve is made monotone (the best value so far) and is a straight line between two
    evaluations; the answer is where that line crosses the target.

    Args:
      x: `[P]`, rounds, bytes or seconds, in ascending order.
      values: `[P]`, the metric there; NaN is left out.
      target: the value to reach.
      largest: whether more is better; False for losses.

    Returns:
      The crossing, in the unit of `x`; ``x[0]`` where the curve starts beyond the target, NaN
      where it never gets there.

    Raises:
      ValueError: if `x` and `values` are not both `[P]`.

    Example:
      >>> to_target([0, 10, 20, 30], [0.1, 0.5, 0.3, 0.9], target=0.7)
      25.0

    Reference: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning
    of Deep Networks from Decentralized Data", 2017, arXiv:1602.05629, section 3.
    """
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != values.shape:
        raise ValueError(f"x and values must both be [P], got {x.shape} and {values.shape}")
    known = ~np.isnan(values)
    x, sign = x[known], 1.0 if largest else -1.0
    best = rising(sign * values[known])
    reached = np.flatnonzero(best >= sign * target)
    if not len(reached):
        return math.nan
    last = int(reached[0])
    if last == 0:
        return float(x[0])
    low, high = best[last - 1], best[last]
    share = (sign * target - low) / (high - low) if math.isfinite(low) else 1.0
    return float(x[last - 1] + share * (x[last] - x[last - 1]))


def wire(run: Run, direction: str) -> dict[int, float] | None:
    """Bytes sent by all clients together up to each round; None where no round recorded them.

    Args:
      run: with ``uplink_bits_total`` or ``uplink_bits`` in its rows (downlink alike).
      direction: "uplink" or "downlink".

    Returns:
      Bytes by round: the packed size on the wire, added up.

    Example:
      >>> rows = [{"round": 0}, {"round": 1, "uplink_bits": 16}, {"round": 2, "uplink_bits": 8}]
      >>> wire(Run("a", rows), "uplink")
      {0: 0.0, 1: 2.0, 2: 3.0}
    """
    name = f"{direction}_bits"
    if not {name, f"{name}_total"} & set(run.columns):
        return None
    total, by_round = 0.0, {}
    for row in run.rows:
        total = row.get(f"{name}_total", total + row.get(name, 0.0))
        by_round[row["round"]] = total / 8
    return by_round


def axis(run: Run, name: str) -> dict[int, float] | None:
    """What a curve may be drawn over: ``round``, ``bytes`` (up and down), ``seconds`` or a column.

    Simulated time begins with round 0, which no clock has recorded.
    """
    if name == "bytes":
        up, down = wire(run, "uplink"), wire(run, "downlink")
        if up is None and down is None:
            return None
        parts = [part for part in (up, down) if part is not None]
        return {row["round"]: sum(part[row["round"]] for part in parts) for row in run.rows}
    by_round = {row["round"]: row[name] for row in run.rows if _is_number(row.get(name))}
    if name == "simulated_seconds" and by_round and any(row["round"] == 0 for row in run.rows):
        by_round = {0: 0.0, **by_round}
    if name.startswith("epsilon"):  # JSON has no infinity: what a run without noise spends
        by_round = {r: math.inf if math.isnan(v) else v for r, v in by_round.items()}
    return by_round or None


def points(run: Run, metric: str, x: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The rounds of one run that have a metric, as two `[P]`; None where there is none."""
    over, by_round = axis(run, x), axis(run, metric)
    common = sorted((over or {}).keys() & (by_round or {}).keys())
    if over is None or by_round is None or not common:
        return None
    return np.array([over[r] for r in common]), np.array([by_round[r] for r in common])


def curve(
    runs: Sequence[Run], metric: str, *, x: str = "round", confidence: float = CONFIDENCE
) -> Curve | None:
    """The mean over seeds with its interval, on the rounds that all runs have.

    Args:
      runs: of one group.
      metric: a column of their rows.
      x: "round", "bytes", "seconds" or a column, such as "simulated_seconds"; over seeds it is
        averaged at equal rounds.
      confidence: of the interval.

    Returns:
      The `Curve`; None where a run lacks the metric or no round is common to all.

    Example:
      >>> runs = [Run(n, [{"round": 1, "test_accuracy": a}]) for n, a in (("a", 0.4), ("b", 0.6))]
      >>> curve(runs, "test_accuracy").mean.tolist()
      [0.5]
    """
    tables = [(axis(run, x), axis(run, metric)) for run in runs]
    whole = [(over, values) for over, values in tables if over is not None and values is not None]
    if not whole or len(whole) < len(runs):
        return None
    common = set.intersection(*(over.keys() & values.keys() for over, values in whole))
    if not common:
        return None
    rounds = sorted(common)
    mean, half = _t_interval(_table([values for _, values in whole], rounds), confidence)
    return Curve(_table([over for over, _ in whole], rounds).mean(0), mean, half, len(runs))


def _table(by_round: Sequence[Mapping[int, float]], rounds: Sequence[int]) -> np.ndarray:
    return np.array([[values[r] for r in rounds] for values in by_round], np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
