"""CIFAR-10 and CIFAR-100: each layout, the right orientation, damaged and hostile files."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.formats.safe_pickle import load_plain
from fedjax_lite.data.sources import cifar
from fedjax_lite.data.sources.load import load, source_of

NAMES10 = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def some_images(seed, rows):
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


def to_row(image):
    """By definition: all red, then all green, then all blue, each row by row."""
    return bytes(int(image[i, j, c]) for c in range(3) for i in range(32) for j in range(32))


def ten():
    """Six files of two images: ``{name: (images, labels)}``."""
    rng = np.random.default_rng(1)
    return {name: (some_images(k, 2), rng.integers(0, 10, 2)) for k, name in enumerate(NAMES10)}


def hundred():
    rng = np.random.default_rng(2)
    return {
        name: (some_images(k, n), rng.integers(0, 20, n), rng.integers(0, 100, n))
        for k, (name, n) in enumerate((("train", 4), ("test", 3)))
    }


def binary(images, *labels):
    return b"".join(
        bytes(int(column[k]) for column in labels) + to_row(image) for k, image in enumerate(images)
    )


def python(images, *labels, protocol=2):
    names = (b"labels",) if len(labels) == 1 else (b"coarse_labels", b"fine_labels")
    entries = {name: [int(v) for v in column] for name, column in zip(names, labels)}
    data = np.frombuffer(b"".join(map(to_row, images)), np.uint8).reshape(-1, 3072)
    return pickle.dumps({b"batch_label": b"x", b"data": data, **entries}, protocol=protocol)


def write_folder(folder, files, make, suffix):
    folder.mkdir(parents=True)
    for name, parts in files.items():
        (folder / f"{name}{suffix}").write_bytes(make(*parts))


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def lay_out(layout, root, number) -> dict:
    """Writes a data set in a layout and returns its parts."""
    files = ten() if number == 10 else hundred()
    make, suffix = (binary, ".bin") if layout.startswith("binary") else (python, "")
    folder = {
        (10, "binary"): "cifar-10-batches-bin",
        (10, "python"): "cifar-10-batches-py",
        (100, "binary"): "cifar-100-binary",
        (100, "python"): "cifar-100-python",
    }[number, layout.split()[0]]
    if layout.endswith("archive"):
        root.mkdir(parents=True, exist_ok=True)
        name = f"cifar-{number}-{layout.split()[0]}.tar.gz"
        write_tar(
            root / name, {f"{folder}/{n}{suffix}": make(*parts) for n, parts in files.items()}
        )
    else:
        write_folder(root / folder, files, make, suffix)
    return files


LAYOUTS = ("binary", "python", "binary archive", "python archive")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar10_layouts(tmp_path, layout):
    files = lay_out(layout, tmp_path / "data", 10)
    train, test = load("cifar10", data_dir=tmp_path / "data", download=False)
    assert list(train) == ["x", "y"]
    np.testing.assert_array_equal(train["x"], np.concatenate([files[n][0] for n in NAMES10[:5]]))
    np.testing.assert_array_equal(train["y"], np.concatenate([files[n][1] for n in NAMES10[:5]]))
    np.testing.assert_array_equal(test["x"], files["test_batch"][0])
    assert (train["x"].dtype, train["y"].dtype) == (np.uint8, np.int32)
    assert source_of("cifar10", data_dir=tmp_path / "data").layout == layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar100_layouts(tmp_path, layout):
    files = lay_out(layout, tmp_path / "data", 100)
    train, test = load("cifar-100", data_dir=tmp_path / "data", download=False)
    for split, name in ((train, "train"), (test, "test")):
        images, coarse, fine = files[name]
        np.testing.assert_array_equal(split["x"], images)
        np.testing.assert_array_equal(split["y"], fine)
        np.testing.assert_array_equal(split["coarse"], coarse)


def test_files_right_in_the_folder_and_in_a_folder_of_its_name(tmp_path):
    lay_out("binary", tmp_path / "a", 10)
    direct = load("cifar10", data_dir=tmp_path / "a" / "cifar-10-batches-bin", download=False)
    lay_out("binary archive", tmp_path / "b" / "cifar10", 10)
    named = load("cifar10", data_dir=tmp_path / "b", download=False)
    np.testing.assert_array_equal(direct[0]["x"], named[0]["x"])


def test_an_incomplete_layout_gives_way_to_a_complete_one(tmp_path):
    lay_out("binary", tmp_path / "data", 10)
    (tmp_path / "data" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"without data_batch_3\.bin"):
        load("cifar10", data_dir=tmp_path / "data", download=False)
    lay_out("python", tmp_path / "data", 10)
    assert source_of("cifar10", data_dir=tmp_path / "data").layout == "python"


def py2_pickle(images, labels):
    """As Python 2 and an old numpy wrote the official files: byte strings and old module names."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def blob(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    raw = b"".join(map(to_row, images))
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01(" + integer(len(images)) + integer(3072) + b"t" + dtype + b"\x89" + blob(raw)
    array += b"tb"
    numbers = b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make",
    [py2_pickle, *(lambda *parts, p=p: python(*parts, protocol=p) for p in range(6))],
    ids=["python2", *(f"protocol{p}" for p in range(6))],
)
def test_pickles_of_every_age(make):
    images, labels = some_images(3, 2), np.array([9, 0])
    parsed = cifar.parse_python(make(images, labels), cifar._CIFAR10, "batch")
    np.testing.assert_array_equal(parsed["x"], images)
    np.testing.assert_array_equal(parsed["y"], labels)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class _Eval:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('pwned')",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Evil()),
        pickle.dumps({b"data": _Eval()}),
        pickle.dumps(np.array([_Evil()], dtype=object)),
        pickle.dumps(np.zeros(1, object)),
        b"cnumpy\nload\n(U\x05a.npytR.",
        b"c_codecs\ndecode\n(U\x01atR.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00utf-16tR.",
        b"\x80\x04\x8c\x06numpy.\x8c\x04load\x93.",
        b"not a pickle",
        b"",
    ],
)
def test_hostile_and_broken_pickles_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetFormatError, match="batch_7: expected a pickle of arrays"):
        load_plain(content, path="batch_7")
    assert not list(Path().glob("pwned*"))


def test_a_hostile_pickle_is_named_by_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out("python", tmp_path / "data", 10)
    bad = tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2"
    bad.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(DatasetFormatError, match=r"data_batch_2: .*(posix|nt)\.system"):
        load("cifar10", data_dir=tmp_path / "data", download=False)
    assert not (tmp_path / "pwned").exists()


def _cut(content):
    return content[:-100]


def _python(**changes):
    data = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}
    data.update({key.encode(): value for key, value in changes.items()})
    return pickle.dumps({key: value for key, value in data.items() if value is not None})


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("binary", _cut, "expected rows of 3073 bytes"),
        ("binary", lambda content: b"", "found an empty file"),
        ("binary", lambda content: b"\x0a" + content[1:], r"labels in 0\.\.9, found \d\.\.10"),
        ("binary", lambda content: b"<html>404</html>", "16 bytes"),
        ("python", _cut, "refused or is corrupt"),
        ("python", lambda content: pickle.dumps([1]), "expected a dict, found a list"),
        ("python", lambda content: _python(data=None), "'data'.*found none"),
        ("python", lambda content: _python(data=np.zeros((2, 3000), np.uint8)), "3000"),
        ("python", lambda content: _python(data=np.zeros((2, 3072), np.float32)), "float32"),
        ("python", lambda content: _python(data=np.zeros((0, 3072), np.uint8)), "0, 3072"),
        ("python", lambda content: _python(labels=None), "'labels' with 2 integers, found none"),
        ("python", lambda content: _python(labels=[1]), "found int64"),
        ("python", lambda content: _python(labels=[1, "a"]), "found"),
        ("python", lambda content: _python(labels=[[1], [2, 3]]), "found"),
        ("python", lambda content: _python(labels=[1, 10]), r"found 1\.\.10"),
        ("python", lambda content: _python(labels=[-1, 1]), r"found -1\.\.1"),
    ],
)
def test_damaged_files_are_named(tmp_path, layout, change, message):
    lay_out(layout, tmp_path / "data", 10)
    (folder,) = (tmp_path / "data").iterdir()
    path = folder / ("data_batch_4" + (".bin" if layout == "binary" else ""))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetFormatError, match=message) as caught:
        load("cifar10", data_dir=tmp_path / "data", download=False)
    assert str(path) in str(caught.value)
    assert caught.value.remedy in str(caught.value)


def test_a_damaged_archive_is_named(tmp_path):
    lay_out("binary archive", tmp_path, 10)
    path = tmp_path / "cifar-10-binary.tar.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>", b"", whole[:-8] + b"12345678"):
        path.write_bytes(content)
        with pytest.raises(DatasetFormatError, match=r"cifar-10-binary\.tar\.gz: expected a whole"):
            load("cifar10", data_dir=tmp_path, download=False)


def test_an_archive_without_a_member_is_named(tmp_path):
    write_tar(tmp_path / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/readme": b"a"})
    with pytest.raises(DatasetFormatError, match=r"data_batch_1\.bin.*without them"):
        load("cifar10", data_dir=tmp_path, download=False)


def hostile(name=None, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name or "cifar-10-batches-bin/data_batch_1.bin")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        hostile("/tmp/fedjax_lite_pwned"),
        hostile("../pwned"),
        hostile("cifar-10-batches-bin/../../pwned"),
        hostile("..\\pwned"),
        hostile("C:/pwned"),
        hostile(kind=tarfile.SYMTYPE, target="/etc/passwd"),
        hostile(kind=tarfile.LNKTYPE, target="../../etc/passwd"),
        hostile(kind=tarfile.CHRTYPE),
        hostile(kind=tarfile.FIFOTYPE),
    ],
)
def test_a_hostile_archive_is_refused_and_writes_nothing(tmp_path, info):
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetFormatError, match="expected plain files and folders"):
        load("cifar10", data_dir=folder, download=False)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/fedjax_lite_pwned").exists()


def test_a_part_of_the_data_set_is_read_but_said(tmp_path, caplog):
    lay_out("binary", tmp_path, 10)
    with caplog.at_level("WARNING", logger="fedjax_lite"):
        load("cifar10", data_dir=tmp_path, download=False)
    assert "not the whole data set" in caplog.text


REAL = os.environ.get("FEDJAX_LITE_DATA")


@pytest.mark.realdata
def test_real_cifar10():
    if not REAL or not (Path(REAL) / "cifar-10-batches-bin").is_dir():
        pytest.skip("FEDJAX_LITE_DATA does not hold cifar-10-batches-bin/")
    folder = Path(REAL)
    train, test = load("cifar10", data_dir=folder, download=False)
    assert train["x"].shape == (50_000, 32, 32, 3)
    assert np.bincount(train["y"]).tolist() == [5_000] * 10
    assert np.bincount(test["y"]).tolist() == [1_000] * 10
    # The published channel statistics, of x / 255, from exact histograms.
    levels = np.arange(256) / 255
    for channel, (mean, deviation) in enumerate(
        ((0.4914, 0.24703), (0.48216, 0.24349), (0.44653, 0.26159))
    ):
        share = np.bincount(train["x"][..., channel].ravel(), minlength=256) / (50_000 * 1024)
        assert abs(share @ levels - mean) < 1e-5
        assert abs(np.sqrt(share @ levels**2 - (share @ levels) ** 2) - deviation) < 1e-5
    # Neighbours are alike in a picture. Scrambled by a reshape without a transpose, "neighbours"
    # are three pixels or three rows apart, and so are clearly less alike.
    some = train["x"][:500].astype(np.float64)
    scrambled = some.transpose(0, 3, 1, 2).reshape(500, 32, 32, 3)
    assert min(likeness(some)) > max(likeness(scrambled)) + 0.1


def likeness(images):
    """Correlation of neighbouring pixels, across and down."""
    across = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    down = np.corrcoef(images[:, 1:].ravel(), images[:, :-1].ravel())[0, 1]
    return across, down


@pytest.mark.realdata
def test_real_cifar100_test_images():
    folder = Path(REAL or "/nonexistent").parent / "shared" / "data" / "cifar100"
    if not (folder / "test.npz").is_file():
        pytest.skip("shared/data/cifar100 is not beside FEDJAX_LITE_DATA")
    packed = np.load(folder / "test.npz")
    planes = packed["d"].cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    planes[0] += planes[1]
    planes[2] += planes[1]
    rows = planes.transpose(1, 0, 2, 3).reshape(-1, 3072)
    columns = [packed["coarse"][:, None], packed["fine"][:, None], rows]
    content = np.concatenate(columns, 1).astype(np.uint8).tobytes()
    assert hashlib.sha1(content).hexdigest() == "8fb6623e830365ff53cf14adec797474f5478006"
    parsed = cifar.parse_binary(content, cifar._CIFAR100, "test.bin")
    np.testing.assert_array_equal(parsed["x"], planes.transpose(1, 2, 3, 0))
    assert np.bincount(parsed["y"]).tolist() == [100] * 100
    assert np.bincount(parsed["coarse"]).tolist() == [500] * 20
