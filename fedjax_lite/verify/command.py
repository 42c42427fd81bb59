"""``python -m fedjax_lite.verify [name ...]``: every technique against its known answers."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from fedjax_lite.verify import techniques
from fedjax_lite.verify.records import FAIL, Record, run_checks
from fedjax_lite.verify.table import print_records


def technique_names() -> list[str]:
    """Names of all techniques: the files in `fedjax_lite.verify.techniques`.

    Example:
      >>> "fedavg" in technique_names()
      True
    """
    return sorted(module.name for module in pkgutil.iter_modules(techniques.__path__))


def run(names: Sequence[str] = ()) -> list[Record]:
    """Runs the known answers and reductions of techniques against closed forms, in float64.

    Args:
      names: out of `technique_names`; none means all.

    Returns:
      A `Record` a check.

    Raises:
      ValueError: if a name is unknown; the message lists the names.

    Example:
      >>> {record.verdict for record in run(["clip"])}
      {'PASS'}
    """
    known = technique_names()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"no technique is named {', '.join(map(repr, unknown))}; names: {', '.join(known)}"
        )
    records = []
    for name in names or known:
        module = importlib.import_module(f"{techniques.__name__}.{name}")
        records += run_checks(name, module.checks())
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the table, and returns 0, 1 (a check failed) or 2 (unknown name).

    Args:
      arguments: names of techniques; default those of the command line.

    Example:
      >>> main(["nonsense"])
      2
    """
    parser = argparse.ArgumentParser(
        prog="python -m fedjax_lite.verify",
        description="Runs techniques against closed forms, without data, in float64.",
        epilog="names: " + ", ".join(technique_names()),
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="techniques to run, e.g. scaffold fednova; default all",
    )
    options = parser.parse_args(arguments)
    try:
        records = run(options.names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print_records(records)
    return int(any(record.verdict == FAIL for record in records))
