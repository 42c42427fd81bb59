"""FedGAN on MNIST: the script's files and numbers, of a run of seconds."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "gan_mnist.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    flags = script.Flags(smoke=True, output_dir=tmp_path_factory.mktemp("gan"))
    try:
        return flags, script.main(flags)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


def test_a_smoke_run(script, finished):
    flags, results = finished
    folder = flags.output_dir
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results["runs"]) == {"both networks"}
    for name, row in results["runs"].items():
        pictures = sorted((folder / name.replace(" ", "_")).iterdir())
        assert pictures[-1].name == "round_00001.png"
        assert pictures[-1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        np.testing.assert_allclose(sum(row["class_shares"]), 1.0)
        assert row["frechet"] > 0 <= row["worst_coverage"] <= row["mean_coverage"] <= 1
    # Real images are nearer to others of their kind than what an untrained generator makes.
    real = results["real images beside others"]
    assert all(real["frechet"] < row["frechet"] for row in results["runs"].values())
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(dataclasses.replace(flags))


def test_classes_are_counted_by_client(script):
    fl = importlib.import_module("fedjax_lite")
    data = fl.data.from_arrays({"y": np.array([3, 3, 0, 9])}, [1, 0, 1, 1])
    expected = np.zeros((2, 10))
    expected[0, 3] = expected[1, 3] = expected[1, 0] = expected[1, 9] = 1
    np.testing.assert_array_equal(script.classes_of(data), expected)
