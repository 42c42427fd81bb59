"""inverse_variance(): clients whose estimates are precise weigh more, up to a floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.conditions import need_one_a_client
from fedjax_lite.checks.arguments import check_bool, check_non_negative, check_positive, shown
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, ClientInfo


@made
def inverse_variance(
    variances: Any, *, floor: float | Array, per_example: bool = False
) -> Callable[[ClientInfo], Array]:
    r"""Weighs clients by the inverse variance of what they send.

    .. math::
        w_i = \frac{1}{\max(\sigma_i^2, \mathit{floor})}
        \qquad\text{or, per example,}\qquad
        w_i = \frac{n_i}{\max(s_i^2, \mathit{floor})}

    The weighted mean of independent unbiased estimates has its least variance under these
    weights. The floor is demanded, since the rule trusts small numbers without limit: a client of
    few or of one class has almost no variance and would decide alone. Look at
    ``inverse_variance_weights(...).largest`` before a run.

    Args:
      variances: `[N]`, at least 0: variances ``sigma_i^2`` of the clients' estimates, or with
        `per_example` ``s_i^2`` of one example. May be traced. Outside of a
        round, a client beyond the end of the table weighs NaN.
      floor: smallest variance that is believed, above 0, in the units of `variances`.
      per_example: whether the variances are per example, so that a client's is ``s_i^2 / n_i``.

    Returns:
      A function of `ClientInfo` for the argument `weighting` of `local_sgd` and the algorithms,
      and for `weight_by`.

    Raises:
      TypeError: if an argument is not numeric.
      ValueError: if `variances` is not `[N]`, negative or not finite, or `floor` not positive; when
        a state is made or a round is built, if there is not one a client of the population.

    Example:
      >>> weigh = inverse_variance([1.0, 4.0, 0.0], floor=0.25)
      >>> [float(weigh(ClientInfo(jnp.int32(i), 10, 1, 0))) for i in range(3)]
      [1.0, 0.25, 4.0]

    Reference: Cochran, "The Combination of Estimates from Different Experiments",
    Biometrics 10(1), 1954.
    """
    _check_floor(floor)
    check_bool(per_example, "per_example")
    table = variances if isinstance(variances, jax.core.Tracer) else np.asarray(variances)
    _check_variances(table)

    def weight(info: ClientInfo) -> Array:
        need_one_a_client(table.shape[0], "variances")
        # An index beyond the table would otherwise be clamped to its last client.
        variance = jnp.asarray(table, jnp.float32).at[info.id].get(mode="fill", fill_value=jnp.nan)
        precision = 1 / jnp.maximum(variance, floor)
        return info.size * precision if per_example else precision

    return weight


class InverseVarianceWeights(NamedTuple):
    """Weights, and how much the result depends on a single client."""

    weights: np.ndarray
    """float64 `[N]`, sum 1."""
    largest: float
    """The largest weight: near 1, one client decides."""
    variance: float
    """Of the weighted mean of independent estimates whose variances are those, floored."""


def inverse_variance_weights(
    variances: Any, *, floor: float, sizes: Any = None
) -> InverseVarianceWeights:
    r"""The normalised weights of `inverse_variance`, on the host, for reports and for tables.

    .. math::
        w_i = \frac{v_i^{-1}}{\sum_j v_j^{-1}}, \qquad
        \operatorname{Var} = \frac{1}{\sum_j v_j^{-1}}, \qquad
        v_i = \max(\sigma_i^2, \mathit{floor}) \;\text{ or }\; \max(s_i^2, \mathit{floor}) / n_i .

    Args:
      variances: `[N]`, at least 0: of the clients' estimates, or per example where `sizes` are
        given.
      floor: smallest variance that is believed, above 0.
      sizes: `[N]`, examples of each client; one without examples weighs 0.

    Returns:
      `InverseVarianceWeights`.

    Raises:
      TypeError: if an argument is not numeric.
      ValueError: if shapes do not agree, a variance or a size is negative or not finite, `floor`
        is not positive, or no client has examples.

    Example:
      >>> found = inverse_variance_weights([1, 4, 0.25], floor=0.1, sizes=[10, 40, 5])
      >>> found.weights.tolist(), found.largest
      ([0.25, 0.25, 0.5], 0.5)

    Reference: Cochran, 1954.
    """
    _check_floor(floor)
    variances = np.asarray(variances)
    _check_variances(variances)
    precisions = 1 / np.maximum(variances.astype(np.float64), float(floor))
    if sizes is not None:
        sizes = np.asarray(sizes)
        if sizes.shape != variances.shape:
            raise ValueError(
                f"sizes must have one entry per variance, shape {list(variances.shape)}, got "
                f"{list(sizes.shape)}"
            )
        check_non_negative(sizes, "sizes")
        if not np.isfinite(sizes).all() or not sizes.any():
            raise ValueError(f"sizes must be finite and not all zero, got {sizes.tolist()}")
        precisions = precisions * sizes
    weights = precisions / precisions.sum()
    return InverseVarianceWeights(weights, float(weights.max()), float(1 / precisions.sum()))


def _check_floor(floor: Any) -> None:
    check_positive(floor, "floor")
    if not isinstance(floor, jax.core.Tracer) and not np.isfinite(floor).all():
        raise ValueError(f"floor must be finite, got {floor}")


def _check_variances(variances: Any) -> None:
    if np.ndim(variances) != 1 or not np.size(variances):
        found = variances[()] if isinstance(variances, np.ndarray) else variances
        raise ValueError(
            f"variances must be [N], one per client, got {shown(found)} of "
            f"shape {list(np.shape(variances))}; give a list of numbers"
        )
    if isinstance(variances, jax.core.Tracer):
        return
    if variances.dtype.kind not in "iuf":
        raise TypeError(f"variances must be numbers, got {variances.dtype}")
    wrong = ~(np.isfinite(variances) & (variances >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"variances must be finite and not negative, got {variances[first]} for client "
            f"{first}; give a client of unknown variance a large one"
        )
