"""Batches made to do harm, and batches damaged at random: an error each, in little memory."""

import io
import pickle
import random
import struct
import sys
import time
import tracemalloc
from typing import Any, ClassVar

import numpy as np
import pytest

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.safe_pickle import load_plain
from fedjax_lite.data.sources import cifar

ROWS = 12


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def blob(value):
    return b"B" + struct.pack("<I", len(value)) + value


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def group(*parts):
    return b"(" + b"".join(parts) + b"t"


DTYPE = name("numpy", "dtype") + group(text("u1"), b"\x89", b"\x88") + b"R"
STATE = group(b"K\x03", text("|"), b"NNN", b"J\xff\xff\xff\xff" * 2, b"K\x00") + b"b"
EMPTY = name("numpy._core.multiarray", "_reconstruct")
EMPTY += group(name("numpy", "ndarray"), group(b"K\x00"), blob(b"b")) + b"R"


def number(value):
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def array(shape=(1, 3072), body=bytes(3072), *, dtype=DTYPE + STATE, fortran=b"\x89"):
    shape = group(*map(number, shape))
    return EMPTY + group(b"K\x01", shape, dtype, fortran, blob(body)) + b"b"


def batch(data, labels=b"](K\x01e", more=b""):
    return b"\x80\x04}(" + text("data") + data + text("labels") + labels + more + b"u."


def entries(rows=ROWS, seed=0, low=0, high=256):
    """A batch as it is published: label, labels, data and file names."""
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"training batch 1 of 5",
        b"labels": rng.integers(0, 10, rows).tolist(),
        b"data": rng.integers(low, high, (rows, 3072), dtype=np.uint8),
        b"filenames": [f"leptodactylus_s_{number:06d}.png".encode() for number in range(rows)],
    }


PICKLER: Any = pickle._Pickler


class Python2(PICKLER):
    """Python 3's pickler in Python, but bytes are what Python 2's `save_string` writes for them."""

    dispatch: ClassVar = dict(PICKLER.dispatch)

    def save_string(self, value):
        if self.proto == 0:
            self.write(b"S" + repr(value)[1:].encode() + b"\n")
        elif len(value) < 256:
            self.write(b"U" + bytes([len(value)]) + value)
        else:
            self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_text(self, value):  # numpy's own texts, "b", "u1", "|", were byte strings there
        self.save_string(value.encode())

    dispatch[bytes], dispatch[str] = save_string, save_text


def python2(value, protocol=0):
    """The pickle that Python 2 wrote of a value."""
    file = io.BytesIO()
    Python2(file, protocol).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


FORMS = {
    "0": lambda value: pickle.dumps(value, 0),
    "1": lambda value: pickle.dumps(value, 1),
    "2": lambda value: pickle.dumps(value, 2),
    "4": lambda value: pickle.dumps(value, 4),
    "5": lambda value: pickle.dumps(value, 5),
    "0 by Python 2": lambda value: python2(value, 0),
    "1 by Python 2": lambda value: python2(value, 1),
}
"""Protocols, and who wrote them."""


def parse(content):
    return cifar.parse_python(content, cifar._CIFAR10, "batch_1")


def test_the_parts_of_these_tests_make_a_good_batch():
    pixels = np.random.default_rng(0).integers(0, 256, 2 * 3072, dtype=np.uint8)
    parsed = parse(batch(array((2, 3072), pixels.tobytes()), b"](K\x01K\x09e"))
    assert parsed["y"].tolist() == [1, 9]
    planes = pixels.reshape(2, 3, 32, 32)
    assert all((parsed["x"][..., c] == planes[:, c]).all() for c in range(3))


SUBARRAY = name("numpy", "dtype") + group(text("u1"), b"\x89", b"\x88") + b"R"
SUBARRAY += group(b"K\x03", text("|"), group(DTYPE, group(number(3072))), b"NN", b"K\xff" * 2)
SUBARRAY += b"b"
NDARRAY = name("numpy", "ndarray")

HARMFUL = {
    "rows of a dtype wider than the buffer": batch(array((3072,), bytes(3072), dtype=SUBARRAY)),
    "ndarray called": batch(
        NDARRAY + group(group(number(1), number(3072)), DTYPE, blob(b"A")) + b"R"
    ),
    "ndarray called by new": batch(NDARRAY + b")\x81"),
    "more rows than bytes": batch(array((2, 3072))),
    "fewer rows than bytes": batch(array((0, 3072))),
    "a shape that overflows": batch(array((2**32, 2**32), b"")),
    "a shape of negative sizes": batch(array((-1, -3072))),
    "a shape too large for memory": batch(array((2**40 // 3072, 3072))),
    "a shape of many axes": batch(array((1,) * 70 + (3072,))),
    "a shape that is a list": batch(EMPTY + group(b"K\1](K\1e", DTYPE, b"\x89", blob(b"A")) + b"b"),
    "Fortran order": batch(array(fortran=b"\x88")),
    "Fortran order, protocol 5": pickle.dumps(
        {b"data": np.asfortranarray(np.ones((2, 3072), np.uint8)), b"labels": [1, 2]}, protocol=5
    ),
    "objects": batch(array((1, 3072), dtype=DTYPE.replace(b"u1", b"O8"))),
    "a dtype without a name": batch(array(dtype=name("numpy", "dtype") + group(b"N") + b"R")),
    "a dtype of another byte order": batch(array(dtype=DTYPE + STATE.replace(b"|", b">"))),
    "a body that is a list": batch(EMPTY + group(b"K\1", group(number(1)), DTYPE, b"\x89]") + b"b"),
    "an array without state": batch(EMPTY),
    "a state given twice": batch(
        array() + group(b"K\1", group(number(1)), DTYPE, b"\x89", blob(b"A")) + b"b"
    ),
    "two arrays": batch(array(), more=text("more") + array()),
    "entries of an array set": batch(array() + b"(K\x00K\x41u"),
    "an array appended to": batch(array() + b"K\x00a"),
    "a label that is an array": batch(array(), array((1,), b"\1")),
    "labels within labels": batch(array(), b"](](K\1ee"),
    "a list within itself": batch(array(), b"]\x94h\0a"),
    "a label that is true": batch(array(), b"](\x88e"),
    "a label that is a float": batch(array(), b"](G\x3f\xf0\0\0\0\0\0\0e"),
    "a label of many digits": batch(array(), b"](\x8b" + struct.pack("<I", 9) + b"\1" * 9 + b"e"),
    "a label of endless digits": batch(array(), b"](I" + b"9" * 5000 + b"\ne"),
    "a label beyond 64 bits": batch(array(), b"](I" + b"9" * 19 + b"\ne"),
    "keys that are tuples": b"\x80\x04}(" + group(b"K\1") + b"K\1u.",
    "keys that are there twice": batch(array(), more=text("labels") + b"](K\x02e"),
    "keys of two kinds that are there twice": batch(array(), more=blob(b"labels") + b"](K\x02e"),
    "a state for a dict": batch(array(), more=b"}b"),
    "an extension": batch(array(), b"\x82\x01"),
    "a persistent object": batch(array(), b"P1\n"),
    "a buffer from outside": batch(b"\x97"),
    "an instance": batch(array(), b"(ios\ngetcwd\n"),
    "an object made by new": batch(array(), name("os", "PathLike") + b")\x81"),
    "a set": batch(array(), b"\x8f"),
    "bytes behind the end": batch(array()) + b".",
    "values left on the stack": b"K\1" + batch(array()),
    "a note that is not there": batch(array(), b"h\xff"),
    "a group that never began": b"\x80\x04u.",
    "a text that is not UTF-8": batch(array(), b"X\2\0\0\0\xff\xff"),
    "a length beyond the end": batch(b"\x8e" + b"\xff" * 8),
    "a frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + batch(array())[2:],
    "a name of a long line": b"c" + b"a" * 10_000 + b"\nb\n.",
    "tuples within tuples": b")" + b"\x85" * 100_000 + b".",
}


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL.keys())
def test_a_harmful_batch_is_an_error_with_file_and_remedy(content):
    with pytest.raises(DatasetFormatError, match=r"^batch_1: expected .*found .*; ") as caught:
        parse(content)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"ctell_tale\nx\n)R.", b"\x8c\x09tell_tale\x8c\x01x\x93."])
def test_a_name_is_compared_and_never_looked_up(tmp_path, monkeypatch, content):
    (tmp_path / "tell_tale.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DatasetFormatError, match=r"it asks for 'tell_tale\.x'"):
        load_plain(content, path="batch_1")
    assert "tell_tale" not in sys.modules


def damaged(content, rng):
    """One to four small damages, most of them where the structure is, not in the pixels."""
    content = bytearray(content)
    structure = [*range(200), *range(len(content) - 200, len(content))]
    for _ in range(rng.randint(1, 4)):
        place = rng.choice(structure) if rng.random() < 0.9 else rng.randrange(len(content))
        place = min(place, len(content) - 1)
        kind = rng.randrange(6)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.randrange(256)
        elif kind == 2:
            del content[place : place + rng.randint(1, 20)]
        elif kind == 3:
            content[place:place] = content[place : place + rng.randint(1, 20)]
        elif kind == 4:
            content[place : place + 4] = rng.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4])
        else:
            content[place:place] = rng.choice(
                [b"](", b"0", b"2", b"R", b"b", b"h\0", b"\x85", b"e"]
            )
    return bytes(content)


def check(read):
    """Parses, and returns whether it was refused: by the one error that there is for it."""
    try:
        parsed = cifar.parse_python(read(), cifar._CIFAR10, "batch_1")  # nobody else holds it
    except DatasetFormatError:
        return True
    assert parsed["x"].dtype == np.uint8
    assert parsed["x"].shape == (len(parsed["y"]), 32, 32, 3)
    assert ((parsed["y"] >= 0) & (parsed["y"] < 10)).all()
    return False


@pytest.mark.parametrize("form", FORMS)
def test_batches_damaged_at_random_are_errors_in_little_memory(tmp_path, form):
    """Five hundred of each form; the peak counts the file's own bytes, read from the disk."""
    whole, rng = FORMS[form](entries()), random.Random(form)
    path, started, refused, largest = tmp_path / "batch", time.monotonic(), 0, 0.0
    assert not check(lambda: whole)
    tracemalloc.start()
    try:
        for _ in range(500):
            path.write_bytes(damaged(whole, rng))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refused += check(path.read_bytes)
            peak = tracemalloc.get_traced_memory()[1] - before - 2**14  # errors and frames
            largest = max(largest, peak / path.stat().st_size)
    finally:
        tracemalloc.stop()
    assert refused > 100
    assert largest <= 2.0
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("low", "high"), [(0, 256), (100, 101), (32, 127), (92, 93), (39, 40), (0, 1)]
)
@pytest.mark.parametrize("form", ["0", "1", "0 by Python 2", "1 by Python 2"])
def test_old_pickles_are_read_exactly(form, low, high):
    """All bytes, one printable byte, all printable ones, and only those that have escapes."""
    wanted = entries(900, low=low, high=high)
    content = FORMS[form](wanted)
    assert pickle.loads(content, encoding="bytes")[b"data"].tobytes() == wanted[b"data"].tobytes()
    tracemalloc.start()
    loaded = load_plain(content, path="batch_1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.125 * len(content) + 2**16  # the array, and an eighth for the names of files
    assert loaded.keys() == wanted.keys()
    np.testing.assert_array_equal(loaded[b"data"], wanted[b"data"], strict=True)
    assert all(loaded[key] == wanted[key] for key in wanted if key != b"data")


@pytest.mark.parametrize("width", range(1018, 1030))
def test_an_escape_is_never_cut_in_two(width):
    """A string of Python 2 is read in pieces of 1,024 bytes: escapes around their ends."""
    for escape in (b"\x00", b"\\", b"\n", b"'", b'"', b"\x7f\xff"):
        body = b"a" * width + escape + b"b" * 5000 + escape
        content = python2({b"data": np.frombuffer(body, np.uint8)})
        assert load_plain(content, path="batch_1")[b"data"].tobytes() == body


@pytest.mark.parametrize("escape", [b"\\x0g", b"\\0", b"\\u0000", b"\\N{DASH}", b"\\", b"\\x,0"])
@pytest.mark.parametrize("place", [0, 1023, 6000])
def test_an_escape_that_python_2_does_not_write_is_refused(escape, place):
    body = np.full(6000, ord("a"), np.uint8)
    content = python2({b"data": body}).replace(
        b"a" * 6000, b"a" * place + escape + b"a" * (6000 - place)
    )
    with pytest.raises(DatasetFormatError, match=r"^batch_1: .*a string has an escape.*; "):
        load_plain(content, path="batch_1")


BOMBS = {
    "lists": b"]" * 400_000,
    "dicts": b"}" * 400_000,
    "notes": b"]" + b"\x94" * 400_000,
    "notes taken": b"]\x94" + b"h\0" * 200_000,
    "marks": b"(" * 400_000,
    "tuples": b")" + b"\x85" * 400_000,
    "numbers": b"](" + b"K\1" * 200_000 + b"e.",
    "empty strings": b"](" + b"U\0" * 200_000 + b"e.",
    "wide texts": b"](" + text("\U0001f600" + "a" * 4090) * 100 + b"e.",
    "strings of Python 2": b"](" + b"S''\n" * 100_000 + b"e.",
    "strings of Python 2 that are long": b"](" + (b"S'" + b"a" * 5000 + b"'\n") * 100 + b"e.",
    "a line of Python 2 without an end": b"S'" + b"\\" * 400_000,
    "lines without an end": b"S" * 400_000,
    "a text decoded again and again": name("_codecs", "encode") + b"\x94" + text("a" * 200_000)
    + text("latin1") + b"\x86\x94" + b"h\0h\1R" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_cannot_grow_large(content):
    tracemalloc.start()
    try:
        with pytest.raises(DatasetFormatError):
            load_plain(content, path="batch_1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(content) + 2**16
