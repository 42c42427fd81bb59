"""Models side by side: figures by numpy, from the clients' scores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

SIZES = np.array([4, 0, 3, 5, 2])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(14, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 14)
DATA = fl.data.from_arrays({"x": X, "y": Y}, np.repeat(np.arange(5), SIZES), num_clients=5)
MODEL = fl.models.from_functions(
    lambda key: jax.random.normal(key, (3, 2)), lambda w, x, key: x @ w
)
ONE, OTHER = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("loss", -1)])
def test_figures_by_numpy(metric, sign):
    tune = fl.fine_tuned(MODEL.loss, optax.sgd(0.5), DATA, plan=fl.Plan(batch_size=2))
    models = {"global": ONE, "other": OTHER, "tuned": tune(ONE)}
    found = fl.side_by_side(MODEL, models, DATA, metric=metric, worst=0.5)
    assert list(found) == list(models)
    owns = SIZES > 0
    stacks = {name: jnp.stack([m] * 5) for name, m in (("global", ONE), ("other", OTHER))}
    stacks["tuned"] = tune(ONE).models()
    first = None
    for name, row in found.items():
        scores = fl.evaluate_personal(MODEL, stacks[name], DATA)[metric]
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-5)
        assert np.isnan(row["scores"][1])
        scores = np.asarray(row["scores"])[owns]
        first = scores if first is None else first
        assert row["mean"] == pytest.approx(scores.mean())
        assert row["worst"] == pytest.approx(sign * np.sort(sign * scores)[:2].mean())
        change = sign * (scores - first)
        assert row["gain"] == pytest.approx(change.mean(), abs=1e-12)
        assert row["better"] == (change > 0).mean()
        assert row["worse"] == (change < 0).mean()
    assert found["tuned"]["gain"] > 0 or metric == "accuracy"  # scored on what it was tuned on


def test_wrong_input():
    with pytest.raises(TypeError, match="models must be a dict"):
        fl.side_by_side(MODEL, {}, DATA)
    with pytest.raises(ValueError, match="metric must be"):
        fl.side_by_side(MODEL, {"one": ONE}, DATA, metric="f1")
    with pytest.raises(ValueError, match="worst must lie"):
        fl.side_by_side(MODEL, {"one": ONE}, DATA, worst=0.0)
