"""The Rényi divergence of a sum of discrete Gaussians from itself shifted, computed directly."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count, check_positive

MOST_CLIENTS = 20_000
"""Above it the periodic factor takes seconds, and is left to the bound by tau."""
MOST_SHIFT = 4096
"""The same of the shifts to try."""
SLACK = 1e-9
"""Relative error of the periodic factor's logarithm that rounding is allowed, and paid for."""


def log_ripple(stddev: float, num_clients: int) -> np.ndarray:
    r"""How the sum of `n` discrete Gaussians differs from a discrete Gaussian: log of the factor.

    .. math::
        P[Z = x] = e^{-x^2 / 2 n \sigma^2}\, g(x), \qquad g(x + n) = g(x) = g(-x)

    Adding 1 to all `n` terms adds `n` to their sum and :math:`(2 x + n) / 2 \sigma^2` to the
    exponent, whatever the terms are: that is the whole change of the first factor, so that the
    second has period `n`, exactly. It is found by a Fourier integral of the sum whose terms are
    tilted to a mean of ``x / n``, at the middle of that sum, where nothing cancels.

    Args:
      stddev: sigma of one term, above 0.
      num_clients: `n`.

    Returns:
      ``log g(x)`` for x of 0 to n - 1, float64 `[n]`; normalised so that `P` sums to 1.

    Example:
      >>> log_g = log_ripple(1.0, 1)  # one term: the factor is the normalisation alone
      >>> round(float(np.exp(log_g[0]) * sum(np.exp(-np.arange(-9, 10) ** 2 / 2))), 12)
      1.0
    """
    check_positive(stddev, "stddev")
    check_count(num_clients, "num_clients", minimum=1)
    return _log_ripple(float(stddev), int(num_clients))


@functools.lru_cache(maxsize=8)
def _log_ripple(stddev: float, num_clients: int) -> np.ndarray:
    half = num_clients // 2 + 1
    x = np.arange(half, dtype=np.float64)
    reach = math.ceil(12 * stddev) + 2
    y = np.arange(-reach, reach + 2, dtype=np.float64)  # terms, around 0 or 1/2
    found = np.concatenate(
        [_middle(block, y, stddev, num_clients) for block in np.array_split(x, -(-half // 512))]
    )
    normal = np.log(np.exp(-(y**2) / (2 * stddev**2)).sum())
    log_g = found + x**2 / (2 * num_clients * stddev**2) - num_clients * normal
    mirrored = log_g[1 : (num_clients + 1) // 2][::-1]
    whole = np.concatenate([log_g, mirrored])
    whole.setflags(write=False)
    return whole


def _middle(x: np.ndarray, y: np.ndarray, stddev: float, num_clients: int) -> np.ndarray:
    """``log sum of exp(-|y|^2 / 2 sigma^2)`` over integer vectors of `n` terms that sum to `x`."""
    mean = x / num_clients
    center = mean.copy()
    for _ in range(20):  # Newton; anywhere near the middle will do
        weights = _weights(y, center, stddev)
        now = weights @ y
        slope = (weights @ y**2 - now**2) / stddev**2
        step = np.clip((mean - now) / np.maximum(slope, 1e-12), -0.05, 0.05)
        center = center + step
        if np.abs(step).max() < 1e-6:
            break
    weights = _weights(y, center, stddev)
    spread = np.sqrt(num_clients * np.maximum(weights @ y**2 - (weights @ y) ** 2, 1e-12))
    # Points enough that the tilted sum, which the discrete transform wraps around, does not reach
    # its own image; of an integrand that has fallen below rounding the rest is left out.
    wrap = max(64, math.ceil(40 * spread.max()))
    most = min(math.pi, 12 / spread.min()) if spread.min() > 4 else math.pi
    nodes = np.arange(-math.ceil(most * wrap / (2 * math.pi)), 0) * (2 * math.pi / wrap)
    nodes = np.concatenate([nodes[nodes > -math.pi + 1e-12], [0.0]])
    phases: Any = np.exp(1j * (y[:, None] * nodes[None, :]))
    terms: Any = (weights @ phases) ** num_clients * np.exp(-1j * x[:, None] * nodes[None, :])
    edge = (weights @ np.cos(math.pi * y)) ** num_clients * np.cos(math.pi * x)
    whole = 2 * terms[:, :-1].real.sum(1) + terms[:, -1].real
    whole = (whole + (edge if most == math.pi and wrap % 2 == 0 else 0.0)) / wrap
    tilt = center / stddev**2
    weight = np.exp(-(y[None, :] ** 2) / (2 * stddev**2) + tilt[:, None] * y[None, :]).sum(1)
    return np.log(whole) + num_clients * np.log(weight) - tilt * x


def _weights(y: np.ndarray, center: np.ndarray, stddev: float) -> np.ndarray:
    """Discrete Gaussians `[x, y]` around each centre."""
    weights = np.exp(-((y[None, :] - center[:, None]) ** 2) / (2 * stddev**2))
    return weights / weights.sum(1, keepdims=True)


def shifted_divergence(
    alpha: float, shifts: np.ndarray, *, stddev: float, num_clients: int
) -> np.ndarray:
    r"""``D_alpha(Z + k || Z)`` of the sum `Z` of `n` discrete Gaussians, for integer shifts `k`.

    .. math::
        D_\alpha = \frac{\alpha k^2}{2 n \sigma^2} + \frac{1}{\alpha - 1} \log \sum_x
            e^{-(x - \alpha k)^2 / 2 n \sigma^2}\, g(x - k)^\alpha g(x)^{1 - \alpha}

    by completing the square, with `g` of `log_ripple`. The sum ends where what is left out is
    below rounding; the error of `g` is added, so that the result is an upper bound.

    Args:
      alpha: above 1.
      shifts: integers `[K]`.
      stddev: sigma of one client's noise, in units of the grid.
      num_clients: `n`.

    Returns:
      float64 `[K]`.

    Example:
      >>> wide = shifted_divergence(2.0, np.array([3]), stddev=4.0, num_clients=5)
      >>> round(float(wide[0] - 2 * 9 / (2 * 5 * 16)), 6)  # wide noise: that of a Gaussian
      0.0
    """
    log_g = log_ripple(stddev, num_clients)
    shifts = np.asarray(shifts, np.int64)
    variance = num_clients * stddev**2
    span = float(log_g.max() - log_g.min())
    # Beyond it the Gaussian factor is below e^-60 of anything that g can make up for.
    width = math.ceil(math.sqrt(2 * variance * (60 + (2 * alpha - 1) * span))) + 1
    found = np.empty(len(shifts))
    for i, k in enumerate(shifts):
        x = np.arange(-width, width + 1) + round(alpha * int(k))
        terms = (
            -((x - alpha * k) ** 2) / (2 * variance)
            + alpha * log_g[(x - k) % num_clients]
            + (1 - alpha) * log_g[x % num_clients]
        )
        top = terms.max()
        inner = top + math.log(np.exp(terms - top).sum() + 1e-15)
        slack = SLACK * (2 * alpha - 1) * (1 + span)
        found[i] = alpha * k**2 / (2 * variance) + (inner + slack) / (alpha - 1)
    return found


def divergence(
    alpha: float, *, norm: float, stddev: float, num_clients: int, dimension: int
) -> float:
    r"""An upper bound of the Rényi divergence of a round at order `alpha`, computed directly.

    Coordinates are independent, so an integer vector `v` costs :math:`\sum_j D_\alpha(|v_j|)`.
    With :math:`\sum_j v_j^2 \le \Delta^2` that is at most

    .. math::
        \min\Big\{ \lfloor \Delta^2 \rfloor \max_{1 \le k \le \Delta} D_\alpha(k) / k^2, \
            d \max_{1 \le k \le \Delta} D_\alpha(k) \Big\}

    and more clients than `n` only add independent noise, which makes it smaller. In one dimension
    nothing is lost. Unlike the bound by `sum_distance` it has no term that grows with `d` or `n`.

    Args:
      alpha: order, above 1.
      norm: l2 norm of one client's integer vector, at most.
      stddev: sigma of one client's noise, in units of the grid.
      num_clients: `n` clients that add noise, at least; at most `MOST_CLIENTS`.
      dimension: `d`.

    Returns:
      The divergence; infinity where `n` or `norm` are too large to compute it.

    Example:
      >>> round(divergence(2.0, norm=10.0, stddev=10.0, num_clients=4, dimension=100), 6)
      0.25

    Reference: Kairouz, Liu, Steinke, 2021, arXiv:2102.06387, whose Proposition 14 bounds the same
    divergence; Canonne, Kamath, Steinke, 2020, arXiv:2004.00010.
    """
    most = math.floor(norm + 1e-9)
    if num_clients > MOST_CLIENTS or most > MOST_SHIFT:
        return math.inf
    if most == 0:
        return 0.0
    return _divergence(float(alpha), float(norm), float(stddev), int(num_clients), int(dimension))


@functools.lru_cache(maxsize=4096)
def _divergence(
    alpha: float, norm: float, stddev: float, num_clients: int, dimension: int
) -> float:
    shifts = np.arange(1, math.floor(norm + 1e-9) + 1)
    each = shifted_divergence(alpha, shifts, stddev=stddev, num_clients=num_clients)
    squares = math.floor(norm**2 + 1e-6)
    return min(squares * float((each / shifts**2).max()), dimension * float(each.max()))
