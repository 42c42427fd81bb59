"""Long texts of old pickles, made bytes piece by piece.

The ASCII protocols write an array's bytes as text: Python 2 as a string in quotes with escapes,
Python 3 as a text whose characters are the bytes. Decoded at once, a text takes several times its
size, since one wide character widens all.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator

_ESCAPED = re.compile(rb"""[^\\]*+(?:\\(?:x[0-9a-fA-F]{2}|[\\'"nrt])[^\\]*+)*+""")
"""What Python 2 writes for a string; possessive, so that nothing is noted for going back."""
_PIECE = 1024


def encoded(raw: memoryview, codec: str) -> Iterator[bytes]:
    r"""The pieces of a text's bytes in Latin-1.

    Args:
      raw: the text, encoded by `codec`.
      codec: ``"utf-8"`` or ``"raw-unicode-escape"``.

    Raises:
      UnicodeError: where it is no such text or has a character beyond Latin-1.

    Example:
      >>> list(encoded(memoryview(b"a" * 1024 + b"\\u00ff"), "raw-unicode-escape"))[1]
      b'\xff'
    """
    decoder = codecs.getincrementaldecoder(codec)()
    for begin in range(0, len(raw), _PIECE):
        yield decoder.decode(bytes(raw[begin : begin + _PIECE])).encode("latin-1")
    if rest := decoder.decode(b"", True):
        yield rest.encode("latin-1")


def unescaped(raw: memoryview) -> Iterator[bytes]:
    r"""The pieces of a string of Python 2, as between the quotes of its ``repr``.

    Args:
      raw: the string with its escapes.

    Raises:
      ValueError: at an escape that ``repr`` does not write.

    Example:
      >>> list(unescaped(memoryview(rb"it\'s \x00")))
      [b"it's \x00"]
    """
    place = 0
    while place < len(raw):
        piece = raw[place : place + _PIECE]
        match = _ESCAPED.match(piece)
        whole = match.end() if match else 0
        # An escape has at most four bytes: three of one may stand before the cut.
        is_cut = place + len(piece) < len(raw) and whole >= len(piece) - 3
        if whole < len(piece) and not is_cut:
            raise ValueError("an escape that no string of Python 2 has")
        yield codecs.escape_decode(piece[:whole])[0]  # type: ignore[attr-defined]
        place += whole


def joined(pieces: Callable[[], Iterator[bytes]], charge: Callable[[int], None]) -> memoryview:
    """The pieces in a buffer of just their size, for which they are made twice.

    A buffer that grows as they come would hold an eighth too much, and while it moves all twice.

    Args:
      pieces: makes them.
      charge: is told the size before the buffer is made, and raises if there is no room.

    Example:
      >>> bytes(joined(lambda: iter([b"ab", b"c"]), lambda size: None))
      b'abc'
    """
    size = sum(map(len, pieces()))
    charge(size)
    result, place = memoryview(bytearray(size)), 0
    for piece in pieces():
        result[place : place + len(piece)] = piece
        place += len(piece)
    return result.toreadonly()
