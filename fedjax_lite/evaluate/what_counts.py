"""What can be scored: one place that decides where an accuracy is defined, and how it is found."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.label_words import labels_beyond
from fedjax_lite.checks.labels import Seen, outputs_of, seen_in, watching
from fedjax_lite.data.population.dataset import ClientData, check_examples
from fedjax_lite.models.model import Model
from fedjax_lite.types import PyTree

Kind = Literal["classes", "sign"] | None
"""How hits are found: the largest of several outputs; the sign of one; None: there is no accuracy,
as labels of a floating dtype are no classes."""


class Scoring(NamedTuple):
    """How a model is scored on labels."""

    kind: Kind
    num_outputs: int


def check_model(model: Any) -> None:
    """Raises TypeError where `model` is no `Model`."""
    if not callable(getattr(model, "loss", None)) or not hasattr(model, "predict"):
        raise TypeError(
            f"model must be a Model with loss and predict, got {type(model).__name__}; pass the "
            "model, not model.loss, in the order (model, examples)"
        )


def check_labelled(examples: PyTree) -> int:
    """The number of examples, which must be a dict with labels under "y".

    Raises:
      TypeError, ValueError: if they are not, or are empty or ragged.
    """
    check_has_labels(examples)
    return check_examples(examples)


def check_has_labels(examples: Any) -> None:
    """Raises TypeError where examples are no dict with labels under "y"."""
    if not isinstance(examples, Mapping) or "y" not in examples:
        found = sorted(examples) if isinstance(examples, Mapping) else type(examples).__name__
        remedy = '{"x": images, "y": labels}'
        if isinstance(examples, ClientData):
            remedy = "data.examples, or score each client with evaluate_clients(model, state, data)"
        elif isinstance(examples, Model):
            remedy = "the order is evaluator(model, examples)"
        raise TypeError(f'examples must be a dict with labels under "y", got {found}; {remedy}')


def loss_looking(
    model: Model, params: PyTree, examples: PyTree
) -> contextlib.AbstractContextManager[None]:
    """While a model is scored here, its loss compares labels with its own outputs, at every call.

    Example:
      >>> with loss_looking(Model(len, len, len), {"w": np.ones(2)}, {"y": np.ones(2)}):
      ...     pass
    """
    return watching(outputs_of(model.loss), params, examples, quiet=True)


def has_classes(dtype: Any) -> bool:
    """Whether labels of this type can be classes."""
    return not jnp.issubdtype(dtype, jnp.inexact)


def scoring_of(model: Model, params: PyTree, examples: PyTree, batch_size: int) -> Scoring:
    """How hits are found, from the shapes of labels and outputs.

    Args:
      model: its `predict` is asked for shapes only.
      params: arrays, or their shapes.
      examples: leaves `[E, ...]`, or their shapes.
      batch_size: examples at a time.

    Raises:
      ValueError: if labels and outputs do not belong together, with what does.
    """
    if not has_classes(examples["y"].dtype):
        return Scoring(None, 0)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), dict(examples)
    )
    # A cache of what predict says of shapes: an evaluation after each call of a run asks again.
    arguments, structure = jax.tree.flatten((params, batch))
    shapes = tuple((tuple(jnp.shape(leaf)), jnp.result_type(leaf)) for leaf in arguments)
    outputs = _outputs(model.predict, structure, shapes)
    kind = _decide(batch["y"].shape, outputs)
    return Scoring(kind, 1 if kind == "sign" else outputs[-1])


@functools.lru_cache(maxsize=32)
def _outputs(predict: Any, structure: Any, shapes: tuple[Any, ...]) -> tuple[int, ...]:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params, batch = jax.tree.unflatten(structure, leaves)
    found = jax.eval_shape(predict, params, batch)
    if not hasattr(found, "shape"):
        raise TypeError(
            f"model.predict must return logits, one array, got {type(found).__name__}; return the "
            "logits alone"
        )
    return tuple(found.shape)


def _decide(labels: tuple[int, ...], outputs: tuple[int, ...]) -> Kind:
    if outputs == (*labels, 1) or (outputs == labels and (len(labels) == 1 or labels[-1] == 1)):
        return "sign"
    if outputs[:-1] == labels and len(outputs) == len(labels) + 1:
        return "classes"
    found = f"y {['B', *labels[1:]]} and logits {['B', *outputs[1:]]}".replace("'", "")
    if outputs == labels:
        remedy = (
            "if y is one-hot, give class numbers, y.argmax(-1); several labels of yes and no an "
            "example are scored one by one where predict returns logits[..., None]; labels of a "
            "floating dtype, y.astype(np.float32), have a loss and no accuracy"
        )
    elif labels == (*outputs[:-1], 1):
        remedy = "drop the last axis of the labels, y[..., 0]"
    elif outputs[:-1] == (*labels, 1) or outputs[:-1] == (labels[0], 1, *labels[1:]):
        remedy = "drop the axis of size 1 of the logits"
    else:
        remedy = (
            f"model.predict must return logits {['B', *labels[1:], 'classes']}, or one logit a "
            "label; if y are no classes, give it a floating dtype".replace("'", "")
        )
    raise ValueError(f"labels and outputs do not fit, got {found}: {remedy}")


def check_labels_fit(labels: Any, scoring: Scoring) -> None:
    """Compares labels with what the model can answer: JAX would clamp an index beyond.

    Args:
      labels: `[E, ...]`.
      scoring: see `scoring_of`.

    Raises:
      ValueError: if a label is none of the classes, with the remedy.
    """
    kind, num_outputs = scoring
    seen = seen_in(labels)
    if kind is None or seen is None:
        return
    if kind == "classes" and seen.high >= num_outputs:
        raise ValueError(labels_beyond(labels, num_outputs, seen))
    if kind == "sign" and seen.high > 1:
        raise ValueError(
            "labels must be 0 or 1 where the model has one output, scored by its sign, but "
            f"examples['y'] holds {seen.low}..{seen.high}; {_two(labels)}, give the model "
            f"num_classes={seen.high + 1} outputs, or give labels that are no classes a floating "
            "dtype, y.astype(np.float32): a loss and no accuracy"
        )
    if seen == Seen(-1, 1) and num_outputs <= 2 and not (_values(labels) == 0).any():
        raise ValueError(
            "labels must be 0 and 1, but examples['y'] holds -1 and 1 only, and -1 means that "
            "there is no label; write (y + 1) // 2 where -1 is a class, or leave out the rows "
            "without a label"
        )


def _values(labels: Any) -> np.ndarray:
    return np.asarray(jax.device_get(labels))


def _two(labels: Any) -> str:
    values = np.unique(_values(labels))
    if len(values) == 2:
        return f"write (y == {values[1]}).astype(np.int32)"
    return "number the two classes 0 and 1"
