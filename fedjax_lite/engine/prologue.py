"""Prologue: a first pass over a cohort, which its clients download, or are chosen by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_lite import trees
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.messages import CLIENT_STEPS, ENGINE_METRICS
from fedjax_lite.engine.program import Program, message_shape
from fedjax_lite.transforms.chain import identity
from fedjax_lite.types import Aggregator, ClientUpdate, Cohort, Key, PyTree


class Prologue(NamedTuple):
    """A pass over the same cohort before local training (Mime's gradient at the server's model)."""

    client: ClientUpdate
    """Without persistent rows. Each client gets what it measured here back as ``info.found``."""
    plan: Plan
    aggregator: Aggregator
    choose: Callable[[Key, Cohort, dict[str, Any]], Cohort] | None = None
    """``(key, cohort, measured [C]) -> cohort`` with a narrower mask: who goes on to train, by what
    all measured (power-of-choice, loss-aware selection). None: all."""
    rehearsal: bool = False
    """Whether its clients draw what they will draw when they train: a first pass that trains as the
    second does ends where that will end (to choose by what training gives)."""


class Prefaced(NamedTuple):
    """Something with a prologue's aggregate beside it."""

    value: Any
    preface: Any


def prologue_program(prologue: Prologue) -> Program:
    """What a client does in the first pass; nothing is compressed."""
    return Program(prologue.client, prologue.plan, identity(), prologue.aggregator)


def measured_in(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the clients of a first pass measured, leaves `[C]`: their own metrics.

    Example:
      >>> list(measured_in({"loss": 0, "uplink_bits": 0, "client_steps": 0}))
      ['loss']
    """
    return {
        name: metric
        for name, metric in metrics.items()
        if name not in ENGINE_METRICS and not name.startswith(CLIENT_STEPS)
    }


def narrowed(prologue: Prologue, key: Key, cohort: Cohort, measured: dict[str, Any]) -> Cohort:
    """The clients that go on to train: those whom ``choose`` leaves in.

    Nobody comes in who was not there, whatever ``choose`` says.

    Raises:
      TypeError, ValueError: if it returns something else than a cohort of the same clients.
    """
    if prologue.choose is None:
        return cohort
    chosen = prologue.choose(key, cohort, measured)
    if not isinstance(chosen, Cohort):
        raise TypeError(
            f"choose of a prologue must return a Cohort, got {type(chosen).__name__}; "
            "cohort._replace(mask=...)"
        )
    if chosen.ids.shape != cohort.ids.shape or chosen.mask.shape != cohort.mask.shape:
        raise ValueError(
            f"choose of a prologue must leave the cohort's slots as they are, [{len(cohort.ids)}], "
            f"got {list(chosen.mask.shape)}; clear the mask of those who stay out"
        )
    return cohort._replace(mask=cohort.mask & chosen.mask)


def preface_shape(
    prologue: Prologue, broadcast: PyTree, cohort: Cohort
) -> tuple[PyTree, dict[str, Any]]:
    """Shapes of a first pass over a cohort of this size: its aggregate, what a client measures.

    Args:
      prologue: the first pass.
      broadcast: what its clients download.
      cohort: arrays or shapes, `[C]`.

    Raises:
      ValueError: if the aggregator keeps a state, which a prologue has no place for.
    """
    aggregator = prologue.aggregator
    message, metrics = message_shape(prologue_program(prologue), broadcast, ())
    if jax.tree.leaves(jax.eval_shape(aggregator.init_state, message.value)):
        raise ValueError(
            "prologue's aggregator must keep nothing between rounds, got one with a state; use one "
            "without, such as mean() or median()"
        )

    def finish(key: Any, cohort: Cohort) -> PyTree:
        acc = aggregator.init(message, cohort.ids.shape[0])
        state = aggregator.init_state(trees.zeros(message.value))
        return aggregator.finish(key, state, acc, cohort)[1]

    return jax.eval_shape(finish, jax.random.key(0), cohort), measured_in(metrics)
