"""Example stores: every format gives back the examples of any clients, and damage is named."""

import json
import tracemalloc

import numpy as np
import pytest
from first_layout import as_first_layout

from fedjax_lite.data.stores.npy_store import NpyStore, write_streamed
from fedjax_lite.data.stores.parquet_store import ParquetStore, write_parquet
from fedjax_lite.data.stores.record_store import RecordStore, write_records
from fedjax_lite.data.stores.store import ArrayStore, chunks

SIZES = np.array([3, 0, 5, 1, 7, 0, 2, 4, 0])


def population():
    rng = np.random.default_rng(0)
    total = SIZES.sum()
    return {
        "x": rng.normal(size=(total, 4)).astype(np.float16),
        "y": rng.integers(0, 9, total).astype(np.uint8),
    }


def parts():
    """In chunks of 1 to 4 clients, one of them without examples at all."""
    examples, offsets = population(), np.concatenate([[0], np.cumsum(SIZES)])
    for low, high in ((0, 1), (1, 2), (2, 5), (5, 9)):
        rows = slice(offsets[low], offsets[high])
        yield SIZES[low:high], {name: leaf[rows] for name, leaf in examples.items()}


def npy(folder):
    return NpyStore(write_streamed(folder, parts()))


def records(folder):
    pytest.importorskip("array_record")
    return RecordStore(write_records(folder, parts(), clients_per_shard=4))


def parquet(folder):
    pytest.importorskip("pyarrow")
    # Groups of 4 rows: clients straddle them.
    write_parquet(folder, parts(), rows_per_group=4)
    return ParquetStore(folder, num_clients=len(SIZES))


FORMATS = {
    "arrays": lambda folder: ArrayStore(population(), SIZES),
    "npy": npy,
    "records": records,
    "parquet": parquet,
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("ids", [[4], [7, 0, 4], [1, 2, 8, 2], [], list(range(9))[::-1]])
def test_reads_any_clients_in_any_order(make, ids, tmp_path):
    store, examples = make(tmp_path / "data"), population()
    np.testing.assert_array_equal(store.sizes, SIZES)
    owners = np.repeat(np.arange(9), SIZES)
    total = SIZES[ids].sum() if ids else 0
    out = {
        name: np.full((total + 2, *leaf.shape), 77, leaf.dtype)
        for name, leaf in store.leaves.items()
    }
    store.read(np.array(ids, int), out)
    for name, leaf in examples.items():
        expected = [leaf[owners == client] for client in ids]
        assert out[name].dtype == leaf.dtype
        np.testing.assert_array_equal(out[name][:total], np.concatenate([leaf[:0], *expected]))
        assert (out[name][total:] == 77).all()  # nothing behind is touched


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("max_bytes", [1, 50, 10**6])
def test_chunks_of_any_store_are_what_writers_take(make, max_bytes, tmp_path):
    store = make(tmp_path / "data")
    copy = NpyStore(write_streamed(tmp_path / "copy", chunks(store, max_bytes=max_bytes)))
    np.testing.assert_array_equal(copy.sizes, SIZES)
    out = {"x": np.zeros((SIZES.sum(), 4), np.float16), "y": np.zeros(SIZES.sum(), np.uint8)}
    copy.read(np.arange(9), out)
    for name, leaf in population().items():
        np.testing.assert_array_equal(out[name], leaf)


def test_arrays_of_the_folder_are_plain_npy_files(tmp_path):
    npy(tmp_path / "data")
    found = np.load(tmp_path / "data" / "examples.x.npy")
    np.testing.assert_array_equal(found, population()["x"])


def test_writing_takes_memory_for_a_chunk_only(tmp_path):
    """64 chunks of 1 MiB each, written in less than 8 MiB."""

    def make():
        for number in range(64):
            yield [2**10], {"x": np.full((2**10, 2**10), number, np.uint8)}

    tracemalloc.start()
    write_streamed(tmp_path / "data", make())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
    store, out = NpyStore(tmp_path / "data"), {"x": np.zeros((2**10, 2**10), np.uint8)}
    store.read(np.array([63]), out)
    assert (out["x"] == 63).all()


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield from parts()
        raise RuntimeError("no more")

    for write in (write_streamed, write_records, write_parquet):
        with pytest.raises(RuntimeError, match="no more"):
            write(tmp_path / "data", broken())
        assert not list(tmp_path.iterdir())


def test_earlier_folders_are_kept_unless_told(tmp_path):
    npy(tmp_path / "data")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_streamed(tmp_path / "data", parts())
    write_streamed(tmp_path / "data", [([1], {"z": np.ones(1)})], overwrite=True)
    assert NpyStore(tmp_path / "data").leaves.keys() == {"z"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("write", [write_streamed, write_records, write_parquet])
def test_overwriting_touches_no_folder_of_others(tmp_path, write):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"files of others \(thesis.txt\)"):
        write(folder, parts(), overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    write(folder, parts(), overwrite=True)  # an empty folder is nobody's
    write(folder, parts(), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="files of others"):
        write(tmp_path / "file", parts(), overwrite=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.array([1, 2**40 + 7]), "integers beyond int32"), (np.array([1.0, np.nan]), "NaN")],
)
def test_parquet_of_others_is_checked_when_it_is_read(tmp_path, values, message):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"client": pyarrow.array([0, 1]), "y": pyarrow.array(values)})
    parquet.write_table(table, tmp_path / "spark.parquet")
    store = ParquetStore(tmp_path)
    leaf = store.leaves["y"]
    with pytest.raises(ValueError, match=message):
        store.read(np.array([0, 1]), {"y": np.zeros((2, *leaf.shape), leaf.dtype)})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (([1], {"x": np.zeros(1), "y": np.zeros(1)}), "chunk 1 must be like the first"),
        (([1], {"x": np.zeros(1, np.float32)}), "chunk 1 must be like the first"),
        (([2], {"x": np.zeros(1)}), "sum\\(sizes\\) = 2 rows"),
        (([1], {"x": np.array([np.nan])}), "NaN or infinity"),
        (([-1, 2], {"x": np.zeros(1)}), "sizes must lie in"),
        (([1.0], {"x": np.zeros(1)}), "sizes must be integers"),
        (([1], {"x": np.array(["a"])}), "must be bool, integer or float"),
        (([1], [np.zeros(1)]), "must be a dict"),
    ],
)
def test_bad_chunks_say_what_is_wrong(second, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        write_streamed(tmp_path / "data", [([1], {"x": np.zeros(1)}), second])
    assert not list(tmp_path.iterdir())


def test_no_client_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one client"):
        write_streamed(tmp_path / "data", [])


def truncate(path, num_bytes=9):
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.mark.parametrize("name", ["examples.x.npy", "offsets.npy"])
def test_a_truncated_array_is_named(name, tmp_path):
    npy(tmp_path / "data")
    truncate(tmp_path / "data" / name)
    with pytest.raises(ValueError, match=f"{name} is truncated"):
        NpyStore(tmp_path / "data")


def test_damage_is_named(tmp_path):
    folder = tmp_path / "data"
    npy(folder)
    offsets = np.load(folder / "offsets.npy")
    for wrong, message in (
        (offsets[::-1].copy(), "offsets must rise"),
        (offsets[:-1], "holds 22 examples, but offsets.npy counts"),
        (offsets.astype(np.int32), "holds int32"),
    ):
        if "counts" in message:
            wrong = np.append(offsets[:-1], 99)
        np.save(folder / "offsets.npy", wrong)
        with pytest.raises(ValueError, match=message):
            NpyStore(folder)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "examples.y.npy", np.zeros(22, np.int64))
    with pytest.raises(ValueError, match="holds int64"):
        NpyStore(folder)
    (folder / "examples.y.npy").unlink()
    with pytest.raises(FileNotFoundError):
        NpyStore(folder)
    (folder / "manifest.json").write_text(json.dumps({"layout": 9}))
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest"):
        NpyStore(folder)


def test_damaged_shards_are_named(tmp_path):
    records(tmp_path / "records")
    shard = tmp_path / "records" / "examples-00001-of-00003.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="examples-00001-of-00003"):
        RecordStore(tmp_path / "records")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="examples-00001-of-00003"):
        RecordStore(tmp_path / "records")
    parquet(tmp_path / "parquet")
    truncate(tmp_path / "parquet" / "part-00002.parquet")
    with pytest.raises(ValueError, match=r"part-00002.parquet is truncated"):
        ParquetStore(tmp_path / "parquet")


def test_parquet_files_of_others(tmp_path):
    """Written by anybody: another name for the column, files in order, a client in two of them."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    first = pa.table({"who": [0, 0, 2], "v": [1.0, 2.0, 3.0], "n": [[1, 2], [3, 4], [5, 6]]})
    first = first.cast(
        pa.schema([("who", pa.int32()), ("v", pa.float32()), ("n", pa.list_(pa.int8(), 2))])
    )
    pq.write_table(first, tmp_path / "a.parquet")
    pq.write_table(first.slice(2), tmp_path / "b.parquet")
    store = ParquetStore([tmp_path / "a.parquet", tmp_path / "b.parquet"], client_column="who")
    assert store.sizes.tolist() == [2, 0, 2]
    out = {"v": np.zeros(4, np.float32), "n": np.zeros((4, 2), np.int8)}
    store.read(np.array([2, 0]), out)
    assert out["v"].tolist() == [3, 3, 1, 2]
    assert out["n"].tolist() == [[5, 6], [5, 6], [1, 2], [3, 4]]
    with pytest.raises(ValueError, match="sorted"):
        ParquetStore([tmp_path / "b.parquet", tmp_path / "a.parquet"], client_column="who")
    with pytest.raises(ValueError, match="no column 'client'"):
        ParquetStore(tmp_path)


def test_offsets_beyond_int32(tmp_path):
    """A folder of 3 x 2^30 examples: a file with a hole, of which one page is written."""
    folder = write_streamed(tmp_path / "data", [([1, 2], {"x": np.zeros(3, np.uint8)})])
    as_first_layout(folder)  # the sums would be those of three examples
    offsets = np.array([0, 2**30, 2**31, 2**31 + 2**30], np.int64)
    np.save(folder / "offsets.npy", offsets)
    path, total = folder / "examples.x.npy", int(offsets[-1])
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(total,))
    array[2**31 + 5] = 9
    del array
    store = NpyStore(folder)
    store.sizes = np.array([2**30, 2**30, 7], np.int32)
    store.offsets = np.array([0, 2**30, 2**31, 2**31 + 7], np.int64)
    out = {"x": np.zeros(7, np.uint8)}
    store.read(np.array([2]), out)
    assert out["x"].tolist() == [0, 0, 0, 0, 0, 9, 0]
