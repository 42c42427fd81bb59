"""Where an accuracy is defined it is right, and elsewhere it is absent, NaN or refused."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.evaluate.what_counts import _decide

LOGITS = np.array([2.0, -1.0, 0.5, -3.0], np.float32)  # classes 1, 0, 1, 0
OWNERS = [0, 0, 1, 1]


def one_logit(shape):
    return fl.models.from_functions(
        lambda key: jnp.ones(()),
        lambda w, x, key: (w * x).reshape(shape),
        loss=lambda z, y: optax.sigmoid_binary_cross_entropy(z.reshape(-1), y.reshape(-1)),
    )


def everywhere(model, x, y) -> Any:
    """Accuracies: common, of each client, of each client with models of its own."""
    w = jnp.float32(1.0)
    data = fl.data.from_arrays({"x": x, "y": y}, OWNERS)
    return (
        fl.evaluator(model, {"x": x, "y": y})(w).get("test_accuracy"),
        fl.evaluate_clients(model, w, data).get("accuracy"),
        fl.evaluate_personal(model, jnp.ones(2), data).get("accuracy"),
    )


@pytest.mark.parametrize(
    ("outputs", "y"),
    [
        ((-1,), np.array([1, 1, 0, 0])),
        ((-1, 1), np.array([1, 1, 0, 0])),
        ((-1, 1), np.array([1, 1, 0, 0], np.uint8)),
        ((-1,), np.array([True, True, False, False])),
        ((-1, 1), np.array([[1], [1], [0], [0]])),
        ((-1,), np.array([0, 0, 0, 0])),
    ],
)
def test_one_logit_answers_by_its_sign(outputs, y):
    right = (y.reshape(-1).astype(int) == [1, 0, 1, 0]).reshape(2, 2)
    common, each, own = everywhere(one_logit(outputs), LOGITS, y)
    assert common == right.mean()
    np.testing.assert_array_equal(each, right.mean(1))
    np.testing.assert_array_equal(own, right.mean(1))


def test_labels_that_are_not_there_do_not_count_for_one_logit():
    common, each, own = everywhere(one_logit((-1,)), LOGITS, np.array([0, 0, 0, -1]))
    assert common == 1 / 3  # of 1 and 0 and 1
    np.testing.assert_array_equal(each, [0.5, 0.0])
    np.testing.assert_array_equal(own, each)


def classes(num):
    return fl.models.from_functions(lambda key: jnp.ones(()), lambda w, x, key: w * x[:, :num])


ZEROS = np.zeros((4, 3), np.float32)
SIGN, COLUMN = (one_logit((-1,)), LOGITS), (one_logit((-1, 1)), LOGITS)
TWO, THREE = (classes(2), ZEROS), (classes(3), ZEROS)


@pytest.mark.parametrize(
    ("given", "y", "words"),
    [
        (SIGN, [1, 2, 2, 1], r"0 or 1.*1\.\.2.*write \(y == 2\)"),
        (SIGN, [5, 2, 7, 1], r"0 or 1.*1\.\.7.*num_classes=8.*float32"),
        (COLUMN, [-1, 1, 1, -1], r"\(y \+ 1\) // 2"),
        (TWO, [-1, 1, 1, -1], r"\(y \+ 1\) // 2"),
        (THREE, [1, 2, 3, 1], r"holds 1\.\.3.*y - 1, or give the model num_classes=4"),
        (THREE, [0, 255, 2, 1], r"255 is what segmentation.*np.where\(y == 255, -1"),
        (THREE, np.eye(3, dtype=int)[[0, 1, 2, 0]], r"one-hot.*y.argmax\(-1\)"),
        (THREE, [[0], [1], [2], [0]], r"y\[\.\.\., 0\]"),
        (THREE, [[0, 1], [1, 1], [2, 1], [0, 1]], r"\[B, 2, classes\]"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_all_alike(given, y, words):
    model, x = given
    data = fl.data.from_arrays({"x": x, "y": np.asarray(y)}, OWNERS)
    calls = (
        lambda: fl.evaluator(model, data.examples)(jnp.float32(1)),
        lambda: fl.evaluate_clients(model, jnp.float32(1), data),
        lambda: fl.evaluate_personal(model, jnp.ones(2), data),
    )
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()


def test_a_loss_with_fewer_outputs_than_labels_is_heard_at_every_call():
    """One column is scored by its sign, but a softmax over it knows class 0 alone."""
    model = fl.models.from_functions(lambda key: jnp.ones(()), lambda w, x, key: w * x[:, None])
    score = fl.evaluator(model, {"x": LOGITS, "y": np.array([0, 1, 0, 0])})
    data = fl.data.from_arrays({"x": LOGITS, "y": np.array([0, 1, 0, 0])}, OWNERS)
    for _ in range(2):
        for call in (
            lambda: score(jnp.float32(1)),
            lambda: fl.evaluate_clients(model, jnp.float32(1), data),
            lambda: fl.evaluate_personal(model, jnp.ones(2), data),
        ):
            with pytest.raises(ValueError, match=r"softmax over one output.*num_classes=2"):
                call()


def test_floating_labels_have_a_loss_alone():
    for y in (np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.5, -3.0, 7.0, 1.0])):
        assert everywhere(one_logit((-1,)), LOGITS, y.astype(np.float32)) == (None,) * 3


@pytest.mark.parametrize("given", [(classes(3), ZEROS + 1), SIGN])
def test_a_model_of_nan_has_no_accuracy(given):
    """The largest of NaN is the first class, whose share it would get."""
    model, x = given
    data = fl.data.from_arrays({"x": x, "y": np.zeros(4, int)}, OWNERS)
    bad = jnp.array([1.0, jnp.nan])
    own = fl.evaluate_personal(model, bad, data)["accuracy"]
    assert np.isnan(own).tolist() == [False, True]
    assert np.isnan(fl.evaluate_clients(model, bad[1], data)["accuracy"]).all()
    assert np.isnan(fl.evaluator(model, data.examples)(bad[1])["test_accuracy"])


def test_labels_are_looked_at_at_every_call():
    """An evaluator that was right for one model is not taken to be right for another."""
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])
    model = fl.models.from_functions(lambda key: jnp.zeros((3, 3)), lambda w, x, key: x @ w)
    score = fl.evaluator(model, {"x": x, "y": y})
    score(jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        score(jnp.zeros((3, 2)))
    score(jnp.zeros((3, 3)))


def test_pixels_without_a_label_do_not_count():
    """Segmentation: `[B, H, W]` labels, some of them -1."""
    y = np.array([[[0, -1], [1, 1]], [[-1, -1], [-1, -1]], [[1, 0], [0, 0]], [[0, 0], [0, 1]]])
    logits = np.zeros((4, 2, 2, 2), np.float32)
    logits[..., 1] = [[[1, 1], [1, -1]], [[1] * 2] * 2, [[1, 1], [-1, -1]], [[-1, 1], [1, 1]]]
    model = fl.models.from_functions(lambda key: jnp.ones(()), lambda w, x, key: w * x)
    answers = logits.argmax(-1)
    counted = y >= 0
    common, each, _ = everywhere(model, logits, y)
    assert common == pytest.approx((answers == y)[counted].mean())
    expected = [(answers == y)[s][counted[s]].mean() for s in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(each, expected)


def test_rows_without_a_label_are_in_no_mean():
    """As zeros they would halve the loss; a client that has none has no score."""
    x = np.array([[2.0, 0, 0], [0, 3, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    y = np.array([0, -1, 2, -1])
    model, w = classes(3), jnp.float32(1.0)
    loss = np.log(np.exp(x.astype(np.float64)).sum(1)) - x[np.arange(4), y]
    scores = fl.evaluator(model, {"x": x, "y": y}, batch_size=3)(w)
    assert scores["test_loss"] == pytest.approx((loss[0] + loss[2]) / 2, rel=1e-6)
    assert scores["test_accuracy"] == 1.0
    data = fl.data.from_arrays({"x": x, "y": y}, [0, 1, 0, 0], num_clients=2)
    for each in (
        fl.evaluate_clients(model, w, data),
        fl.evaluate_personal(model, jnp.ones(2), data),
    ):
        np.testing.assert_allclose(each["loss"], [(loss[0] + loss[2]) / 2, np.nan], rtol=1e-6)
        np.testing.assert_array_equal(each["accuracy"], [1.0, np.nan])
        assert each["size"].tolist() == [2, 0]


def test_a_loss_says_which_examples_count():
    """A loss of one's own, whose missing values are 99: they are in no mean and in no share."""
    model = classes(3)._replace(
        loss=fl.models.with_counts(lambda w, e, key: w * e["x"][:, 0], lambda e: e["x"][:, 0] != 99)
    )
    x = np.array([[1.0, 0, 0], [99, 0, 0], [3, 0, 0], [99, 0, 0]], np.float32)
    scores = fl.evaluator(model, {"x": x, "y": np.array([0, 1, 1, 1])})(jnp.float32(1.0))
    assert scores == {"test_loss": 2.0, "test_accuracy": 0.5}


@pytest.mark.parametrize(
    ("labels", "outputs", "kind"),
    [
        ((8,), (8, 3), "classes"),
        ((8, 5), (8, 5, 3), "classes"),
        ((8, 5), (8, 5, 1), "sign"),
        ((8,), (8,), "sign"),
        ((8, 1), (8, 1), "sign"),
    ],
)
def test_shapes_decide(labels, outputs, kind):
    assert _decide(labels, outputs) == kind


@pytest.mark.parametrize("outputs", [(8, 5), (8, 4, 3), (8, 1, 5, 3), (4, 5), ()])
def test_shapes_that_do_not_fit(outputs):
    with pytest.raises(ValueError, match="labels and outputs do not fit"):
        _decide((8, 5), outputs)
