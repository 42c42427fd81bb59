"""The grid of the distributed discrete Gaussian: how fine, how much noise, how private."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_non_negative, check_positive
from fedjax_lite.privacy.accounting.discrete_losses import concentrated, rounded_norm
from fedjax_lite.types import Array

FINEST = 2000.0
"""Steps of the grid in one standard deviation of a client's noise, at most."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """What clients and server agree on: the ring, the grid and the noise."""

    bits: int
    """`b`: sums are taken modulo ``2**b``."""
    step: float
    """gamma: one unit of the ring in units of an update."""
    clip: float
    """`c`: the l2 norm of an update, at most."""
    stddev: float
    """sigma: of one client's noise, in units of an update."""
    dimension: int
    """`d`: coordinates after padding to a power of two."""
    norm: float
    """l2 norm of a client's integer vector, at most, in units of the grid."""
    rotation_seed: int

    def signs(self) -> Array:
        """The random signs of the rotation, 1 and -1, float32 `[d]`; public."""
        return jax.random.rademacher(
            jax.random.key(self.rotation_seed), (self.dimension,), jnp.float32
        )


def make_grid(
    *,
    clip: float,
    cohort_size: int,
    dimension: int,
    stddev: float,
    bits: int,
    beta: float = math.exp(-0.5),
    tail: float = 4.0,
    rotation_seed: int = 0,
) -> Grid:
    r"""The finest grid on which a sum still fits into the ring.

    .. math::
        2^b \gamma = 2 k \sqrt{n^2 c^2 / d + n \gamma^2 / 4 + n \sigma^2}

    Args:
      clip: `c`.
      cohort_size: `n`.
      dimension: of an update; `d` is the next power of two.
      stddev: sigma of one client's noise, in units of an update.
      bits: `b`.
      beta: see `distributed_discrete_gaussian`.
      tail: `k`.
      rotation_seed: of the signs.

    Returns:
      A `Grid`; its step is never below 1/2000 of `stddev`, where more would gain nothing.

    Raises:
      ValueError: if a number is out of range or `bits` are too few.

    Example:
      >>> coarse, fine = (make_grid(clip=1.0, cohort_size=10, dimension=60, stddev=0.3, bits=b)
      ...                 for b in (8, 12))
      >>> coarse.dimension, round(coarse.step / fine.step, 1)
      (64, 16.0)
    """
    check_positive(clip, "clip")
    check_count(dimension, "dimension", minimum=1)
    check_count(bits, "bits", minimum=2)
    check_positive(tail, "tail")
    check_non_negative(stddev, "stddev")
    if bits > 24:
        raise ValueError(f"bits must be at most 24 (float32 decodes the sum), got {bits}")
    padded = 1 << (dimension - 1).bit_length()
    room = 4.0**bits - tail**2 * cohort_size
    if room <= 0:
        raise ValueError(
            f"bits must be more for {cohort_size} clients, got {bits}: rounding alone would fill "
            f"the ring; use at least {math.ceil(math.log(tail**2 * cohort_size, 4)) + 1}"
        )
    spread = cohort_size**2 * clip**2 / padded + cohort_size * stddev**2
    step = max(2 * tail * math.sqrt(spread / room), stddev / FINEST)
    norm = rounded_norm(clip / step, dimension=padded, beta=beta)
    return Grid(bits, step, float(clip), float(stddev), padded, norm, rotation_seed)


def grid_rho(grid: Grid, *, num_clients: int, most_clients: int | None = None) -> float:
    """The rho of zCDP of one round; infinite without noise.

    Args:
      grid: what was agreed on.
      num_clients: that add noise, at least.
      most_clients: at most; default the same.

    Example:
      >>> grid = make_grid(clip=1.0, cohort_size=4, dimension=64, stddev=0.5, bits=16)
      >>> round(grid_rho(grid, num_clients=4), 2)
      0.5
    """
    if grid.stddev == 0:
        return math.inf
    return concentrated(
        grid.norm,
        stddev=grid.stddev / grid.step,
        num_clients=num_clients,
        dimension=grid.dimension,
        most_clients=most_clients,
    )


def grid_numbers(
    grid: Grid, *, num_clients: int, most_clients: int
) -> tuple[float, float, float, float, float]:
    """What a round's guarantee depends on: norm, noise, clients, dimension, most clients.

    Norm and noise (of one client) are in units of the grid; see `rounds_epsilon`.

    Example:
      >>> grid = make_grid(clip=1.0, cohort_size=4, dimension=64, stddev=0.5, bits=16)
      >>> grid_numbers(grid, num_clients=3, most_clients=4)[2:]
      (3.0, 64.0, 4.0)
    """
    stddev = grid.stddev / grid.step
    return grid.norm, stddev, float(num_clients), float(grid.dimension), float(most_clients)


def least_multiplier(spent: Callable[[float], float], epsilon: float) -> float:
    """The smallest noise multiplier, to four digits, that spends at most `epsilon`.

    Args:
      spent: ``(multiplier) -> epsilon``, falling; ValueError where it is not defined.
      epsilon: the budget.

    Raises:
      ValueError: if no multiplier up to 1e4 will do.

    Example:
      >>> 2.0 <= least_multiplier(lambda z: 4 / z, 2.0) < 2.001
      True
    """

    def enough(multiplier: float) -> bool:
        try:
            return spent(multiplier) <= epsilon
        except ValueError:  # noise narrower than half a step
            return False

    low, high = 1e-3, 1e-3
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise ValueError(
                f"epsilon={epsilon} is out of reach: use more bits, fewer rounds or more clients"
            )
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
