"""Choosing clients on MNIST: all methods on a few small images in MNIST's files."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "client_selection.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


def images(count, seed):
    """Images whose class is a bright row."""
    labels = np.arange(count) % 10
    found = np.random.default_rng(seed).integers(0, 60, (count, 28, 28, 1)).astype(np.uint8)
    found[np.arange(count), 2 * labels + 3] += 180
    return {"x": found, "y": labels.astype(np.int32)}


PAIRS = (
    *(("uniform", "optimal"), ("by data", "power of choice")),
    *(("unbiased", "oort"), ("uniform", "active")),
)


@pytest.fixture
def few_images(script, monkeypatch):
    """MNIST is 300 images to train and 100 to test."""
    monkeypatch.setattr(script.fl.data, "load", lambda *_, **__: (images(300, 0), images(100, 1)))


def test_every_method_has_a_round(script, few_images):
    """Traced, not compiled; so many clients as it says are sent to."""
    assert {name for pair in PAIRS for name in pair} == set(script.METHODS)
    flags = script.Flags(num_clients=12, cohort_size=2, candidates=4, batch_size=8)
    data, _, _ = script.load(flags, 0)
    model, key = script.fl.models.mlp((64,), input_shape=(28, 28, 1)), jax.random.key(0)
    for name in script.METHODS:
        algo = script.algorithm(name, model, flags)
        state = jax.eval_shape(lambda algo=algo: algo.init(key, model.init(key), data))
        after, metrics = jax.eval_shape(algo.round, key, state, data)
        assert jax.tree.structure(after) == jax.tree.structure(state), name
        assert after.sampler.times.shape == (12,)
        assert "participation_gini" in metrics


@pytest.mark.sample(1)
@pytest.mark.parametrize("methods", PAIRS, ids=" and ".join)
def test_methods_and_what_is_written(script, few_images, tmp_path, monkeypatch, methods):
    monkeypatch.setattr(script, "METHODS", methods)
    flags = script.Flags(smoke=True, output_dir=tmp_path, num_rounds=3, batch_size=8)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = script.main(flags)
    assert [row["method"] for row in summary] == list(methods)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "client_selection.png"}
    assert (tmp_path / "client_selection.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for row in rows:
        times = np.array(row["times"])
        # A cohort of two in three rounds; optimal sampling sends about so many.
        assert times.sum() == 6 or row["method"] == "optimal"
        assert row["never"] == (times == 0).mean()
        assert len(row["curve"]) == len(row["rounds"])
    assert printed.getvalue().count("\n") == 1 + len(methods)


def test_what_cannot_be_is_named(script):
    with pytest.raises(ValueError, match="candidates must be at least the cohort, got 2"):
        script.main(script.Flags(candidates=2, cohort_size=3))
    with pytest.raises(ValueError, match=r"--target must lie in \(0, 1\), got 1.5"):
        script.main(script.Flags(target=1.5))
