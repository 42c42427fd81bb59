"""Verdicts on published figures, by rule: reproduced, not reproduced, not run.

What was published and where ours stands are rows of verdicts.toml; the rule is `judge`. Ours is
reproduced where its interval and the published one overlap: the mean plus and minus the deviation
over seeds, and where there is no deviation half a printed digit (published) or the number itself
(ours). Over folds of the same data both deviations are those of the data, so what counts are the
means' standard errors. Better than published is not reproduced. A setting that was cut is not run,
however near its number comes, and says what the published one costs.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tables.causes import one_run
from tables.published import published
from tables.words import as_published, number

Kind = Literal["reproduced", "not reproduced", "not run"]


class Verdict(NamedTuple):
    """What the rule says of one figure."""

    kind: Kind
    why: str = ""
    """Of what is not reproduced: by how much, and the cause; of what is not run: the cost."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


class Judged(NamedTuple):
    """A published figure beside ours."""

    paper: str
    what: str
    published: str
    here: str
    verdict: Verdict
    differences: str
    command: str
    brief: bool
    """Whether the README shows it."""
    read: bool = True
    """Whether its source could be read; a remembered figure is judged and not counted."""


def judge(
    value: float,
    spread: float,
    ours: Sequence[float | None],
    *,
    fewer: bool = False,
    folds: bool = False,
    cut: Sequence[str] = (),
    cost: str = "",
    cause: str = "",
) -> Verdict:
    """The rule.

    Args:
      value: the published figure.
      spread: its deviation over seeds, or half a printed digit.
      ours: one value a seed; None where a run never arrived. Empty: there is no run.
      fewer: less is better.
      folds: ours are of folds of the data, of which the spread is the mean's standard error.
      cut: what of the published setting was made smaller here.
      cost: of a run as published; needed where there is none.
      cause: why ours differs, as far as it is known.

    Raises:
      ValueError: if there is no run as published and no cost either.

    Example:
      >>> str(judge(97.8, 0.1, [97.6, 97.9]))
      'reproduced'
      >>> str(judge(87, 0.5, [32.0], fewer=True))
      'not reproduced: better by 55; cause unknown'
      >>> str(judge(68.2, 0.4, [43.8], cut=["a tenth of the images"], cost="25 M images"))
      'not run: 25 M images'
    """
    if cut or not ours:
        if not cost:
            raise ValueError("cost must be given where there is no run as published, got none")
        return Verdict("not run", cost)
    cause = cause or "cause unknown"
    low, high = interval(ours, of_mean=folds)
    if not math.isfinite(high):
        return Verdict("not reproduced", f"not reached; {cause}")
    if low <= value + spread and high >= value - spread:
        return Verdict("reproduced")
    middle = (low + high) / 2
    better = middle < value if fewer else middle > value
    gap = number(abs(middle - value), 0 if abs(middle - value) >= 10 else 1)
    return Verdict("not reproduced", f"{'better' if better else 'worse'} by {gap}; {cause}")


def interval(values: Sequence[float | None], *, of_mean: bool = False) -> tuple[float, float]:
    """Mean less and plus the sample deviation; of one value itself; infinite if one is missing.

    Args:
      values: one a seed or fold.
      of_mean: the standard error in place of the deviation.

    Example:
      >>> interval([1.0, 3.0, 2.0]), interval([4.0]), interval([1.0, None])
      ((1.0, 3.0), (4.0, 4.0), (inf, inf))
      >>> interval([0.0, 2.0, 0.0, 2.0, 1.0], of_mean=True)  # a deviation of 1 over the root of 5
      (0.5527864045000421, 1.4472135954999579)
    """
    if any(value is None or not math.isfinite(value) for value in values):
        return math.inf, math.inf
    known = [float(value) for value in values if value is not None]
    mean = statistics.fmean(known)
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    if of_mean:
        deviation /= math.sqrt(len(known))
    return mean - deviation, mean + deviation


def find(document: Any, steps: Sequence[Any]) -> list[Any]:
    """Values of a parsed file by steps; none where a step leads nowhere.

    A step is a key, ``*`` for all keys, a place in a list (-1 the last), a table of values that
    rows of a list must have, or ``@name``: the key that the value of `name` spells, in the nearest
    table above that has it.

    Example:
      >>> document = {"best": 0.2, "by_rate": {"0.2": [1.0, 2.0]}, "rows": [{"a": 1, "b": 5}]}
      >>> find(document, ["by_rate", "@best"]), find(document, ["rows", {"a": 1}, "b"])
      ([1.0, 2.0], [5])
    """
    found: list[tuple[Any, tuple[Any, ...]]] = [(document, ())]
    for step in steps:
        found = [
            (value, (*above, node)) for node, above in found for value in _under(node, above, step)
        ]
    ends = [value for value, _ in found]
    return [v for end in ends for v in (end if isinstance(end, list) else [end])]


def _under(node: Any, above: tuple[Any, ...], step: Any) -> list[Any]:
    if isinstance(step, Mapping):
        rows = node if isinstance(node, list) else []
        return [row for row in rows if step.items() <= row.items()]
    if isinstance(step, str) and step.startswith("@"):
        tables = [t for t in (node, *reversed(above)) if isinstance(t, Mapping) and step[1:] in t]
        step = f"{tables[0][step[1:]]:g}" if tables else step
    if isinstance(node, Mapping):
        return list(node.values()) if step == "*" else [node[step]] if step in node else []
    if isinstance(node, list) and isinstance(step, int) and -len(node) <= step < len(node):
        return [node[step]]
    return []


@functools.cache
def _written() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "verdicts.toml").read_text())


def rows() -> list[dict[str, Any]]:
    """The rows of verdicts.toml, one a figure: axes are multiplied out."""
    return [row for entry in _written()["rows"] for row in _spelled(entry)]


def _spelled(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each combination of its axes, their values put where braces name them."""
    axes = entry.get("axes", {})
    body = {name: value for name, value in entry.items() if name != "axes"}
    for values in itertools.product(*axes.values()):
        names: dict[str, Any] = {}
        for axis, value in zip(axes, values, strict=True):
            names |= value if isinstance(value, Mapping) else {axis: value}
        yield _filled(body, names)


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        whole = value[1:-1] if value.startswith("{") and value.endswith("}") else ""
        return names[whole] if whole in names else value.format(**names)
    if isinstance(value, Mapping):
        return {key: _filled(item, names) for key, item in value.items()}
    return [_filled(item, names) for item in value] if isinstance(value, list) else value


def judged(documents: Mapping[str, Any]) -> list[Judged]:
    """Every published figure with the verdict on ours.

    Args:
      documents: files of experiments/results by name; a missing one is a run that there is not.
    """
    return [_judged(row, documents) for row in rows()]


def _judged(row: Mapping[str, Any], documents: Mapping[str, Any]) -> Judged:
    group = published()[row["group"]]
    factor, digits = row.get("factor", 1), row.get("digits", 0)
    if "value" in row:
        value = float(row["value"])
    else:
        (value,) = find(group["figures"], row["figure"])
        value *= factor
    spreads = find(group, row["spread"]) if "spread" in row else []
    spread = factor * spreads[0] if spreads else 0.0
    told, folds = spread, row.get("folds", 0)
    spread = max(spread / math.sqrt(folds or 1), row["printed"])
    file, *steps = row["ours"]
    document = documents.get(file, {})
    scale = row.get("ours_factor", factor)
    ours = [v if v is None else scale * v for v in find(document, steps)]
    if "over" in row:  # a ratio: the other way round, so that more is better
        base = find(document, row["over"])
        ours = [b / o if b and o else None for b, o in zip(base, ours, strict=True)]
    given = {"cost": f"experiments/results/{file}.json has no such row"}
    given |= {name: row[name] for name in ("cost", "cause") if name in row}
    if row.get("single"):
        given["cause"] = one_run(value, [v for v in ours if v is not None])
    if "ablations" in row:
        given["cause"] = _ablated(row, value, spread, ours, documents)
    if row["what"] in _written()["causes"]:
        given["cause"] = _written()["causes"][row["what"]]
    cut = row.get("cut", ())
    if cut and as_published(group, document.get("settings", {})):
        cut = ()  # a file of the published setting has taken the place of the small one
    fewer = row.get("better", group["better"]) == "fewer"
    verdict = judge(value, spread, ours, fewer=fewer, folds=bool(folds), cut=cut, **given)
    known = [v for v in ours if v is not None]
    here = _spread(known, digits) if known else "-"
    if len(known) < len(ours):
        here += f" ({len(ours) - len(known)} of {len(ours)} seeds not reached)"
    elif known:
        what = "fold" if folds else "seed"
        here += f" ({len(known)} {what}{'s' if len(known) > 1 else ''})"
    # Of a deviation that is printed as 0 half a printed digit is meant.
    told = told if folds else spread
    there = number(value, digits) + (f" ± {number(told, digits)}" if spreads else "")
    # A cut setting says what was cut where it shows a number.
    differences = [*(cut if known else ()), *row.get("differences", ())]
    return Judged(
        f"{group['paper']} [{group['mark']}]", row["what"], there, here, verdict,
        "; ".join(filter(None, differences)), row["command"], row["what"] in _written()["brief"],
        group["mark"] != "unverified",
    )  # fmt: skip


def tally(found: Sequence[Judged]) -> str:
    """How many of how many figures are reproduced, in words; remembered ones stand apart.

    Example:
      >>> tally([])
      '0 of 0 published figures are reproduced; 0 were run and are not, 0 were not run.'
    """
    kinds = [row.verdict.kind for row in found if row.read]
    apart = [row.verdict.kind for row in found if not row.read]
    return (
        f"{kinds.count('reproduced')} of {len(kinds)} published figures are reproduced; "
        f"{kinds.count('not reproduced')} were run and are not, "
        f"{kinds.count('not run')} were not run."
    ) + (
        f" Not counted: {len(apart)} that are remembered from papers and could not be read again, "
        f"of which {apart.count('reproduced')} are met."
        if apart
        else ""
    )


def _ablated(
    row: Mapping[str, Any],
    value: float,
    spread: float,
    ours: Sequence[float | None],
    documents: Mapping[str, Any],
) -> str:
    """The cause, where ours with one thing changed is there: it would be reproduced, or not.

    Of several changes the first that meets the published figure is the cause. Where none does, it
    is the nearest one if it takes away nine tenths of the difference, or two of one series that
    have the figure between them; else all of them are told.
    """
    tried: list[tuple[float, str]] = []
    sides: dict[tuple[str, bool], str] = {}
    for change in row["ablations"]:
        file, *steps = change["ours"]
        scale = row.get("ours_factor", row.get("factor", 1))
        found = [scale * v for v in find(documents.get(file, {}), steps) if v is not None]
        if not found:
            continue
        text = f"{change['words']} {_spread(found, row.get('digits', 0))}"
        named = f"{change['series']}: {text}" if "series" in change else text
        if judge(value, spread, found, folds="folds" in row).kind == "reproduced":
            return named
        off = statistics.fmean(found) - value
        tried.append((abs(off), named))
        if "series" in change:
            sides[change["series"], off < 0] = text
    if not tried:
        return ""
    left, nearest = min(tried)
    gap = abs(sum(interval(ours)) / 2 - value)
    if math.isfinite(gap) and left <= gap / 10:
        return f"nearly all of it by {nearest}"
    for series, below in sides:
        if below and (series, False) in sides:
            return f"{series}: between two; {sides[series, True]}; {sides[series, False]}"
    return "cause unknown; " + "; ".join(text for _, text in tried)


def _spread(known: Sequence[float], digits: int) -> str:
    """Mean and sample deviation, or the one value.

    Example:
      >>> _spread([1.0, 3.0], 1), _spread([2.0], 0)
      ('2.0 ± 1.4', '2')
    """
    mean = number(statistics.fmean(known), digits)
    return f"{mean} ± {number(statistics.stdev(known), digits)}" if len(known) > 1 else mean
