"""Gradient reversal: what an encoder unlearns while an adversary learns it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_finite, check_non_negative, check_positive
from fedjax_lite.types import Array, PyTree


def gradient_reversal(features: PyTree, strength: float | Array) -> PyTree:
    r"""The features as they are; their gradient times ``-strength``.

    .. math::
        R_\lambda(z) = z, \qquad \frac{\partial R_\lambda}{\partial z} = -\lambda I

    What stands behind it descends on its own loss, while what stands before it ascends on
    `strength` times that loss.

    Args:
      features: any pytree of floats.
      strength: `lambda`, a scalar of at least 0; it may be traced.

    Returns:
      `features`.

    Raises:
      ValueError: if `strength` is negative or not finite.

    Example:
      >>> jax.grad(lambda z: 3.0 * gradient_reversal(z, 2.0))(1.0).tolist()
      -6.0

    Reference: Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky,
    "Domain-Adversarial Training of Neural Networks", 2016, arXiv:1505.07818.
    """
    check_strength(strength)
    return _reversed(features, strength)


@jax.custom_vjp
def _reversed(features: PyTree, strength: float | Array) -> PyTree:
    return features


def _forward(features: PyTree, strength: float | Array) -> tuple[PyTree, Array]:
    return features, jnp.asarray(strength)


def _backward(strength: Array, gradient: PyTree) -> tuple[PyTree, Array]:
    turned = jax.tree.map(lambda g: -strength.astype(g.dtype) * g, gradient)
    return turned, jnp.zeros_like(strength)


_reversed.defvjp(_forward, _backward)


def ramped_strength(
    most: float | Array, num_rounds: int, *, steepness: float = 10.0
) -> Callable[[Array], Array]:
    r"""A strength that rises from 0 towards `most` over the rounds of a run.

    .. math::
        \lambda(r) = \lambda_{\max} \Bigl( \frac{2}{1 + e^{-\gamma r / R}} - 1 \Bigr)

    Args:
      most: `lambda_max`, at least 0.
      num_rounds: `R`; with the steepness of 10 the strength is `most` to 1e-4 there.
      steepness: `gamma`, positive; 10 in the paper.

    Returns:
      ``(round) -> strength``.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> at = ramped_strength(2.0, 100)
      >>> [round(float(at(r)), 3) for r in (0, 10, 100)]
      [0.0, 0.924, 2.0]

    Reference: Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016,
    arXiv:1505.07818.
    """
    check_strength(most)
    check_positive(num_rounds, "num_rounds")
    check_positive(steepness, "steepness")

    def strength(round: Array) -> Array:
        return most * jnp.tanh(0.5 * steepness * jnp.asarray(round) / num_rounds)

    return strength


def check_strength(strength: float | Array) -> None:
    """Raises ValueError where a strength is negative or not finite.

    Example:
      >>> check_strength(0.5)
    """
    check_non_negative(strength, "strength")
    check_finite(strength, "strength")
