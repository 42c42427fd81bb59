"""A refusal that speaks of an inner function's argument names the caller's, too."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from fedjax_lite.checks.arguments import shown


@contextlib.contextmanager
def about(name: str, value: Any, *, word: str) -> Iterator[None]:
    """Errors of a block that speak of `word` name the argument that was handed on as it.

    Args:
      name: the caller's argument.
      value: what was given for it.
      word: what the inner function calls it.

    Example:
      >>> with about("members", [1.0], word="examples"):
      ...     raise TypeError("examples must be a dict, got a list; give {'x': x, 'y': y}")
      Traceback (most recent call last):
      ...
      TypeError: members cannot be used, got a list: examples must be a dict, got a list; give ...
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        is_plain = type(error) in (TypeError, ValueError) and len(error.args) == 1
        if is_plain and _has(text, word) and not _has(text, name):
            error.args = (f"{name} cannot be used, got {shown(value)}: {text}",)
        raise


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None
