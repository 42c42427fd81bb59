"""A reader for the one shape of pickle that data sets come in; nothing in it is ever called.

An unpickler that admits a few harmless names can still be made to do harm with them: numpy's own
constructors compose to reads and writes beyond their buffers. So this is no unpickler. It walks
over the opcodes with a machine that can build plain values, and refuses all that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.pickle_machine import Machine, Refused, integer_of


def load_plain(content: bytes, *, path: Path | str) -> Any:
    """Reads a pickle of plain data: what CIFAR's batches are made of, and nothing else.

    That is a dict or a list. A dict has strings as keys; its values are integers, strings, lists
    and one uint8 array, C-ordered, of one or two axes. A list holds integers and strings. Strings
    of Python 2 come back as bytes. The array is a read-only view of `content` where the pickle
    stores bytes as bytes; protocol 0, and 1 and 2 of Python 3, store them as text, of which it is
    made. Memory beside `content` is at most its size, and for names of files an eighth of that.

    Args:
      content: the pickle, of any protocol, 0 (ASCII) to 5, by Python 2 or 3.
      path: the file's name, for the error.

    Returns:
      The object.

    Raises:
      DatasetFormatError: if it is no pickle, is cut short, or holds anything but plain data.

    Example:
      >>> import pickle
      >>> load_plain(pickle.dumps({"data": [1, 2]}), path="batch")
      {'data': [1, 2]}
    """
    try:
        return Machine(content).run(_OPCODES)
    except Refused as error:
        raise DatasetFormatError(
            path,
            expected="a pickle of arrays, lists, dicts and strings",
            found=f"one that was refused or is corrupt ({error})",
            remedy="do not open it by other means unless you trust it; get the official file",
        ) from None


def _strings(opcodes: str, codec: str | None) -> dict[int, Callable[[Machine], None]]:
    """Strings behind their length, of 1, 4 or 8 bytes."""
    return {
        ord(code): lambda r, n=n: r.string(r.take(r.number(n)), codec)
        for code, n in zip(opcodes, (1, 4, 8))
    }


_OPCODES: dict[int, Callable[[Machine], None]] = {
    **_strings("UT", None),
    **_strings("CB\x8e", None),
    **_strings("\x8cX\x8d", "utf-8"),
    0x96: lambda r: r.string(r.take(r.number(8)), None),
    ord("V"): lambda r: r.string(r.line(), "raw-unicode-escape"),
    ord("S"): Machine.quoted,
    ord("K"): lambda r: r.stack.append(r.number(1)),
    ord("M"): lambda r: r.stack.append(r.number(2)),
    ord("J"): lambda r: r.integer(4),
    0x8A: lambda r: r.integer(r.number(1)),
    ord("I"): Machine.integer,
    ord("L"): Machine.integer,
    ord("N"): lambda r: r.stack.append(None),
    0x88: lambda r: r.stack.append(True),
    0x89: lambda r: r.stack.append(False),
    ord("("): Machine.mark,
    ord(")"): lambda r: r.tuple(0),
    0x85: lambda r: r.tuple(1),
    0x86: lambda r: r.tuple(2),
    0x87: lambda r: r.tuple(3),
    ord("t"): lambda r: r.stack.append(tuple(r.group())),
    ord("]"): lambda r: r.stack.append([]),
    ord("l"): lambda r: r.collect([], r.append),
    ord("a"): lambda r: r.append([r.pop()]),
    ord("e"): lambda r: r.append(r.group()),
    ord("}"): lambda r: r.stack.append({}),
    ord("d"): lambda r: r.collect({}, r.set),
    ord("s"): lambda r: r.set([r.pop(), r.pop()][::-1]),
    ord("u"): lambda r: r.set(r.group()),
    ord("q"): lambda r: r.put(r.number(1)),
    ord("r"): lambda r: r.put(r.number(4)),
    0x94: lambda r: r.put(len(r.memo)),
    ord("p"): lambda r: r.put(integer_of(bytes(r.line(24)))),
    ord("h"): lambda r: r.get(r.number(1)),
    ord("j"): lambda r: r.get(r.number(4)),
    ord("g"): lambda r: r.get(integer_of(bytes(r.line(24)))),
    ord("c"): lambda r: r.name(bytes(r.line(256)), bytes(r.line(256))),
    0x93: lambda r: r.name(*[r.pop(), r.pop()][::-1]),
    ord("R"): Machine.reduce,
    ord("b"): Machine.build,
    0x80: lambda r: r.protocol(),
    0x95: Machine.frame,
}
"""What a batch is written with; every other opcode is refused."""
