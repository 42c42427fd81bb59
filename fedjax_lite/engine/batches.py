"""Plan: how a client's data becomes batches, without copies, padding or sorting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.kinds import is_number
from fedjax_lite.data.population.dataset import ClientData
from fedjax_lite.engine.derived_keys import derive
from fedjax_lite.engine.shuffle import permute
from fedjax_lite.types import Array, Batch, ClientInfo, Key

Amount = int | Any | Callable[[Key, Array], Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The local work of a client in one round.

    A client of `n` examples does ``K = epochs * ceil(n / batch_size)`` steps (the last batch of
    an epoch may be short; it counts only its real examples), or exactly `steps`. Each epoch
    is a fresh permutation of the client's data. A client without data does nothing.

    Attributes:
      batch_size: examples a step, or None for the whole data set of the client in one batch.
      epochs: passes over the client's data: an int, an array `[N]` with one value per client, or
        a function ``(key, client id) -> int32`` for random amounts (stragglers). Default 1.
      steps: local steps instead of epochs, in the same three forms.
      max_epochs: a bound on either: no more than so many passes over the client's data.
      limit: what a client manages of all that, a function ``(key, info) -> int32`` of a
        `ClientInfo` whose ``num_steps`` is the plan's own amount: as much as a deadline allows, or
        a client that stops midway (`fedjax_lite.selection.interrupted`). The first so many steps
        are done as if no more had been planned.

    Raises:
      ValueError: if an amount is negative or 0 for all clients, so that nobody would train, or both
        `epochs` and `steps` are given. In an array single clients may have 0.

    Example:
      >>> Plan(batch_size=20, epochs=5)
      Plan(batch_size=20, epochs=5, steps=None, max_epochs=None, limit=None)
      >>> stragglers = lambda key, client: jax.random.randint(key, (), 1, 20)
      >>> Plan(batch_size=10, epochs=stragglers).epochs is stragglers
      True
    """

    batch_size: int | None
    epochs: Amount | None = None
    steps: Amount | None = None
    max_epochs: int | None = None
    limit: Callable[[Key, ClientInfo], Array] | None = None

    def __post_init__(self) -> None:
        """Checks the amounts eagerly."""
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size", minimum=1)
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"give epochs or steps, not both; got epochs={self.epochs}, steps={self.steps}"
            )
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        _check_amount(self.epochs, "epochs")
        _check_amount(self.steps, "steps")
        if self.max_epochs is not None:
            check_count(self.max_epochs, "max_epochs", minimum=1)
        if self.limit is not None and (not callable(self.limit) or isinstance(self.limit, type)):
            raise TypeError(
                f"limit must be a function (key, info) -> int32 steps, got {shown(self.limit)}; "
                "lambda key, info: info.num_steps // 2"
            )

    def check_population(self, num_clients: int) -> None:
        """Raises ValueError where a per-client amount has another length than the population."""
        for name, amount in (("epochs", self.epochs), ("steps", self.steps)):
            if amount is None or callable(amount) or np.ndim(amount) == 0:
                continue
            length = np.size(amount)
            if length != num_clients:
                raise ValueError(
                    f"{name} must have one value per client, got {length} for a population "
                    f"of {num_clients}"
                )

    @property
    def is_random(self) -> bool:
        """Whether an amount is drawn, so that `num_steps` needs a key."""
        return callable(self.epochs) or callable(self.steps) or self.limit is not None

    def num_steps(
        self, key: Key | None, client: Array, size: Array, round: Array | int = 0
    ) -> Array:
        """int32 scalar: the steps of one client; 0 where it has no data."""
        if self.steps is not None:
            steps = _amount("steps", self.steps, key, client)
        else:
            steps = _amount("epochs", self.epochs, key, client) * self.steps_per_epoch(size)
        if self.max_epochs is not None:
            steps = jnp.minimum(steps, self.max_epochs * self.steps_per_epoch(size))
        steps = jnp.maximum(jnp.where(size > 0, steps, 0), 0).astype(jnp.int32)
        if self.limit is None:
            return steps
        assert key is not None
        info = ClientInfo(client, size, steps, jnp.asarray(round, jnp.int32), size)
        allowed = _asked("limit", self.limit(jax.random.fold_in(key, 1), info)).astype(jnp.int32)
        return jnp.clip(allowed, 0, steps)

    def steps_per_epoch(self, size: Array) -> Array:
        """int32: batches in one pass over `size` examples."""
        if self.batch_size is None:
            return jnp.minimum(size, 1)
        return (size + self.batch_size - 1) // self.batch_size


def _remainder(position: Array, size: Array) -> Array:
    """``position % size`` of what is not negative, an operation in place of eight."""
    return jax.lax.rem(position, jnp.broadcast_to(size, position.shape))


def take_batch(
    plan: Plan, data: ClientData, seed: Array, key: Key, client: Array, step: Array
) -> Batch:
    """Batch number `step` of a client: O(B) integer work and one gather.

    Args:
      plan: the local work.
      data: the population, or a part of it.
      seed: uint32 `[2]`, the client's shuffle of this round.
      key: the client's key for batches.
      client: int32 scalar, its place in `data`.
      step: int32 scalar, counted from the round's first step.

    Returns:
      A `Batch` with leaves `[B, ...]`; the padding of a short batch repeats the client's own
      examples and is masked.
    """
    low = data.offsets[client]
    size = data.offsets[client + 1] - low
    if plan.batch_size is None:
        position = jnp.arange(data.max_client_size, dtype=jnp.int32)
        index = _remainder(position, jnp.maximum(size, 1))
    else:
        per_epoch = jnp.maximum(plan.steps_per_epoch(size), 1)
        epoch = jax.lax.div(step, per_epoch)  # nothing is negative: no signs to look at
        position = (step - epoch * per_epoch) * plan.batch_size + jnp.arange(
            plan.batch_size, dtype=jnp.int32
        )
        index = permute(seed, epoch, _remainder(position, jnp.maximum(size, 1)), size)
    mask = position < size
    rows = low + index
    if data.order is not None:
        rows = jnp.take(data.order, rows, mode="clip")
    # Computed once: XLA would fuse the permutation anew into the gather of every leaf.
    rows = jax.lax.optimization_barrier(rows)
    # clip: an empty client's rows may lie one past the end; it has no steps, so nothing is read.
    examples = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data.examples)
    return Batch(examples, mask, derive(key, [(step,)])[0])


def _check_amount(amount: Amount | None, name: str) -> None:
    is_function = callable(amount) and not isinstance(amount, type)  # int and the like are none
    if amount is None or is_function or isinstance(amount, jax.core.Tracer):
        return
    dtype = getattr(amount, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    values = np.empty(0) if is_key else np.asarray(amount)
    if values.ndim > 1 or values.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be an int, an integer array [N] or a function (key, client) -> int, "
            f"got {amount!r:.80}; give {name}=1"
        )
    if values.size and values.min() < 0:
        raise ValueError(f"{name} must not be negative, got {values.min()}; give {name}=1")
    if values.size and values.max() >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got {values.max()}; give {name}=1")
    if values.size and values.max() == 0:
        whom = "nobody" if values.ndim == 0 else f"none of the {values.size} clients"
        raise ValueError(
            f"{name} must be at least 1, got 0: {whom} would train; for clients that do nothing "
            f"give an array with one value per client, some of them 0, or a function "
            "(key, client) -> int"
        )


def _amount(name: str, amount: Amount | None, key: Key | None, client: Array) -> Array:
    if callable(amount):
        return _asked(name, amount(key, client))
    values = jnp.asarray(amount)
    return values[client] if values.ndim else values


def _asked(name: str, found: Any) -> Array:
    """What a function of a client gave; raises TypeError where it is no number."""
    if not is_number(found):
        raise TypeError(
            f"{name}, a function of a client, must return a number, got {shown(found)}; for "
            "example lambda key, client: 1 + client % 3"
        )
    return jnp.asarray(found)
