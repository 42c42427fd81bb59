"""What can go wrong with a data set's files, each error fit to be shown to a user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DatasetNotFoundError(FileNotFoundError):
    """A data set is nowhere to be found; the message says why and every way to get it."""

    def __init__(self, name: str, *, reasons: Sequence[str], remedies: Sequence[str]) -> None:
        self.name = name
        self.reasons = tuple(reasons)
        self.remedies = tuple(remedies)
        lines = [f"data set {name!r} was not found.", "Looked here:"]
        lines += [f"  - {reason}" for reason in reasons]
        lines += ["Ways to get it:"]
        lines += [f"  {number}. {remedy}" for number, remedy in enumerate(remedies, start=1)]
        super().__init__("\n".join(lines))


class DatasetFormatError(ValueError):
    """A file is corrupt, truncated or not what its name says."""

    def __init__(
        self, path: Path | str, *, expected: str, found: str, remedy: str | None = None
    ) -> None:
        self.path = str(path)
        self.expected = expected
        self.found = found
        self.remedy = remedy or "delete the file and get it anew from its source"
        super().__init__(f"{path}: expected {expected}, found {found}; {self.remedy}")
