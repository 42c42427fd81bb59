"""A loss in words: its criterion, its model, and the size of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fedjax_lite.checks.made import Made, maker_of
from fedjax_lite.describe.notes import called, is_ours
from fedjax_lite.describe.numbers import function_words
from fedjax_lite.models.batch_norm import statistics_mask
from fedjax_lite.models.model import Model


def loss_words(loss: Callable[..., Any]) -> str:
    """Whose loss is minimised.

    Example:
      >>> import fedjax_lite as fl
      >>> loss_words(fl.models.mlp((4,), num_classes=3, input_shape=(2,)).loss)
      'cross_entropy of mlp (27 parameters)'
    """
    note = maker_of(loss)
    if note is None or "loss" not in note.fields:
        return function_words(loss)
    around = []
    while isinstance(inner := note.arguments.get("model"), Model):
        around.append(note.name)
        if inner.made is None:
            return f"{function_words(inner.loss)}, {', '.join(around)}"
        note = inner.made
    name = note.name if is_ours(note.module) else f"your own `{note.name}` ({note.module})"
    if flax := _flax_class(note):
        name = f"{flax} ({name})"
    count = num_parameters(note)
    size = f" ({count:,} parameters)" if count else ""
    return ", ".join([f"{_criterion(note)}{name}{size}", *reversed(around)])


def num_parameters(note: Made) -> int | None:
    """How many numbers a model trains; None where that is not known.

    Args:
      note: of the model's factory.

    Example:
      >>> import fedjax_lite as fl
      >>> num_parameters(fl.models.linear(3, (4,)).made)
      15
    """
    try:
        shapes = jax.eval_shape(lambda: note.fields["init"](jax.random.key(0)))
    except Exception:  # whatever a user's network raises: its size is left out
        return None
    trained = zip(jax.tree.leaves(shapes), jax.tree.leaves(statistics_mask(shapes)), strict=True)
    return sum(leaf.size for leaf, is_statistic in trained if not is_statistic)


def _criterion(note: Made) -> str:
    """What is minimised of the model's outputs: an argument of the factory, or of one inside it."""
    while note is not None:
        if callable(loss := note.arguments.get("loss")):
            name, module = called(loss)
            return f"{name if is_ours(module) else function_words(loss)} of "
        note = note.before  # type: ignore[assignment]
    return ""


def _flax_class(note: Made) -> str:
    """The class of a flax module; "" where there is none."""
    if note.name == "from_linen":
        return type(note.arguments["module"]).__name__
    if note.name != "from_nnx":
        return ""
    from flax import nnx

    try:
        module = nnx.eval_shape(lambda: note.arguments["factory"](nnx.Rngs(0)))
    except Exception:  # as in num_parameters
        return ""
    return type(module).__name__
