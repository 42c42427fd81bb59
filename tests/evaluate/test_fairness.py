"""Fairness of a run: how evenly clients fare, and how far groups lie apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.evaluate import group_gaps
from fedjax_lite.models.model import Model

LABELS = np.array([1, 1, 0, 0, 1, 1, 0, 0])
ANSWERS = np.array([1, 0, 1, 0, 1, 1, 1, 0])
GROUP = np.repeat([0, 2], 4)  # group 1 is empty
MODEL = Model(
    lambda key: (),
    lambda params, e, key: jnp.zeros(len(e["y"])),
    lambda params, e: jax.nn.one_hot(e["answer"], 2),
)
EXAMPLES = {"y": LABELS, "answer": ANSWERS, "group": GROUP}
RATES = {
    "positive_rate": fl.metrics.positive_rate(),
    "true_positive_rate": fl.metrics.true_positive_rate(),
    "false_positive_rate": fl.metrics.false_positive_rate(),
    "ece": fl.metrics.expected_calibration_error(5),
}


def test_known_gaps_of_groups():
    """KNOWN_ANSWERS 8: parity .25, opportunity .5, false positives 0; empty groups are NaN."""
    row = fl.evaluator(MODEL, EXAMPLES, metrics=RATES, groups="group")(())
    assert row["test_positive_rate_gap"] == 0.25
    assert row["test_true_positive_rate_gap"] == 0.5
    assert row["test_false_positive_rate_gap"] == 0.0
    assert row["test_equalised_odds_gap"] == 0.5
    assert np.isnan(row["test_positive_rate_group_1"])
    assert row["test_true_positive_rate_group_0"] == 0.5
    sure = 1 / (1 + np.exp(-1.0))  # of every answer; rights are 2 of 4 and 3 of 4
    wanted = abs(abs(0.5 - sure) - abs(0.75 - sure))
    assert row["test_ece_gap"] == pytest.approx(wanted, abs=1e-6)


def test_groups_of_clients_are_compared_the_same():
    data = fl.data.from_arrays(EXAMPLES, np.repeat([0, 1, 2, 3], 2))
    scores = fl.evaluate_clients(MODEL, (), data, metrics=RATES, groups=[0, 0, 2, 2])
    gaps = group_gaps(scores["groups"])
    row = fl.evaluator(MODEL, EXAMPLES, metrics=RATES, groups="group")(())
    assert gaps == {name: row[f"test_{name}_gap"] for name in gaps}


def test_fewer_than_two_groups_have_no_gap():
    gaps = group_gaps({"accuracy": np.array([0.5, np.nan]), "per_class": np.ones((2, 3))})
    assert list(gaps) == ["accuracy"]
    assert np.isnan(gaps["accuracy"])
    rates = {"true_positive_rate": [np.nan, np.nan], "false_positive_rate": [0.5, 0.25]}
    assert np.isnan(group_gaps(rates)["equalised_odds"])
    with pytest.raises(TypeError, match="figures must be a"):
        group_gaps([0.5])  # type: ignore[arg-type]


def test_a_class_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="positive must be one of the model's 2 classes, got 2"):
        fl.evaluator(MODEL, EXAMPLES, metrics={"rate": fl.metrics.positive_rate(2)})(())


def test_every_run_can_tell_how_even_it_is():
    """KNOWN_ANSWERS 8: accuracies 1, .9, ... .1 of ten clients."""
    hits = np.concatenate([np.arange(10) < k for k in range(1, 11)]).astype(int)
    examples = {"y": np.ones(100, int), "answer": hits}
    data = fl.data.from_arrays(examples, np.repeat(np.arange(10), 10))
    row = fl.client_evaluator(MODEL, data, fairness=True)(())
    known = {
        "mean": 0.55, "worst": 0.1, "best": 1.0, "variance": 0.2872281323**2, "gini": 0.3,
        "jain": 0.7857142857, "entropy": 2.1512817207, "kl_uniform": 0.1513033723,
        "angle": np.degrees(np.arccos(0.8864052604)),
    }  # fmt: skip
    for name, value in known.items():
        assert row[f"test_accuracy_{name}"] == pytest.approx(value, abs=1e-8), name
    assert row["test_loss_best"] == 0  # of a loss the smallest
    assert "test_accuracy_gini" not in fl.client_evaluator(MODEL, data)(())
