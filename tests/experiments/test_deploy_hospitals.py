"""deploy_hospitals.py: five processes on the real patients, beside the simulation."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.sources.heart import HOSPITALS, one_hospital

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "deploy_hospitals.py"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "heart_disease"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def patients():
    if not FOLDER.is_dir():
        pytest.skip("heart_disease/ is not under FEDJAX_LITE_DATA")
    return FOLDER


def test_a_smoke_run(script, patients, tmp_path, capsys):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["largest_gap"] <= script.TOLERANCE
    assert results["accuracy"]["machines"] == results["accuracy"]["simulation"]
    assert 0.9 < results["epsilon"] <= 1
    assert [row["num_clients"] for row in results["rows"]] == [4, 4]
    assert all("train_loss" not in row for row in results["rows"])
    # Four masked vectors a round of 14 coordinates, a weight and four slots at least.
    assert results["bytes_up"] > 2 * 4 * 4 * (14 + 1 + 4)
    assert "epsilon of patients: 1 " in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)


def test_a_smoke_run_whose_server_adds_the_noise(script, patients, tmp_path, capsys):
    """Two rounds that spend the budget; the model is the simulation's, noise included."""
    kind = {"hidden": "hospitals", "noise": "server", "epsilon": 20.0}
    results = script.main(script.Flags(smoke=True, output_dir=tmp_path, **kind))
    assert results["largest_gap"] <= script.TOLERANCE
    assert 19.9 < results["epsilon"] <= 20
    z, rows = results["settings"]["noise_multiplier"], results["rows"]
    for done, row in enumerate(rows, 1):  # exactly Gaussian: mu = sqrt(T) / z
        expected = fl.privacy.gdp_epsilon(1e-3, np.sqrt(done) / z)
        assert row["epsilon"] == pytest.approx(expected, rel=1e-4)
    assert "known to the server only" in capsys.readouterr().out
    with pytest.raises(ValueError, match="noise must be 'machines' where patients hide"):
        script.main(script.Flags(noise="server", output_dir=tmp_path / "other"))


def test_a_hospitals_own_file_is_its_part_of_the_whole(patients):
    train, test = fl.data.load("heart_disease", data_dir=patients.parent)
    for i, hospital in enumerate(HOSPITALS):
        own = one_hospital(patients / f"processed.{hospital}.data")
        for part, whole in zip(own, (train, test), strict=True):
            mine = whole["hospital"] == i
            for name, leaf in part.items():
                np.testing.assert_array_equal(leaf, whole[name][mine])
    with pytest.raises(DatasetFormatError, match=r"processed\.va\.data"):
        one_hospital(patients / "other.data")


def test_a_difference_is_an_error(script, patients, monkeypatch, tmp_path):
    flags = script.Flags(smoke=True, hidden="nobody", output_dir=tmp_path)
    here = {"params": {"w": np.zeros(13), "b": np.float32(0)}, "rows": [EMPTY]}
    there = {"params": {"w": np.full(13, 1e-4), "b": np.float32(0)}}
    monkeypatch.setattr(script, "on_machines", lambda *_: here)
    monkeypatch.setattr(script, "in_simulation", lambda *_: there)
    with pytest.raises(AssertionError, match=r"differ by 1\.0e-04"):
        script.main(flags)
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        script.main(script.Flags(epsilon=0.0, output_dir=tmp_path))


EMPTY = {"bytes_down": 1, "bytes_up": 1}
