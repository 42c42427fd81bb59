"""The published numbers of published.toml, for the tables and for the scripts that print them."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """Groups of published figures by name, each with its source and its rule; see the file."""
    return tomllib.loads((Path(__file__).parent / "published.toml").read_text())


def figures(group: str) -> dict[str, Any]:
    """The figures of a group by name.

    Args:
      group: a name in published.toml, such as "heart".

    Raises:
      ValueError: if there is no such group.

    Example:
      >>> figures("mnist")["cnn-iid-b10-e1"]["value"]
      34
    """
    if group not in published():
        raise ValueError(f"group must be one of {sorted(published())}, got {group!r}")
    return published()[group]["figures"]
