"""What an algorithm is made of, read from the notes of factories: in words, and as citations."""

from fedjax_lite.checks.calls import check_calls
from fedjax_lite.describe.citation import citation
from fedjax_lite.describe.describe import describe

__all__ = ["citation", "describe"]

check_calls(globals())
