"""evaluator(): a model on a set of examples that all clients share."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks import check_count
from fedjax_lite.evaluate.own_models import one_model
from fedjax_lite.evaluate.programs import score_examples
from fedjax_lite.evaluate.what_counts import (
    check_labelled,
    check_labels_fit,
    check_model,
    has_classes,
    loss_looking,
    scoring_of,
)
from fedjax_lite.models.model import Model
from fedjax_lite.types import Params, PyTree, RoundState


def evaluator(
    model: Model, examples: PyTree, *, name: str = "test", batch_size: int = 1000
) -> Callable[[RoundState | Params], dict[str, float]]:
    """Makes a function that scores a model on fixed examples: mean loss and accuracy.

    Loss is the mean of ``model.loss`` over the examples that count (see
    `fedjax_lite.models.with_counts`). Accuracy is the share of labels ``y >= 0`` that the model
    answers rightly: with several outputs by the largest, with one output a label by its sign
    (positive: class 1). Labels of -1 (padding of sequences, pixels without a label) do not count,
    labels of a floating dtype have no accuracy, and of a model that answers NaN it is NaN. Labels
    and outputs that do not belong together are an error, at every call. Compiled once; the
    examples are an argument of the program and stay in their raw dtype.

    Args:
      model: its `loss` is called with key None, so without dropout.
      examples: dict with ``"y"``, leaves `[E, ...]`; labels `[E]` or `[E, T]`.
      name: prefix of the results. A name whose results a round reports, too, such as "train", is
        refused by `run`; "train_set" is free.
      batch_size: examples at a time.

    Returns:
      ``(state or params) -> {"test_loss": ..., "test_accuracy": ...}``; of a `RoundState` it
      takes ``state.server.params``.

    Raises:
      TypeError, ValueError: if the examples are empty, ragged or without ``"y"``; from the
        function, if labels are beyond the model's outputs, or the state holds no model that all
        clients share (`local_only`, `fedbn`, `local_leaves`: see `evaluate_personal`).

    Example:
      >>> import jax.numpy as jnp
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> score = evaluator(model, {"x": jnp.array([0.0, 2.0]), "y": jnp.array([0, 0])})
      >>> score(jnp.float32(1.0))
      {'test_loss': 1.0, 'test_accuracy': 0.5}
    """
    check_count(batch_size, "batch_size", minimum=1)
    check_model(model)
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, the prefix of the results, got {name!r}")
    num_examples = check_labelled(examples)
    examples = jax.tree.map(jnp.asarray, examples)
    batch_size = min(batch_size, num_examples)

    def evaluate(state: RoundState | Params) -> dict[str, float]:
        params = one_model(state)
        scoring = scoring_of(model, params, examples, batch_size)
        check_labels_fit(examples["y"], scoring)
        with loss_looking(model, params, examples):
            found = score_examples(params, examples, model, scoring.kind, batch_size)
        found = jax.device_get(found)
        loss, counted, hits, labels, unknown = (np.asarray(s, np.float64).sum() for s in found)
        result = {f"{name}_loss": float(loss / counted) if counted else math.nan}
        if scoring.kind is not None:
            known = labels and not unknown
            result[f"{name}_accuracy"] = float(hits / labels) if known else math.nan
        return result

    names = [f"{name}_loss"] + [f"{name}_accuracy"] * has_classes(examples["y"].dtype)
    _scored[evaluate] = name, examples, tuple(names)
    return evaluate


_scored: weakref.WeakKeyDictionary[Any, tuple[str, PyTree, tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)
"""What an evaluation scores, so that `run` can tell a wrong split."""


def scored_by(evaluate: Any) -> tuple[str, PyTree] | None:
    """Name and examples of a function that `evaluator` made; None of any other.

    Example:
      >>> scored_by(None) is None
      True
    """
    known = _known(evaluate)
    return None if known is None else known[:2]


def results_of(evaluate: Any) -> tuple[str, ...]:
    """Names of what a function that `evaluator` made returns; none of any other.

    Example:
      >>> results_of(None)
      ()
    """
    known = _known(evaluate)
    return () if known is None else known[2]


def _known(evaluate: Any) -> tuple[str, PyTree, tuple[str, ...]] | None:
    try:
        return _scored.get(evaluate)
    except TypeError:  # a callable that cannot be referred to weakly is not one of ours
        return None
