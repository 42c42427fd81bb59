"""heart_disease.py: FLamby's bars on real patients, its files, and what it refuses."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedjax_lite.data.sources.heart import read_hospital

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "heart_disease"
needs_data = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="heart_disease/ is not under FEDJAX_LITE_DATA"
)


@pytest.fixture(scope="module")
def heart():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("heart_disease")


@pytest.mark.realdata
@needs_data
def test_bars_hold_on_the_patients(heart, tmp_path, capsys):
    flags = heart.Flags(
        methods=("pooled", "fedavg 0.01", "fedadagrad"), num_seeds=3, output_dir=tmp_path
    )
    rows = {row["method"]: row for row in heart.main(flags)}
    printed = capsys.readouterr().out
    assert printed.count("PASS") == 3
    assert "FAIL" not in printed
    # An independent rerun in numpy: .715 +- .001, .726 +- .005 and .733 +- .015 over ten seeds.
    assert abs(rows["pooled"]["mean"] - 0.715) < 0.01
    assert abs(rows["fedavg 0.01"]["mean"] - 0.726) < 0.02
    assert abs(rows["fedadagrad"]["mean"] - 0.733) < 0.03
    record = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in record["rows"]] == list(rows)
    assert len(record["rows"][-1]["curve"]) == 15
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with pytest.raises(FileExistsError, match="--overwrite"):
        heart.main(flags)


@pytest.mark.realdata
@needs_data
def test_rows_together_are_the_loader_s_rows_otherwise_standardised(heart):
    together = importlib.import_module("heart_disease_together")
    x, y, hospital = together.raw_training_rows(None)
    data = heart.load(None).data
    for place in range(4):
        mine = hospital == place
        mean, deviation = x[mine].mean(0), x[mine].std(0, ddof=1)
        scaled = (x[mine] - mean) / np.where(deviation > 0, deviation, 1)
        client = data.client(place)
        np.testing.assert_allclose(client["x"], scaled, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(client["y"], y[mine])
    whole = together.together(None)
    assert (whole.num_clients, int(whole.max_client_size)) == (1, 486)
    rows = np.asarray(whole.client(0)["x"], np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(0, ddof=1), 1, atol=1e-5)


def test_rows_together_want_the_files(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        together = importlib.import_module("heart_disease_together")
    with pytest.raises(FileNotFoundError, match="--data-dir must hold heart_disease"):
        together.raw_training_rows(tmp_path)


@pytest.mark.realdata
@needs_data
def test_the_majority_answers_as_counted_by_hand(heart):
    problem = heart.load(None)
    hospital, truth = (np.asarray(problem.test[name]) for name in ("hospital", "y"))
    offsets, y = np.asarray(problem.data.offsets), np.asarray(problem.data.examples["y"])
    shares = []
    for i in range(4):
        ill = y[offsets[i] : offsets[i + 1]]
        answer = int(2 * ill.sum() > len(ill))
        shares.append(np.mean(truth[hospital == i] == answer))
    np.testing.assert_allclose(heart.majority(problem)[:4], shares, rtol=1e-6)
    # Switzerland: 30 rows to train on, all ill (FLamby's split).
    assert y[offsets[2] : offsets[3]].tolist() == [1] * 30
    assert len(read_hospital(FOLDER / "processed.switzerland.data")[1]) == 46


def test_accuracies_are_of_each_hospital_and_of_all(heart):
    right = np.array([True, False, True, True, False, True])
    hospital = np.array([0, 0, 1, 2, 2, 3])
    expected = [0.5, 1.0, 0.5, 1.0, 4 / 6]
    np.testing.assert_allclose(heart.accuracies(right, hospital), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"methods": ("fedavg",)}, "--methods must be among"), ({"steps": 0}, "--steps")],
)
def test_refuses(heart, tmp_path, changes, match):
    flags = dataclasses.replace(heart.Flags(output_dir=tmp_path), **changes)
    with pytest.raises(ValueError, match=match):
        heart.main(flags)
