"""evaluator(): a model on a set of examples that all clients share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.evaluate.columns import columns_of, group_columns
from fedjax_lite.evaluate.groups import Groups, groups_of
from fedjax_lite.evaluate.known import Scored, note
from fedjax_lite.evaluate.metric_shapes import metric_shapes
from fedjax_lite.evaluate.over_cores import on_cores, over_cores
from fedjax_lite.evaluate.programs import score_examples
from fedjax_lite.evaluate.totals import Examples, Part, figures_of
from fedjax_lite.evaluate.what_counts import (
    check_labelled,
    check_labels_fit,
    check_model,
    has_classes,
    loss_looking,
    scoring_of,
)
from fedjax_lite.metrics.metric import HostMetric, Metric, named
from fedjax_lite.models.model import Model
from fedjax_lite.round.own_models import one_model
from fedjax_lite.types import Params, PyTree, RoundState


def evaluator(
    model: Model,
    examples: PyTree,
    *,
    name: str = "test",
    metrics: Mapping[str, Metric | HostMetric] | None = None,
    groups: Any = None,
    batch_size: int = 1000,
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
      metrics: what else to measure, ``{"f1": fl.metrics.f1(10)}``; see `fedjax_lite.metrics`.
      groups: examples to report apart: integers `[E]`, the group of each (-1: none), or the key of
        such an array among the examples.
      batch_size: examples at a time.

    Returns:
      ``(state or params) -> {"test_loss": ..., "test_accuracy": ..., "test_f1": ...}``, of a
      metric of `K` numbers ``test_f1_0`` ..., of groups ``test_loss_group_0`` ... and
      ``test_loss_gap`` (`group_gaps`); of a
      `RoundState` it takes ``state.server.params``. To score each client's own held-out data see
      `client_evaluator`.

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
    asked, apart = named(metrics), groups_of(groups, examples, num_examples, "example")
    examples = jax.tree.map(jnp.asarray, examples)
    batch_size = min(batch_size, num_examples)
    members, units = None, ()
    if asked:  # sums of each batch apart: the host adds them in float64
        units = (np.arange(num_examples, dtype=np.int32) // batch_size,)
    num_units = (-(-num_examples // batch_size),) * len(units)
    if apart is not None:
        members = apart.of_rows(examples) if apart.numbers is None else apart.numbers
        if asked:
            units = (*units, members.astype(np.int32))
            num_units = (*num_units, int(members.max()) + 1)
    units = tuple(map(jnp.asarray, units))
    placed, mesh = over_cores(examples, num_examples, batch_size)
    classes = has_classes(examples["y"].dtype)

    def evaluate(state: RoundState | Params) -> dict[str, float]:
        params = one_model(state)
        scoring = scoring_of(model, params, examples, batch_size)
        check_labels_fit(examples["y"], scoring)
        shapes = metric_shapes(model.predict, params, examples, batch_size, asked)
        with loss_looking(model, params, examples):
            scores, kept, sums = jax.device_get(
                score_examples(
                    on_cores(params, mesh),
                    placed,
                    None,
                    units,
                    num_units,
                    model,
                    scoring.kind,
                    batch_size,
                    asked,
                    mesh,
                )
            )
        part = Part(
            np.zeros(1, np.int64),
            np.stack([np.asarray(s, np.float64).sum(keepdims=True) for s in scores]),
            jax.tree.map(_summed, sums[0]) if sums else {},
            Examples(np.zeros(num_examples, np.int64), members, scores, kept),
            sums[1] if len(sums) > 1 else {},
        )
        told = None if members is None else Groups(None, "")
        _, total, by_group = figures_of([part], shapes, asked, told, classes)
        found = columns_of(name, {figure: values[0] for figure, values in total.items()})
        return found if by_group is None else found | group_columns(name, by_group)

    names = [f"{name}_loss"] + [f"{name}_accuracy"] * classes
    note(evaluate, Scored(name, examples, None, tuple(names)))
    return evaluate


def _summed(leaf: np.ndarray) -> np.ndarray:
    """Over batches, wide enough."""
    wide = np.float64 if np.issubdtype(leaf.dtype, np.floating) else np.int64
    return leaf.sum(0, dtype=wide, keepdims=True)
