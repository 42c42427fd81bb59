"""The one renderer: a section's template, filled from files of results and published numbers.

A section is sections/<name>.md.jinja. It sees `documents` (every file of results by name), `runs`
(name and contents of those it is about), `doc` (the first of these), `published` (published.toml),
rows and headers of tables, and the filters below. Lines that begin with % are statements, two
blanks continue the line before, and `brief` puts a line into the README's table.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from tables import words
from tables.causes import missed_by_chance
from tables.published import published
from tables.rates import met_by_rate

Documents = Mapping[str, Any]
"""Parsed files of experiments/results by name without the ending; a missing one is absent."""

SECTIONS = {
    "mnist": ("mcmahan_mnist",),
    "conditions": ("mcmahan_conditions",),
    "replications": ("replications_mnist",),
    "power_law": ("power_law_mnist",),
    "cifar": ("fedavg_cifar", "heterogeneity_cifar_niid_bench", "heterogeneity_cifar_48",
              "heterogeneity_cifar"),
    "fashion": ("fashion_dirichlet",),
    "personal_fashion": ("personal_fashion",),
    "personal_har": ("personal_har",),
    "adapters": ("lora_shakespeare*",),
    "lifelong_har": ("lifelong_har",),
    "time": ("time_to_accuracy", "time_to_accuracy_cifar"),
    "shakespeare": ("shakespeare",),
    "heart": ("heart_disease",),
    "machines": ("deploy_hospitals_*",),
    "fedprox": ("fedprox_synthetic",),
    "quadratics": ("scaffold_quadratics",),
    "bucketing": ("bucketing_mnist",),
    "ifca": ("ifca_mnist",),
    "pfnm": ("pfnm_mnist",),
    "fair": ("fair_writers",),
    "fair_published": ("qffl_synthetic", "qffl_synthetic_one_draw", "afl_fashion",
                       "afl_fashion_unit"),
    "ensembles": ("ensembles_uci", "ensembles_uci_slow", "ensembles_mnist"),
    "generation": ("gan_ring", "gan_mnist", "gan_intervals", "gan_intervals_random"),
    "byzantine": ("byzantine",),
    "private": ("dp_fedavg",),
    "dp_sgd": ("dp_sgd_mnist", "dp_sgd_epsilons"),
    "compression": ("compression",),
    "audit": ("privacy_audit",),
    "leakage": ("leakage",),
    "scenes": ("scene_*",),
    "columns": ("vertical_hospitals", "split_cifar"),
    "rounds": ("round",),
    "costs": ("round_algorithms", "round_slots", "round"),
    "personal_costs": ("personal_costs_*",),
    "compiling": ("compiling_*",),
    "peers": ("peers_*",),
    "processes": ("processes_*",),
    "steps": ("step_*",),
    "populations": ("populations_*",),
}  # fmt: skip
"""Sections of the page in order, and the files each is about; without any it is left out. Figures
of speed have a file a run, named by its date (`peers_2026-11-21.json`): tables show all of them."""


class Brief(NamedTuple):
    """A line of the README's table."""

    what: str
    published: str
    here: str
    command: str = ""


class Section(NamedTuple):
    """A part of the guide's page, and what of it the README shows."""

    text: str
    brief: tuple[Brief, ...] = ()


def section(name: str, documents: Documents) -> Section | None:
    """A section of the page.

    Args:
      name: a key of `SECTIONS`.
      documents: what files there are.

    Returns:
      The section; None where no file of it is there.

    Raises:
      ValueError: if rows of a table differ in their number of cells; the message shows them.
    """
    found = [
        file for pattern in SECTIONS[name] for file in fnmatch.filter(sorted(documents), pattern)
    ]
    if not found:
        return None
    briefs: list[Brief] = []
    page = _environment().get_template(f"{name}.md.jinja").render(
        documents=documents,
        doc=documents[found[0]],
        runs=[(file, documents[file]) for file in found],
        published=published(),
        provenance=lambda file: words.provenance(file, documents[file]),
        brief=lambda what, *cells: briefs.append(Brief(what, *map(str, cells))),
    )  # fmt: skip
    return Section(_tidy(page), tuple(briefs))


def row(*cells: Any) -> str:
    r"""A row of a Markdown table; bars inside cells are escaped.

    Example:
      >>> row("a", "2|3")
      '| a | 2\\|3 |'
    """
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def header(*columns: str) -> str:
    """The first two lines of a Markdown table, apart from what is above."""
    return f"\n{row(*columns)}\n|{'---|' * len(columns)}"


def where(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [r for r in rows if all(r.get(name) == value for name, value in wanted.items())]


def pick(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any] | None:
    """The first row that has these values, if one does."""
    return next(iter(where(rows, **wanted)), None)


def keyed(rows: Iterable[Mapping[str, Any]], name: str) -> dict[Any, Mapping[str, Any]]:
    """Rows by one of their values."""
    return {r[name]: r for r in rows}


def grouped(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str], value: str
) -> dict[Any, float]:
    """Means of a value over the rows that agree in `names`, by these."""
    values: dict[Any, list[float]] = {}
    for r in rows:
        values.setdefault(tuple(r[name] for name in names), []).append(r[value])
    return {place: float(np.mean(found)) for place, found in values.items()}


def together(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> list[list[Mapping[str, Any]]]:
    """Rows that agree in `names`, such as those of all seeds, in the order of the first of each."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for r in rows:
        groups.setdefault(tuple(r[name] for name in names), []).append(r)
    return list(groups.values())


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "sections"),
        line_statement_prefix="%",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown of our own
        extensions=["jinja2.ext.do"],
    )
    environment.filters.update(
        num=words.number,
        pct=lambda share, digits=1: words.number(None if share is None else 100 * share, digits),
        g=lambda value: f"{value:g}",
        fmt=format,
        reached=lambda rounds: "not reached" if rounds is None else words.number(rounds),
        of=lambda key, mapping: mapping[key],
        short=words.short, spread=words.spread, ranged=words.ranged,
        against=words.against, cited=words.cited,
        as_published=words.as_published, where=where, pick=pick, keyed=keyed,
        together=together, over_seeds=words.over_seeds,
    )  # fmt: skip
    environment.globals.update(
        row=row, header=header, columns=words.COLUMNS, names=words.NAMES, grouped=grouped,
        workloads=words.WORKLOADS, compared=words.compared, at=words.at,
        missed_by_chance=missed_by_chance, met_by_rate=met_by_rate,
        mean=lambda values: float(np.mean(values)), deviation=lambda values: float(np.std(values)),
        median=lambda values: float(np.median(values)),
    )  # fmt: skip
    return environment


def _tidy(page: str) -> str:
    """Joins continued lines, and leaves one empty line between blocks."""
    lines = [""]
    for line in page.splitlines():
        text = line.strip()
        if line.startswith("  ") and text and lines[-1]:
            lines[-1] += " " + text
        elif not text or (lines[-1] and _kind(text) != _kind(lines[-1])):
            lines += ["", text] if text and lines[-1] else [""] if lines[-1] else []
        else:
            lines.append(text)
    for one, two in itertools.pairwise(lines):
        if one[:1] == two[:1] == "|" and _bars(one) != _bars(two):
            raise ValueError(f"rows of a table must have as many cells, got {one} and {two}")
    return "\n".join(lines).strip()


def _kind(line: str) -> str:
    """Rows, items and headings stand apart from what is none."""
    return line[0] if line[0] in "|-#" else ""


def _bars(line: str) -> int:
    return line.replace("\\|", "").count("|")
