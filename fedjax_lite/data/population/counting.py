"""Which examples count: a loss says it, and whatever is made of the loss asks here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array, PyTree

Counts = Callable[[PyTree], Array]
"""``(examples) ->`` bool `[B]`, False for an example that counts nowhere."""
Loss = TypeVar("Loss", bound=Callable[..., Any])


def with_counts(loss: Loss, counts: Counts) -> Loss:
    r"""The same loss, which says of which examples it is the loss: the others count nowhere.

    .. math::  f_i(x) = \frac{\sum_j m_j\, \ell(x; \xi_j)}{\sum_j m_j}, \qquad n_i = \sum_j m_j,
               \qquad m_j = \text{counts}(\xi_j)

    An example that does not count is absent from every sum and every number of examples: from the
    loss, its gradient, ``train_loss``, the client's weight `n_i`, and from evaluation. A client
    without any that counts is a client without data. Batches are drawn from all examples, so a
    batch may hold fewer that count than others; one that holds none is a step of gradient zero.

    The losses of this library say it themselves: an example that has no label ``y >= 0`` (no token,
    no pixel) does not count, and models made with them (`from_functions`) say so of their examples.
    A loss of your own counts every example until it says otherwise.

    Args:
      loss: ``(params, examples, key) -> [B]``; or, for ``from_functions(..., loss=...)``,
        ``(logits, y) -> [B]``.
      counts: ``(examples) ->`` bool `[B]`; of a loss of logits and labels, ``(y) ->`` bool `[B]`.

    Returns:
      A function of the same arguments and results, with the attribute ``counts``.

    Raises:
      TypeError: if one of them is not a function.

    Example:
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> loss = with_counts(square, lambda e: e["b"] != 99)  # 99 stands for a missing value
      >>> counted(loss, {"b": jnp.array([1.0, 99.0])}).tolist()
      [True, False]
    """
    for name, given in (("loss", loss), ("counts", counts)):
        if not callable(given) or isinstance(given, type):
            raise TypeError(f"{name} must be a function, got {given!r}; with_counts(loss, counts)")

    @functools.wraps(loss)
    def same(*args: Any, **kwargs: Any) -> Any:
        return loss(*args, **kwargs)

    same.counts = counts  # type: ignore[attr-defined]
    return same  # type: ignore[return-value]


def counts_of(loss: Any) -> Counts | None:
    """What a loss says of the examples that count; None: all of them do.

    Looks through ``functools.partial`` and wrappers made with ``functools.wraps``.

    Example:
      >>> counts_of(lambda params, examples, key: 0.0) is None
      True
      >>> marked = with_counts(lambda logits, y, scale: logits, labelled)
      >>> counts_of(functools.partial(marked, scale=2.0)) is labelled
      True
    """
    while loss is not None:
        counts = getattr(loss, "counts", None)
        if callable(counts):
            return counts
        loss = (
            loss.func if isinstance(loss, functools.partial) else getattr(loss, "__wrapped__", None)
        )
    return None


def keep_counts(loss: Loss, of: Any) -> Loss:
    """`loss`, which says of the examples that count what the loss `of` says that it was made of.

    Example:
      >>> inner = with_counts(lambda w, e, key: e["x"], lambda e: e["x"] > 0)
      >>> counts_of(keep_counts(lambda w, e, key: 2 * inner(w, e, key), inner)) is inner.counts
      True
    """
    counts = counts_of(of)
    return loss if counts is None else with_counts(loss, counts)


def counted(loss: Any, examples: PyTree, mask: Array | None = None) -> Array:
    """The examples that count: those of `mask` of which `loss` does not say otherwise.

    Args:
      loss: ``(params, examples, key) -> [B]``; see `with_counts`.
      examples: leaves `[B, ...]`.
      mask: bool `[B]`; None: all are real.

    Returns:
      bool `[B]`.

    Raises:
      ValueError: if ``loss.counts`` does not return bool `[B]`.

    Example:
      >>> counted(lambda w, e, key: w * e["x"], {"x": jnp.zeros(2)}).tolist()
      [True, True]
    """
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"loss must be a function, got {shown(loss)}; give model.loss")
    return apply_counts(counts_of(loss), examples, mask)


def apply_counts(counts: Counts | None, examples: PyTree, mask: Array | None = None) -> Array:
    """`counted`, given what the loss says."""
    size = jax.tree.leaves(examples)[0].shape[0]
    if counts is None:
        return jnp.ones(size, bool) if mask is None else mask
    found = counts(examples)
    if jnp.shape(found) != (size,) or not jnp.issubdtype(jnp.result_type(found), jnp.bool_):
        raise ValueError(
            f"counts of a loss must return one bool per example, shape [{size}], got "
            f'{jnp.result_type(found)}{list(jnp.shape(found))}; e.g. lambda e: e["y"] >= 0'
        )
    found = jnp.asarray(found)
    return found if mask is None else mask & found


def labelled(y: Array) -> Array:
    """Which examples have a label: a number that is not negative, one at least.

    Args:
      y: `[B]`, or `[B, ...]` for sequences and images.

    Returns:
      bool `[B]`.

    Example:
      >>> labelled(jnp.array([[1, -1], [-1, -1]])).tolist(), labelled(jnp.array([0, -1])).tolist()
      ([True, False], [True, False])
    """
    if not jnp.issubdtype(y.dtype, jnp.floating) and not jnp.issubdtype(y.dtype, jnp.signedinteger):
        return jnp.ones(y.shape[0], bool)
    return (y >= 0).any(axis=tuple(range(1, y.ndim)))
