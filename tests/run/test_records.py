"""History, checkpoints, progress, pictures: what a run leaves behind."""

import json
import math
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_algorithm import raw

from fedjax_lite import report
from fedjax_lite.data.partition.partition import label_counts
from fedjax_lite.data.population.dataset import from_arrays
from fedjax_lite.run import checkpoint
from fedjax_lite.run.files import save_json_atomic, to_python
from fedjax_lite.run.history import History, read_rows, to_csv
from fedjax_lite.run.progress import Progress
from fedjax_lite.run.settings import versions


def test_floats_read_back_bit_for_bit_and_nan_is_strict_json(tmp_path):
    values = np.random.default_rng().normal(size=200).astype(np.float32).tolist()
    history = History(tmp_path)
    history.append([{"round": i, "loss": v} for i, v in enumerate(values)])
    lost = {"loss": math.inf, "epsilon": math.inf}
    history.append([{"round": 200, "loss": math.nan}, {"round": 201, **lost}])
    history.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows[:200]] == values
    assert math.isnan(rows[200]["loss"])
    assert rows[201]["epsilon"] == math.inf  # as without noise; never NaN
    assert (tmp_path / "metrics.csv").read_text() == to_csv(history.rows)


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_rows(path)
    path.write_text('{"round": 1}\n{"round": 2}')  # complete, but its newline is missing
    assert read_rows(path) == [{"round": 1}]


def test_small_floats_widen_exactly():
    assert to_python(jnp.bfloat16(1.5)) == 1.5
    assert to_python(jnp.bool_(True)) is True
    assert type(to_python(jnp.int32(2))) is int


def test_failed_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    save_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        save_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert versions()["numpy"] == np.__version__


def test_tensorboard_files_appear(tmp_path):
    pytest.importorskip("tensorboardX")
    history = History(tmp_path, tensorboard=True)
    history.append([{"round": 1, "train_loss": 0.5}])
    history.close()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


class State(NamedTuple):
    step: Any
    tree: Any
    none: Any


def some_state(seed):
    key = jax.random.key(seed)
    tree = {
        "half": jax.random.normal(key, (3, 2), jnp.bfloat16),
        "a/b": jnp.array([jnp.nan, -0.0, jnp.inf]) * (seed + 1),
        "keys": jax.random.split(key, 4),
        "rbg": jax.random.key(seed, impl="rbg"),
        "empty": jnp.zeros((0, 3)),
        "flags": (jnp.array([True, False]), ()),
    }
    return State(jnp.int32(seed), tree, None)


def test_checkpoint_is_bit_identical_and_keeps_the_newest(tmp_path):
    for step in range(4):
        checkpoint.save(tmp_path, some_state(step), step=step, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 3]
    found = checkpoint.restore(tmp_path, some_state(0))
    assert raw(found) == raw(some_state(3))
    assert jax.tree.structure(found) == jax.tree.structure(some_state(3))
    assert raw(checkpoint.restore(tmp_path, some_state(0), step=2)) == raw(some_state(2))


def test_half_written_steps_are_not_seen_and_are_cleared(tmp_path):
    checkpoint.save(tmp_path, some_state(1), step=1)
    (tmp_path / "00000002.saving").mkdir()
    (tmp_path / "00000000.deleting").mkdir()
    assert raw(checkpoint.restore(tmp_path, some_state(0))) == raw(some_state(1))
    checkpoint.save(tmp_path, some_state(2), step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_mismatch_names_the_leaf(tmp_path):
    checkpoint.save(tmp_path, {"w": jnp.zeros(3), "b": jnp.zeros(2)}, step=1)
    with pytest.raises(ValueError, match=r"w: saved float32\[3\], expected float32\[4\]"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros(4), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"b: saved float32\[2\], expected nothing"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros(3)})
    with pytest.raises(FileNotFoundError):
        checkpoint.restore(tmp_path / "none", {})


def test_progress_prints_few_lines_and_never_crashes(capsys, monkeypatch):
    progress = Progress(1000)
    for i in range(1, 1001):
        progress.update(i, {"train_loss": 1 / i}, evaluated=True)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 50
    assert lines[-1].startswith("round 1000/1000  train_loss 0.0010")
    monkeypatch.setattr(sys, "stdout", None)
    progress.update(1000, {"train_loss": "odd"}, evaluated=True)


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    progress = Progress(10)
    assert progress._bar is not None
    progress.update(10, {"train_loss": 0.5})
    progress.close()
    assert "10/10" in capsys.readouterr().out


def test_label_counts_and_pictures(tmp_path):
    rng = np.random.default_rng(0)
    labels, owner = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    data = from_arrays({"y": labels}, owner, num_clients=6)
    counts = label_counts(data)
    brute = [[((owner == i) & (labels == c)).sum() for c in range(4)] for i in range(6)]
    assert counts.tolist() == np.array(brute).tolist()
    with pytest.raises(ValueError, match="num_classes"):
        label_counts(data, num_classes=3)
    figure = report.plot_partition(counts, dataset="digits", path=tmp_path / "a.png")
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(heights) == 60
    figure = report.plot_partition(np.tile(counts, (20, 1)), dataset="digits")
    assert figure.axes[1].images[0].get_array().shape == (4, 120)
    figure = report.plot_client_accuracies([0.5, np.nan, 1.0], dataset="digits")
    assert "2 clients" in figure.get_suptitle()
    assert "digits" in figure.get_suptitle()
    rows = [{"round": 0, "test_loss": 2.0}, {"round": 1, "train_loss": 1.0, "test_loss": 1.5}]
    figure = report.plot_curves(rows, dataset="digits")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn == {"test": [[0, 2.0], [1, 1.5]], "train": [[1, 1.0]]}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_modules_import_nothing_heavy():
    script = (
        "import sys, fedjax_lite.run.loop, fedjax_lite.evaluate, fedjax_lite.report\n"
        "heavy = {'orbax', 'matplotlib', 'rich', 'tensorflow', 'tensorboardX'}\n"
        "print(sorted(heavy & {m.split('.')[0] for m in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
