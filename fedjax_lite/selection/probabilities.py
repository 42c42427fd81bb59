"""Scores of clients, and the inclusion probabilities that they give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array


def inclusion_scale(scores: Array, cohort_size: Any) -> Array:
    r"""The `s` for which :math:`\sum_i \min(1, s\,u_i)` is the size of a cohort.

    Where no more than so many scores are positive, the largest number there is: all of them come.

    Args:
      scores: `u`, `[N]`, not negative.
      cohort_size: `m`, may be traced.

    Example:
      >>> float(inclusion_scale(jnp.array([1.0, 1.0, 2.0]), 2))
      0.5
      >>> float(inclusion_scale(jnp.array([1.0, 1.0, 9.0]), 2))  # the last one always comes
      0.5
    """
    scores = jnp.asarray(scores)
    ordered = jnp.sort(scores)[::-1]
    rest = jnp.cumsum(ordered[::-1])[::-1]  # of the scores from here on
    before = jnp.arange(len(scores))
    scale = (cohort_size - before) / jnp.where(rest > 0, rest, 1)
    fits = (rest > 0) & (before < cohort_size) & (scale * ordered <= 1)
    largest = jnp.asarray(jnp.finfo(scale.dtype).max, scale.dtype)
    return jnp.where(fits.any(), scale[jnp.argmax(fits)], largest)


def inclusion_probabilities(scores: Array, cohort_size: Any) -> Array:
    r"""``pi_i = min(1, s u_i)``, `[N]`, which sum to the size of a cohort.

    Args:
      scores: `u`, `[N]`, not negative.
      cohort_size: `m`.

    Returns:
      `[N]`; 0 where the score is 0.

    Example:
      >>> inclusion_probabilities(jnp.array([0.0, 1.0, 1.0, 9.0]), 2).tolist()
      [0.0, 0.5, 0.5, 1.0]
    """
    scores = jnp.asarray(scores, jnp.result_type(float))
    scale = inclusion_scale(scores, cohort_size)
    return jnp.where(scores > 0, jnp.minimum(1, scale * scores), 0)


def check_scores(scores: Any, name: str) -> Any:
    """Scores `[N]`, none of them negative and one positive; traced ones pass.

    Raises:
      TypeError, ValueError: if they are something else.

    Example:
      >>> check_scores([0.5, -1.0], "probabilities")
      Traceback (most recent call last):
      ...
      ValueError: probabilities must be [N], finite, none negative and not all 0, got least -1.0; \
they need not sum to 1
    """
    if isinstance(scores, jax.core.Tracer):
        if scores.ndim != 1:
            raise TypeError(
                f"{name} must be numbers [N], one a client, got a traced {scores.aval}; "
                "e.g. data.sizes"
            )
        return scores
    is_key = isinstance(scores, jax.Array) and jnp.issubdtype(scores.dtype, jax.dtypes.prng_key)
    found = np.empty(0) if is_key or isinstance(scores, str) else np.asarray(scores)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iuf":
        raise TypeError(
            f"{name} must be numbers [N], one a client, got {shown(scores)}; e.g. data.sizes"
        )
    if not np.isfinite(found).all() or found.min() < 0 or found.max() == 0:
        raise ValueError(
            f"{name} must be [N], finite, none negative and not all 0, got least {found.min()}; "
            "they need not sum to 1"
        )
    return found.astype(float)


def check_length(scores: Any, name: str, num_clients: int) -> None:
    """Raises ValueError where there is not one score a client.

    Example:
      >>> check_length([1.0, 2.0], "probabilities", 2)
    """
    if scores is not None and len(scores) != num_clients:
        raise ValueError(
            f"{name} must be [N], one a client, got {len(scores)} for a population of "
            f"{num_clients}; give {num_clients}"
        )
