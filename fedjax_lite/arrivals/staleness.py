"""How much a message counts that comes late: a function of its staleness."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_lite.arrivals.quantities import as_float
from fedjax_lite.checks.arguments import check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array

Staleness = Callable[[Array], Array]
r"""``(staleness) -> weight``, of integers `[K]`: versions of the model since the download."""


@made
def undiscounted() -> Staleness:
    r"""Old messages count as new ones: :math:`s(\tau) = 1`.

    Example:
      >>> undiscounted()(jnp.array([0, 3])).tolist()
      [1.0, 1.0]
    """

    def weight(staleness: Array) -> Array:
        return jnp.ones(jnp.shape(staleness))

    return weight


@made
def polynomial(exponent: float | Array = 0.5) -> Staleness:
    r"""A power of the staleness: :math:`s(\tau) = (1 + \tau)^{-a}`.

    Args:
      exponent: :math:`a`, not negative, may be traced; 0.5 is FedBuff's.

    Raises:
      ValueError: if it is negative.

    Example:
      >>> polynomial(0.5)(jnp.array([0, 3])).tolist()
      [1.0, 0.5]

    Reference: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv:1903.03934.
    """
    check_non_negative(exponent, "exponent")
    return lambda staleness: (1 + as_float(staleness)) ** (-as_float(exponent))


@made
def hinge(slope: float | Array = 10.0, free: float | Array = 4.0) -> Staleness:
    r"""Full weight up to a staleness, then less: 1, or :math:`1 / (a (\tau - b) + 1)`.

    Args:
      slope: :math:`a`, not negative, may be traced.
      free: :math:`b`, the staleness up to which nothing is discounted; may be traced.

    Raises:
      ValueError: if an argument is negative.

    Example:
      >>> [round(float(weight), 4) for weight in hinge()(jnp.array([4, 5, 6, 10]))]
      [1.0, 0.0909, 0.0476, 0.0164]

    Reference: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv:1903.03934.
    """
    check_non_negative(slope, "slope")
    check_non_negative(free, "free")

    def weight(staleness: Array) -> Array:
        beyond = jnp.maximum(as_float(staleness) - as_float(free), 0)
        return 1 / (as_float(slope) * beyond + 1)

    return weight
