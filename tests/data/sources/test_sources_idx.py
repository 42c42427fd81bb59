"""MNIST and Fashion-MNIST: names, places, writers, damaged and mixed-up files."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.sources import load as sources
from fedjax_lite.data.sources.load import load, source_of

REAL = os.environ.get("FEDJAX_LITE_DATA")


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # What a Debian package put on this machine must not decide a test.
    fashion = sources.SOURCES["fashion_mnist"]._replace(folders=(tmp_path / "system",))
    monkeypatch.setitem(sources.SOURCES, "fashion_mnist", fashion)


def idx(array):
    return (
        struct.pack(">BBBB", 0, 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write(folder, *, gz=True, dot=False, writers=False, sizes=(5, 3)):
    """Writes a small data set and returns ``[(images, labels, writers), ...]``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = []
    for part, size in zip(("train", "t10k"), sizes):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        who = rng.integers(0, 4, size).astype(np.int16)
        for kind, array in (("images", images), ("labels", labels)):
            name = f"{part}-{kind}{'.' if dot else '-'}idx{array.ndim}-ubyte"
            content = idx(array)
            if gz:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        if writers:
            np.save(folder / f"{part}-writers.npy", who)
        parts.append((images, labels, who))
    return parts


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "mnist"),
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "."),
    ],
)
def test_names_and_places(tmp_path, name, place, gz, dot):
    parts = write(tmp_path / "data" / place, gz=gz, dot=dot)
    splits = load(name, data_dir=tmp_path / "data", download=False)
    for split, (images, labels, _) in zip(splits, parts):
        assert list(split) == ["x", "y"]
        np.testing.assert_array_equal(split["x"], images[..., None])
        np.testing.assert_array_equal(split["y"], labels)
        assert (split["x"].dtype, split["y"].dtype) == (np.uint8, np.int32)


def test_writers_are_natural_clients(tmp_path):
    parts = write(tmp_path / "mnist", writers=True)
    splits = load("mnist", data_dir=tmp_path, download=False)
    for split, (_, _, writers) in zip(splits, parts):
        np.testing.assert_array_equal(split["writer"], writers)
        assert split["writer"].dtype == np.int32
    # One file without its twin is as good as none.
    (tmp_path / "mnist" / "t10k-writers.npy").unlink()
    train, _ = load("mnist", data_dir=tmp_path, download=False)
    assert "writer" not in train


def test_the_folder_of_a_system_package(tmp_path):
    parts = write(tmp_path / "system")
    train, _ = load("fashion_mnist", download=False)
    np.testing.assert_array_equal(train["y"], parts[0][1])


def test_an_incomplete_folder_is_named(tmp_path):
    write(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetNotFoundError, match="without t10k-labels-idx1-ubyte"):
        load("mnist", data_dir=tmp_path, download=False)


def rewrite(change):
    return lambda content: gzip.compress(change(gzip.decompress(content)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda c: c[:-20], "expected a whole gzip file"),
        ("train-images-idx3-ubyte.gz", lambda c: b"<html>", "expected a whole gzip file"),
        (
            "train-images-idx3-ubyte.gz",
            lambda c: c[:-8] + b"\0\0\0\0" + c[-4:],
            "expected a whole gzip file",
        ),
        ("train-images-idx3-ubyte.gz", rewrite(lambda c: c[:-1]), "expected 3,920 bytes"),
        ("train-images-idx3-ubyte.gz", rewrite(lambda c: c + b"\0"), "found more"),
        ("train-images-idx3-ubyte.gz", rewrite(lambda c: b""), "found an empty file"),
        ("train-images-idx3-ubyte.gz", rewrite(lambda c: c[:9]), "a head of 9 bytes"),
        (
            "train-images-idx3-ubyte.gz",
            rewrite(lambda c: idx(np.zeros((5, 8, 8), np.uint8))),
            r"images \[E, 28, 28\]",
        ),
        (
            "train-images-idx3-ubyte.gz",
            rewrite(lambda c: idx(np.zeros(5, np.uint8))),
            "magic number 2051",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            rewrite(lambda c: idx(np.zeros(4, np.uint8))),
            "expected 5 labels",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            rewrite(lambda c: idx(np.full(3, 10, np.uint8))),
            r"labels in 0\.\.9, found 10",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, name, change, message):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetFormatError, match=message) as caught:
        load("mnist", data_dir=tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_damaged_writers_are_named(tmp_path):
    write(tmp_path, writers=True)
    path = tmp_path / "train-writers.npy"
    for bad in (np.zeros(4, np.int16), np.zeros(5), np.array([None] * 5)):
        np.save(path, bad)
        with pytest.raises(DatasetFormatError, match=r"train-writers\.npy: .* 5 integers"):
            load("mnist", data_dir=tmp_path, download=False)
    path.write_bytes(b"nonsense")
    with pytest.raises(DatasetFormatError, match=r"train-writers\.npy"):
        load("mnist", data_dir=tmp_path, download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_one_data_set_is_not_taken_for_the_other(tmp_path, name):
    counts = np.full(10, 6_000)
    if name == "fashion_mnist":
        counts[:2] += (-77, 77)
    labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
    write(tmp_path)
    for stem, array in (
        ("train-images-idx3-ubyte", np.zeros((60_000, 28, 28), np.uint8)),
        ("train-labels-idx1-ubyte", labels),
    ):
        (tmp_path / f"{stem}.gz").unlink()
        (tmp_path / stem).write_bytes(idx(array))
    with pytest.raises(DatasetFormatError, match=f"expected the labels of {name}, found those of"):
        load(name, data_dir=tmp_path, download=False)


@pytest.mark.realdata
def test_real_mnist():
    if not REAL or not (Path(REAL) / "mnist").is_dir():
        pytest.skip("FEDJAX_LITE_DATA does not hold mnist/")
    train, test = load("mnist", data_dir=REAL, download=False)
    # The class counts of the MNIST page and of every copy of it.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train["y"]).tolist() == counts
    assert test["x"].shape == (10_000, 28, 28, 1)
    assert abs(train["x"].mean() / 255 - 0.1307) < 1e-4
    sizes = np.unique(train["writer"], return_counts=True)[1]
    assert (len(sizes), sizes.min(), sizes.max(), np.median(sizes)) == (539, 19, 131, 116)
    assert len(np.unique(test["writer"])) == 297
    assert not set(train["writer"].tolist()) & set(test["writer"].tolist())
    assert source_of("mnist", data_dir=REAL).layout == "idx"
