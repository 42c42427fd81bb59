"""What a client returns, checked and made arrays: its message and its metrics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, Mean, Message, PyTree

CLIENT_COUNTED, CLIENT_STEPS = "client_counted", "client_steps"
ENGINE_METRICS = ("uplink_bits", "uplink_entropy_bits", CLIENT_COUNTED, CLIENT_STEPS)
"""Metrics `[C]` that the engine adds to the client's own: what it sent, whether it counts in the
aggregate (1 or 0), and the steps that it did."""
OF_THE_ROUND = ("num_clients", "num_steps", "downlink_bits", "downlink_entropy_bits")


def well_formed(
    row: PyTree, message: Message, metrics: dict[str, Any]
) -> tuple[PyTree, Message, dict[str, Any]]:
    """What `finish` of a client returned, with arrays for plain numbers.

    Weights become floats; one that is negative is taken for 0 where it is traced. Metrics become
    scalars, or `Mean`s of scalars.

    Raises:
      TypeError, ValueError: where a weight is negative, a metric is neither a number nor a `Mean`
        of numbers, or has a name that belongs to the round.

    Example:
      >>> _, message, metrics = well_formed((), Message(jnp.zeros(2), 1), {"loss": 0.5})
      >>> message.weight.dtype.name, metrics["loss"].shape
      ('float32', ())
    """
    if not isinstance(message, Message):
        raise TypeError(
            f"finish of a client must return (row, Message, metrics), got {type(message).__name__} "
            "for the message; Message(value, weight)"
        )
    value = jax.tree.map(_array, message.value)
    message = Message(value, jax.tree.map(_weight, message.weight))
    return row, message, {name: client_metric(name, metrics[name]) for name in metrics}


def client_metric(name: str, metric: Any) -> Any:
    """A client's metric as a scalar or a `Mean` of scalars.

    Raises:
      TypeError, ValueError: where it is something else, or has a name that belongs to the round.

    Example:
      >>> client_metric("hits", jnp.ones(3))
      Traceback (most recent call last):
      ...
      ValueError: client metric 'hits' must be one number, or a Mean of two numbers, got shape [3]\
; give every entry a name of its own, {"hits_0": ..., "hits_1": ...}, or reduce them
    """
    if name in ENGINE_METRICS + OF_THE_ROUND:
        raise ValueError(
            f"client metric {name!r} has a name that belongs to the round itself; rename it"
        )
    if isinstance(metric, Mean) and name.endswith("_bits"):
        raise ValueError(
            f"client metric {name!r} must be one number, got a Mean: bits are summed over clients "
            "and rounds; rename it where a mean is meant"
        )
    parts = list(metric) if isinstance(metric, Mean) else [metric]
    for part in parts:
        if not _is_numeric(part):
            raise TypeError(
                f"client metric {name!r} must be one number, or a Mean of two numbers, got "
                f"{type(metric).__name__}; give its parts names of their own"
            )
        found = jnp.shape(part)
        if found != ():
            raise ValueError(
                f"client metric {name!r} must be one number, or a Mean of two numbers, got shape "
                f'{list(found)}; give every entry a name of its own, {{"{name}_0": ..., '
                f'"{name}_1": ...}}, or reduce them'
            )
    arrays = [_array(part) for part in parts]
    return Mean(*arrays) if isinstance(metric, Mean) else arrays[0]


def _is_numeric(part: Any) -> bool:
    if not isinstance(part, jax.Array | np.ndarray | np.generic | bool | int | float):
        return False
    dtype = jnp.result_type(part)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))


def _array(leaf: Any) -> Array:
    """Not of weak type, whose dtype depends on what it meets."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _weight(weight: Any) -> Array:
    if not isinstance(weight, jax.core.Tracer) and (np.asarray(weight) < 0).any():
        raise ValueError(
            f"weight of a message must not be negative, got {np.asarray(weight).tolist()}; a "
            "client that is to count for nothing has weight 0, one to be reversed a negated value"
        )
    weight = jnp.asarray(weight, jnp.promote_types(jnp.result_type(weight), jnp.float32))
    return jnp.where(weight < 0, jnp.zeros_like(weight), weight)  # NaN stays, for all to see
