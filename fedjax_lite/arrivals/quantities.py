"""Quantities: positive numbers drawn for clients: seconds per step, bits per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import (
    check_count,
    check_finite,
    check_non_negative,
    check_positive,
    check_slot,
)
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, ClientInfo, Key


class Quantity(NamedTuple):
    """A positive number of a client, drawn anew each time that it is asked for."""

    draw: Callable[[Key, ClientInfo], Array]
    """``(key, info) ->`` a float scalar; the key is this client's, of this round."""
    made: Any = None
    """Which factory made it; None: your own."""


@made
def constant(value: float | Array) -> Quantity:
    """The same for everybody, always.

    Args:
      value: positive, may be traced.

    Raises:
      ValueError: if it is not above 0.

    Example:
      >>> float(constant(2.0).draw(jax.random.key(0), None))
      2.0
    """
    check_positive(value, "value")
    return Quantity(lambda key, info: as_float(value))


@made
def exponential(mean: float | Array) -> Quantity:
    """Exponential with the given mean.

    Args:
      mean: positive, may be traced.

    Raises:
      ValueError: if it is not above 0.

    Example:
      >>> bool(exponential(2.0).draw(jax.random.key(0), None) > 0)
      True
    """
    check_positive(mean, "mean")
    return Quantity(lambda key, info: jax.random.exponential(key) * as_float(mean))


@made
def half_normal(scale: float | Array) -> Quantity:
    r"""The absolute value of a normal number: mean :math:`s \sqrt{2 / \pi}`, a light tail.

    Args:
      scale: :math:`s`, positive, may be traced.

    Raises:
      ValueError: if it is not above 0.

    Example:
      >>> bool(half_normal(2.0).draw(jax.random.key(0), None) >= 0)
      True

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022,
    arXiv:2106.06639, which found it in a production system.
    """
    check_positive(scale, "scale")
    return Quantity(lambda key, info: jnp.abs(jax.random.normal(key)) * as_float(scale))


@made
def log_normal(median: float | Array, sigma: float | Array) -> Quantity:
    r"""Log-normal: :math:`m\, e^{\sigma Z}`, mean :math:`m\, e^{\sigma^2 / 2}`.

    Args:
      median: :math:`m`, positive, may be traced.
      sigma: standard deviation of the logarithm, not negative, may be traced; 1.5 spans three
        orders of magnitude.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> float(log_normal(2.0, 0.0).draw(jax.random.key(0), None))
      2.0
    """
    check_positive(median, "median")
    check_non_negative(sigma, "sigma")
    return Quantity(
        lambda key, info: jnp.exp(jax.random.normal(key) * as_float(sigma)) * as_float(median)
    )


@made
def pareto(minimum: float | Array, shape: float | Array) -> Quantity:
    r"""Pareto, a power law: :math:`P(X > x) = (x_m / x)^a`, mean :math:`a x_m / (a - 1)`.

    Args:
      minimum: :math:`x_m`, positive, may be traced.
      shape: :math:`a`, positive, may be traced; at most 1 and there is no mean.

    Raises:
      ValueError: if an argument is not above 0.

    Example:
      >>> bool(pareto(2.0, 1.5).draw(jax.random.key(0), None) >= 2.0)
      True
    """
    check_positive(minimum, "minimum")
    check_positive(shape, "shape")

    def draw(key: Key, info: ClientInfo) -> Array:
        return jnp.exp(jax.random.exponential(key) / as_float(shape)) * as_float(minimum)

    return Quantity(draw)


@made
def tiers(values: Any, shares: Any, *, seed: int = 0) -> Quantity:
    """Kinds of devices: every client belongs to one, always the same.

    Args:
      values: `[T]`, the quantity of each kind, positive; may be traced.
      shares: `[T]`, how much of the population each kind is; positive, scaled to sum 1.
      seed: says who belongs where.

    Raises:
      ValueError: if lengths differ or a number is out of range.

    Example:
      >>> kinds = tiers([0.1, 1.0], [0.5, 0.5])
      >>> info = ClientInfo(*map(jnp.int32, (3, 0, 0, 0)))
      >>> float(kinds.draw(jax.random.key(0), info)) == float(kinds.draw(jax.random.key(1), info))
      True
    """
    values, shares = _numbers(values, "values"), _numbers(shares, "shares")
    check_count(seed, "seed", minimum=0)
    if np.ndim(values) != 1 or np.shape(values) != np.shape(shares):
        raise ValueError(
            f"shares must be [T], one for each of the values, got {list(np.shape(shares))} for "
            f"{list(np.shape(values))}; values=[0.1, 1.0], shares=[0.8, 0.2]"
        )

    def draw(key: Key, info: ClientInfo) -> Array:
        weights = as_float(shares)
        mine = jax.random.fold_in(jax.random.key(seed), info.id)
        edges = jnp.cumsum(weights / weights.sum())[:-1]
        kind = (jax.random.uniform(mine) >= edges).sum()
        return as_float(values)[kind]

    return Quantity(draw)


@made
def per_client(values: Any) -> Quantity:
    """A number for each client.

    Args:
      values: `[N]`, positive; may be traced.

    Raises:
      ValueError: if a number is not above 0, or it is not one axis.

    Example:
      >>> info = ClientInfo(*map(jnp.int32, (1, 0, 0, 0)))
      >>> float(per_client([1.0, 9.0]).draw(jax.random.key(0), info))
      9.0
    """
    values = _numbers(values, "values")
    if np.ndim(values) != 1 or not np.size(values):
        raise ValueError(
            f"values must be [N], one for each client, got {list(np.shape(values))}; for one "
            "number use constant"
        )
    return Quantity(lambda key, info: as_float(values)[info.id])


@made
def of_device(inner: Quantity, *, seed: int = 0) -> Quantity:
    """A quantity that is drawn once for each client: a slow device is slow in every round.

    Drawn anew each round, everybody is slow now and then; drawn once, it is always the same clients
    who are late, and what they know is lost.

    Args:
      inner: what is drawn.
      seed: of the draws.

    Raises:
      TypeError: if `inner` is no `Quantity`.

    Example:
      >>> speed = of_device(log_normal(1.0, 1.5))
      >>> info = ClientInfo(*map(jnp.int32, (3, 0, 0, 0)))
      >>> float(speed.draw(jax.random.key(0), info)) == float(speed.draw(jax.random.key(1), info))
      True
    """
    check_slot(inner, "inner", Quantity)
    check_count(seed, "seed", minimum=0)

    def draw(key: Key, info: ClientInfo) -> Array:
        return inner.draw(jax.random.fold_in(jax.random.key(seed), info.id), info)

    return Quantity(draw)


@made
def product(*factors: Quantity) -> Quantity:
    """The product of several quantities, such as a device's speed and the day's luck.

    Args:
      *factors: quantities, each drawn on its own.

    Raises:
      TypeError: if one is no `Quantity`.
      ValueError: if there is none.

    Example:
      >>> float(product(constant(2.0), constant(3.0)).draw(jax.random.key(0), None))
      6.0
    """
    if not factors:
        raise ValueError("factors must be quantities, got none; product(constant(2.0), ...)")
    for i, factor in enumerate(factors):
        check_slot(factor, f"factors[{i}]", Quantity)

    def draw(key: Key, info: ClientInfo) -> Array:
        keys = jax.random.split(key, len(factors))
        drawn = [factor.draw(k, info) for factor, k in zip(factors, keys)]
        result = drawn[0]
        for value in drawn[1:]:
            result = result * value
        return result

    return Quantity(draw)


def as_float(value: Any) -> Array:
    """An array of JAX's own floats, 64 bits wide where those are enabled.

    Example:
      >>> as_float(2).dtype
      dtype('float32')
    """
    return jnp.asarray(value, float)


def _numbers(values: Any, name: str) -> Any:
    """Positive numbers as an array; traced ones as they are."""
    if isinstance(values, jax.core.Tracer):
        return values
    kind = np.asarray(values).dtype.kind if isinstance(values, list | tuple | np.ndarray) else ""
    values = np.asarray(values, float) if kind in ("i", "u", "f") else values
    check_finite(values, name)
    check_positive(values, name)
    return values
