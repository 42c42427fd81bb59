"""Example stores and idx files under damage: one kind of error, path, remedy, and no load."""

import contextlib
import gzip
import json
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from first_layout import as_first_layout

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.sources.idx import read_idx
from fedjax_lite.data.sources.load import load
from fedjax_lite.data.stores.npy_store import NpyStore, write_streamed
from fedjax_lite.data.stores.parquet_store import ParquetStore, write_parquet
from fedjax_lite.data.stores.record_store import RecordStore, write_records

MEBI = 2**20
SIZES = np.array([3, 0, 5, 1])


def examples():
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (9, 4)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, 9, 9).astype(np.uint8)}


@contextlib.contextmanager
def little_memory(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def refused(call, *arguments, **options):
    with pytest.raises(DatasetFormatError, match=r": expected .*, found .*; ") as caught:
        call(*arguments, **options)
    assert len(str(caught.value)) < 900
    return str(caught.value)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("size", [2**32 - 1, 2**31, 10**6])
def test_a_head_that_claims_too_much_costs_nothing(tmp_path, dims, gz, size):
    content = struct.pack(">I", 0x800 + dims) + struct.pack(">I", size) * dims + bytes(100)
    path = tmp_path / ("a.gz" if gz else "a")
    path.write_bytes(gzip.compress(content) if gz else content)
    with little_memory(4 * MEBI):
        assert str(path) in refused(read_idx, path, num_dims=dims)


def test_a_gzip_file_of_more_than_its_head_says_is_not_read_whole(tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = struct.pack(">II", 0x801, 10)
    parts = [packer.compress(head), *(packer.compress(bytes(MEBI)) for _ in range(64))]
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(parts) + packer.flush())
    with little_memory(2 * MEBI):
        assert "found more" in refused(read_idx, path, num_dims=1)


def test_a_text_of_nearly_endless_zeros(tmp_path, monkeypatch):
    from fedjax_lite.data.sources import shakespeare

    monkeypatch.setattr(shakespeare, "_MAX_GZIPPED", MEBI)
    (tmp_path / "shakespeare").mkdir()
    for name in ("shakespeare_roles.json.gz", "tinyshakespeare.txt.gz"):
        path = tmp_path / "shakespeare" / name
        path.write_bytes(gzip.compress(bytes(32 * MEBI)))
        with little_memory(4 * MEBI):
            message = refused(load, "shakespeare", data_dir=tmp_path, cache_dir=tmp_path / "c")
        assert "at most 1,048,576 bytes" in message
        path.unlink()


def header(text, *, version=1, length=None):
    text = text.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def described(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


HEADERS = {
    "objects": header(described("'|O'")),
    "a structure": header(described("[('a', '<f4')]")),
    "voids": header(described("'|V4'")),
    "times": header(described("'<M8[s]'")),
    "complex": header(described("'<c8'", shape="(1,)")),
    "Fortran order": header(described(order="True", shape="(1, 2)")),
    "more than there is": header(described(shape=f"({2**40},)")),
    "a shape that overflows": header(described(shape=f"({2**32}, {2**32})")),
    "an empty shape that overflows": header(described(shape=f"(0, {2**40}, {2**40})")),
    "a negative shape": header(described(shape="(-2, -1)")),
    "a shape of truth": header(described(shape="(True, 2)")),
    "a shape of floats": header(described(shape="(2.0,)")),
    "many axes": header(described(shape="(" + "1, " * 40 + "2)")),
    "an expression": header(described(shape="(1+1,)")),
    "a call": header(described(shape="(print(1),)")),
    "deep brackets": header("(" * 60_000),
    "deep signs": header("-" * 9_000 + "1"),
    "a long header": header(described() + " " * 70_000, version=2),
    "a header longer than the file": header(described(), version=2, length=2**32 - 1),
    "a width of no numbers": header(described("'<f3'")),
    "a version of the future": header(described(), version=9),
    "keys left out": header("{'descr': '<f4', 'shape': (2,), }\n"),
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(30),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_headers_of_arrays_are_compared_and_not_evaluated(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content + bytes(8))
    with little_memory(MEBI):
        assert str(path) in refused(open_npy, path)


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "|u1", "|b1", "<f8", "<u8", "<f2"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3), (1, 1, 5)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_whole_arrays_of_all_kinds_are_opened(tmp_path, dtype, shape, version):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    found = open_npy(path)
    assert (found.dtype, found.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", ["<f4", "<i8"])
def test_an_array_saved_by_python_2_is_opened(tmp_path, dtype):
    text = described(f"'{dtype}'", shape="(2L, 3L)")
    (tmp_path / "a.npy").write_bytes(header(text) + np.arange(6, dtype=dtype).tobytes())
    assert open_npy(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


def written(folder, kind):
    chunks = [(SIZES, examples())]
    if kind.endswith(" of the first layout"):
        folder, store = written(folder, kind.partition(" ")[0])
        return as_first_layout(folder), store
    if kind == "npy":
        return write_streamed(folder, chunks), NpyStore
    if kind == "records":
        pytest.importorskip("array_record")
        return write_records(folder, chunks), RecordStore
    pytest.importorskip("pyarrow")
    return write_parquet(folder, chunks), ParquetStore


MANIFESTS = [
    "[]",
    "3",
    "null",
    "",
    "[" * 100_000,
    '{"layout": 1}',
    '{"layout": true, "leaves": []}',
    '{"layout": 1, "leaves": {}}',
    '{"layout": 1, "leaves": {"x": 3}}',
    '{"layout": 1, "leaves": {"x": ["<f4"]}}',
    '{"layout": 1, "leaves": {"x": ["O", [4]]}}',
    '{"layout": 1, "leaves": {"x": ["<V999999999", [4]]}}',
    '{"layout": 1, "leaves": {"x": [[["a", "<f4"]], [4]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", 4]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [-4]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [4.0]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [true]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [999999999999]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [2000000000, 2000000000]]}}',
    '{"layout": 1, "leaves": {"../x": ["<f4", [4]]}}',
    '{"layout": 1, "leaves": {"x": ["<f4", [' + "9" * 5000 + "]]}}",
]


@pytest.mark.parametrize("kind", ["npy", "records"])
def test_manifests_of_other_kinds_are_named(tmp_path, kind):
    folder, store = written(tmp_path / "data", kind)
    path = folder / "manifest.json"
    for text in MANIFESTS:
        path.write_text(text)
        assert str(path) in refused(store, folder)
    path.write_bytes(b"\xff\xfe")
    assert str(path) in refused(store, folder)


@pytest.mark.parametrize("clients", ["4", [4, -1], [2**40], [4.0], None, [True] * 4, [3], [5]])
def test_shards_of_other_counts_are_named(tmp_path, clients):
    folder, store = written(tmp_path / "data", "records")
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clients": clients}))
    assert str(folder) in refused(store, folder)


@pytest.mark.parametrize("kind", ["npy", "records"])
def test_offsets_whose_differences_wrap_are_named(tmp_path, kind):
    folder, store = written(tmp_path / "data", kind)
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    for wrong in ([0, high, low, 8, 9], [0, 3, 3, 8, high], [1, 3, 3, 8, 9], [[0, 9]], [0], []):
        np.save(folder / "offsets.npy", np.array(wrong, np.int64))
        assert str(folder) in refused(store, folder)


def test_one_row_cannot_ask_for_the_sizes_of_two_thousand_million_clients(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"client": pa.array([2**31 - 3]), "x": pa.array([1.0])})
    pq.write_table(table, tmp_path / "a.parquet")
    with little_memory(MEBI), pytest.raises(ValueError, match=r"2147483645 among 1 rows; number"):
        ParquetStore(tmp_path)


def test_rows_beyond_counting_are_counted_in_little_memory(tmp_path):
    """Three million rows of one client take a few bytes in the file and 24 MB as an array."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = 3_000_000
    table = pa.table({"client": pa.array(np.zeros(rows, np.int64)), "x": pa.array(np.zeros(rows))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < MEBI
    with little_memory(8 * MEBI):
        assert ParquetStore(tmp_path).sizes.tolist() == [rows]


def damaged(content, rng):
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            content[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            content[place : place + 1] = bytes(b ^ 4 for b in content[place:][:1])
        elif kind == 2:
            del content[place : place + rng.randint(1, 20)]
        elif kind == 3:
            content[place:place] = content[place : place + rng.randint(1, 20)]
        else:
            content[place : place + 4] = rng.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)])
    return bytes(content)


FIRST = ["npy of the first layout", "records of the first layout"]


@pytest.mark.parametrize("kind", ["npy", "records", "parquet", *FIRST])
def test_stores_damaged_at_random(tmp_path, kind):
    """Errors with the folder's path; without digests, or a store that can be read whole."""
    folder, store = written(tmp_path / "data", kind)
    rng, failed = random.Random(0), 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for _ in range(300):
        name = rng.choice(sorted(whole))
        path = folder / name
        path.unlink()  # it may be mapped
        content = damaged(whole[name], rng)
        path.write_bytes(content)
        try:
            with little_memory(2 * MEBI):
                opened = store(folder)
                rows = int(opened.sizes.sum())
                out = {k: np.zeros((rows, *v.shape), v.dtype) for k, v in opened.leaves.items()}
                opened.read(np.arange(len(opened.sizes)), out)
            assert kind in FIRST or content == whole[name]
        except ValueError as error:
            failed += 1
            if str(folder) not in str(error):
                raise
        path.unlink()
        path.write_bytes(whole[name])
    assert failed > 100
    assert store(folder).sizes.tolist() == SIZES.tolist()
