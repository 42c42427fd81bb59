"""Quantity skew: clients have different amounts of data, of the same distribution.

Every partitioner here draws weights ``w_i``, sets ``n_i ~ E w_i / sum_j w_j`` rounded by largest
remainder (so the sizes sum to exactly `E` and their mean is ``E / N``), raises those below
`min_size` by levelling down the largest, and deals shuffled examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.made import made
from fedjax_lite.data.partition.apportion import (
    largest_remainder,
    log_dirichlet,
    raise_to_minimum,
    shares_of,
)
from fedjax_lite.data.partition.checks import (
    check_alpha,
    check_capacity,
    check_count,
    check_real,
    check_seed,
)
from fedjax_lite.data.partition.partition import Partitioner

SizeDraw = Callable[[np.random.Generator, int, int, int], np.ndarray]
"""``(rng, num_examples, num_clients, min_size) -> sizes``, int64 `[N]` with sum `E`."""
LogWeights = Callable[[np.random.Generator, int], np.ndarray]
"""``(rng, num_clients) -> log w``, float64 `[N]`. In logs, no exponent overflows."""


@made
def lognormal(*, sigma: float, num_clients: int, seed: int = 0, min_size: int = 0) -> Partitioner:
    """Log-normal sizes: ``w_i = exp(sigma z_i)``, ``z_i ~ N(0, 1)``.

    Args:
      sigma: standard deviation of the log sizes, >= 0; 0 gives equal sizes.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      min_size: the least examples a client has.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if an argument is out of range, or (when it is used) ``N * min_size > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> owned = owners({"x": np.zeros(100)}, lognormal(sigma=1.5, num_clients=5, min_size=2))
      >>> len(owned), bool(np.bincount(owned).min() >= 2)
      (100, True)
    """
    draw = lognormal_sizes(sigma)
    return _by_sizes(f"lognormal(sigma={sigma:g}", draw, num_clients, seed, min_size)


@made
def power_law(
    *, exponent: float, num_clients: int, seed: int = 0, min_size: int = 0
) -> Partitioner:
    """Power-law sizes: independent ``w_i`` of density ``(a - 1) w^-a``, ``w >= 1`` (Pareto).

    Drawn as ``w_i = u_i^(-1 / (a - 1))`` with ``u_i`` uniform on `(0, 1]`.

    Args:
      exponent: `a` > 1; the nearer to 1, the more one client owns.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      min_size: the least examples a client has.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if an argument is out of range, or (when it is used) ``N * min_size > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> len(owners({"x": np.zeros(100)}, power_law(exponent=2.0, num_clients=5)))
      100

    Reference: power-law sizes of Li et al., "Federated Optimization in Heterogeneous Networks",
    2018, arXiv:1812.06127, which states no exponent.
    """
    check_real("exponent", exponent, above=1.0, remedy="2 to 3 is a usual heavy tail")

    def log_weights(rng: np.random.Generator, num_clients: int) -> np.ndarray:
        return -np.log(1.0 - rng.random(num_clients)) / (exponent - 1.0)

    draw = _apportioned(log_weights)
    return _by_sizes(f"power_law(exponent={exponent:g}", draw, num_clients, seed, min_size)


@made
def zipf(*, exponent: float, num_clients: int, seed: int = 0, min_size: int = 0) -> Partitioner:
    """Zipf's law: the client of rank `r` has weight ``r^-s``; ranks are dealt at random.

    Unlike `power_law` the sizes themselves are the same for every seed; only who has which differs.

    Args:
      exponent: `s` >= 0; 0 gives equal sizes.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      min_size: the least examples a client has.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if an argument is out of range, or (when it is used) ``N * min_size > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> owned = owners({"x": np.zeros(110)}, zipf(exponent=1.0, num_clients=3))
      >>> sorted(np.bincount(owned).tolist())
      [20, 30, 60]
    """
    _check_not_negative("exponent", exponent)

    def log_weights(rng: np.random.Generator, num_clients: int) -> np.ndarray:
        return -exponent * np.log(rng.permutation(num_clients) + 1.0)

    draw = _apportioned(log_weights)
    return _by_sizes(f"zipf(exponent={exponent:g}", draw, num_clients, seed, min_size)


@made
def quantity_dirichlet(
    *, alpha: float, num_clients: int, seed: int = 0, min_size: int = 0
) -> Partitioner:
    """Dirichlet sizes: ``(n_1, ..., n_N) / E ~ Dir_N(alpha, ..., alpha)``.

    ``Var[n_i / E] = (1/N)(1 - 1/N) / (alpha N + 1)``.

    Args:
      alpha: concentration, > 0.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      min_size: the least examples a client has.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if an argument is out of range, or (when it is used) ``N * min_size > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> len(owners({"x": np.zeros(100)}, quantity_dirichlet(alpha=0.5, num_clients=5)))
      100

    Reference: Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", 2021,
    arXiv:2102.02079.
    """
    check_alpha("alpha", alpha)

    def log_weights(rng: np.random.Generator, num_clients: int) -> np.ndarray:
        return log_dirichlet(rng, alpha, (num_clients,))

    draw = _apportioned(log_weights)
    return _by_sizes(f"quantity_dirichlet(alpha={alpha:g}", draw, num_clients, seed, min_size)


def lognormal_sizes(sigma: float) -> SizeDraw:
    """The sizes of `lognormal`, for partitions that skew labels as well.

    Args:
      sigma: standard deviation of the log sizes, >= 0.

    Returns:
      A `SizeDraw`.

    Raises:
      ValueError: if sigma is negative or not finite.

    Example:
      >>> int(lognormal_sizes(1.0)(np.random.default_rng(0), 50, 4, 1).sum())
      50
    """
    _check_not_negative("sigma", sigma)

    def log_weights(rng: np.random.Generator, num_clients: int) -> np.ndarray:
        return sigma * rng.standard_normal(num_clients)

    return _apportioned(log_weights)


def check_sizes(sizes: Any, num_clients: int, min_size: int) -> np.ndarray:
    """Checks sizes that a caller gives and returns them as int64 `[N]`.

    Raises:
      TypeError: if they are not integers.
      ValueError: if their shape is not `[N]` or one is below `min_size`.
    """
    checked = np.asarray(sizes)
    if checked.dtype.kind not in "iu":
        raise TypeError(f"sizes must be integers, got {checked.dtype}; round them first")
    if checked.shape != (num_clients,):
        raise ValueError(
            f"sizes must be [num_clients={num_clients}], got shape {list(checked.shape)}"
        )
    if checked.min() < max(min_size, 0):
        raise ValueError(f"sizes must be >= min_size={min_size}, got {checked.min()}")
    return checked.astype(np.int64)


def _check_not_negative(name: str, value: float) -> None:
    if check_real(name, value, remedy="0 gives equal sizes, larger ones skew") < 0:
        raise ValueError(f"{name} must be >= 0, got {value!r}; 0 gives equal sizes")


def _apportioned(log_weights: LogWeights) -> SizeDraw:
    """Sizes from weights: largest remainders, then the minimum."""

    def draw(
        rng: np.random.Generator, num_examples: int, num_clients: int, min_size: int
    ) -> np.ndarray:
        check_capacity(num_examples, num_clients, min_size)
        shares = shares_of(log_weights(rng, num_clients))
        return raise_to_minimum(largest_remainder(rng, shares, num_examples), min_size)

    return draw


def _by_sizes(
    start_of_name: str, draw: SizeDraw, num_clients: int, seed: int, min_size: int
) -> Partitioner:
    """Deals shuffled examples in drawn sizes."""
    check_count("num_clients", num_clients)
    check_count("min_size", min_size, minimum=0)
    check_seed(seed)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        num_examples = np.shape(jax.tree.leaves(examples)[0])[0]
        rng = np.random.default_rng(seed)
        sizes = draw(rng, num_examples, num_clients, min_size)
        owner = np.empty(num_examples, np.int64)
        owner[rng.permutation(num_examples)] = np.repeat(np.arange(num_clients), sizes)
        return owner

    options = f", min_size={min_size}" if min_size else ""
    name = f"{start_of_name}, num_clients={num_clients}, seed={seed}{options})"
    return Partitioner(assign, num_clients, name)
