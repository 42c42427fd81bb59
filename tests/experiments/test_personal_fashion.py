"""PFLlib's setting: the methods, the deal, and a smoke run on small idx files."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
CHOSEN = ("local only", "FedAvg", "Per-FedAvg")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("personal_fashion")


@pytest.fixture(scope="module")
def finished(script, fashion_folder, tmp_path_factory):
    flags = script.Flags(
        data_dir=fashion_folder,
        smoke=True,
        methods=CHOSEN,
        output_dir=tmp_path_factory.mktemp("out"),
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = script.main(flags)
    return flags, summary, printed.getvalue()


def test_figures_follow_from_the_rows(finished):
    flags, summary, printed = finished
    assert (flags.output_dir / "clients.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((flags.output_dir / "results.json").read_text())
    assert saved["summary"] == summary
    assert [row["method"] for row in summary] == [row["method"] for row in saved["rows"]]
    assert {row["method"] for row in summary} == set(CHOSEN)
    for row, figures in zip(saved["rows"], summary, strict=True):
        accuracy, size = np.array(row["accuracy"]), np.array(row["size"])
        assert row["rounds"] == [0, 2, 4]
        assert figures["best"] == pytest.approx(max(row["curve"]), abs=1e-5)
        assert figures["last"] == pytest.approx((accuracy * size).sum() / size.sum(), abs=1e-4)
        assert figures["mean"] == pytest.approx(accuracy.mean())
        assert figures["worst"] == pytest.approx(accuracy.min())  # a tenth of four
    assert "FedAvg           85.9" in printed


def test_what_is_done_is_kept(script, finished):
    flags, summary, _ = finished
    before = (flags.output_dir / "results.json").read_bytes()
    with contextlib.redirect_stdout(io.StringIO()):
        assert script.main(flags) == summary
        with pytest.raises(FileExistsError, match=r"--num-rounds\)"):
            script.main(script.dataclasses.replace(flags, num_rounds=7))
    assert (flags.output_dir / "results.json").read_bytes() == before


def test_the_published_preset(script, fashion_folder):
    """Its network, and that every method is the one that it says."""
    setting = script.PRESETS["published"]
    images, model = script.load(script.Flags(data_dir=fashion_folder), setting)
    assert len(images["y"]) == 400  # training and test images in one
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 582_026
    train, test = script.deal(images, setting._replace(num_clients=5), 0)
    sizes = np.asarray(train.sizes) + np.asarray(test.sizes)
    assert (sizes.sum(), sizes.min() >= 3) == (400, True)
    made = {
        name: method.algorithm.made
        for name, method in script.methods(model, train, setting).items()
    }
    assert set(made) == {*script.PUBLISHED, script.ALONE}
    names = "local_only fedavg per_fedavg pfedme ditto apfl fedper fedrep fedbabu"
    assert [note.name for note in made.values()] == names.split()
    assert made["Per-FedAvg"].arguments["first_order"]


@pytest.mark.parametrize("flags", [{"alpha": -1.0}, {"methods": ("fedavg",)}])
def test_bad_values_are_named(script, flags, tmp_path):
    (name,) = flags
    with pytest.raises(ValueError, match=f"--{name} must"):
        script.main(script.Flags(smoke=True, output_dir=tmp_path / "out", **flags))
