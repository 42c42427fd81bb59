"""split_cifar.py: a smoke run, its arithmetic, and what it refuses."""

import importlib
import json
import math
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "split_cifar.py"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "cifar-10-batches-bin"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    if not FOLDER.is_dir():
        pytest.skip("cifar-10-batches-bin/ is not under FEDJAX_LITE_DATA")
    folder = tmp_path_factory.mktemp("run")
    return folder, script.main(script.Flags(smoke=True, output_dir=folder))


def test_a_smoke_run(script, finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "cuts.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (row,) = results["rows"]
    # SplitFed 1 learns what FedAvg learns, over another wire.
    accuracies = [point["accuracy"] for point in row["curve"]]
    beside = results["fedavg"][: len(accuracies)]  # it goes on, until it has sent as much
    assert accuracies == pytest.approx([point["accuracy"] for point in beside])
    assert results["fedavg"][-1]["megabytes"] >= row["megabytes"]
    assert not math.isnan(row["fedavg_at_equal_bytes"])
    assert 5 < results["psnr_of_the_mean_image"] < 20
    ways = {way["way"]: way for way in results["ways"]}
    assert list(ways) == ["federated", "centralised", "edge"]
    assert ways["centralised"]["client_teraflops"] == ways["edge"]["megabytes"] == 0
    assert ways["federated"]["client_teraflops"] > row["client_teraflops"]
    # 80 images of three bytes a pixel, and their labels.
    assert ways["centralised"]["megabytes"] == pytest.approx(80 * (32 * 32 * 3 + 4) / 1e6)
    assert ways["federated"]["megabytes"] == beside[-1]["megabytes"]
    assert row["megabytes"] != beside[-1]["megabytes"]
    assert 0 < row["client_flops_share"] < 1
    assert 0 <= row["label_auc"] <= 1
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(script.Flags(smoke=True, output_dir=folder))


def test_budgets(script):
    curve = [{"round": r, "accuracy": a, "megabytes": 2.0 * r} for r, a in ((5, 0.3), (10, 0.2))]
    assert script.reached(curve, "megabytes", 10.0) == 0.3
    assert script.reached(curve, "round", 10) == 0.2  # the last, as of the cut network
    assert math.isnan(script.reached(curve, "round", 4.9))


def test_refusals(script):
    with pytest.raises(ValueError, match="--methods must be among"):
        script.check(script.Flags(methods=("fedavg",)))
    with pytest.raises(ValueError, match="--cuts must be 1, 2 or 3"):
        script.check(script.Flags(cuts=(4,)))
