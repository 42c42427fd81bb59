"""The pages that hold tables of results: the guide's, and the README's section between markers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_lite.run.files import save_text_atomic
from tables.figures import stale_figures, time_figures
from tables.render import SECTIONS, Documents, Section, header, row, section
from tables.verdicts import Judged, judged, tally

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python experiments/tables"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEAD = f"""# Results

Every number on this page comes from a file in `experiments/results`, written by the command beside
it; `{COMMAND}` makes the page. Published numbers carry a mark: [text] read in
the paper, [log] in a public repository's logs or code, [plot] off a figure, [own] measured with
independent code of ours, or derived, [run] measured here with the authors' code; [unverified] is
remembered from the paper, whose text could not be opened, and not counted. "-" means that we know
of no published run of that setting. Where ours falls short, the row says so. Commands write to a
folder `outputs/` and need the data at hand; their results were copied to `experiments/results`.
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
    made = (section(name, documents) for name in SECTIONS)
    return [found for found in made if found is not None]


RULE = """Ours is reproduced where its interval meets the published one: the mean plus and minus the
deviation over seeds; without a deviation, half a printed digit (published) or the number itself
(ours). Over folds of the same data both deviations are the data's, so standard errors count.
Better than published is not reproduced. A setting that was cut is not run, however near it
comes."""


def guide_page(made: list[Section], found: Sequence[Judged] = ()) -> str:
    """The page of all tables, the verdicts first."""
    parts = [HEAD]
    if found:
        columns = ("paper", "what", "published", "here", "verdict", "differences", "command")
        lines = [
            row(f.paper, f.what, f.published, f.here, f.verdict, f.differences, f"`{f.command}`")
            for f in found
        ]
        parts += [f"## What is reproduced\n\n**{tally(found)}** {RULE}", header(*columns)]
        parts += ["\n".join(lines) + "\n"]
    briefs = [row(*brief) for page in made for brief in page.brief]
    if briefs:
        parts += ["## At a glance", header("what", "published", "here", "command")]
        parts += ["\n".join(briefs) + "\n"]
    return "\n".join([*parts, *(f"{page.text}\n" for page in made)])


def readme_section(found: Sequence[Judged]) -> str:
    """The tally and a few rows for the README, without the markers."""
    lines = [row(f.what, f.published, f.here, f.verdict) for f in found if f.brief]
    return "\n".join(
        [
            f"**{tally(found)}**",
            "The rule, causes, costs, seeds, settings, speed and all rows:",
            f"[complete tables](colab/guide/results.md), made by `{COMMAND}` from",
            "[JSON](experiments/results). Six rows of it:",
            header("what", "published", "here", "verdict"),
            *lines,
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
    documents = read(flags.results)
    made, found = sections(documents), judged(documents)
    pages = {
        flags.readme: replaced(flags.readme.read_text(), readme_section(found)),
        flags.guide: guide_page(made, found),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    figures = time_figures(documents)
    undrawn = stale_figures(flags.guide.parent / "assets", figures)
    stale += undrawn
    pages |= {path: figures[path.name][1] for path in undrawn}
    if flags.check and stale:
        names = ", ".join(map(str, stale))
        raise ValueError(f"not up to date: {names}; run {COMMAND}")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_text_atomic(path, pages[path])
        print(f"written: {path}")
    if not stale:
        print("up to date")
    return stale
