"""A string that a REPL and a notebook show as it reads."""

from __future__ import annotations


class Text(str):
    r"""A string whose representation is itself, line by line.

    Example:
      >>> Text("one\ntwo")
      one
      two
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """The text itself, without quotes."""
        return str(self)
