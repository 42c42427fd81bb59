"""DP-SGD on MNIST: both ways of training are one step by hand, and the published epsilons."""

import functools
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_lite as fl

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("dp_sgd_mnist")


@pytest.mark.parametrize("source", ["tf-privacy", "opacus"])
def test_a_round_is_a_step_with_clipped_gradients(script, source, monkeypatch):
    """Without noise, where a batch holds all images: x - rate * sum of clipped gradients / B."""
    monkeypatch.setattr(script.Setting, "batch_size", 6)
    setting = script.Setting(source, 0.25, 0.0, 0.8, 1)
    rng = np.random.default_rng(0)
    images = {
        "x": rng.integers(0, 256, (setting.batch_size, 28, 28, 1), "u1"),
        "y": rng.integers(0, 10, setting.batch_size),
    }
    model, key = script.tutorial_cnn(source), jax.random.key(1)
    algo, data, rounds = script.trainable(setting, model, images)
    assert rounds == 1
    params = jax.jit(model.init)(key)
    state, _ = algo.round(key, jax.jit(algo.init)(key, params, data), data)

    def loss(params, x, y):
        return model.loss(params, {"x": x[None], "y": y[None]}, None)[0]

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, *images.values())
    flat = np.concatenate(
        [np.asarray(g, np.float64).reshape(setting.batch_size, -1) for g in jax.tree.leaves(grads)],
        axis=1,
    )
    norms = np.linalg.norm(flat, axis=1)
    assert (norms > 0.8).any()
    total = (flat * np.minimum(1, 0.8 / norms)[:, None]).sum(0)
    moved = [
        (np.asarray(a, np.float64) - b).ravel()
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.server.params), strict=True)
    ]
    expected = 0.25 * total / setting.batch_size
    np.testing.assert_allclose(np.concatenate(moved), expected, rtol=1e-3, atol=1e-6)


def test_published_epsilons_are_the_bound_of_2017(script):
    for name, setting in script.RUNS.items():
        spent = script.budgets(setting, setting.epochs, 60_000)
        if setting.noise_multiplier is None:
            assert spent is None
            continue
        assert spent["epsilon_2017"] == pytest.approx(script.PUBLISHED[name]["epsilon"], abs=0.01)
        assert spent["epsilon"] < spent["epsilon_rdp"] < spent["epsilon_2017"] < spent["shuffled"]


def test_epsilons_are_told_without_training(script, tmp_path, capsys, monkeypatch):
    spent = {"epsilon_2017": 1.19, "epsilon": 0.8}
    asked = []
    monkeypatch.setattr(script, "budgets", lambda *given: asked.append(given) or spent)
    rows = script.main(script.Flags(preset="epsilons", output_dir=tmp_path))
    noisy = [name for name, setting in script.RUNS.items() if setting.noise_multiplier]
    assert [row["run"] for row in rows] == noisy
    assert asked == [(script.RUNS[name], script.RUNS[name].epochs, 60_000) for name in noisy]
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert "tf-privacy 1.3: published 1.19, the same bound 1.190" in capsys.readouterr().out


def test_a_smoke_run_keeps_what_it_has(script, mnist_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "tutorial_cnn", lambda source: fl.models.linear())  # has a test
    monkeypatch.setattr(script, "budgets", functools.cache(script.budgets))  # told four times
    flags = script.Flags(
        runs=("tf-privacy 1.3", "opacus none"), data_dir=mnist_folder, smoke=True,
        output_dir=tmp_path,
    )  # fmt: skip
    rows = script.main(flags)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [row["run"] for row in saved["rows"]] == list(flags.runs)
    assert saved["rows"][0]["epochs_run"] == 1  # of 15: the tables leave it out
    assert saved["rows"][0]["mean"] == saved["runs"][0]["curve"][-1]
    assert saved["rows"][1]["budgets"] is None
    assert "95.00" in capsys.readouterr().out
    before = (tmp_path / "results.json").read_bytes()
    assert script.main(flags) == rows
    assert (tmp_path / "results.json").read_bytes() == before
    with pytest.raises(ValueError, match="--runs must be among"):
        script.main(script.Flags(runs=("opacus 5",), output_dir=tmp_path))
