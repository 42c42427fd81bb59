"""Shakespeare by role, heart disease by hospital, digits."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.sources import heart, shakespeare
from fedjax_lite.data.sources.load import load, source_of

REAL = os.environ.get("FEDJAX_LITE_DATA")


def real_folder(name):
    """The folder above `name`: FEDJAX_LITE_DATA itself or a shared/data beside it."""
    if not REAL:
        pytest.skip("FEDJAX_LITE_DATA is not set")
    for folder in (Path(REAL), Path(REAL).parent / "shared" / "data"):
        if (folder / name).is_dir():
            return folder
    pytest.skip(f"neither FEDJAX_LITE_DATA nor shared/data beside it holds {name}/")


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


# -- Shakespeare ----------------------------------------------------------------------------

SPEECHES = {
    "ANNA": ["One one.", "Two\ntwo.", "Three", "Four", "Five, the last."],
    "BOB": ["Alas!", "No: more."],
    "Once Only": ["Farewell."],
}


def as_text():
    """The speeches of all roles, one after the other in turns."""
    blocks = []
    for turn in range(5):
        blocks += [f"{who}:\n{said[turn]}" for who, said in SPEECHES.items() if turn < len(said)]
    return "\n\n".join(blocks) + "\n"


def texts(split, role):
    """What a role says in a split, read back from the targets."""
    targets = split["y"][split["role"] == role].ravel()
    return shakespeare.decode(targets[targets >= 0])


@pytest.mark.parametrize(
    "name", ["tinyshakespeare.txt", "tinyshakespeare.txt.gz", "input.txt", "shakespeare.txt"]
)
@pytest.mark.parametrize("place", [".", "shakespeare"])
def test_text_by_role(tmp_path, name, place):
    (tmp_path / place).mkdir(exist_ok=True)
    content = as_text().encode()
    path = tmp_path / place / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    train, test = load("shakespeare", data_dir=tmp_path, download=False, sequence_length=7)
    assert train["x"].dtype == train["y"].dtype == np.int32
    assert train["x"].shape[1] == 7
    # A role with a single speech has nothing to test on, so it is dropped.
    assert set(train["role"]) == set(test["role"]) == {"ANNA", "BOB"}
    assert train["role"].dtype.kind == "U"
    # The last 20 % of the speeches, at least one, are the test; the order is kept.
    assert texts(train, "ANNA") == "One one.\nTwo\ntwo.\nThree\nFour\n"
    assert texts(test, "ANNA") == "Five, the last.\n"
    assert (texts(train, "BOB"), texts(test, "BOB")) == ("Alas!\n", "No: more.\n")


def test_windows_predict_every_character_once():
    said = ["To be, or not to be", "that is: the question"]
    for length in (1, 7, 80):
        x, y = shakespeare.windows(said, length)
        stream_x, stream_y = x.ravel(), y.ravel()
        real = stream_y != shakespeare.IGNORED
        # The inputs are the targets one step earlier, from the mark of the beginning on.
        assert stream_x[0] == shakespeare.BEGIN
        np.testing.assert_array_equal(stream_x[1:][real[1:]], stream_y[:-1][real[1:]])
        assert shakespeare.decode(stream_y[real]) == "".join(f"{s}\n" for s in said)
        assert real.sum() == sum(len(s) + 1 for s in said)
        # Padding stands at the very end only, and never fills a window.
        assert not real[real.sum() :].any()
        assert (y[:, 0] != shakespeare.IGNORED).all()
        assert (stream_x[~real] == shakespeare.PADDING).all()


def test_the_vocabulary_is_fixed():
    assert shakespeare.VOCABULARY_SIZE == 90
    assert list(shakespeare.CHARACTERS) == sorted(set(shakespeare.CHARACTERS))
    ids = shakespeare.encode(shakespeare.CHARACTERS)
    assert ids.tolist() == list(range(4, 90))
    assert shakespeare.decode(ids) == shakespeare.CHARACTERS
    assert shakespeare.encode("a\u00e9\U0001f600~").tolist()[1:] == [shakespeare.UNKNOWN] * 3


def write_roles(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))


def test_roles_by_play_come_before_plain_text(tmp_path):
    (tmp_path / "input.txt").write_text(as_text())
    speeches = [["hamlet", "KING", "a"], ["lear", "KING", "b"]] * 2 + [["lear", "FOOL", "c"]]
    write_roles(tmp_path / "shakespeare" / "shakespeare_roles.json.gz", {"speeches": speeches})
    train, test = load("shakespeare", data_dir=tmp_path, download=False)
    assert train["x"].shape == (2, 80)
    assert train["role"].tolist() == test["role"].tolist() == ["hamlet/KING", "lear/KING"]
    assert texts(test, "lear/KING") == "b\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no roles here\njust text", "belongs to no role"),
        (b"\xff\xfe\x00", "expected UTF-8 text"),
        (b"A:\nonce", "roles with two or more speeches"),
        (b"", "roles with two or more speeches"),
    ],
)
def test_damaged_text_is_named(tmp_path, content, message):
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(DatasetFormatError, match=message) as caught:
        load("shakespeare", data_dir=tmp_path, download=False)
    assert str(tmp_path / "input.txt") in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *({}, {"speeches": [["a", "b"]]}, [1], {"speeches": [["a", "b", 3]]}, 7),
        *({"speeches": [["a", role, "c"]] * 2} for role in (None, "", 3)),
    ],
)
def test_damaged_role_files_are_named(tmp_path, content):
    path = tmp_path / "shakespeare_roles.json.gz"
    write_roles(path, content)
    with pytest.raises(DatasetFormatError, match=r"shakespeare_roles\.json\.gz: expected"):
        load("shakespeare", data_dir=tmp_path, download=False)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetFormatError, match="expected a whole gzip file"):
        load("shakespeare", data_dir=tmp_path, download=False)


def test_sequence_length_is_checked(tmp_path):
    (tmp_path / "input.txt").write_text(as_text())
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got 0"):
        load("shakespeare", data_dir=tmp_path, sequence_length=0)
    with pytest.raises(TypeError, match=r"sequence_length must be an int, got 2\.5"):
        load("shakespeare", data_dir=tmp_path, sequence_length=2.5)


def test_shakespeare_absent_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="shakespeare_roles") as caught:
        load("shakespeare", data_dir=tmp_path)
    assert "FEDJAX_LITE_DATA" in str(caught.value)


@pytest.mark.realdata
def test_real_roles():
    folder = real_folder("shakespeare")
    train, test = load("shakespeare", data_dir=folder, download=False)
    assert len(np.unique(train["role"])) == len(np.unique(test["role"])) == 1_123
    with gzip.open(folder / "shakespeare" / "shakespeare_roles.json.gz", "rt") as file:
        speeches = json.load(file)["speeches"]
    said = {}
    for play, role, text in speeches:
        said.setdefault(f"{play}/{role}", []).append(text)
    characters = sum(len(t) + 1 for texts in said.values() if len(texts) > 1 for t in texts)
    assert (train["y"] >= 0).sum() + (test["y"] >= 0).sum() == characters
    assert not (train["y"] == shakespeare.UNKNOWN).any()


@pytest.mark.realdata
def test_real_tiny_shakespeare(tmp_path):
    original = real_folder("shakespeare") / "shakespeare" / "tinyshakespeare.txt.gz"
    (tmp_path / original.name).write_bytes(original.read_bytes())
    train, test = load("shakespeare", data_dir=tmp_path, download=False)
    assert set(train["role"]) == set(test["role"])
    assert texts(train, "First Citizen").startswith("Before we proceed any further, hear me speak.")
    assert not (train["y"] == shakespeare.UNKNOWN).any()


# -- heart disease --------------------------------------------------------------------------


def heart_row(rng, *, missing="", label=None):
    fields = [
        *(rng.integers(30, 80), rng.integers(0, 2), rng.integers(1, 5), rng.integers(90, 200)),
        *(rng.integers(100, 400), rng.integers(0, 2), rng.integers(0, 3), rng.integers(80, 200)),
        *(rng.integers(0, 2), rng.integers(0, 40) / 10, "?", "?", "?"),
        rng.integers(0, 5) if label is None else label,
    ]
    fields = [missing if k == 3 and missing else value for k, value in enumerate(fields)]
    return ",".join(str(field) for field in fields)


def write_heart(folder, rows=40):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for hospital in heart.HOSPITALS:
        lines = [heart_row(rng) for _ in range(rows)] + [heart_row(rng, missing="?")] * 3
        (folder / f"processed.{hospital}.data").write_text("\n".join(lines) + "\n")


def test_heart_features_are_those_of_the_file(tmp_path):
    path = tmp_path / "processed.va.data"
    path.write_text("63.0,1,4,140,260,0,1,112,1,3.5,2,?,?,2\n44,0,1,130,209,1,0,127,0,0,?,?,?,0\n")
    x, y = heart.read_hospital(path)
    named = [dict(zip(heart.FEATURES, row)) for row in x.tolist()]
    assert named[0] == {
        "age": 63,
        "sex": 1,
        "trestbps": 140,
        "chol": 260,
        "fbs": 0,
        "thalach": 112,
        "exang": 1,
        "oldpeak": 3.5,
        "cp_2": 0,
        "cp_3": 0,
        "cp_4": 1,
        "restecg_1": 1,
        "restecg_2": 0,
    }
    # The first levels, cp 1 and restecg 0, have no column.
    assert not any(named[1][name] for name in heart.FEATURES[8:])
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize("place", [".", "heart_disease"])
def test_heart_split_and_standardisation(tmp_path, place):
    write_heart(tmp_path / place)
    train, test = load("heart_disease", data_dir=tmp_path, download=False)
    # 66 % of the 40 complete rows of each hospital; three more lack a value.
    assert np.bincount(train["hospital"]).tolist() == [26] * 4
    assert np.bincount(test["hospital"]).tolist() == [14] * 4
    for hospital in range(4):
        x = train["x"][train["hospital"] == hospital]
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0, ddof=1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3", "line 2 with 3"),
        ("a" + ",1" * 13, "line 2: could not convert"),
        ("50,1,9,140,260,0,1,112,1,3,2,?,?,2", "cp among .* found 9"),
        ("50,1,1,140,260,0,7,112,1,3,2,?,?,2", "restecg among .* found 7"),
        ("50,1,1,140,260,0,1,112,1,3,2,?,?,5", "num among .* found 5"),
    ],
)
def test_damaged_heart_files_are_named(tmp_path, line, message):
    write_heart(tmp_path)
    path = tmp_path / "processed.hungarian.data"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(DatasetFormatError, match=message) as caught:
        load("heart_disease", data_dir=tmp_path)
    assert str(path) in str(caught.value)
    path.write_text("")
    with pytest.raises(DatasetFormatError, match="found an empty file"):
        load("heart_disease", data_dir=tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetFormatError, match="expected plain text"):
        load("heart_disease", data_dir=tmp_path)
    path.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"without processed\.hungarian\.data"):
        load("heart_disease", data_dir=tmp_path)


@pytest.mark.realdata
def test_real_heart_disease_has_flambys_counts():
    train, test = load("heart_disease", data_dir=real_folder("heart_disease"), download=False)
    assert np.bincount(train["hospital"]).tolist() == [199, 172, 30, 85]
    assert np.bincount(test["hospital"]).tolist() == [104, 89, 16, 45]
    assert train["x"].shape[1] == test["x"].shape[1] == 13
    # One hospital's training rows are all positive (REFERENCES.md, trap 9).
    assert train["y"][train["hospital"] == 2].tolist() == [1] * 30
    assert np.isfinite(train["x"]).all()
    assert np.isfinite(test["x"]).all()


# -- digits ---------------------------------------------------------------------------------


def test_digits():
    train, test = load("digits", download=False)
    assert (train["x"].shape, test["x"].shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (train["x"].dtype, train["y"].dtype) == (np.float32, np.int32)
    assert (train["x"].min(), train["x"].max()) == (0.0, 1.0)
    # Stratified: each class has its share to within one image.
    every = np.bincount(np.concatenate([train["y"], test["y"]]))
    assert np.abs(np.bincount(test["y"]) - every * 360 / 1797).max() <= 1
    # Together they are the whole data set, each image once.
    from sklearn.datasets import load_digits

    ours = np.concatenate([train["x"], test["x"]]).reshape(-1, 64) * 16
    assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(
        map(bytes, load_digits().data.astype(np.uint8))
    )
    assert source_of("digits") == ("digits", "scikit-learn", (), (), {})
