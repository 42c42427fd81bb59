"""vertical_hospitals.py: a smoke run on the real patients, its check, and what it refuses."""

import importlib
import importlib.util
import json
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "vertical_hospitals.py"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "heart_disease"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    if not FOLDER.is_dir():
        pytest.skip("heart_disease/ is not under FEDJAX_LITE_DATA")
    folder = tmp_path_factory.mktemp("run")
    return folder, script.main(script.Flags(smoke=True, output_dir=folder))


def test_a_smoke_run(script, finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["largest_gap"] < 1e-12  # in double precision
    table = {row["what"]: row for row in results["table"]}
    assert table["all three"]["patients"] == round(0.75 * 740)
    # Two parties send eight bytes a patient in each of ten rounds; practice alone nothing.
    assert table["all three"]["kilobytes"] == pytest.approx(10 * 2 * 8 * 555 / 1e3)
    assert table["practice alone"]["kilobytes"] == 0
    # As many steps by a fifth of the exchanges.
    fifth = table["all three, FedBCD with 5 steps"]["kilobytes"]
    assert fifth == pytest.approx(table["all three"]["kilobytes"] / 5)
    assert table["all three, 30% unmatched"]["patients"] == 555 - round(0.3 * 555)
    assert table["two parties, all columns"]["auc"] == pytest.approx(table["all three"]["auc"])
    for level in ("0.5", "2"):  # noise is as long as what it is added to
        noised = table[f"all three, noise {level} on residuals"]
        assert noised["kilobytes"] == table["all three"]["kilobytes"]
        assert noised["auc"] != table["all three"]["auc"]
    if importlib.util.find_spec("tenseal"):
        protected = results["protected"]
        assert protected["gap"] < 1e-6
        # Two parties' predictors in the clear are the least of it.
        assert protected["kilobytes_up"] > 2 * 740 * 8 / 1e3
    leaks = [leak["auc"] for leak in results["leakage"]]
    assert leaks[0] == 1
    assert leaks[0] > leaks[1] > leaks[2] > 0.5
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(script.Flags(smoke=True, output_dir=folder))


def test_every_column_is_with_one_party(script):
    held = [name for names in script.COLUMNS.values() for name in names]
    assert sorted(held) == sorted(script.FEATURES)
    assert len(set(held)) == len(held)


def test_a_difference_is_an_error(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "one_seed", lambda *_: ([], 1e-3))
    with pytest.raises(AssertionError, match="differs from pooled training by"):
        script.main(script.Flags(smoke=True, output_dir=tmp_path))
