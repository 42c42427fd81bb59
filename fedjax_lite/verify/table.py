"""Records as a table: coloured on a terminal, plain elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from fedjax_lite.verify.records import FAIL, PASS, Record

COLUMNS = ("technique", "check", "expected", "got", "error", "verdict")


def print_records(records: Sequence[Record], *, file: TextIO | None = None) -> None:
    """Prints records and how many of them passed.

    Args:
      records: of `check` or `run`.
      file: default standard output; a terminal gets colours.

    Example:
      >>> print_records([Record("sums", "one and one", "2", "2", 0.0, "PASS")])
      technique  check        expected  got  error  verdict
      sums       one and one  2         2    0      PASS
      1 passed, 0 failed
    """
    stream: TextIO = file or sys.stdout
    if stream.isatty() and _print_rich(records, stream):
        return
    print(plain(records), file=stream)


def plain(records: Sequence[Record]) -> str:
    """The table as text with aligned columns."""
    rows = [COLUMNS, *map(_cells, records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*(line.rstrip() for line in lines), summary(records)])


def summary(records: Sequence[Record]) -> str:
    """How many passed and failed; notes are neither."""
    counts = [sum(record.verdict == verdict for record in records) for verdict in (PASS, FAIL)]
    return f"{counts[0]} passed, {counts[1]} failed"


def _cells(record: Record) -> tuple[str, ...]:
    error = "" if record.error != record.error else f"{record.error:.1g}"
    first = lambda text: (text.splitlines() or [""])[0][:90]  # noqa: E731
    texts = (record.technique, record.check, record.expected, record.got)
    return (*map(first, texts), error, record.verdict)


def _print_rich(records: Sequence[Record], file: TextIO) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(*COLUMNS)
    colours = {PASS: "green", FAIL: "bold red"}
    for record in records:
        *cells, verdict = _cells(record)
        table.add_row(*map(Text, cells), Text(verdict, style=colours.get(verdict, "cyan")))
    console = Console(file=file, highlight=False)
    console.print(table)
    console.print(summary(records))
    return True
