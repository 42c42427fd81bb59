"""Model replacement: updates so long that the mean lands on the attacker's own model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.attacks.byzantine import Attack, Scene
from fedjax_lite.attacks.updates import stateless
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, Params, PyTree


@made
def model_replacement(
    boost: float | Array | None = None,
    *,
    server_learning_rate: float | Array = 1.0,
    weighting: str = "message",
) -> Attack:
    r"""Boosts the attackers' own updates until they replace the model.

    .. math::  \Delta_m \leftarrow \frac{\Delta_m}{\eta_g\, p_m}, \qquad
               p_m = \sum_{j \text{ hostile}} w_j \Big/ \sum_{j \in S} w_j

    The attackers train like everyone, on data of their own making (`backdoor`, `label_flip`); the
    boosted update carries the weighted mean to their models, up to what the honest ones add. With
    one attacker `p_m` is its share; several boost together, each by their joint share.

    Args:
      boost: factor; default ``1 / (eta_g p_m)``; may be traced.
      server_learning_rate: `eta_g` > 0, may be traced.
      weighting: "message" for shares of the messages' weights, "uniform" for shares of heads.

    Returns:
      An `Attack`.

    Raises:
      ValueError: if a number is not positive or the weighting is unknown.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> u = jnp.zeros((10, 1)).at[3].set(-1.0)  # server minus client: x = 0, x* = 1
      >>> aggregate_stack(byzantine(model_replacement(), clients=[3]), u).tolist()
      [-1.0]

    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning",
    2020, arXiv:1807.00459.
    """
    check_positive(server_learning_rate, "server_learning_rate")
    if boost is not None:
        check_positive(boost, "boost")
    if weighting not in ("message", "uniform"):
        raise ValueError(f"weighting must be 'message' or 'uniform', got {weighting!r}")

    def rows(key: Key, scene: Scene) -> PyTree:
        factor = boost
        if factor is None:
            ones = jnp.ones_like(scene.weights)
            weights = scene.weights if weighting == "message" else ones
            theirs = jnp.where(scene.byzantine, weights, 0).sum()
            total = theirs + jnp.where(scene.honest, weights, 0).sum()
            factor = total / (server_learning_rate * jnp.where(theirs == 0, 1, theirs))
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, scene.values)

    return stateless(rows)


def replacement_update(
    params: Params,
    target: Params,
    *,
    weight: float | Array,
    server_learning_rate: float | Array = 1.0,
) -> PyTree:
    r"""What one attacker has to send so that the model becomes `target`.

    .. math::  \text{server minus client:}\quad -\Delta_m = \frac{x - x^*}{\eta_g w_m}

    Args:
      params: the server's model `x`.
      target: the attacker's `x*`, of the same structure.
      weight: its share `w_m` of all weights, in (0, 1]; ``1 / n`` where weights are uniform.
      server_learning_rate: `eta_g`.

    Returns:
      The value to send, a pseudo-gradient (server minus client).

    Raises:
      ValueError: if a number is not positive.

    Example:
      >>> float(replacement_update(jnp.array(0.0), jnp.array(1.0), weight=0.1))
      -10.0

    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning",
    2020, arXiv:1807.00459.
    """
    check_positive(weight, "weight")
    check_positive(server_learning_rate, "server_learning_rate")
    scale = server_learning_rate * weight
    return jax.tree.map(lambda x, goal: (x - goal) / scale, params, target)
