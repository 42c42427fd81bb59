"""A check, what came of it, and how checks are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

PASS, FAIL, NOTE = "PASS", "FAIL", "note"


class Check(NamedTuple):
    """One known answer: a number, or an array of them, and how the library's is measured."""

    name: str
    expected: Any
    """From a closed form or a plain numpy loop, never from the library."""
    measure: Callable[[], Any]
    tolerance: float = 1e-9
    """Largest absolute error; in float64."""


class Record(NamedTuple):
    """What came of a check."""

    technique: str
    check: str
    expected: str
    got: str
    error: float
    verdict: str
    """"PASS", "FAIL", or "note" for a figure that is neither right nor wrong."""


def run_check(technique: str, check: Check) -> Record:
    """Measures one check in float64; whatever it raises is a FAIL that says so.

    Args:
      technique: what the check belongs to.
      check: the known answer.

    Returns:
      A `Record`.

    Example:
      >>> run_check("sums", Check("one and one", 2.0, lambda: 1.0 + 1.0)).verdict
      'PASS'
      >>> run_check("sums", Check("one and one", 2.0, lambda: 3.0)).verdict
      'FAIL'
    """
    expected = np.asarray(check.expected, np.float64)
    try:
        with jax.enable_x64(True):
            got = np.asarray(check.measure(), np.float64)
        if got.shape != expected.shape:
            raise ValueError(f"shape {list(got.shape)} for {list(expected.shape)}")
    except Exception as error:  # a broken technique must not hide the others
        text = f"{type(error).__name__}: {error}"
        return Record(technique, check.name, shown(expected), text, np.inf, FAIL)
    equal = expected == got  # infinities
    with np.errstate(invalid="ignore"):
        errors = np.where(equal, 0.0, np.abs(expected - got))
    worst = float(errors.max(initial=0.0))
    place = int(np.argmax(np.where(np.isnan(errors), np.inf, errors))) if errors.size else 0
    verdict = PASS if worst <= check.tolerance else FAIL  # NaN fails the comparison
    return Record(technique, check.name, shown(expected, place), shown(got, place), worst, verdict)


def run_checks(technique: str, checks: Iterable[Check]) -> list[Record]:
    """`run_check` of each.

    Example:
      >>> run_checks("sums", [Check("one and one", 2.0, lambda: 2.0)])[0].verdict
      'PASS'
    """
    return [run_check(technique, check) for check in checks]


def shown(value: Any, place: int = 0) -> str:
    """A number with ten digits; of an array the entries, or the one at `place` and its index."""
    value = np.asarray(value)
    if value.size == 0:
        return "()"
    if value.ndim == 0:
        return f"{float(value):.10g}"
    if value.size <= 2:
        return "(" + ", ".join(f"{x:.10g}" for x in value.ravel()) + ")"
    return f"{value.ravel()[place]:.10g} at {place} of {value.size}"
