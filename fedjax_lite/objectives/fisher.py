"""The diagonal of the Fisher information of a batch: exact for classifiers, or empirical."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counted, keep_counts
from fedjax_lite.types import Array, Batch, Params, PyTree

Fisher = Callable[[Params, Batch], PyTree]
"""``(params, batch) ->`` sums over the examples of a batch that count, a tree like the parameters;
divided by how many these are, the diagonal of the Fisher information."""


@made
def empirical_fisher(loss: Callable[..., Any]) -> Fisher:
    r"""Squares of the gradient at the labels that there are: square per example, then sum.

    .. math::  \sum_b m_b \Bigl( \frac{\partial\, \ell(\theta; \xi_b)}{\partial \theta_j} \Bigr)^2

    It needs a loss and nothing else. Where the loss is a negative log-likelihood and the model has
    learnt the labels' distribution, it agrees with the Fisher information in the mean; elsewhere
    the two differ, see `exact_fisher`. It is not the square of the batch's gradient, which is near
    zero at an optimum. Memory O(batch x model).

    Args:
      loss: ``(params, examples, key) -> [B]``, as a rule the cross entropy, without regularisers.

    Returns:
      ``(params, batch) -> sums``, for `fisher_information` and `fedcurv`.

    Raises:
      TypeError: if `loss` is no function.

    Example:
      >>> squares = empirical_fisher(lambda w, e, key: 0.5 * (w - e["b"]) ** 2)
      >>> examples = {"b": jnp.array([1.0, 3.0, 9.0])}
      >>> float(squares(0.0, Batch(examples, jnp.array([True, True, False]), None)))  # 1 + 9
      10.0

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {shown(loss)}; give model.loss")

    def squares(params: Params, batch: Batch) -> PyTree:
        def of_one(example: PyTree) -> PyTree:
            one = jax.tree.map(lambda leaf: leaf[None], example)
            return jax.grad(lambda place: loss(place, one, batch.key).reshape(()))(params)

        grads = jax.vmap(of_one)(batch.examples)
        counts = counted(loss, batch.examples, batch.mask)
        return _weighed(jax.tree.map(jnp.square, grads), counts, params)

    return keep_counts(squares, loss)


@made
def exact_fisher(predict: Callable[[Params, PyTree], Array]) -> Fisher:
    r"""The Fisher information of a classifier: the expectation is over its own answers.

    .. math::  \sum_b m_b \sum_c p_c(x_b)
               \Bigl( \frac{\partial \log p_c(x_b)}{\partial \theta_j} \Bigr)^2,
               \qquad p = \mathrm{softmax}(\text{logits}_\theta(x_b))

    Labels are not looked at. The classes are taken one after the other: memory O(batch x model),
    time O(classes x a gradient). Of softmax regression it is the diagonal of
    ``(diag(p) - p p^T) kron x x^T``.

    Args:
      predict: ``(params, examples) ->`` logits `[B, K]`; one output `[B, 1]` or `[B]` is the
        log-odds of class 1. As a rule ``model.predict``.

    Returns:
      ``(params, batch) -> sums``, for `fisher_information` and `fedcurv`.

    Raises:
      TypeError: if `predict` is no function.
      ValueError: from the function, if the logits have another shape.

    Example:
      >>> squares = exact_fisher(lambda w, e: e["x"] @ w)
      >>> w = jnp.log(jnp.array([[1.0, 2.0, 3.0]]))  # p = (1/6, 1/3, 1/2) at x = 1
      >>> batch = Batch({"x": jnp.array([[1.0]])}, jnp.array([True]), None)
      >>> (36 * squares(w, batch)).round(4).tolist()  # p (1 - p)
      [[5.0, 8.0, 9.0]]

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796.
    """
    if not callable(predict):
        raise TypeError(f"predict must be a function, got {shown(predict)}; give model.predict")

    def squares(params: Params, batch: Batch) -> PyTree:
        def log_probs(place: Params, example: PyTree) -> Array:
            one = jax.tree.map(lambda leaf: leaf[None], example)
            return jax.nn.log_softmax(_logits(predict(place, one)))

        first = jax.tree.map(lambda leaf: leaf[0], batch.examples)
        num_classes = jax.eval_shape(log_probs, params, first).shape[0]

        def add(total: PyTree, klass: Array) -> tuple[PyTree, None]:
            def of_one(example: PyTree) -> tuple[Array, PyTree]:
                return jax.value_and_grad(lambda place: log_probs(place, example)[klass])(params)

            logs, grads = jax.vmap(of_one)(batch.examples)
            weights = jnp.where(batch.mask, jnp.exp(logs), 0)
            new = _weighed(jax.tree.map(jnp.square, grads), weights, params)
            return jax.tree.map(jnp.add, total, new), None

        return jax.lax.scan(add, trees.zeros(params), jnp.arange(num_classes))[0]

    return squares


def _weighed(squares: PyTree, weights: Array, like: Params) -> PyTree:
    """Sums over the examples, in the dtypes of the parameters."""
    weights = weights.astype(jnp.float32) if weights.dtype == bool else weights
    like = jax.tree.map(jnp.asarray, like)
    return trees.cast_like(trees.weighted_sum(squares, weights), like)


def _logits(outputs: Array) -> Array:
    """Of one example: `[K]`."""
    if outputs.size == 1:
        odds = outputs.reshape(())
        return jnp.stack([jnp.zeros_like(odds), odds])
    if outputs.ndim != 2 or outputs.shape[0] != 1:
        raise ValueError(
            f"predict must give logits [B, K], or one output [B], got {list(outputs.shape)} for "
            "one example; of sequences or images take empirical_fisher(model.loss)"
        )
    return outputs[0]
