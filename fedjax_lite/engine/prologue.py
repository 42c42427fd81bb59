"""Prologue: a first pass over a cohort whose aggregate its clients download before they train."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Program, message_shape
from fedjax_lite.transforms.chain import identity
from fedjax_lite.types import Aggregator, ClientUpdate, Cohort, Params, PyTree


class Prologue(NamedTuple):
    """A pass over the same cohort before local training (Mime's gradient at the server's model)."""

    client: ClientUpdate
    """Without persistent rows."""
    plan: Plan
    aggregator: Aggregator


class Prefaced(NamedTuple):
    """Something with a prologue's aggregate beside it."""

    value: Any
    preface: Any


def prologue_program(prologue: Prologue) -> Program:
    """What a client does in the first pass; nothing is compressed."""
    return Program(prologue.client, prologue.plan, identity(), prologue.aggregator)


def preface_shape(prologue: Prologue, params: Params, broadcast: PyTree, cohort: Cohort) -> PyTree:
    """Shapes of the aggregate of a first pass over a cohort of this size.

    Args:
      prologue: the first pass.
      params: the model.
      broadcast: what its clients download.
      cohort: arrays or shapes, `[C]`.

    Raises:
      ValueError: if the aggregator keeps a state, which a prologue has no place for.
    """
    aggregator = prologue.aggregator
    if jax.tree.leaves(jax.eval_shape(aggregator.init_state, params)):
        raise ValueError(
            "prologue's aggregator must keep nothing between rounds, got one with a state; use one "
            "without, such as mean() or median()"
        )
    message, _ = message_shape(prologue_program(prologue), broadcast, ())

    def finish(key: Any, cohort: Cohort) -> PyTree:
        acc = aggregator.init(message, cohort.ids.shape[0])
        return aggregator.finish(key, aggregator.init_state(params), acc, cohort)[1]

    return jax.eval_shape(finish, jax.random.key(0), cohort)
