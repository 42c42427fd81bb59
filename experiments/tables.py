"""The results pages, made from experiments/results/*.json.

    python experiments/tables.py           # rewrites README.md's section and the guide's page
    python experiments/tables.py --check   # fails where they are not up to date

The README's table stands between the markers `<!-- results -->` and `<!-- /results -->`; the
complete tables, with seeds, settings and caveats, are the page colab/guide/results.md. A file of
results that is missing leaves its rows out. Published numbers are in the modules results_*.py, each
with its source and a mark: [text] read in the paper, [log] in a public repository's logs or code,
[plot] off a figure, [own] measured with independent code of ours.

There is no --smoke: it takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results_drift
import results_hospitals
import results_leaks
import results_learning
import results_speed
import results_trust
from results_rows import Documents, Section, table
from script import script

from fedjax_lite.history import save_text_atomic

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SECTIONS: tuple[Callable[[Documents], Section | None], ...] = (
    results_learning.mnist,
    results_learning.cifar,
    results_learning.fashion,
    results_learning.shakespeare,
    results_hospitals.heart,
    results_drift.fedprox,
    results_drift.quadratics,
    results_trust.byzantine,
    results_trust.private,
    results_trust.compression,
    results_trust.audit,
    results_leaks.leakage,
    results_speed.rounds,
    results_speed.costs,
    results_speed.peers,
    results_speed.processes,
)
HEAD = """# Results

Every number on this page comes from a file in `experiments/results`, written by the command beside
it; `python experiments/tables.py` makes the page. Published numbers carry a mark: [text] read in
the paper, [log] in a public repository's logs or code, [plot] off a figure, [own] measured with
independent code of ours. "-" means that we know of no published run of that setting. Where ours
falls short, the row says so. Commands write to a folder `outputs/` and need the data at hand; their
results were copied to `experiments/results`.
"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Where results are read and pages are written."""

    check: bool = False
    """Write nothing; fail where a page differs from what would be written."""
    results: Path = ROOT / "experiments" / "results"
    """Folder of the results' JSON files."""
    readme: Path = ROOT / "README.md"
    """Its section between the markers is replaced."""
    guide: Path = ROOT / "colab" / "guide" / "results.md"
    """The page of all tables."""


def read(folder: Path) -> dict[str, Any]:
    """Every results file by its name; metrics of a run (.jsonl) as a list of rows.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if a file is no JSON; the message names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--results must be a folder, {folder} is none")
    documents: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json*")):
        try:
            if path.suffix == ".json":
                documents[path.stem] = json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                lines = path.read_text().splitlines()
                documents[path.stem] = [json.loads(line) for line in lines if line]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    return documents


def sections(documents: Documents) -> list[Section]:
    """The sections whose results are there."""
    made = (make(documents) for make in SECTIONS)
    return [section for section in made if section is not None]


def guide_page(made: list[Section]) -> str:
    """The page of all tables."""
    return "\n".join([HEAD, *(f"## {section.title}\n\n{section.text}\n" for section in made)])


def readme_section(made: list[Section]) -> str:
    """The table for the README, without the markers."""
    rows = [
        (brief.what, brief.published, brief.here, brief.command)
        for section in made
        for brief in section.brief
    ]
    return "\n".join(
        [
            "Made by `python experiments/tables.py` from [JSON](experiments/results). Sources of",
            "published numbers, seeds, settings, caveats and all rows: [complete tables]"
            "(colab/guide/results.md).",
            "",
            table(("what", "published", "here", "command"), rows),
        ]
    )


def replaced(page: str, section: str) -> str:
    """The page with a new section between the markers.

    Raises:
      ValueError: if it does not have both markers once, in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the README must hold {BEGIN} and {END} once each, in this order")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"


def main(flags: Flags) -> list[Path]:
    """Writes the pages, or checks them; returns those that differed."""
    made = sections(read(flags.results))
    pages = {
        flags.readme: replaced(flags.readme.read_text(), readme_section(made)),
        flags.guide: guide_page(made),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if flags.check and stale:
        names = ", ".join(map(str, stale))
        raise ValueError(f"not up to date: {names}; run python experiments/tables.py")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_text_atomic(path, pages[path])
        print(f"written: {path}")
    if not stale:
        print("up to date")
    return stale


if __name__ == "__main__":
    script(main, Flags, __doc__)
