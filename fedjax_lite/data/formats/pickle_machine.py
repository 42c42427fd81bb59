"""The stack machine of pickles, cut down to plain values and one array of bytes.

A pickle is a program for a stack machine. This one knows the steps that build dicts, lists, strings
and integers. The names with which numpy pickles an array are compared as text: no module is
imported, nothing is called, and no object of numpy's is handed a state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.data.formats.pickle_texts import encoded, joined, unescaped

_LONG = 4096
"""Bytes; longer strings are left where they are in the file: only arrays have such."""
_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_FLAGS = (bool, int)
_UINT8 = ("u1", "|u1", b"u1", b"|u1")
_DTYPE_STATES = tuple((3, order, None, None, None, -1, -1, 0) for order in ("|", b"|"))
_LATIN = ("latin1", "latin-1", b"latin1", b"latin-1")

_NAMES = {
    b"numpy ndarray": "ndarray",
    b"numpy dtype": "dtype",
    b"_codecs encode": "encode",
    b"builtins bytes": "bytes",
    b"__builtin__ bytes": "bytes",
    b"numpy.core.multiarray _reconstruct": "reconstruct",
    b"numpy._core.multiarray _reconstruct": "reconstruct",
    b"numpy.core.numeric _frombuffer": "frombuffer",
    b"numpy._core.numeric _frombuffer": "frombuffer",
}
"""What an array of bytes is pickled with, by all versions of Python and numpy."""


class Refused(Exception):
    """What is wrong with a pickle."""


class _Name(NamedTuple):
    """One of the names that an array is pickled with."""

    name: str


class _Text(NamedTuple):
    """A long text of the file: an array's bytes, as Python 3 writes them for Python 2."""

    raw: memoryview
    codec: str


class _Array:
    """An array whose state may be still to come."""

    value: np.ndarray | None = None


class _Mark:
    """Where a group of values begins on the stack."""


_MARK, _DTYPE = _Mark(), _Name("the dtype uint8")
_PARTS = (bool, int, str, bytes, type(None), tuple, _Name, memoryview)
"""What numpy's states are made of."""


class Machine:
    """The stack machine. It counts what it builds, so that a small file cannot grow large."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # An image of 3,072 bytes comes with at most three values, which take a dozen opcodes.
        self.steps = 256 + len(content) // 192
        # The array, and of each image the name of a file: an object, and in old pickles its text.
        self.room = 8192 + len(content) + len(content) // 32
        self.array: _Array | None = None

    def run(self, opcodes: Mapping[int, Callable[[Machine], None]]) -> Any:
        """Runs to the end and returns the one object that is there."""
        while (code := self.take(1)[0]) != ord("."):
            self.steps -= 1
            if self.steps < 0:
                raise Refused("it has far more entries than images")
            if code not in opcodes:
                raise Refused(f"it has the opcode {code:#04x}, which no such data set needs")
            opcodes[code](self)
        if self.place != len(self.content):
            raise Refused(f"{len(self.content) - self.place:,} bytes follow its end")
        result = self.pop()
        if self.stack or not isinstance(result, dict | list):
            raise Refused("it holds neither a dict nor a list")
        return result

    def take(self, count: int) -> memoryview:
        """The next bytes of the file."""
        begin, self.place = self.place, self.place + count
        if self.place > len(self.content):
            raise Refused("it ends early")
        return memoryview(self.content)[begin : self.place]

    def number(self, count: int, *, signed: bool = False) -> int:
        """A little-endian number."""
        return int.from_bytes(self.take(count), "little", signed=signed)

    def line(self, limit: int | None = None) -> memoryview:
        """The bytes up to the end of the line."""
        end = len(self.content) if limit is None else self.place + limit
        found = self.content.find(b"\n", self.place, end)
        if found < 0:
            raise Refused("a line does not end")
        line = self.take(found - self.place)
        self.place += 1
        return line

    def pop(self) -> Any:
        """The topmost value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("it takes a value where there is none")
        return self.stack.pop()

    def mark(self) -> None:
        """Begins a group."""
        self.stack.append(_MARK)

    def group(self) -> list[Any]:
        """The values above the last mark, which goes."""
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise Refused("it takes a group where none begins")
        self.stack.pop()
        return values[::-1]

    def string(self, raw: memoryview, codec: str | None) -> None:
        """Pushes a string; `codec` is None for bytes."""
        if len(raw) > _LONG:
            self.stack.append(raw if codec is None else _Text(raw, codec))
            return
        try:
            value = bytes(raw) if codec is None else str(raw, codec, "strict")
        except UnicodeDecodeError as error:
            raise Refused("a text is not what it should be") from error
        self.charge(value.__sizeof__())
        self.stack.append(value)

    def charge(self, count: int) -> None:
        """Counts bytes that are built beside the file."""
        self.room -= count
        if self.room < 0:
            raise Refused("it grows far beyond its size")

    def name(self, module: Any, name: Any) -> None:
        """Pushes a name, if it is one of those of an array."""
        if type(module) is str and type(name) is str:
            module, name = module.encode(errors="replace"), name.encode(errors="replace")
        if type(module) is not bytes or type(name) is not bytes:
            raise Refused("a name is no text")
        known = _NAMES.get(module + b" " + name)
        if known is None:
            asked = (module + b"." + name).decode("latin-1")
            raise Refused(f"it asks for {asked!r:.120}, which no such data set needs")
        self.stack.append(_Name(known))

    def reduce(self) -> None:
        """Does what the call of a name would do, for the names that there are."""
        arguments, name = self.pop(), self.pop()
        if type(arguments) is not tuple or type(name) is not _Name or name is _DTYPE:
            raise Refused("it calls what is no function")
        kind, count = name.name, len(arguments)
        if kind == "encode" and count == 2 and _among(arguments[1], _LATIN):
            self.stack.append(self.encode(arguments[0]))
        elif kind == "bytes" and count == 0:
            self.stack.append(b"")
        elif kind == "dtype" and count in (1, 3) and all(type(a) in _FLAGS for a in arguments[1:]):
            _check_dtype(arguments[0])
            self.stack.append(_DTYPE)
        elif kind == "reconstruct" and count == 3 and arguments[0] == _Name("ndarray"):
            self.stack.append(self.new_array())
        elif kind == "frombuffer" and count == 4 and arguments[1] is _DTYPE:
            if not _among(arguments[3], ("C", b"C")):
                raise Refused("its array is not in C order")
            self.stack.append(self.new_array())
            self.fill(self.stack[-1], arguments[2], arguments[0])
        else:
            raise Refused(f"it calls {kind} as no such data set does")

    def encode(self, text: Any) -> bytes | memoryview:
        """Python 3 pickles bytes under the old protocols as a text and its encoding."""
        try:
            if type(text) is str:
                result = text.encode("latin-1")
                self.charge(result.__sizeof__())
                return result
            if type(text) is _Text:
                return joined(lambda: encoded(text.raw, text.codec), self.charge)
        except UnicodeError as error:
            raise Refused("a text is no bytes in Latin-1") from error
        raise Refused("it encodes what is no text")

    def new_array(self) -> _Array:
        """There is one array in a batch."""
        if self.array is not None:
            raise Refused("it holds a second array")
        self.array = _Array()
        return self.array

    def build(self) -> None:
        """Gives a dtype or an array its state."""
        state, owner = self.pop(), self.stack[-1] if self.stack else None
        if type(state) is not tuple or not all(type(part) in _PARTS for part in state):
            raise Refused("a state is not what numpy writes")
        if owner is _DTYPE:
            if state not in _DTYPE_STATES:
                raise Refused("its dtype is not that of plain bytes")
        elif type(owner) is _Array and len(state) == 5 and state[2] is _DTYPE:
            version, shape, _, fortran, body = state
            if version != 1 or fortran not in (False, 0):
                raise Refused("its array is not in C order")
            self.fill(owner, shape, body)
        else:
            raise Refused("a state is not what numpy writes")

    def fill(self, array: _Array, shape: Any, body: Any) -> None:
        """Makes the array of its bytes, whose number is the one of its shape."""
        if array.value is not None or type(body) not in (bytes, memoryview):
            raise Refused("the content of its array is not bytes")
        sizes_are = type(shape) is tuple and all(type(size) is int for size in shape)
        if not sizes_are or len(shape) not in (1, 2) or min(shape) < 0 or max(shape) >= 2**40:
            raise Refused("its array has no shape of one or two axes")
        if math.prod(shape) != len(body):
            raise Refused(f"its array {list(shape)} has {len(body):,} bytes")
        empty = np.zeros(0, np.uint8)
        array.value = (np.frombuffer(body, np.uint8) if len(body) else empty).reshape(shape)

    def append(self, values: list[Any]) -> None:
        """Puts values at the end of a list."""
        owner = self.stack[-1] if self.stack else None
        if type(owner) is not list:
            raise Refused("it appends to what is no list")
        owner.extend(_entry(value, (int, str, bytes)) for value in values)

    def set(self, values: list[Any]) -> None:
        """Puts keys and values, by turns, into a dict."""
        owner = self.stack[-1] if self.stack else None
        if type(owner) is not dict or len(values) % 2:
            raise Refused("it puts entries into what is no dict")
        for key, value in zip(values[::2], values[1::2]):
            if type(key) not in (str, bytes):
                raise Refused("a key is no string")
            # The same key as bytes and as a text is there twice as well.
            other = str(key, "latin-1") if type(key) is bytes else key.encode("latin-1", "replace")
            if key in owner or other in owner:
                raise Refused("a key is there twice")
            owner[key] = _entry(value, (int, str, bytes, list, np.ndarray))

    def collect(self, owner: Any, store: Callable[[list[Any]], None]) -> None:
        """Pushes a list or a dict of the values above the mark."""
        values = self.group()
        self.stack.append(owner)
        store(values)

    def integer(self, count: int | None = None) -> None:
        """Pushes a number: of `count` bytes, or the text of a line."""
        if count is not None:
            if count > 8:
                raise Refused("a number is too long")
            self.stack.append(self.number(count, signed=True))
            return
        line = bytes(self.line(24))
        if line in (b"00", b"01"):  # how protocol 0 writes False and True
            self.stack.append(line == b"01")
            return
        self.stack.append(integer_of(line.removesuffix(b"L")))

    def put(self, place: int) -> None:
        """Notes the topmost value."""
        value = self.pop()
        self.stack.append(value)
        self.memo[place] = value

    def get(self, place: int) -> None:
        """Pushes a value noted before."""
        if place not in self.memo:
            raise Refused("it takes a value that it never noted")
        self.stack.append(self.memo[place])

    def tuple(self, count: int) -> None:
        """Pushes a tuple of the topmost values."""
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(values[::-1]))

    def quoted(self) -> None:
        """Pushes the string of a line in the quotes of Python 2; a long one is an array's bytes."""
        raw = self.line()
        if len(raw) < 2 or raw[0] not in b"'\"" or raw[-1] != raw[0]:
            raise Refused("a string is not in quotes")
        try:
            if len(raw) > _LONG:
                self.stack.append(joined(lambda: unescaped(raw[1:-1]), self.charge))
            else:
                self.string(memoryview(b"".join(unescaped(raw[1:-1]))), None)
        except ValueError as error:
            raise Refused("a string has an escape that Python 2 does not write") from error

    def protocol(self) -> None:
        """What the opcodes mean is the same in all protocols."""
        if self.number(1) > 5:
            raise Refused("its protocol is above 5")

    def frame(self) -> None:
        """Frames only help readers of streams."""
        if self.number(8) > len(self.content) - self.place:
            raise Refused("it ends early")


def _among(value: Any, options: tuple[Any, ...]) -> bool:
    return type(value) in (str, bytes) and value in options


def integer_of(digits: bytes) -> int:
    """The number that a line of digits says.

    Example:
      >>> integer_of(b"-12")
      -12
    """
    value = int(digits) if _INTEGER.fullmatch(digits) else 2**63
    if not -(2**63) <= value < 2**63:
        raise Refused("a number is not what it should be")
    return value


def _check_dtype(name: Any) -> None:
    if _among(name, _UINT8):
        return
    text = name.decode("latin-1") if type(name) is bytes else name
    if type(text) is str and re.fullmatch(r"[<>=|]?[biufc][1248]", text):
        text = np.dtype(text).name
    raise Refused(f"its array is not of uint8 but of {text!r:.60}")


def _entry(value: Any, kinds: tuple[type, ...]) -> Any:
    """A value for a list or a dict."""
    if type(value) is _Array and value.value is not None:
        value = value.value
    if type(value) in kinds:
        return value
    if isinstance(value, memoryview | _Text):
        raise Refused("it holds a long string that is no array")
    kind = "name" if type(value) is _Name else type(value).__name__.strip("_").lower()
    raise Refused(f"it holds a {kind} where no data set has one")
