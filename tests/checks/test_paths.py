"""Every path that a user gives: home folders, and what is no path."""

import os
import pathlib

import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.sources.cache import default_cache_dir
from fedjax_lite.data.stores.npy_store import NpyStore


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Other:
    """A path object that is none of pathlib's."""

    def __init__(self, text):
        self.text = text

    def __fspath__(self):
        return self.text


@pytest.mark.parametrize("kind", [str, pathlib.PurePath, Other, np.str_])
def test_a_home_is_expanded_at_the_beginning_only(home, kind):
    assert as_path(kind("~"), "a") == home
    assert as_path(kind("~/b/c"), "a") == home / "b" / "c"
    assert as_path(kind("b/~/c"), "a") == pathlib.Path("b", "~", "c")
    assert as_path(kind("/b"), "a") == pathlib.Path("/b")


def test_the_working_directory_is_named_by_a_dot():
    assert as_path(".", "a") == as_path(pathlib.Path(""), "a") == pathlib.Path(".")


@pytest.mark.parametrize(
    "value", [None, 3, True, 0.5, b"folder", Other(b"folder"), ["a"], np.array(["a"]), pathlib.Path]
)
def test_what_is_no_path_is_named(value):
    with pytest.raises(TypeError, match=r"^place must be a path as a string or pathlib\.Path, got"):
        as_path(value, "place")


@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "~nobody-has-this-name/a"])
def test_what_no_file_can_be_called_is_refused_with_its_name_and_a_remedy(value):
    with pytest.raises(ValueError, match=r"^place must .*got .*; ") as caught:
        as_path(value, "place")
    assert not isinstance(caught.value, UnicodeError)
    assert "\0" not in str(caught.value)


def test_names_of_bytes_that_are_no_text_stay_possible():
    name = os.fsdecode(b"caf\xe9")
    assert os.fsencode(as_path(name, "place")) == b"caf\xe9"


def chunks():
    return iter([(np.array([2, 1]), {"x": np.arange(3.0, dtype=np.float32)})])


@pytest.mark.parametrize("kind", ["npy", "parquet", "records"])
def test_stores_are_written_and_read_at_home(home, tmp_path, monkeypatch, kind):
    if kind != "npy":
        pytest.importorskip({"parquet": "pyarrow", "records": "array_record"}[kind])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    data = fl.data
    write = {
        "npy": data.write_streamed,
        "parquet": data.write_parquet,
        "records": data.write_records,
    }[kind]
    read = {"npy": NpyStore, "parquet": data.ParquetStore, "records": data.RecordStore}[kind]
    assert write("~/population", chunks()) == home / "population"
    assert read("~/population").sizes.tolist() == [2, 1]
    if kind == "parquet":
        assert read(["~/population/part-00000.parquet"]).sizes.tolist() == [2, 1]
    with pytest.raises(FileExistsError):
        write("~/population", chunks())
    write("~/population", chunks(), overwrite=True)
    assert not list(here.iterdir())
    for call in (read, lambda folder: write(folder, chunks())):
        with pytest.raises(ValueError, match=r"^(folder|paths) must name a place"):
            call("")
        with pytest.raises(TypeError, match=r"^(folder|paths) must be a (string or a )?path"):
            call(b"~/population")


def test_rows_of_clients_are_kept_at_home(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fl.data.write_streamed("~/population", chunks())
    data = fl.open_streamed("~/population", state="disk", state_dir="~/rows")
    assert (data.num_clients, data.state_dir) == (2, home / "rows")
    with pytest.raises(ValueError, match=r"^state_dir must name a place"):
        fl.open_streamed("~/population", state="disk", state_dir="")


@pytest.mark.parametrize("name", ["FEDJAX_LITE_CACHE", "XDG_CACHE_HOME"])
def test_caches_are_at_home(home, monkeypatch, name):
    for other in ("FEDJAX_LITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "~/cache")
    below = "" if name == "FEDJAX_LITE_CACHE" else "fedjax_lite"
    assert default_cache_dir() == home / "cache" / below
    assert default_cache_dir("~/other") == home / "other"
    with pytest.raises(ValueError, match=r"^cache_dir must name a place"):
        default_cache_dir("")


@pytest.mark.parametrize("name", ["data_dir", "FEDJAX_LITE_DATA"])
def test_data_are_found_at_home(home, monkeypatch, name):
    monkeypatch.delenv("FEDJAX_LITE_DATA", raising=False)
    folder = home / "data" / "mnist"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = np.array([2051, 1, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(784))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x01\x07")
    given = {}
    if name == "data_dir":
        given["data_dir"] = "~/data"
    else:
        monkeypatch.setenv(name, "~/data")
    train, _ = fl.data.load("mnist", cache_dir="~/cache", **given)
    assert train["y"].tolist() == [7]
    assert (home / "cache" / "parsed").is_dir()
    with pytest.raises(ValueError, match=r"^data_dir must name a place"):
        fl.data.load("mnist", data_dir="")
