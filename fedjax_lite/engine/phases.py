"""Phases: local work in several parts, each with its own plan and step, over one carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.dataset import ClientData
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.messages import CLIENT_STEPS
from fedjax_lite.engine.shuffle import mix
from fedjax_lite.types import Array, ClientUpdate, Key, Phase

Step = Callable[..., Any]


def phases_of(client: ClientUpdate, plan: Plan) -> tuple[Phase, ...]:
    """The phases of local work, each with a plan and a number of its randomness.

    Args:
      client: local training; a single step is one phase.
      plan: of the phases that have none of their own.

    Raises:
      TypeError, ValueError: if the client's `step` is neither a function nor phases, or two of
        them have the same name.

    Example:
      >>> step = lambda broadcast, carry, batch: carry
      >>> head = Phase(step, Plan(20, epochs=10), name="head")
      >>> client = ClientUpdate(None, None, (head, Phase(step)), None)
      >>> [(phase.plan.epochs, phase.stream) for phase in phases_of(client, Plan(20))]
      [(10, 0), (1, 1)]
    """
    if not isinstance(client.step, tuple) or isinstance(client.step, Phase):
        if not callable(client.step):
            raise TypeError(
                "step of a client must be a function (broadcast, carry, batch) -> carry, or a "
                f"tuple of Phases, got {shown(client.step)}"
            )
        return (Phase(client.step, plan, "", 0),)
    if not client.step or not all(isinstance(phase, Phase) for phase in client.step):
        raise TypeError(
            f"step of a client must hold Phases, got {shown(client.step)}; (Phase(step, plan), ...)"
        )
    names = [phase.name for phase in client.step if phase.name]
    if len(set(names)) < len(names):
        raise ValueError(f"phases of a client must have different names, got {names}")
    for phase in client.step:
        if not callable(phase.step) or not (phase.plan is None or isinstance(phase.plan, Plan)):
            raise TypeError(
                f"a Phase holds a step function and a Plan (None: the algorithm's), got "
                f"{shown(phase)}"
            )
        if not isinstance(phase.data, str):
            raise TypeError(
                f"data of a Phase must be the name of a split, got {shown(phase.data)}; "
                "data='held_out', and fl.data.with_splits(train, {'held_out': held_out})"
            )
    return tuple(
        phase._replace(
            plan=plan if phase.plan is None else phase.plan,
            stream=i if phase.stream is None else phase.stream,
        )
        for i, phase in enumerate(client.step)
    )


def step_of(client: ClientUpdate) -> Step:
    """The step of a client whose local work is one phase.

    Raises:
      TypeError: if it has several.

    Example:
      >>> step_of(ClientUpdate(None, None, max, None)).__name__
      'max'
    """
    if isinstance(client.step, tuple):
        raise TypeError(f"client must have one step, got {len(client.step)} phases")
    return client.step


def read_by(phase: Phase, data: ClientData) -> ClientData:
    """What a phase reads of the data at hand: the rows that clients train on, or a split.

    Example:
      >>> import fedjax_lite as fl
      >>> train, test = (fl.data.from_arrays({"x": jnp.arange(n)}, [0] * n) for n in (3, 2))
      >>> both = fl.data.with_splits(train, {"held_out": test})
      >>> [read_by(Phase(max, data=name), both).num_examples for name in ("", "held_out")]
      [3, 2]
    """
    return data.splits[phase.data] if phase.data else data


def check_splits(phases: tuple[Phase, ...], data: Any) -> None:
    """Raises ValueError where a phase reads a split that the data do not have."""
    has = getattr(data, "splits", {})
    for phase in phases:
        if phase.data and phase.data not in has:
            raise ValueError(
                f"data must have the split {phase.data!r}, which a phase of local work reads "
                f"(head_data, or Phase(data=...)), got {type(data).__name__} with "
                f"{sorted(has) or 'none'}; "
                f"fl.data.with_splits(train, {{{phase.data!r}: ...}})"
            )


def around(step: Step | tuple[Phase, ...], wrap: Callable[[Step], Step]) -> Any:
    """A client's step, or each of its phases' steps, wrapped.

    Args:
      step: of a `ClientUpdate`.
      wrap: ``(step) -> step``.

    Example:
      >>> phases = around((Phase(min), Phase(max)), lambda step: step.__name__)
      >>> [phase.step for phase in phases], around(sum, lambda step: step.__name__)
      (['min', 'max'], 'sum')
    """
    if isinstance(step, tuple):
        return tuple(phase._replace(step=wrap(phase.step)) for phase in step)
    return wrap(step)


def stream_seed(seed: Array, stream: int) -> Array:
    """The shuffle of a stream of batches, uint32 `[2]`; the first is the client's own."""
    return seed if stream == 0 else mix(seed + jnp.uint32(0x9E3779B9 * stream % 2**32))


def stream_key(key: Key, stream: int) -> Key:
    """The key of a stream of batches; the steps of the first are folded in below ``2**31``."""
    return key if stream == 0 else jax.random.fold_in(key, 2**31 + stream)


def step_names(phases: tuple[Phase, ...]) -> dict[str, int]:
    """Names of the engine's metrics of steps in a phase, and which it is.

    Example:
      >>> step_names((Phase(min, name="head"), Phase(max)))
      {'client_steps_head': 0}
    """
    return {f"{CLIENT_STEPS}_{phase.name}": i for i, phase in enumerate(phases) if phase.name}
