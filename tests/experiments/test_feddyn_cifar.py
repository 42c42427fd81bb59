"""The FedDyn script: smoke run, files, table, rounds to a target, compilations."""

import contextlib
import importlib
import io
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_lite.run import rounds

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("feddyn_cifar")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The smoke preset on two splits, in this process: folder, printout, compiled runs."""
    folder, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    before = rounds.many_rounds._cache_size()
    with contextlib.redirect_stdout(printed):
        script.main(script.Flags(preset="smoke", output_dir=folder, splits=("iid", "0.3")))
    return folder, printed.getvalue(), rounds.many_rounds._cache_size() - before


def test_table_and_files_have_every_method(finished):
    folder, printed, _ = finished
    table = printed[printed.index("split method") :].splitlines()[1:]
    wanted = [
        [split, method]
        for split in ("iid", "0.3")
        for method in ("fedavg", "fedprox", "scaffold", "feddyn")
    ]
    assert [line.split()[:2] for line in table] == wanted
    assert all("> 6" in line for line in table)  # nobody gets to 99.9 % in six rounds
    assert {path.name for path in folder.iterdir()} == {"results.json", "curves.png"}
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((folder / "results.json").read_text())
    assert saved["comparable"] is False
    assert [[row["split"], row["method"]] for row in saved["rows"]] == wanted


def test_rounds_follow_from_the_curves(finished):
    rows = json.loads((finished[0] / "results.json").read_text())["rows"]
    for row in rows:
        accuracy = np.array(row["curve"]["test_accuracy"])
        assert row["curve"]["round"] == list(range(7))
        above = np.flatnonzero(accuracy >= 0.3)
        assert row["rounds_to"] == {"0.3": int(above[0]) if len(above) else None, "0.999": None}
        assert row["final"] == accuracy[-1]
        assert row["best"] == accuracy.max()
    dyn = [row["curve"] for row in rows if row["method"] == "feddyn"]
    assert all(curve["broadcast_accuracy"] != curve["test_accuracy"] for curve in dyn)
    assert rows[3]["final"] > 0.3  # IID; chance is 0.1


def test_each_method_is_compiled_once(finished):
    """Two splits, four programs."""
    assert finished[2] == 4


def test_an_earlier_run_is_not_replaced(script, finished):
    folder = finished[0]
    before = (folder / "results.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite") as refused:
        script.main(script.Flags(preset="smoke", output_dir=folder))
    assert str(folder) in str(refused.value)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"splits": ("even",)}, "--splits"), ({"cohort_size": 11}, "--cohort-size")],
)
def test_bad_values_are_named(script, flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        script.main(script.Flags(preset="smoke", output_dir=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


def test_first_round_at_the_target_counts(script):
    rows = [{"round": r, "test_accuracy": a} for r, a in ((0, 0.1), (2, 0.5), (4, 0.4), (6, 0.8))]
    assert script.rounds_to(rows, 0.5) == 2
    assert script.rounds_to(rows, 0.51) == 6
    assert script.rounds_to(rows, 0.9) is None


def test_paper_preset_is_the_published_setting(script):
    setting = script.PRESETS["paper"]
    assert (setting.num_clients, setting.cohort_size, setting.batch_size) == (100, 100, 50)
    assert (setting.epochs, setting.targets) == (5, (0.814, 0.85))
    shapes = jax.eval_shape(script.build_model("paper", (32, 32, 3)).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 797_962


def test_published_stand_in_the_iid_rows_only(script):
    setting = script.PRESETS["paper"]
    row = {"rounds_to": {"0.814": 70, "0.85": None}, "final": 0.84, "best": 0.845}
    rows = [row | {"split": split, "method": "feddyn"} for split in ("iid", "0.3")]
    first, second = script.table(rows, setting, comparable=True).splitlines()[-2:]
    assert first.split()[:5] == ["iid", "feddyn", "70", ">", "1000"]
    assert first.endswith("67 (64, 65), 198 (185, 195)")
    assert second.endswith(" -")
    assert "do not compare" in script.table(rows, setting, comparable=False)


@pytest.mark.sample(1, of="a script on the images of CIFAR")
@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif("FEDJAX_LITE_DATA" not in os.environ, reason="FEDJAX_LITE_DATA is not set")
def test_lenet_path_on_cifar(script, tmp_path, monkeypatch):
    small = script.PRESETS["short"]._replace(test_size=100, num_clients=20)
    monkeypatch.setitem(script.PRESETS, "short", small)
    flags = script.Flags(
        output_dir=tmp_path, splits=("0.6",), train_size=200, cohort_size=2, num_rounds=2
    )
    rows = script.main(flags)
    assert [row["method"] for row in rows] == list(script.METHODS)
    assert all(row["curve"]["round"] == [0, 2] for row in rows)
