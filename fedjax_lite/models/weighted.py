"""weighted_models(): several models as one, whose probabilities are mixed by fixed weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_key, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params, PyTree


class WeightedModels(NamedTuple):
    """Parameters of a mixture."""

    models: Params
    """Leaves `[K, ...]`."""
    weights: Array
    """`[K]`, not negative, of sum 1."""


@made
def weighted_models(model: Model, num_models: int) -> Model:
    r"""A mixture of `K` models: it answers with the weighted mean of their probabilities.

    .. math::
        p(y \mid x) = \textstyle\sum_k \pi_k\, \mathrm{softmax}(h_{\theta_k}(x))_y, \qquad
        \ell = -\log \textstyle\sum_k \pi_k\, e^{-\ell_k} .

    `predict` gives logarithms of the probabilities, which are logits of them. With one model it is
    that model, up to a constant in its logits.

    Args:
      model: what every component is; its logits are of classes.
      num_models: `K`, at least 1.

    Returns:
      A `Model` whose parameters are `WeightedModels`; those of `init` have weights ``1 / K`` and
      components that are each drawn by a key of their own. It scores what `fedjax_lite.fedem`
      trains.

    Raises:
      TypeError: if `model` is no `Model`.
      ValueError: if `num_models` is below 1.

    Example:
      >>> logits = Model(None, None, lambda w, e: jnp.log(w)[None])
      >>> both = WeightedModels(jnp.array([[0.9, 0.1], [0.5, 0.5]]), jnp.array([0.5, 0.5]))
      >>> told = jnp.exp(weighted_models(logits, 2).predict(both, {}))
      >>> [f"{p:.2f}" for p in told[0]]
      ['0.70', '0.30']
    """
    check_slot(model, "model", Model)
    check_count(num_models, "num_models", minimum=1)

    def init(key: Key) -> WeightedModels:
        check_key(key)
        each = [model.init(one) for one in jax.random.split(key, num_models)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        return WeightedModels(stacked, jnp.full(num_models, 1 / num_models))

    def loss(params: WeightedModels, examples: PyTree, key: Key | None) -> Array:
        each = jax.vmap(lambda one: model.loss(one, examples, key))(params.models)
        return mixture_loss(each, params.weights)

    def predict(params: WeightedModels, examples: PyTree) -> Array:
        each = jax.vmap(lambda one: model.predict(one, examples))(params.models)
        told = jax.nn.log_softmax(each, axis=-1)
        return jax.nn.logsumexp(told + _aside(jnp.log(params.weights), told), axis=0)

    return Model(init, keep_counts(loss, model.loss), predict)


def mixture_loss(losses: Array, weights: Array) -> Array:
    """``-log sum_k weights_k exp(-losses_k)``, the mixture's loss of each example.

    Args:
      losses: `[K, B]`.
      weights: `[K]`.

    Returns:
      `[B]`.

    Example:
      >>> mixture_loss(jnp.array([[3.0], [3.0]]), jnp.array([0.25, 0.75])).tolist()
      [3.0]
    """
    return -jax.nn.logsumexp(_aside(jnp.log(weights), losses) - losses, axis=0)


def responsibilities(losses: Array, weights: Array) -> Array:
    r"""How much each component accounts for each example: :math:`\propto \pi_k e^{-\ell_k}`.

    Args:
      losses: `[K, B]`.
      weights: `[K]`.

    Returns:
      `[K, B]`, of sum 1 over the components.

    Example:
      >>> found = responsibilities(jnp.log(jnp.array([[2.0], [1.0]])), jnp.array([0.5, 0.5]))
      >>> [f"{part:.3f}" for part in found[:, 0]]
      ['0.333', '0.667']
    """
    return jax.nn.softmax(_aside(jnp.log(weights), losses) - losses, axis=0)


def _aside(weights: Array, of: Any) -> Array:
    """`[K]` as `[K, 1, ...]`, in the dtype of what it is added to."""
    return weights.astype(of.dtype).reshape((-1,) + (1,) * (of.ndim - 1))
