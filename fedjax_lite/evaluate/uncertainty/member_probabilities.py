"""member_probabilities(): what every member of an ensemble answers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.evaluate.what_counts import check_labelled, check_model
from fedjax_lite.metrics.answers import answers_of
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Params, PyTree


def member_probabilities(
    model: Model, members: Params, examples: PyTree, *, batch_size: int = 1000
) -> Array:
    r"""The classes' probabilities by every member, one compiled program.

    .. math::  p_m(k \mid x) = \mathrm{softmax}(f(x; \theta_m))_k

    Members are any models side by side: of seeds (`fedjax_lite.ensemble`), of clusters
    (``state.server.params`` of `fedjax_lite.ifca`), of clients (``algo.models(state, ids)`` of a
    personal method, or `client_members`).

    Args:
      model: its `predict` gives logits; one output is the log-odds of class 1.
      members: leaves `[M, ...]`.
      examples: leaves `[E, ...]`, with labels ``"y"``, integers.
      batch_size: examples at a time, of all members.

    Returns:
      float32 `[M, E, ..., K]`.

    Raises:
      TypeError: if `model` is no `Model`, or examples have no labels.
      ValueError: if members have no leading axis in common, or there are no examples.

    Example:
      >>> import fedjax_lite as fl
      >>> model = fl.models.linear(2, (3,))
      >>> members = fl.several_models(model.init, jax.random.key(0), 4)
      >>> examples = {"x": jnp.ones((5, 3)), "y": jnp.zeros(5, int)}
      >>> member_probabilities(model, members, examples).shape
      (4, 5, 2)

    Reference: Lakshminarayanan, Pritzel, Blundell, 2017, arXiv:1612.01474.
    """
    check_count(batch_size, "batch_size", minimum=1)
    check_model(model)
    check_members(members)
    size = check_labelled(examples)
    with about("members", members, word="params"):
        return _answer(members, jax.tree.map(jnp.asarray, examples), model, min(batch_size, size))


def check_members(members: Any) -> int:
    """How many models stand side by side.

    Raises:
      ValueError: if leaves do not share a leading axis of at least one.

    Example:
      >>> check_members({"w": jnp.zeros((3, 2))})
      3
    """
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
    if len(shapes) != 1 or not (first := next(iter(shapes))) or not first[0]:
        found = sorted(list(shape) for shape in shapes)
        raise ValueError(
            f"members must hold models side by side, leaves [M, ...], got {shown(members)} of "
            f"leading axes {found}; jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)"
        )
    return int(first[0])


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def _answer(members: Params, examples: PyTree, model: Model, batch_size: int) -> Array:
    """Probabilities `[M, E, ..., K]`; a batch of examples for all members at a time."""
    size = jax.tree.leaves(examples)[0].shape[0]
    short = -size % batch_size

    def in_batches(leaf: Array) -> Array:
        # The first example fills the last batch up: its answers are cut off below.
        filled = jnp.concatenate([leaf, jnp.repeat(leaf[:1], short, axis=0)])
        return filled.reshape(-1, batch_size, *leaf.shape[1:])

    def answer(batch: PyTree) -> Array:
        def by(params: Params) -> Array:
            return jax.nn.softmax(answers_of(model.predict(params, batch), batch).logits)

        return jax.vmap(by)(members)

    found = jax.lax.map(answer, jax.tree.map(in_batches, examples))  # [batches, M, B, ..., K]
    found = jnp.moveaxis(found, 0, 1)
    return found.reshape(found.shape[0], -1, *found.shape[3:])[:, :size]
