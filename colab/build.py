"""Makes the notebooks from their sources: ``python colab/build.py``, or ``--check`` to compare.

A source `colab/NN_name.py` is plain Python in percent format. ``# %%`` begins a code cell and
``# %% [markdown]`` a text cell whose lines are comments; what stands before the first of them is
not part of the notebook. A magic has to be a comment for the source to stay Python:
``# %pip install x`` and ``# !ls`` in a code cell become ``%pip install x`` and ``!ls``, and
``# # !ls`` becomes the comment ``# !ls``.

The result depends on the source alone: no outputs, no counts, and an id of a cell is made of its
text. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

_CELL = re.compile(r"# %%(?:\s+(?P<title>[^\[\s].*?))?\s*(?P<markdown>\[markdown\])?\s*")
_MAGIC = re.compile(r"(?P<indent>\s*)# (?P<rest>(?:# )*(?:!|%{1,2}[a-z]).*)")

_METADATA = {
    "colab": {"provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def to_notebook(source: str) -> dict[str, Any]:
    """The notebook, as a JSON-like dict of nbformat 4.5, of a source in percent format.

    Args:
      source: the text of a ``.py`` file.

    Raises:
      ValueError: if there is no cell, or a text cell holds a line that is not a comment.

    Example:
      >>> cells = to_notebook("# %% [markdown]\\n# Hello\\n# %%\\n# !ls\\n")["cells"]
      >>> [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
      [('markdown', 'Hello'), ('code', '!ls')]
    """
    cells: list[tuple[str, list[str]]] = []
    for number, line in enumerate(source.splitlines(), 1):
        begins = _CELL.fullmatch(line)
        if begins:
            cells.append(("markdown" if begins["markdown"] else "code", []))
        elif not cells:
            continue
        elif cells[-1][0] == "markdown":
            if line.strip() and line != "#" and not line.startswith("# "):
                raise ValueError(f"line {number} of a text cell must begin with '# ', got {line!r}")
            cells[-1][1].append(line[2:].rstrip())
        else:
            magic = _MAGIC.fullmatch(line)
            text = magic["indent"] + magic["rest"] if magic else line
            cells[-1][1].append(text.rstrip())
    if not cells:
        raise ValueError("the source must hold at least one cell: a line '# %%'")
    seen: set[str] = set()
    made = [_cell(kind, _strip_blank(lines), seen) for kind, lines in cells]
    return {"cells": made, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}


def to_json(notebook: dict[str, Any]) -> str:
    """The text of the ``.ipynb`` file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def sources(folder: Path = FOLDER) -> list[Path]:
    """The notebooks' sources in a folder, in order: files named ``NN_*.py``."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def build(folder: Path = FOLDER) -> list[Path]:
    """Writes every notebook of a folder and returns the files."""
    written = []
    for source in sources(folder):
        target = source.with_suffix(".ipynb")
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(to_json(to_notebook(source.read_text("utf-8"))), "utf-8")
        os.replace(temporary, target)
        written.append(target)
    return written


def check(folder: Path = FOLDER) -> list[str]:
    """What differs between the sources and the notebooks of a folder, one line each.

    Args:
      folder: where both lie.

    Returns:
      Messages; none where all are equal.
    """
    found = []
    for source in sources(folder):
        target = source.with_suffix(".ipynb")
        if not target.is_file():
            found.append(f"{target.name} is missing")
        elif target.read_text("utf-8") != to_json(to_notebook(source.read_text("utf-8"))):
            found.append(f"{target.name} differs from {source.name}")
    for target in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if not target.with_suffix(".py").is_file():
            found.append(f"{target.name} has no source {target.with_suffix('.py').name}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes colab/*.ipynb from colab/*.py.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where a notebook differs"
    )
    if not parser.parse_args(arguments).check:
        for target in build():
            print(f"wrote {target.name}")
        return 0
    found = check()
    for line in found:
        print(f"{line}; run: python colab/build.py", file=sys.stderr)
    return 1 if found else 0


def _cell(kind: str, lines: list[str], seen: set[str]) -> dict[str, Any]:
    text = "\n".join(lines)
    identity, copy = "", 0
    while not identity or identity in seen:  # equal cells get ids of their own
        identity = hashlib.sha256(f"{kind}\n{text}\n{copy}".encode()).hexdigest()[:12]
        copy += 1
    seen.add(identity)
    cell: dict[str, Any] = {
        "cell_type": kind,
        "id": identity,
        "metadata": {},
        "source": [f"{line}\n" for line in lines[:-1]] + lines[-1:],
    }
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _strip_blank(lines: list[str]) -> list[str]:
    text = "\n".join(lines).strip("\n")
    return text.split("\n") if text else []


if __name__ == "__main__":
    sys.exit(main())
