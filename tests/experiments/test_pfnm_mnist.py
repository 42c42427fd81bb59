"""PFNM's first experiment: its optimizer by hand, its counts, and a smoke run."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import fedjax_lite as fl

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "mnist"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="mnist/ is not in FEDJAX_LITE_DATA")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("pfnm_mnist")


def test_amsgrad_by_hand(script):
    """A large gradient and two small ones: the maximum is of the uncorrected second moment."""
    optimizer = script.amsgrad(0.01)
    state = optimizer.init(np.zeros(()))
    m = v = top = 0.0
    for t, gradient in enumerate([10.0, 0.1, -0.2], start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        top = max(top, v)
        root = np.sqrt(top) / np.sqrt(1 - 0.999**t)
        expected = -0.01 * (m / (1 - 0.9**t)) / (root + 1e-8)
        move, state = optimizer.update(np.float32(gradient), state)
        np.testing.assert_allclose(move, expected, rtol=1e-4)


def test_images_of_each_digit_are_counted(script):
    y = np.array([0, 0, 3, 9, 3, 3])
    data = fl.data.from_arrays({"x": np.zeros((6, 2)), "y": y}, [1, 0, 1, 0, 1, 1])
    counts = script.class_counts(data)
    expected = np.zeros((2, 10), int)
    expected[0, [0, 9]], expected[1, 0], expected[1, 3] = 1, 1, 3
    assert counts.tolist() == expected.tolist()


@needs_data
def test_a_smoke_run_and_what_is_there_is_kept(script, tmp_path, capsys):
    flags = script.Flags(smoke=True, num_clients=3, output_dir=tmp_path)
    rows = script.main(flags)
    assert [row["deal"] for row in rows] == ["homo"] * 5 + ["hetero"] * 5
    found = {row["method"]: row for row in rows[:5]}
    assert found["ensemble"]["units"] == 24
    assert 8 <= found["PFNM"]["units"] <= 24
    assert all(0 < row["accuracy"] < 1 for row in rows)
    saved = (tmp_path / "results.json").read_bytes()
    assert json.loads(saved)["rows"] == rows
    assert script.main(flags) == rows
    assert (tmp_path / "results.json").read_bytes() == saved
    assert "hetero  seed 0 PFNM" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="of other settings"):
        script.main(dataclasses.replace(flags, learning_rate=0.02))


def test_refuses(script):
    with pytest.raises(ValueError, match="--deals must be among"):
        script.main(script.Flags(deals=("iid",)))
