"""The folder of a run: one writer, and a history that belongs to the state."""

import json
import os
import shutil
import signal
import time

import forked
import jax
import jax.numpy as jnp
import pytest
from toy_algorithm import DATA, raw, score, start, timeless, toy

from fedjax_lite import report
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder_lock import FolderInUse, FolderLock
from fedjax_lite.run.history import read_rows
from fedjax_lite.run.loop import run
from fedjax_lite.types import FederatedAlgorithm

BITS = 24.0
CONFIG = {"alpha": 0.3}


def billed(algo):
    """The algorithm with traffic of 24 bits a round."""

    def one_round(key, state, data, cohort=None):
        state, metrics = algo.round(key, state, data, cohort)
        return state, {**metrics, "uplink_bits": jnp.float32(BITS)}

    return FederatedAlgorithm(algo.init, one_round)


ALGO = billed(toy())
KEY, STATE = start(ALGO)


def go(folder, num_rounds, *, key=KEY, state=STATE, **options):
    options = {"every": 2, "evaluate": score, "progress": False, "config": CONFIG} | options
    return run(ALGO, key, state, DATA, num_rounds=num_rounds, output_dir=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state and the rows of eight rounds that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return go(folder, 8)


@pytest.fixture(scope="module")
def four_rounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four") / "run"
    go(folder, 4)
    return folder


@pytest.fixture
def folder(four_rounds, tmp_path):
    return shutil.copytree(four_rounds, tmp_path / "run")


def is_like(whole, folder, state, rows):
    """The end of a resumed run is that of the uninterrupted one, in memory and on disk."""
    assert raw(state) == raw(whole[0])
    for found in (rows, read_rows(folder / "metrics.jsonl")):
        assert timeless(found) == timeless(whole[1])
        assert [row["round"] for row in found] == list(range(9))
        totals = [row.get("uplink_bits_total", 0.0) for row in found]
        assert totals == [BITS * n for n in range(9)]
        seconds = [row["seconds"] for row in found]
        assert seconds == sorted(seconds)
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(n) for n in range(9)]
    return True


def lines_of(folder):
    return (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)


HARM = {
    "deleted": lambda lines: None,
    "emptied": lambda lines: [],
    "cut": lambda lines: lines[:2],
    "cut within a row": lambda lines: [*lines[:4], lines[4][:9]],
    "first row missing": lambda lines: lines[1:],
    "middle row missing": lambda lines: lines[:2] + lines[3:],
    "twice": lambda lines: [lines[0], lines[1], lines[1], *lines[2:]],
    "reordered": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "garbled": lambda lines: [lines[0], b"\xff\xfe\x00\n", *lines[2:]],
    "another number": lambda lines: [line.replace(b"48.0", b"49.0") for line in lines],
    "a total of a string": lambda lines: [line.replace(b"96.0", b'"96"') for line in lines],
    "a round of a string": lambda lines: [b'{"round": "x"}\n', *lines],
    "null": lambda lines: [b"null\n" for _ in lines],
}


@pytest.mark.parametrize("harm", HARM)
def test_rows_and_totals_come_from_the_checkpoint(harm, folder, whole, capsys):
    lines = HARM[harm](lines_of(folder))
    if lines is None:
        (folder / "metrics.jsonl").unlink()
    else:
        assert b"".join(lines) != b"".join(lines_of(folder))
        (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    (folder / "metrics.csv").write_text("garbage")
    assert is_like(whole, folder, *go(folder, 8, resume=True))
    assert "metrics.jsonl was" in capsys.readouterr().err


def test_rows_behind_the_checkpoint_are_dropped_without_a_word(folder, whole, capsys):
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(lines_of(folder)[-1].replace(b'"round": 4', b'"round": 5') + b'{"rou')
    assert is_like(whole, folder, *go(folder, 8, resume=True))
    assert "metrics.jsonl was" not in capsys.readouterr().err


def harm_step(folder, step):
    path = folder / "checkpoints" / f"{step:08d}" / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b"24.0", b"25.0"))


def test_a_damaged_newest_checkpoint_rewinds_the_history_too(folder, whole, capsys):
    harm_step(folder, 4)
    assert is_like(whole, folder, *go(folder, 8, resume=True))
    said = capsys.readouterr().err
    assert "00000004/history.jsonl" in said
    assert "going back to step 2" in said
    assert "after round 2" in said
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["00000004.damaged", "00000006", "00000008"]
    names = ["00000006", "00000008"]
    for step in (6, 8):
        harm_step(folder, step)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(checkpoint.CheckpointDamaged, match="overwrite=True"):
        go(folder, 10, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def of_an_earlier_version(folder):
    for step in (folder / "checkpoints").iterdir():
        manifest = json.loads((step / "manifest.json").read_text())
        kept = {name: manifest[name] for name in ("step", "num_clients", "tables", "leaves")}
        (step / "manifest.json").write_text(json.dumps(kept))


def test_checkpoints_without_rows_take_them_from_the_file_if_none_is_lacking(folder, whole, capsys):
    of_an_earlier_version(folder)
    rest = shutil.copytree(folder, folder.parent / "cut")
    assert is_like(whole, folder, *go(folder, 8, resume=True))
    assert "without digests" in capsys.readouterr().err
    for harm in ("cut", "twice", "reordered", "middle row missing", "deleted"):
        lines = HARM[harm](lines_of(four := rest)) if harm != "deleted" else []
        kept = (four / "metrics.jsonl").read_bytes()
        (four / "metrics.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(ValueError, match=r"one row for each round up to 4.*Put the file back"):
            go(four, 8, resume=True)
        (four / "metrics.jsonl").write_bytes(kept)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        b"\xff\xfe",
        '{"config": [1], "key": [0, 5], "versions": {}}',
        "{}",
        "",
        "[" * 10**5,
    ],
)
def test_a_damaged_config_is_named_and_can_be_deleted(content, folder, whole):
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config\.json is damaged.*delete it"):
        go(folder, 8, resume=True)
    path.unlink()  # the checkpoint has a copy
    with pytest.raises(ValueError, match=r"alpha: was 0.3, is 0.1"):
        go(folder, 8, resume=True, config={"alpha": 0.1})
    if content == "{":
        assert is_like(whole, folder, *go(folder, 8, resume=True))
        assert json.loads(path.read_text())["config"] == CONFIG


def test_another_key_is_refused_with_and_without_a_config(folder):
    for config in (None, CONFIG):
        with pytest.raises(ValueError, match=r"key: was \[0, 5\], is \[0, 6\]"):
            go(folder, 8, resume=True, key=jax.random.key(6), config=config)
    path = folder / "own"
    go(path, 2, config={"key": "mine"})
    with pytest.raises(ValueError, match="key: was 'mine', is 'other'"):
        go(path, 4, config={"key": "other"}, resume=True)


def test_checkpoints_of_another_run_are_refused(folder, tmp_path):
    go(tmp_path / "other", 4, config=CONFIG | {"alpha": 0.1})
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"alpha: was 0\.1, is 0\.3"):
        go(folder, 8, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("garbled", [False, True])
def test_a_run_that_lost_its_checkpoints_is_not_replaced(garbled, folder, whole):
    shutil.rmtree(folder / "checkpoints")
    path, lines = folder / "metrics.jsonl", lines_of(folder)
    if garbled:
        path.write_bytes(bytes(8) + b"\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"no checkpoint.*put the checkpoints back"):
        go(folder, 8, resume=True)
    assert path.read_bytes() == before
    path.write_bytes(b"".join(lines[:3]))  # as one killed before its first save
    assert is_like(whole, folder, *go(folder, 8, resume=True))


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv", "config.json", "checkpoints"])
def test_a_folder_for_a_file_is_named(name, folder):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_text("") if name == "checkpoints" else path.mkdir()
    for choice in ("resume", "overwrite"):
        with pytest.raises(OSError, match=f"{name} must be a .*move it away"):
            go(folder, 8, **{choice: True})


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (None, TypeError, "got None"),
        ([0.5], TypeError, "got a list"),
        ({"acc": "0.5"}, TypeError, "'0.5' under the name 'acc'"),
        ({"acc": None}, TypeError, "None under the name 'acc'"),
        ({"acc": object()}, TypeError, "under the name 'acc'"),
        ({"acc": 1j}, TypeError, "under the name 'acc'"),
        ({"acc": [1.0, "a"]}, TypeError, "under the name 'acc'"),
        ({3: 0.5}, TypeError, "got the name 3"),
        ({"": 0.5}, ValueError, "got|returned the name ''"),
        ({"=SUM(A1)": 0.5}, ValueError, "formula"),
        ({"two\nlines": 0.5}, ValueError, "printable"),
        ({"round": 0.5}, ValueError, "round"),
        ({"seconds": 0.5}, ValueError, "seconds"),
    ],
)
def test_figures_that_no_file_can_keep_are_refused_before_a_round(result, error, words, tmp_path):
    counter = []
    algo = toy(counter)
    with pytest.raises(error, match=words):
        run(
            algo, KEY, start(algo)[1], DATA, num_rounds=2, evaluate=lambda state: result,
            output_dir=tmp_path, progress=False,
        )  # fmt: skip
    assert not counter


@pytest.mark.parametrize("result", [{"train_loss": 0.5}, {"seconds": 0.5}, {"acc": "high"}])
def test_what_is_refused_before_a_round_costs_no_file(result, folder, tmp_path):
    def held(path):
        return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    before = held(folder)
    with pytest.raises((ValueError, TypeError)):
        go(folder, 8, overwrite=True, evaluate=lambda state: result)
    assert held(folder) == before
    with pytest.raises((ValueError, TypeError)):
        go(tmp_path / "new", 2, evaluate=lambda state: result)
    go(tmp_path / "new", 2)  # needs no overwrite


def test_a_metric_with_a_name_of_the_run_is_refused():
    def one_round(key, state, data, cohort=None):
        return state._replace(round=state.round + 1), {"round": 0.0}

    with pytest.raises(ValueError, match="metric named 'round'"):
        run(FederatedAlgorithm(ALGO.init, one_round), KEY, STATE, DATA, num_rounds=1)


def test_a_run_within_a_run_is_refused_and_nothing_is_mixed(tmp_path, whole):
    def nested(state):
        if int(state.round) == 4:
            for choice in ("resume", "overwrite"):
                with pytest.raises(FolderInUse, match="this very process"):
                    go(tmp_path / "run", 6, **{choice: True}, key=jax.random.key(8))
        return score(state)

    assert is_like(whole, tmp_path / "run", *go(tmp_path / "run", 8, evaluate=nested))
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoints", "config.json", "metrics.csv", "metrics.jsonl"]
    assert report.find_runs([tmp_path]) == [tmp_path / "run"]


def holds(folder):
    """A run that waits to be killed in round 4."""

    def wait(state):
        forked.hold(int(state.round), 4)
        return score(state)

    go(folder, 8, evaluate=wait)


def test_two_processes_and_the_lock_of_a_killed_one(tmp_path, whole):
    folder = tmp_path / "run"
    child = forked.start(holds, folder)
    deadline = time.monotonic() + 120
    while 2 not in checkpoint.steps(folder / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.01)
    before = (folder / "config.json").read_bytes()
    for choice in ("resume", "overwrite"):
        with pytest.raises(FolderInUse, match=rf"process {child.pid} on .*since 20.*output_dir"):
            go(folder, 8, **{choice: True})
    with pytest.raises(FolderInUse):
        go(folder, 8)  # who asks for neither is told the same
    assert (folder / "config.json").read_bytes() == before
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (folder / ".lock").exists()  # what is left of it holds nobody back
    assert is_like(whole, folder, *go(folder, 8, resume=True))
    assert not list(folder.glob(".*"))


def test_what_a_dead_process_said_is_not_passed_on(tmp_path):
    child = forked.start(os.getpid)
    child.join()
    with FolderLock(tmp_path):
        note = tmp_path / ".lock.holder.json"
        live = json.loads(note.read_text())
        assert live["pid"] == os.getpid()
        for text in (json.dumps({**live, "pid": child.pid}), "{", "[]", '{"pid": "x"}'):
            note.write_text(text)
            child_two = forked.start(is_refused_without_a_name, tmp_path)
            child_two.join(timeout=120)
            assert child_two.exitcode == 0, text


def is_refused_without_a_name(folder):
    with pytest.raises(FolderInUse, match="has not said who it is"):
        FolderLock(folder).__enter__()


def test_a_failed_run_leaves_its_folder_free(tmp_path):
    def fails(state):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(tmp_path / "run", 2, evaluate=fails)
    assert not list((tmp_path / "run").glob(".*"))
    go(tmp_path / "run", 2, overwrite=True)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import errno

    import filelock

    def cannot(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", cannot)
    go(tmp_path / "run", 2)
    assert "has no locks" in capsys.readouterr().err


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    go("~/run", 2)
    assert checkpoint.steps("~/run/checkpoints") == [2]
    template = checkpoint.restore("~/run/checkpoints", STATE)
    assert int(template.round) == 2
    assert read_rows("~/run/metrics.jsonl")[-1]["round"] == 2
    assert report.read_run("~/run").num_rounds == 2
    report.save_clients("~/run", {"accuracy": [0.5], "size": [3]}, dataset="digits")
    checkpoint.save("~/other", {"w": jnp.ones(2)}, step=1)
    checkpoint.clear("~/other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["other", "run"]
