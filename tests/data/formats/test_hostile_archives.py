"""Archives made to fill memory, to lead out of the folder, or to say two things at once."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest

from fedjax_lite.data.formats import archive
from fedjax_lite.data.formats.archive import read_members
from fedjax_lite.data.formats.errors import DatasetFormatError

MEBI = 2**20


def member(name="d/a", size=None, content=b"", kind=tarfile.REGTYPE, **more):
    """A header and its content, which may be of another size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


END = bytes(1024)


def pax(content, kind=tarfile.XHDTYPE):
    return member("pax", content=content, kind=kind)


def record(key, value):
    """``"<length> key=value\\n"``, the length with its own digits."""
    rest = len(f" {key}={value}\n")
    length = next(n for n in range(rest, rest + 20) if n == rest + len(str(n)))
    return f"{length} {key}={value}\n".encode()


def zipped_zeros(mebibytes):
    """A gzip stream of zeros, made piece by piece."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(MEBI)) for _ in range(mebibytes)) + packer.flush()


def peak_of(path, names=("d/a",)):
    """Reads and returns the error and the peak of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(DatasetFormatError) as caught:
            read_members(path, names)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_whole_archives_are_read_however_they_are_packed(tmp_path, packed):
    rng = random.Random(0)
    content = {"d/a": rng.randbytes(700_000), "d/b": b"", "d/" + "c" * 150: rng.randbytes(1024)}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, value in content.items():
            info = tarfile.TarInfo("./" + name)
            info.size, info.pax_headers = len(value), {"comment": "x" * 1000}
            tar.addfile(info, io.BytesIO(value))
    path = tmp_path / "a.tar"
    path.write_bytes(packed(plain.getvalue()))
    assert read_members(path, list(content)) == content
    assert read_members(path, ["d/b"]) == {"d/b": b""}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_gigabyte_is_refused_before_it_is_read(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(member("pax", size=2**30, kind=kind)) + zipped_zeros(16))
    message, peak = peak_of(path)
    assert "a header is too long" in message
    assert peak < 3 * MEBI


def test_headers_of_all_members_together_are_no_load(tmp_path):
    """Each is small enough: it is their number that would fill the memory."""
    parts = [pax(record("comment", "x" * 50_000)) + member(f"d/{k:03}") for k in range(300)]
    path = tmp_path / "a.tar.gz"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path.write_bytes(b"".join(map(packer.compress, [*parts, END])) + packer.flush())
    message, peak = peak_of(path)
    assert "without them" in message
    assert peak < 4 * MEBI


def test_attributes_of_all_members_do_not_add_up(tmp_path):
    """Unlike those of one member they are kept: 300 of 50 kB would be 15 MB."""
    parts = [
        pax(record(f"key{k}", "x" * 50_000), kind=tarfile.XGLTYPE) + member(f"d/{k:03}")
        for k in range(300)
    ]
    path = tmp_path / "a.tar.gz"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path.write_bytes(b"".join(map(packer.compress, [*parts, END])) + packer.flush())
    message, peak = peak_of(path)
    assert "attributes for all its members" in message
    assert peak < 4 * MEBI
    shared = pax(record("comment", "0" * 40), kind=tarfile.XGLTYPE)  # as git archive writes it
    path.write_bytes(shared + member("d/a", content=b"a") + END)
    assert read_members(path, ["d/a"]) == {"d/a": b"a"}


BOMBS = {
    "gzip": lambda: gzip.compress(member(size=80 * MEBI)) + zipped_zeros(80),
    "gzip behind the end": lambda: gzip.compress(member() + END) + zipped_zeros(80),
    "gzip, many small files": lambda: gzip.compress(
        b"".join(member(f"d/{k}") for k in range(10_002)) + END
    ),
    "bzip2 behind the end": lambda: (
        bz2.compress(member() + END) + bz2.compress(bytes(40 * MEBI)) * 2
    ),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_while_it_is_read(tmp_path, make, monkeypatch):
    # Scaled down for the clock's sake.
    monkeypatch.setattr(archive, "_MAX_TOTAL_BYTES", 16 * MEBI)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(make())
    message, peak = peak_of(path, ["d/none"])
    assert "expected plain files and folders" in message
    assert peak < 8 * MEBI


def test_a_dictionary_of_xz_is_bounded(tmp_path):
    """The size of the dictionary is the file's to say; four gibibytes are asked for here."""
    content = bytearray(lzma.compress(member() + END))
    begin = 12
    length = (content[begin] + 1) * 4
    assert content[begin + 2 : begin + 4] == b"\x21\x01"  # LZMA2, one byte of properties
    content[begin + 4] = 40
    checksum = zlib.crc32(content[begin : begin + length - 4])
    content[begin + length - 4 : begin + length] = struct.pack("<I", checksum)
    path = tmp_path / "a.tar.xz"
    path.write_bytes(content)
    with pytest.raises(DatasetFormatError, match=r"[Mm]emory usage limit"):
        read_members(path, ["d/a"])


REFUSED = {
    "the same file twice": member(content=b"one") + member(content=b"two"),
    "the same file by two names": member(content=b"one") + member("./d//a", content=b"two"),
    "a name of a pax header that leads out": pax(record("path", "../a")) + member(),
    "a long name that leads out": member("l", content=b"/" + b"a" * 200 + b"\0", kind=b"L")
    + member(),
    "a name of many characters": pax(record("path", "d/" * 400 + "a")) + member(),
    "a link of a pax header": pax(record("linkpath", "/etc/passwd"))
    + member(kind=tarfile.SYMTYPE, linkname="b"),
    "a sparse file": pax(
        record("GNU.sparse.major", "0")
        + record("GNU.sparse.minor", "1")
        + record("GNU.sparse.size", str(2**50))
        + record("GNU.sparse.map", "0,1")
    )
    + member(content=b"a"),
    "a size beyond all": pax(record("size", str(2**50))) + member(),
    "a negative size": pax(record("size", "-1024")) + member(),
    "a negative size in base 256": member().replace(b"00000000000\0", b"\xff" * 10 + b"\xfc\0", 1),
    "a device": member(kind=tarfile.BLKTYPE),
    "a kind that nobody knows": member(kind=b"~", size=4),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_official_archives_never_hold_is_refused(tmp_path, content):
    if content[148:156].strip(b"\0 ") and content[124:126] == b"\xff\xff":  # its checksum anew
        content = content[:148] + b"        " + content[156:]
        content = content[:148] + b"%06o\0 " % sum(content[:512]) + content[156:]
    path = tmp_path / "a.tar"
    path.write_bytes(content + END)
    with pytest.raises(DatasetFormatError, match=r"a\.tar: expected .*; ") as caught:
        read_members(path, ["d/a"])
    assert caught.value.remedy
    assert len(str(caught.value)) < 1500


def test_a_zip_archive_is_named_and_not_read(tmp_path):
    path = tmp_path / "a.tar.gz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("d/a", "b")
    message, peak = peak_of(path)
    assert "a zip archive; unpack it" in message
    assert peak < MEBI


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lzma.compress])
def test_archives_damaged_at_random(tmp_path, packed):
    """An error of one kind, or the very bytes that were put in."""
    rng = random.Random(1)
    content = rng.randbytes(2000)
    parts = [
        pax(record("comment", "c")),
        member("d/b", content=b"b" * 600),
        member(content=content),
    ]
    whole = packed(b"".join(parts) + END)
    path, refused = tmp_path / "a.tar", 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            if rng.random() < 0.7:
                damaged[place] = rng.randrange(256)
            else:
                del damaged[place : place + rng.randint(1, 600)]
                damaged = damaged or bytearray(b"a")
        path.write_bytes(damaged)
        try:
            found = read_members(path, ["d/a"])
        except DatasetFormatError:
            refused += 1
        else:
            assert len(found["d/a"]) == 2000 or packed is bytes
    assert refused > 100
