"""What an algorithm is made of, read from the notes of factories: in words, and as citations."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.describe.citation import citation
    from fedjax_lite.describe.describe import describe

__all__ = ["citation", "describe"]

load_when_asked(__name__)
