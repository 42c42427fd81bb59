"""A folder that appears whole or not at all, also where others write to the same name."""

import functools
import os

import pytest

from fedjax_lite.data.stores import new_folder as module
from fedjax_lite.data.stores.new_folder import new_folder


def write(folder, text, *, overwrite=False, meanwhile=lambda: None):
    with new_folder(folder, overwrite=overwrite, made_of=["*.txt"]) as inside:
        (inside / "a.txt").write_text(text)
        meanwhile()


def content(tmp_path):
    """Everything that is there, hidden folders too."""
    return {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.txt")}


def test_what_another_process_made_meanwhile_stays(tmp_path):
    for make in (
        lambda: write(tmp_path / "data", "theirs"),
        lambda: (tmp_path / "data").mkdir(),
    ):
        with pytest.raises(FileExistsError, match="another process"):
            write(tmp_path / "data", "mine", meanwhile=make)
        assert content(tmp_path) in ({"data/a.txt": "theirs"}, {})
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        for path in (tmp_path / "data").iterdir():
            path.unlink()
        (tmp_path / "data").rmdir()


def test_overwriting_what_another_process_took_away(tmp_path):
    write(tmp_path / "data", "old")
    move = functools.partial(os.replace, tmp_path / "data", tmp_path / "moved")
    write(tmp_path / "data", "new", overwrite=True, meanwhile=move)
    assert content(tmp_path) == {"data/a.txt": "new", "moved/a.txt": "old"}


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    write(tmp_path / "data", "old")
    replace = os.replace

    def full(source, target):
        if ".writing-" in str(source):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "data", "new", overwrite=True)
    assert content(tmp_path) == {"data/a.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
