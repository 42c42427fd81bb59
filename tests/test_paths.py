"""Every path that a user gives: home folders, and what is no path."""

import os
import pathlib

import numpy as np
import pytest

from fedjax_lite.checks import as_path


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
