"""``python -m fedjax_lite.report RUN [RUN ...]``: runs in, a page or a picture out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from fedjax_lite.report.comparison import compare
from fedjax_lite.report.page import count
from fedjax_lite.report.statistics import CONFIDENCE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: writes the comparison, says where, and returns 0, or 2 where something is wrong.

    Args:
      arguments: as on the command line; default those of the command line.

    Example:
      >>> import contextlib, io
      >>> with contextlib.redirect_stderr(io.StringIO()) as errors:
      ...     code = main(["/nowhere"])
      >>> code, errors.getvalue()[:31]
      (2, 'error: runs: there is no folder')
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    group_by = options.group_by
    try:
        comparison = compare(
            options.runs,
            path=options.output,
            group_by="folder" if group_by == ["folder"] else group_by,
            title=options.title,
            metric=options.metric,
            target=options.target,
            confidence=options.confidence,
            overwrite=options.overwrite,
            command=shlex.join(["python", "-m", "fedjax_lite.report", *words]),
        )
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in comparison.notes:
        print(f"note: {note}", file=sys.stderr)
    for panel, remedy in comparison.missing.items():
        print(f"left out: {panel}; {remedy}", file=sys.stderr)
    runs = count(sum(len(group.runs) for group in comparison.groups), "run")
    print(f"{runs} in {count(len(comparison.groups), 'group')}: {comparison.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedjax_lite.report",
        description="Compares runs: table, curves with bands over seeds, bytes and seconds to an "
        "accuracy, clients, privacy, drift. Runs that differ only in the seed form a group.",
        epilog="example: python -m fedjax_lite.report outputs/fedavg-* outputs/scaffold-* "
        "--output comparison.html --target-accuracy 0.6",
    )
    given = parser.add_argument_group("what is compared")
    given.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="output folder of a run, a folder that holds some, the results.json of an experiment, "
        "or a quoted pattern",
    )  # fmt: skip
    given.add_argument(
        "--metric", metavar="COLUMN",
        help="column of metrics.jsonl (default: test_accuracy, else another accuracy, else a loss)",
    )  # fmt: skip
    given.add_argument(
        "--target-accuracy", "--target", dest="target", type=float, metavar="FRACTION",
        help="value of the metric for rounds, bytes and seconds to reach it; 60 %% is 0.6 "
        "(default: the highest multiple of 0.05 that every run reaches)",
    )  # fmt: skip
    given.add_argument(
        "--group-by", nargs="+", metavar="SETTING",
        help="settings of the config whose values make a group, or: folder, for each run alone "
        "(default: all settings but the seed)",
    )  # fmt: skip
    given.add_argument(
        "--confidence", type=float, default=CONFIDENCE, metavar="SHARE",
        help="of the bands and of the ± in the table: Student's interval of the mean over seeds "
        "(default: %(default)s)",
    )  # fmt: skip
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output", default="comparison.html", metavar="FILE",
        help=".html: a page that needs nothing beside itself; .png: the main panels (default: "
        "%(default)s)",
    )  # fmt: skip
    written.add_argument("--title", help="of the page (default: by the data set)")
    written.add_argument(
        "--overwrite", action="store_true", help="replace an earlier file of that name"
    )
    return parser
