"""AFL and q-FFL on three kinds of clothes: rounds by numpy, and a run of seconds on the images."""

import importlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "afl_fashion.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


def clothes(per_kind):
    """Random pixels, sorted by kind."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), per_kind).astype(np.int32)
    marks = np.arange(784) // 262 == y[:, None]  # a third of the pixels is brighter, for each kind
    x = (rng.normal(size=(len(y), 784)) + marks / 2).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def losses_and_gradients(w, b, examples):
    """Mean cross-entropy of each kind and its gradient, in numpy."""
    x, y = (np.asarray(examples[name]) for name in ("x", "y"))
    logits = x.astype(float) @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = p - np.eye(3)[y]
    parts = [np.flatnonzero(y == kind) for kind in range(3)]
    F = np.array([-np.log(p[rows, y[rows]]).mean() for rows in parts])
    return F, [(x[rows].T @ residual[rows] / len(rows), residual[rows].mean(0)) for rows in parts]


def projected(v):
    """The nearest point of the simplex, by its definition as a threshold found by bisection."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


def start(script):
    head = script.model().init(jax.random.key(0))["head"]
    return np.asarray(head["kernel"], float), np.asarray(head["bias"], float)


def test_rounds_on_whole_gradients_are_those_of_numpy(script):
    examples, preset = clothes(4), script.Preset(num_rounds=3, num_steps=1, num_seeds=1)
    flags = script.Flags(learning_rate=0.01, mixture_rate=0.2)
    found = script.whole(examples, flags, preset)
    assert list(found) == ["q-FedSGD 0", "q-FedSGD 15", "AFL"]
    for name, q in (("q-FedSGD 0", 0.0), ("q-FedSGD 15", 15.0)):
        w, b = start(script)
        for _ in range(3):
            F, grads = losses_and_gradients(w, b, examples)
            squares = np.array([(dw**2).sum() + (db**2).sum() for dw, db in grads])
            h = (q * F ** (q - 1) * squares + F**q / 0.01).sum()
            w = w - sum(f**q * dw for f, (dw, _) in zip(F, grads)) / h
            b = b - sum(f**q * db for f, (_, db) in zip(F, grads)) / h
        models, rates = found[name]
        assert rates["q"] == q
        np.testing.assert_allclose(models.last["head"]["kernel"][0], w, atol=1e-5)
        np.testing.assert_allclose(models.last["head"]["bias"][0], b, atol=1e-5)
    (w, b), mixture, each = start(script), np.full(3, 1 / 3), []
    for _ in range(3):
        F, grads = losses_and_gradients(w, b, examples)
        w = w - 0.01 * sum(m * dw for m, (dw, _) in zip(mixture, grads))
        b = b - 0.01 * sum(m * db for m, (_, db) in zip(mixture, grads))
        mixture = projected(mixture + 0.2 * F)
        each.append(w)
    assert np.ptp(mixture) > 0.01  # it has moved
    models, _ = found["AFL"]
    np.testing.assert_allclose(models.last["head"]["kernel"][0], w, atol=1e-5)
    np.testing.assert_allclose(models.mean["head"]["kernel"][0], np.mean(each, 0), atol=1e-5)


def test_rates_are_chosen_by_images_kept_from_training(script):
    examples = clothes(60)
    flags = script.Flags(batch_size=10)
    found = script.batched(examples, flags, script.Preset(1, 30, 2))
    assert list(found) == ["uniform, Adagrad", "AFL, Adagrad"]
    assert found["uniform, Adagrad"][1]["mixture_rate"] == 0
    assert found["AFL, Adagrad"][1]["mixture_rate"] in script.MIXTURE_RATES
    for models, rates in found.values():
        assert rates["learning_rate"] in script.RATES
        accuracy = script.accuracies(models.mean, examples)
        assert min(accuracy["average"]) > 90  # pixels tell these kinds apart
        kinds = np.mean([accuracy[kind] for kind in script.KINDS], 0)
        np.testing.assert_allclose(kinds, accuracy["average"], atol=1e-2)  # of one size


def test_a_batch_is_of_one_kind(script):
    data, kinds = script.batches(clothes(6), 3)
    assert kinds.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.sizes.tolist() == [3] * 6
    with pytest.raises(ValueError, match="--batch-size must divide 1000, got 4"):
        script.batches(clothes(6), 4)


@pytest.mark.slow
@pytest.mark.realdata
def test_a_smoke_run(script, tmp_path):
    folder = os.environ.get("FEDJAX_LITE_DATA")
    flags = script.Flags(smoke=True, output_dir=tmp_path, data_dir=folder and Path(folder))
    try:
        results = script.main(flags)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len(results["rows"]) == 5
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)
