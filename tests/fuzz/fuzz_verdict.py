"""What came of one call or one command line."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """What came of one call."""

    call: str
    argument: str
    value: str
    kind: str
    """good: refused in words; allowed: a value that can be meant; accepted: one that cannot;
    mute: refused without name, value or remedy; deep: an error of somebody else's; hang; crash."""
    message: str


AMISS = ("hang", "crash", "deep", "accepted")
"""Verdicts that no call may get."""
LEAST = 0.97
"""The least share of refusals that name argument, value and remedy."""


def share_of_good(verdicts: list[Verdict]) -> float:
    """Of what was refused; 1 where nothing was."""
    refused = [v for v in verdicts if v.kind in ("good", "mute", "deep")]
    return sum(v.kind == "good" for v in refused) / max(len(refused), 1) if refused else 1.0
