"""The cache of parsed arrays under bit flips, foreign files, several writers and killed ones."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
import forked

from fedjax_lite.data.sources import cache
from fedjax_lite.data.sources.cache import cached

VALUES = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "y": np.array([3, 1, 2, 0], np.int32)}


class Parser:
    """Gives arrays that depend on its version, and counts its calls."""

    def __init__(self, folder, version=1):
        self.source, self.folder, self.version, self.calls = folder / "source", folder, version, 0
        if not self.source.exists():
            self.source.write_text("source")

    def __call__(self):
        self.calls += 1
        train = {key: value * self.version for key, value in VALUES.items()}
        return train, {key: value[:2] for key, value in train.items()}

    def read(self):
        arguments = {"cache_dir": self.folder / "c", "name": "a", "files": [self.source]}
        return cached(self, **arguments, version=self.version, options={"T": (1, 2)})

    def check(self):
        """Reads and compares with what is right."""
        for split, rows in zip(self.read(), (4, 2)):
            assert list(split) == ["x", "y"]
            for key, value in VALUES.items():
                np.testing.assert_array_equal(split[key], value[:rows] * self.version)
                assert split[key].dtype == value.dtype


def files_of(folder):
    return sorted(path for path in (folder / "c" / "parsed").rglob("*") if path.is_file())


def test_every_bit_counts(tmp_path, caplog):
    """Bits of all files, each turned by itself: the values are right, and the log says what was."""
    parser, rng = Parser(tmp_path), random.Random(0)
    parser.check()
    names = [path.name for path in files_of(tmp_path)]
    assert len(names) == 5
    (folder,) = (tmp_path / "c" / "parsed").iterdir()
    for name in names:
        for _ in range(60):
            path = folder / name
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.unlink()  # the file may be mapped by an earlier reading
            path.write_bytes(content)
            before = parser.calls
            caplog.clear()
            parser.check()
            assert "rebuilding the damaged cache" in caplog.text
            assert parser.calls == before + 1
    caplog.clear()
    before = parser.calls
    parser.check()
    assert (parser.calls, caplog.text) == (before, "")


def swap(folder):
    """Two arrays of one size and kind, each in the other's place."""
    one, two = folder / "train-0.npy", folder / "train-1.npy"
    shutil.move(one, folder / "t")
    shutil.move(two, one)
    shutil.move(folder / "t", two)


def rewrite(folder, change):
    """A change of the manifest by hand."""
    path = folder / "manifest.json"
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


DAMAGE = {
    "arrays swapped": swap,
    "an array of others": lambda f: np.save(f / "train-0.npy", np.zeros((4, 3), np.float32)),
    "an array of objects": lambda f: np.save(f / "train-0.npy", np.array([{}]), allow_pickle=True),
    "a folder in the place of an array": lambda f: (
        (f / "train-0.npy").unlink(),
        (f / "train-0.npy").mkdir(),
    ),
    "a file in the folder's place": lambda f: (shutil.rmtree(f), f.write_text("mine")),
    "an empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
    "a manifest without digest": lambda f: rewrite(f, lambda s: s.pop("digest")),
    "keys renamed": lambda f: rewrite(f, lambda s: s["arrays"][0].update(key="z")),
    "splits changed": lambda f: rewrite(f, lambda s: s["arrays"][0].update(split="test")),
    "an array forgotten": lambda f: rewrite(f, lambda s: s["arrays"].pop()),
    "a file elsewhere": lambda f: rewrite(f, lambda s: s["arrays"][0].update(file="/dev/zero")),
    "a manifest of deep lists": lambda f: (f / "manifest.json").write_text("[" * 200_000),
    "a manifest too long": lambda f: os.truncate(f / "manifest.json", 2**30),
    "a manifest of one number": lambda f: (f / "manifest.json").write_text("3"),
    "an array cut to nothing": lambda f: os.truncate(f / "test-1.npy", 0),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_of_all_kinds_is_told_and_mended(tmp_path, caplog, damage):
    parser = Parser(tmp_path)
    parser.read()
    (folder,) = (tmp_path / "c" / "parsed").iterdir()
    damage(folder)
    parser.check()
    assert "rebuilding the damaged cache" in caplog.text
    parser.check()
    assert parser.calls == 2


def test_files_of_others_beside_the_arrays_do_not_matter(tmp_path, caplog):
    parser = Parser(tmp_path)
    parser.read()
    (folder,) = (tmp_path / "c" / "parsed").iterdir()
    (folder / ".DS_Store").write_text("there")
    parser.check()
    assert (parser.calls, caplog.text) == (1, "")


def test_a_cache_of_the_version_before_is_made_anew_without_a_word(tmp_path, caplog):
    parser = Parser(tmp_path)
    parser.read()
    (folder,) = (tmp_path / "c" / "parsed").iterdir()
    rewrite(folder, lambda s: (s.pop("digest"), s.update(layout=1)))
    parser.check()
    assert (parser.calls, caplog.text) == (2, "")


def test_arrays_in_another_order_of_memory_come_back(tmp_path):
    parser = Parser(tmp_path)
    values = np.asfortranarray(np.arange(6).reshape(2, 3))
    arguments = {"cache_dir": tmp_path / "c", "name": "a", "files": [parser.source], "version": 1}
    for _ in range(2):
        train, test = cached(lambda: ({"x": values}, {"x": values[0, 0]}), **arguments, options={})
        np.testing.assert_array_equal(train["x"], [[0, 1, 2], [3, 4, 5]])
        assert test["x"].shape == ()


def fill_and_read(folder, version, rounds, together):
    """One of several processes that want the same cache, each another content of it."""
    parser = Parser(folder, version)
    for _ in range(rounds):
        together.wait(60)
        parser.check()
    (folder / f"done-{version}").write_text(str(parser.calls))


def test_several_processes_at_once_each_get_their_own_values(tmp_path):
    """They replace each other's cache all the time: what is read is whole and one's own.

    All begin a round together: between a process's reads of rounds r and r + 2 each other version
    is read once at least, so that half of the reads find another's cache.
    """
    Parser(tmp_path)
    versions, together = (1, 2, 3, 3), forked.CONTEXT.Barrier(4)
    processes = [
        forked.start(fill_and_read, tmp_path, version, 20, together) for version in versions
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert all(int((tmp_path / f"done-{version}").read_text()) >= 10 for version in (1, 2))
    assert len(list((tmp_path / "c" / "parsed").iterdir())) == 1
    assert len(files_of(tmp_path)) == 5


def die_while_writing(folder):
    """Killed with the second array half written and the lock in its hands."""

    def save(file, array, **options):
        file.write(b"\x93NUMPY")
        if (folder / "first").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "first").touch()

    cache.np.save = save
    Parser(folder).read()


def hold_the_lock(folder):
    """Stops for long with the lock in its hands."""

    def save(file, array, **options):
        (folder / "held").touch()
        time.sleep(600)

    cache.np.save = save
    Parser(folder).read()


def test_a_killed_writer_leaves_nothing_that_blocks_or_stays(tmp_path):
    process = forked.start(die_while_writing, tmp_path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "c" / "parsed").iterdir()
    assert left.name.startswith(".a-")
    parser, started = Parser(tmp_path), time.monotonic()
    parser.check()
    parser.check()
    assert parser.calls == 1
    assert time.monotonic() - started < cache._LOCK_SECONDS / 2
    assert len(files_of(tmp_path)) == 5


def test_a_writer_that_never_ends_costs_the_cache_and_not_the_data(tmp_path, monkeypatch):
    process = forked.start(hold_the_lock, tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.2)
        monkeypatch.setattr(cache, "_warned", set())
        with pytest.warns(RuntimeWarning, match=r"another process has been writing it for 0\.2 s"):
            Parser(tmp_path).check()
    finally:
        process.kill()
        process.join()
