"""What an algorithm is made of, read from the notes of factories: in words, and as citations."""

from fedjax_lite.anatomy.citation import citation
from fedjax_lite.anatomy.describe import describe
from fedjax_lite.checked import check_calls

__all__ = ["citation", "describe"]

check_calls(globals())
