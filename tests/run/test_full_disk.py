"""A disk that is full: an OSError that names the file, and what was saved before is whole."""

import contextlib
import gc
import resource
import shutil
import subprocess

import jax.numpy as jnp
import pytest
from toy_algorithm import DATA, raw, score, start, timeless, toy

from fedjax_lite.run import checkpoint
from fedjax_lite.run.history import read_rows
from fedjax_lite.run.loop import run

ALGO = toy()
KEY, _ = start(ALGO)
STATE = ALGO.init(KEY, jnp.zeros(20_000), DATA)  # 80 kB that do not compress
ROOM = {"rows": 0, "checkpoint": 50_000}
"""Bytes that the disk still takes, by what it is that fails then."""


def go(folder, num_rounds, evaluate=score, **options):
    return run(
        ALGO, KEY, STATE, DATA, num_rounds=num_rounds, every=2, evaluate=evaluate,
        output_dir=folder, progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"), 6)


class Filesystem:
    """A small one of its own, filled by a file."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mount = shutil.which("mount")
        if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
            pytest.skip("mounting a small file system takes root")

    def fill(self, room):
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - room)

    def free(self):
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self):
        subprocess.run(["umount", str(self.folder)], check=True)


class Limit:
    """A limit on the size of this process's files, which fails writes in the same way."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, room):
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 10), self.before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    close = free


@pytest.fixture(params=[Filesystem, Limit])
def disk(request, tmp_path):
    disk = request.param(tmp_path / "disk")
    yield disk
    disk.free()
    disk.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
@pytest.mark.parametrize("what", ROOM)
def test_the_step_before_is_intact_and_the_run_goes_on_from_it(what, disk, whole):
    folder = disk.folder / "run"

    def filling(state):
        if int(state.round) == 4:
            disk.fill(ROOM[what])
        return score(state)

    with pytest.raises(OSError, match=r"No space left|too large") as caught:
        go(folder, 6, filling)
    disk.free()
    gc.collect()  # what Orbax left of its failed writes
    rows = ["metrics.jsonl", "metrics.csv"]  # a file may have room to the end of its block
    names = {"rows": rows, "checkpoint": ["checkpoints/00000004"]}
    assert caught.value.filename in [str(folder / name) for name in names[what]]
    assert any("round 2 is saved: resume=True" in note for note in caught.value.__notes__)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["00000002"]
    assert int(checkpoint.restore(folder / "checkpoints", STATE).round) == 2
    assert not list(folder.glob(".*"))
    state, rows = go(folder, 6, resume=True)
    assert raw(state) == raw(whole[0])
    assert timeless(rows) == timeless(whole[1]) == timeless(read_rows(folder / "metrics.jsonl"))
