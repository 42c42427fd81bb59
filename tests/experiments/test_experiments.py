"""The scripts as their users run them: files, flags, notices, resume."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "experiments"


def run_script(name, *flags, **environment):
    command = [sys.executable, str(SCRIPTS / name), *flags]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One short run on digits, by the command line."""
    folder = tmp_path_factory.mktemp("run") / "out"
    flags = ("--dataset", "digits", "--num-rounds", "4", "--every", "2", "--num-clients", "10")
    done = run_script("fedavg_cifar.py", *flags, "--cohort-size", "4", "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, flags, done


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(finished):
    folder, _, done = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "checkpoints",
        "clients.json",
        "clients.png",
        "config.json",
        "curves.png",
        "metrics.csv",
        "metrics.jsonl",
        "partition.png",
    }
    for picture in ("clients.png", "curves.png", "partition.png"):
        assert (folder / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["dataset_used"] == "digits"
    assert config["config"]["alpha"] == 0.5
    assert {"jax", "fedjax_lite", "python"} <= set(config["versions"])
    table = rows(folder)
    assert [row["round"] for row in table] == [0, 1, 2, 3, 4]
    assert set(table[-1]) >= {"train_loss", "test_loss", "test_accuracy", "seconds"}
    assert "train_loss" in table[1]
    assert "test_accuracy" not in table[1]
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) == set().union(*table)
    assert "digits" in done.stdout
    assert "round 4/4" in done.stdout.replace("  ", " ")


def test_nothing_is_overwritten_unasked(finished):
    folder, flags, _ = finished
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    again = run_script("fedavg_cifar.py", *flags, "--cohort-size", "4", "--output-dir", str(folder))
    assert again.returncode != 0
    assert "--overwrite" in again.stderr or "overwrite" in again.stderr
    assert str(folder) in again.stderr
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


@pytest.mark.slow
def test_resumed_run_equals_a_straight_one(finished, tmp_path):
    _, flags, _ = finished
    half = (*flags[:2], "--num-rounds", "2", *flags[4:], "--cohort-size", "4")
    # A schedule depends on the length of the run, so a run that is to be prolonged has none.
    constant = ("--client-schedule", "constant")
    out = ("--output-dir", str(tmp_path / "out"))
    straight = ("--output-dir", str(tmp_path / "straight"))
    full = (*flags, "--cohort-size", "4", *constant)
    assert run_script("fedavg_cifar.py", *half, *constant, *out).returncode == 0
    resumed = run_script("fedavg_cifar.py", *full, *out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert run_script("fedavg_cifar.py", *full, *straight).returncode == 0

    def timeless(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]

    assert timeless(tmp_path / "out") == timeless(tmp_path / "straight")


@pytest.mark.slow
def test_gap_to_centralised(tmp_path):
    folder = tmp_path / "out"
    flags = ("--dataset", "digits", "--smoke", "--centralised", "--output-dir", str(folder))
    done = run_script("fedavg_cifar.py", *flags)
    assert done.returncode == 0, done.stderr
    saved = json.loads((folder / "gap.json").read_text())
    # 500 examples on 10 clients, cohorts of 4, batches of 20: 10 steps over the union.
    assert saved["steps_per_round"] == 10
    mine, pooled = rows(folder)[-1], rows(folder / "centralised")[-1]
    last = saved["gaps"][-1]
    assert last["round"] == 4
    assert last["test_accuracy_gap"] == mine["test_accuracy"] - pooled["test_accuracy"]
    assert "gap of the federated run" in done.stdout


@pytest.mark.slow
def test_missing_cifar_is_said_aloud(tmp_path):
    """auto falls back with the reason; an explicit request fails with the same message."""
    places = {
        "HOME": str(tmp_path),
        "FEDJAX_LITE_DATA": str(tmp_path / "none"),
        "FEDJAX_LITE_CACHE": str(tmp_path / "cache"),
        "TFDS_DATA_DIR": str(tmp_path / "tfds"),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    auto = run_script("fedavg_cifar.py", "--smoke", "--output-dir", str(tmp_path / "out"), **places)
    assert auto.returncode == 0, auto.stderr
    assert "NOTICE" in auto.stdout
    assert "FEDJAX_LITE_DATA" in auto.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert (config["dataset"], config["dataset_used"]) == ("auto", "digits")
    asked = run_script(
        "fedavg_cifar.py",
        "--smoke",
        "--dataset",
        "cifar10",
        "--output-dir",
        str(tmp_path / "other"),
        **places,
    )
    assert asked.returncode != 0
    assert "FEDJAX_LITE_DATA" in asked.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cohort-size", "200"), "cohort_size"),
        (("--learning-rate", "-1"), "learning rate"),
        (("--strategy", "fast"), "--strategy"),
        (("--resume",), "--output-dir"),
        (("--alpha", "0"), "alpha"),
    ],
)
def test_bad_flags_are_named(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("fedavg_cifar")
    tyro = importlib.import_module("tyro")
    arguments = ["--dataset", "digits", "--num-rounds", "2", *flags]
    if "--resume" not in flags:
        arguments += ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        script.main(tyro.cli(script.Flags, args=arguments))
    assert not (tmp_path / "out").exists()


def test_help_explains_the_flags():
    done = run_script("fedavg_cifar.py", "--help", COLUMNS="120")
    assert done.returncode == 0
    for flag in [
        "dataset",
        "data-dir",
        "output-dir",
        "num-rounds",
        "num-clients",
        "alpha",
        "cohort-size",
        "epochs",
        "batch-size",
        "learning-rate",
        "model",
        "strategy",
        "seed",
        "resume",
        "smoke",
        "partition",
        "client-optimizer",
        "server-optimizer",
        "client-schedule",
        "server-schedule",
    ]:
        assert f"--{flag}" in done.stdout, flag


def test_mcmahan_counts_rounds_as_the_paper(monkeypatch):
    """Monotone and interpolated between evaluations."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("mcmahan_mnist")
    curve = np.array([0.0, 0.9, 0.85, 0.95, 0.99])
    # Between the evaluations at rounds 10 (best so far 0.9) and 15 (0.95): 0.93 lies at 60 %.
    assert script.rounds_to(curve, 5, 0.93) == pytest.approx(10 + 5 * 0.6)
    assert script.rounds_to(curve, 5, 0.9) == pytest.approx(5)
    assert math.isinf(script.rounds_to(curve, 5, 0.995))
    assert script.enough(np.array([True, True, False, True, True, True]), 3)
    assert not script.enough(np.array([True, True, False, True, False, True]), 3)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif("FEDJAX_LITE_DATA" not in os.environ, reason="FEDJAX_LITE_DATA is not set")
def test_mcmahan_smoke(tmp_path):
    done = run_script("mcmahan_mnist.py", "--smoke", "--output-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    cell = json.loads((tmp_path / "results.json").read_text())["cells"]["2nn-iid-b10-e1"]
    curve = cell["curves"]["0.1/0"]
    assert len(curve) == 3  # rounds 0, 4, 8
    assert curve[-1] > 0.88  # 48,000 examples seen; chance is 0.1


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif("FEDJAX_LITE_DATA" not in os.environ, reason="FEDJAX_LITE_DATA is not set")
def test_cifar_learns(tmp_path, optimised):
    """12 rounds of the default run on real CIFAR-10: well above chance."""
    done = run_script(
        "fedavg_cifar.py",
        "--dataset",
        "cifar10",
        "--num-rounds",
        "12",
        "--every",
        "12",
        "--output-dir",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out")[-1]["test_accuracy"] > 0.3


@pytest.mark.slow
def test_digits_reach_ninety_percent(tmp_path):
    """The fallback of the default run, cut to 60 rounds."""
    done = run_script(
        "fedavg_cifar.py",
        "--dataset",
        "digits",
        "--num-rounds",
        "60",
        "--every",
        "30",
        "--output-dir",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out")[-1]["test_accuracy"] >= 0.9
