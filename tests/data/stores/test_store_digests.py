"""Digests of example stores: a bit that changed anywhere is found, and nothing is read for it."""

import json
import logging
import random
import zlib

import numpy as np
import pytest
from first_layout import as_first_layout

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.stores import digests, npy_store, parquet_sums, record_store
from fedjax_lite.data.stores.npy_store import NpyStore, write_streamed
from fedjax_lite.data.stores.parquet_store import ParquetStore, write_parquet
from fedjax_lite.data.stores.record_store import RecordStore, write_records
from fedjax_lite.data.stores.store import chunks

SIZES = np.array([3, 0, 5, 1, 7, 4])
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])


def examples(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 4)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, 2, 20).astype(bool)}


def parts(seed=0):
    """Two chunks of three clients."""
    for low, high in ((0, 3), (3, 6)):
        rows = slice(OFFSETS[low], OFFSETS[high])
        yield SIZES[low:high], {name: leaf[rows] for name, leaf in examples(seed).items()}


def write(folder, kind, seed=0):
    if kind == "npy":
        return write_streamed(folder, parts(seed)), NpyStore
    if kind == "records":
        pytest.importorskip("array_record")
        return write_records(folder, parts(seed), clients_per_shard=3), RecordStore
    pytest.importorskip("pyarrow")
    return write_parquet(folder, parts(seed), rows_per_group=4), ParquetStore


@pytest.fixture
def nothing_is_small(monkeypatch):
    for module in (npy_store, record_store, parquet_sums):
        monkeypatch.setattr(module, "SMALL", 0)


def flipped(content, bit):
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def replace(path, content):
    path.unlink()  # the file that it was may be mapped
    path.write_bytes(content)


def read(store, ids):
    rows = int(np.asarray(store.sizes)[ids].sum())
    out = {name: np.zeros((rows, *leaf.shape), leaf.dtype) for name, leaf in store.leaves.items()}
    store.read(np.array(ids), out)
    return out


def refusal(call, folder, name):
    with pytest.raises(DatasetFormatError, match=r": expected .*, found .*; ") as caught:
        call()
    message = str(caught.value)
    assert str(folder) in message
    assert name in message
    assert "write the folder again" in message
    return message


@pytest.mark.parametrize("kind", ["npy", "records", "parquet"])
def test_one_bit_anywhere_is_found_when_a_small_store_is_opened(tmp_path, kind):
    """In every file the first and the last byte and thirty bits at random."""
    folder, store = write(tmp_path / "data", kind)
    rng = random.Random(0)
    store(folder).verify()
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        size = 8 * len(whole)
        for bit in [*range(8), *range(size - 8, size), *(rng.randrange(size) for _ in range(30))]:
            replace(path, flipped(whole, bit))
            refusal(lambda: store(folder), folder, path.name)
        replace(path, whole)
    for name, leaf in read(store(folder), range(6)).items():
        np.testing.assert_array_equal(leaf, examples()[name])


@pytest.mark.parametrize("kind", ["npy", "records", "parquet"])
@pytest.mark.usefixtures("nothing_is_small")
def test_one_bit_in_a_large_store_is_found_by_verify(tmp_path, kind):
    """Files that are not read when the store is opened; what opening reads is found by that."""
    folder, store = write(tmp_path / "data", kind)
    rng = random.Random(1)
    large = [path for path in sorted(folder.iterdir()) if path.name[:4] in ("exam", "part")]
    assert len(large) == 2
    for path in large:
        whole = path.read_bytes()
        for _ in range(30):
            replace(path, flipped(whole, rng.randrange(8 * len(whole))))
            refusal(lambda: store(folder).verify(), folder, path.name)
        replace(path, whole)
    store(folder).verify()


@pytest.mark.usefixtures("nothing_is_small")
def test_a_client_is_compared_when_it_is_read(tmp_path):
    """By hand: one bit of client 4, in row 12 of `x`; the others can be read."""
    folder, _ = write(tmp_path / "data", "npy")
    path = folder / "examples.x.npy"
    whole = path.read_bytes()
    first = len(whole) - 20 * 16  # 20 rows of 4 float32
    replace(path, flipped(whole, 8 * (first + 12 * 16) + 3))
    store = NpyStore(folder)
    np.testing.assert_array_equal(read(store, [0, 2, 3, 5])["x"][:3], examples()["x"][:3])
    message = refusal(lambda: read(store, [0, 4]), folder, "examples.x.npy")
    assert "client 4" in message
    refusal(lambda: read(store, [4]), folder, "examples.x.npy")  # again: it was not accepted
    read(store, [0, 2])


@pytest.mark.parametrize("kind", ["records", "parquet"])
@pytest.mark.usefixtures("nothing_is_small")
def test_a_damaged_value_is_never_handed_out(tmp_path, kind):
    """Every byte of a shard in turn: reading fails, or gives what was written."""
    folder, store = write(tmp_path / "data", kind)
    path = sorted(p for p in folder.iterdir() if p.name[:4] in ("exam", "part"))[0]
    whole, failed = path.read_bytes(), 0
    rng = random.Random(2)
    for place in rng.sample(range(len(whole)), 150):
        replace(path, flipped(whole, 8 * place + rng.randrange(8)))
        try:
            found = read(store(folder), range(6))
        except DatasetFormatError:
            failed += 1
        else:
            for name, leaf in examples().items():
                np.testing.assert_array_equal(found[name], leaf)
    assert failed > 0


@pytest.mark.usefixtures("nothing_is_small")
def test_just_the_bytes_that_are_read_are_compared_and_only_once(tmp_path, monkeypatch):
    """Sixteen bytes and one an example: clients 0 and 4 have 3 and 7."""
    folder, _ = write(tmp_path / "data", "npy")
    store, seen, crc32 = NpyStore(folder), [], zlib.crc32

    def counted(content, *rest):
        seen.append(memoryview(content).nbytes)
        return crc32(content, *rest)

    monkeypatch.setattr(digests.zlib, "crc32", counted)
    read(store, [4, 0, 4])
    assert sorted(seen) == [3, 7, 3 * 16, 7 * 16]
    read(store, [0, 4])
    assert len(seen) == 4
    read(store, [0, 5])
    assert sorted(seen[4:]) == [4, 4 * 16]
    store.verify()
    assert sum(seen) == 20 * 17


@pytest.mark.usefixtures("nothing_is_small")
def test_a_file_of_another_population_is_found(tmp_path):
    """The same sizes and shapes, other values."""
    folder, _ = write(tmp_path / "data", "npy")
    other, _ = write(tmp_path / "other", "npy", seed=1)
    replace(folder / "examples.x.npy", (other / "examples.x.npy").read_bytes())
    store = NpyStore(folder)
    refusal(lambda: read(store, [2]), folder, "examples.x.npy")
    replace(folder / "sums.npy", (other / "sums.npy").read_bytes())
    refusal(lambda: NpyStore(folder), folder, "sums.npy")


@pytest.mark.parametrize("kind", ["npy", "records"])
def test_a_folder_of_the_first_layout_is_opened_and_the_log_says_so(tmp_path, kind, caplog):
    folder, store = write(tmp_path / "data", kind)
    with caplog.at_level(logging.WARNING, "fedjax_lite"):
        store(folder)
        assert not caplog.records
        old = store(as_first_layout(folder))
    assert str(folder) in caplog.text
    assert "write it again" in caplog.text
    with pytest.raises(ValueError, match="write it again"):
        old.verify()
    new = NpyStore(write_streamed(tmp_path / "new", chunks(old)))
    new.verify()
    for name, leaf in examples().items():
        np.testing.assert_array_equal(read(old, range(6))[name], leaf)
        np.testing.assert_array_equal(read(new, range(6))[name], leaf)


def test_parquet_files_of_others_have_no_digests(tmp_path, caplog):
    folder, _ = write(tmp_path / "data", "parquet")
    for name in ("manifest.json", "sums.npy"):
        (folder / name).unlink()
    with caplog.at_level(logging.INFO, "fedjax_lite"):
        store = ParquetStore(folder)
    assert "has no digests" in caplog.text
    np.testing.assert_array_equal(read(store, range(6))["x"], examples()["x"])
    with pytest.raises(ValueError, match=r"part-00000.parquet must have digests"):
        store.verify()


@pytest.mark.parametrize("kind", ["npy", "records", "parquet"])
def test_a_folder_that_was_robbed_of_its_digests_is_not_an_old_one(tmp_path, kind):
    folder, store = write(tmp_path / "data", kind)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for changed in (
        {**manifest, "digest": None},
        {key: value for key, value in manifest.items() if key != "digest"},
        {key: value for key, value in manifest.items() if key != "files"},
        {**manifest, "layout": 1},
        {**manifest, "layout": 3},
    ):
        path.write_text(json.dumps(changed))
        refusal(lambda: store(folder), folder, "manifest.json")
    path.write_text(json.dumps(manifest))
    (folder / "sums.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"sums\.npy"):
        store(folder)


def test_sums_are_those_of_the_standard():
    """The check value of CRC-32: that of the nine digits is CBF43926; of no bytes it is 0."""
    digits = np.frombuffer(b"123456789", np.uint8)
    assert digests.sums_of([digits], np.array([0, 9, 0])).tolist() == [[0, 0xCBF43926, 0]]
    wide = np.frombuffer(b"123456789" * 2, np.uint8).reshape(2, 3, 3)
    assert digests.sums_of([wide, wide], np.array([1, 1])).tolist() == [[0xCBF43926] * 2] * 2
