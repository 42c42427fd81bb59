"""The script on models of the clients' own: smoke run, its figures by numpy, going on, refusals."""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
FIRST = ("local-only", "FedAvg", "FedAvg + local")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("personal_models")
        sys.modules.pop("personal_models", None)


def run(script, folder, **options):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        flags = script.Flags(smoke=True, num_rounds=2, output_dir=folder, **options)
        summary = script.main(flags)
    return summary, json.loads((folder / "results.json").read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """Three methods, and then one more beside them."""
    folder = tmp_path_factory.mktemp("personal")
    first = run(script, folder, methods=FIRST)
    return folder, first, run(script, folder, methods=(*FIRST, "FedRep"))


def test_what_it_leaves(finished):
    folder, _, (summary, saved, printed) = finished
    assert {path.name for path in folder.iterdir()} == {"results.json", "curves.png", "clients.png"}
    for picture in ("curves.png", "clients.png"):
        assert (folder / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["method"] for row in summary] == [*FIRST, "FedRep"]
    assert saved["summary"] == json.loads(json.dumps(summary))
    rows = {row["method"]: row for row in saved["rows"]}
    assert rows["FedAvg"]["rounds"] == [0, 2]
    assert rows["FedAvg + local"]["rounds"] == []  # tuned once, at the end
    assert rows["FedAvg + local"]["accuracy"] != rows["FedAvg"]["accuracy"]
    table = printed[printed.index("worst tenth") :].splitlines()[1:]
    assert [line[:15].strip() for line in table] == [*FIRST, "FedRep"]


def test_figures_follow_from_the_clients(finished):
    _, saved, _ = finished[2]
    rows = {row["method"]: row for row in saved["rows"]}
    alone = np.array(rows["local-only"]["accuracy"])
    for figures in saved["summary"]:
        row = rows[figures["method"]]
        accuracy, size = np.array(row["accuracy"]), np.array(row["size"])
        assert len(accuracy) == 6
        assert ((accuracy >= 0) & (accuracy <= 1)).all()
        np.testing.assert_allclose(accuracy * size, np.round(accuracy * size), atol=1e-3)
        assert figures["mean"] == pytest.approx(accuracy.mean())
        assert figures["worst"] == pytest.approx(accuracy.min())  # a tenth of six clients
        assert figures["all_images"] == pytest.approx((accuracy * size).sum() / size.sum())
        assert figures["gain"] == pytest.approx((accuracy - alone).mean(), abs=1e-6)
        assert figures["gain_share"] == (accuracy > alone).mean()
        assert figures["loss_share"] == (accuracy < alone).mean()
        if row["mean"]:
            assert row["mean"][-1] == pytest.approx(accuracy.mean(), abs=1e-4)


def test_a_later_run_keeps_what_is_there(finished):
    _, (_, before, _), (_, after, printed) = finished
    assert after["rows"][:3] == before["rows"]
    assert len(after["rows"]) == 4
    assert "FedRep, seed 0" in printed
    assert "FedAvg, seed 0" not in printed


def test_other_settings_are_refused(script, finished):
    folder = finished[0]
    before = (folder / "results.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"--pull\).*--overwrite"):
        run(script, folder, pull=2.0)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [{"alpha": -1.0}, {"held_out": 1.5}, {"mixing": 2.0}, {"methods": ("fedavg",)}],
)
def test_bad_values_are_named(script, flags, tmp_path):
    (name,) = flags
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must"):
        script.main(script.Flags(smoke=True, output_dir=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


def test_every_method_is_its_own(script):
    """Each name gives the method that it says, with the setting's numbers."""
    setting, loss = script.PRESETS["smoke"], lambda params, examples, key: examples["x"]
    made = {name: script.algorithm(name, loss, setting).made for name in script.METHODS}
    names = ("local_only", "fedavg", "fedavg", "ditto", "apfl", "pfedme", "fedrep", "fedper")
    assert tuple(note.name for note in made.values()) == names
    assert made["Ditto"].arguments["pull"] == setting.pull
    assert made["APFL"].arguments["mixing_rate"] == setting.learning_rate
    assert made["pFedMe"].arguments["pull"] == 15.0
