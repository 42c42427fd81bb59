"""Rotated MNIST: the script's files and numbers, of a run of seconds."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "clusters_mnist.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


def test_a_smoke_run(script, tmp_path):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    try:
        results = script.main(flags)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "clusters.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.allclose(np.sum(results["shares"], axis=1), 1.0)
    assert np.bincount(results["groups"]).tolist() == [2] * 4
    assert set(results["accuracies"]) == {"IFCA", "FedAvg", "local only"}
    assert all(0.05 < value <= 1 for value in results["accuracies"].values())
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(dataclasses.replace(flags))
