"""The BibTeX entries of the papers that docstrings name, found by arXiv number or title.

``references.bib`` is the package's own file, one field a line, and its entries are cited as they
stand there, so two patterns read it: no parser is worth a dependency of whoever calls `citation`.
That the file is BibTeX, and that nothing of it is passed over, a test asks of a strict reader
(bibtexparser 2.1 was tried on it, too, and reads the same).
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import NamedTuple

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
QUOTED = re.compile(r'"([^"]{12,})"')
ENTRY = re.compile(r"^@(\w+)\{(\S+),\n((?:  \w+ = \{.*\},\n)+)\}$", re.MULTILINE)
FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)


class Entry(NamedTuple):
    """A paper."""

    key: str
    fields: dict[str, str]
    text: str
    """The entry as it stands in the file."""


@functools.cache
def entries() -> dict[str, Entry]:
    """All entries of ``references.bib`` by their keys, in the file's order.

    Example:
      >>> entries()["karimireddy2020scaffold"].fields["eprint"]
      '1910.06378'
    """
    file = resources.files("fedjax_lite.describe") / "references.bib"
    text = file.read_text(encoding="utf-8")
    found = {}
    for match in ENTRY.finditer(text):
        found[match[2]] = Entry(match[2], dict(FIELD.findall(match[3])), match[0])
    return found


def named_in(docstring: str | None) -> list[str]:
    """Keys of the papers in the reference section of a docstring, in its order.

    A paper is named by its arXiv number, or by the beginning of its title in double quotes.

    Args:
      docstring: of a factory; None for no papers.

    Returns:
      Keys, each once.

    Example:
      >>> from fedjax_lite.transforms import scaled_sign
      >>> named_in(scaled_sign.__doc__)
      ['bernstein2018signsgd', 'karimireddy2019error']
    """
    _, _, section = (docstring or "").partition("Reference")
    section = re.sub(r"\s+", " ", section)
    hits = [(m.start(), _by_number().get(m[1])) for m in ARXIV.finditer(section)]
    hits += [(m.start(), by_title(m[1])) for m in QUOTED.finditer(section)]
    return list(dict.fromkeys(key for _, key in sorted(hits, key=lambda hit: hit[0]) if key))


def by_title(title: str) -> str | None:
    """The key of the one paper whose title begins so, or None.

    Example:
      >>> by_title("How to share a secret")
      'shamir1979share'
    """
    wanted = plain(title)
    keys = [
        key for key, entry in entries().items() if plain(entry.fields["title"]).startswith(wanted)
    ]
    return keys[0] if len(keys) == 1 else None


def short(key: str) -> str:
    """A paper as it is named in running text.

    Example:
      >>> short("karimireddy2020scaffold"), short("balle2018improving")
      ('Karimireddy et al., 2020', 'Balle and Wang, 2018')
    """
    fields = entries()[key].fields
    families = [plain_name(person.split(",")[0]) for person in fields["author"].split(" and ")]
    if len(families) == 1:
        names = families[0]
    elif len(families) == 2:
        names = " and ".join(families)
    else:
        names = f"{families[0]} et al."
    return f"{names}, {fields['year']}"


def plain(text: str) -> str:
    """Lower case without braces, accents' commands and repeated spaces, to compare titles.

    Example:
      >>> plain("{How  to {Share}}")
      'how to share'
    """
    return re.sub(r"\s+", " ", plain_name(text)).strip().lower()


def plain_name(text: str) -> str:
    r"""A name without LaTeX: the letters under the accents.

    Example:
      >>> plain_name(r"Richt{\'a}rik")
      'Richtarik'
    """
    text = re.sub(r"\{\\[^a-zA-Z](\w)\}", r"\1", text)
    text = re.sub(r"\{\\[a-z]\{(\w)\}\}", r"\1", text)
    return text.replace("{", "").replace("}", "")


@functools.cache
def _by_number() -> dict[str, str]:
    return {e.fields["eprint"]: key for key, e in entries().items() if "eprint" in e.fields}
