"""Activity windows: the authors' text files and the packed archive are read alike."""

import numpy as np
import pytest

from fedjax_lite.data import load
from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.sources.har import SIGNALS

COUNTS = {"train": 3, "test": 2}
RNG = np.random.default_rng(0)
# Multiples of a 4096th, so that both layouts hold the same numbers.
X = {part: RNG.integers(-4096, 4096, (n, 128, 9)) / 4096 for part, n in COUNTS.items()}
Y = {"train": [1, 6, 3], "test": [2, 5]}
SUBJECT = {"train": [1, 1, 30], "test": [2, 2]}


def write_text(folder):
    for part in COUNTS:
        place = folder / part / "Inertial Signals"
        place.mkdir(parents=True)
        for channel, name in enumerate(SIGNALS):
            np.savetxt(place / f"{name}_{part}.txt", X[part][..., channel])
        np.savetxt(folder / part / f"y_{part}.txt", Y[part], fmt="%d")
        np.savetxt(folder / part / f"subject_{part}.txt", SUBJECT[part], fmt="%d")


def packed(**changed):
    whole = np.concatenate([X["train"], X["test"]]).transpose(0, 2, 1) * 4096
    arrays = {
        "d": np.diff(whole, axis=2, prepend=0).astype(np.int16),
        "labels": np.array([*Y["train"], *Y["test"]], np.uint8) - 1,
        "subject": np.array([*SUBJECT["train"], *SUBJECT["test"]], np.uint8),
        "is_test": np.repeat([False, True], list(COUNTS.values())),
    }
    return {name: a for name, a in (arrays | changed).items() if a is not None}


@pytest.mark.parametrize("layout", ["text", "packed"])
def test_both_layouts(tmp_path, layout):
    if layout == "text":
        write_text(tmp_path / "UCI HAR Dataset")
    else:
        (tmp_path / "uci_har").mkdir()
        np.savez_compressed(tmp_path / "uci_har" / "uci_har.npz", **packed())
    found = load("uci_har", data_dir=tmp_path, cache_dir=tmp_path / "cache", download=False)
    for part, arrays in zip(COUNTS, found, strict=True):
        np.testing.assert_allclose(arrays["x"], X[part], atol=1e-7)
        assert (arrays["x"].dtype, arrays["y"].dtype) == (np.float32, np.int32)
        assert arrays["y"].tolist() == [y - 1 for y in Y[part]]
        assert arrays["subject"].tolist() == [i - 1 for i in SUBJECT[part]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("y_train.txt", "1\n2\n", r"as many windows .* found \[2, 3\]"),
        ("y_train.txt", "1\n2\n7\n", "y from 1 to 6, found 1 to 7"),
        ("subject_train.txt", "1\nx\n2\n", "expected numbers"),
        ("Inertial Signals/body_acc_x_train.txt", "1 2 3", "128 a line, found 3 numbers"),
    ],
)
def test_damaged_text_is_named(tmp_path, name, text, message):
    write_text(tmp_path)
    (tmp_path / "train" / name).write_text(text)
    with pytest.raises(DatasetFormatError, match=message):
        load("uci_har", data_dir=tmp_path, cache_dir=tmp_path / "cache", download=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d": np.zeros((5, 9, 64), np.int16)}, r"found int16\[5, 9, 64\]"),
        ({"labels": np.zeros(4, np.uint8)}, "5 of each array"),
        ({"subject": None}, "an archive of the arrays"),
        ({"d": np.array([None])}, "an archive of the arrays"),  # it would have to be unpickled
    ],
)
def test_damaged_archives_are_named(tmp_path, changed, message):
    np.savez(tmp_path / "uci_har.npz", **packed(**changed))
    with pytest.raises(DatasetFormatError, match=message):
        load("uci_har", data_dir=tmp_path, cache_dir=tmp_path / "cache", download=False)


def test_where_it_is_not(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"archive\.ics\.uci\.edu/dataset/240"):
        load("uci_har", data_dir=tmp_path, cache_dir=tmp_path / "cache", download=False)
