"""What sums of discrete Gaussians guarantee: concentrated DP, and (epsilon, delta) from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedjax_lite.checks.arguments import check_count, check_positive
from fedjax_lite.privacy.accounting.discrete_sum import divergence

NEAR = 1.001
"""Within it of a Gaussian's rho there is nothing to gain."""


def rounded_norm(norm: float, *, dimension: int, beta: float) -> float:
    r"""A bound on the norm after stochastic rounding, met with probability ``1 - beta`` or more.

    .. math::
        \min\Big\{ \Delta^2 + \tfrac{d}{4} + \sqrt{2 \ln(1/\beta)}\,(\Delta + \tfrac{\sqrt d}{2}),
            \ (\Delta + \sqrt d)^2 \Big\}^{1/2}

    Args:
      norm: of the vector before rounding, in units of the grid.
      dimension: `d`.
      beta: in `[0, 1)`; 0 gives the second bound, which always holds.

    Example:
      >>> rounded_norm(3.0, dimension=4, beta=0.0)
      5.0

    Reference: Kairouz, Liu, Steinke, 2021, arXiv:2102.06387, Theorem 1.
    """
    check_positive(norm, "norm")
    check_count(dimension, "dimension", minimum=1)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    root = math.sqrt(dimension)
    always = norm + root
    if beta == 0:
        return always
    likely = norm**2 + dimension / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + root / 2)
    return min(always, math.sqrt(likely))


def sum_distance(stddev: float, num_clients: int) -> float:
    r"""How far a sum of discrete Gaussians is from one: the paper's tau.

    .. math::  \tau = 10 \sum_{k=1}^{n-1} \exp\!\Big(-2 \pi^2 \sigma^2 \frac{k}{k+1}\Big)

    Args:
      stddev: sigma of one client's noise, in units of the grid, at least 1/2.
      num_clients: `n`.

    Raises:
      ValueError: if `stddev` is below 1/2: the theorem does not cover it.

    Example:
      >>> sum_distance(1.0, 1), sum_distance(3.0, 10) < 1e-36
      (0.0, True)
    """
    check_count(num_clients, "num_clients", minimum=1)
    if not stddev >= 0.5:
        raise ValueError(
            f"stddev must be at least 1/2 of the grid's step, got {stddev}: sums of narrower noise "
            "are not covered; use more bits (a finer grid) or fewer clients"
        )
    k = np.arange(1, num_clients, dtype=np.float64)
    return 10 * float(np.exp(-2 * (math.pi * stddev) ** 2 * k / (k + 1)).sum())


def concentrated(
    norm: float,
    *,
    stddev: float,
    num_clients: int,
    dimension: int,
    most_clients: int | None = None,
) -> float:
    r"""The rho of zero-concentrated DP of a sum with discrete Gaussian noise from each client.

    .. math::
        D_\alpha \le \min\Big\{ \frac{\alpha \Delta^2}{2 n \sigma^2} + \tau d, \
            \frac{\alpha}{2} \Big(\frac{\Delta}{\sqrt n \sigma} + \tau \sqrt d\Big)^2 \Big\}
            \le \rho\,\alpha

    Args:
      norm: l2 norm of one client's integer vector, at most.
      stddev: sigma of one client's noise, at least 1/2.
      num_clients: `n` clients that add noise, at least.
      dimension: `d`.
      most_clients: that add noise, at most (tau grows with them); default `num_clients`.

    Returns:
      `rho`, for replacing one client's vector by zeros.

    Example:
      >>> concentrated(10.0, stddev=10.0, num_clients=4, dimension=100)
      0.125

    Reference: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
    Learning with Secure Aggregation", 2021, arXiv:2102.06387, Proposition 14.
    """
    tau = sum_distance(stddev, max(num_clients, most_clients or 0))
    ratio = norm / (math.sqrt(num_clients) * stddev)
    # alpha >= 1, so that a constant tau d is at most alpha tau d.
    return min(ratio**2 / 2 + tau * dimension, (ratio + tau * math.sqrt(dimension)) ** 2 / 2)


def rounds_epsilon(parts: Sequence[tuple[tuple[float, ...], int]], *, delta: float) -> float:
    r"""Epsilon of rounds of the distributed discrete Gaussian, at several strengths.

    .. math::
        \varepsilon = \min_{\alpha > 1}\ &\sum_k T_k \min\Big\{\rho_k \alpha,\
            \frac{\alpha \Delta_k^2}{2 n \sigma_k^2} + \tau_k d,\ D_\alpha^{(k)}\Big\} \\
            &+ \frac{\ln(1/(\alpha\delta))}{\alpha - 1} + \ln\Big(1 - \frac1\alpha\Big)

    The rho of `concentrated` is tight where the noise is wide. Where tau counts (about half a step
    of the grid), the theorem's constant term is kept apart from what grows with the order, and the
    divergence is also computed directly, by `discrete_sum.divergence`. All are upper bounds, at
    every order, so that the smallest one is; divergences of rounds add up.

    Args:
      parts: ``((norm, stddev, num_clients, dimension, most_clients), rounds)`` of each.
      delta: in (0, 1).

    Returns:
      epsilon; infinity without noise.

    Example:
      >>> round(rounds_epsilon([((10.0, 10.0, 4.0, 100.0, 4.0), 4)], delta=1e-5), 3)
      4.728
      >>> narrow = (16.0, 0.5, 1000.0, 1.0, 1000.0)  # by rho alone 89.6
      >>> rounds_epsilon([(narrow, 10)], delta=1e-5) < 52.0
      True

    Reference: Kairouz, Liu, Steinke, 2021, arXiv:2102.06387; Mironov, 2017, arXiv:1702.07476.
    """
    narrow, wide, whole = [], 0.0, 0.0
    for (norm, stddev, *counts), rounds in parts:
        if not rounds:
            continue
        if not stddev:
            return math.inf
        num_clients, dimension, most = map(int, counts)
        known = {"stddev": stddev, "num_clients": num_clients, "dimension": dimension}
        rho = concentrated(norm, most_clients=most, **known)
        whole += rounds * rho
        half = norm**2 / (2 * num_clients * stddev**2)
        if rho <= NEAR * half:
            wide += rounds * rho
        else:
            constant = sum_distance(stddev, max(num_clients, most)) * dimension
            narrow.append((rounds, rho, half, constant, {"norm": norm, **known}))
    loose = epsilon_of(whole, delta=delta)
    if not narrow:
        return loose

    def bound(alpha: float) -> float:
        spent = wide * alpha
        for rounds, rho, half, constant, known in narrow:
            spent += rounds * min(rho * alpha, half * alpha + constant, divergence(alpha, **known))
        return spent + math.log(1 / (alpha * delta)) / (alpha - 1) + math.log1p(-1 / alpha)

    # Any order gives a valid bound: a coarse grid, refined once around its best point.
    orders = 1 + np.logspace(-2, 3, 26)
    coarse = [bound(alpha) for alpha in orders]
    best = int(np.argmin(coarse))
    low, high = orders[max(best - 1, 0)], orders[min(best + 1, len(orders) - 1)]
    fine = [bound(alpha) for alpha in np.linspace(low, high, 14)[1:-1]]
    return max(float(min(loose, *coarse, *fine)), 0.0)


def epsilon_of(rho: float, *, delta: float) -> float:
    r"""The smallest epsilon that rho-zCDP gives at delta.

    .. math::
        \varepsilon = \min_{\alpha > 1}\ \rho\,\alpha
            + \frac{\ln\big(1/(\alpha\delta)\big)}{\alpha - 1} + \ln\Big(1 - \frac1\alpha\Big)

    Args:
      rho: at least 0; infinity gives infinity.
      delta: in (0, 1).

    Example:
      >>> round(epsilon_of(0.5, delta=1e-5), 3)
      4.728

    Reference: Canonne, Kamath, Steinke, 2020, arXiv:2004.00010, Proposition 12 and Corollary 13;
    Bun, Steinke, 2016, arXiv:1605.02065.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    if not rho >= 0:
        raise ValueError(f"rho must not be negative, got {rho}")
    if math.isinf(rho):
        return math.inf
    if rho == 0:
        return 0.0

    def bound(alpha: np.ndarray) -> np.ndarray:
        return rho * alpha + np.log(1 / (alpha * delta)) / (alpha - 1) + np.log1p(-1 / alpha)

    # Any alpha gives a valid bound: a fine grid, refined once around its best point.
    alphas = 1 + np.logspace(-4, 8, 4001)
    best = int(np.argmin(bound(alphas)))
    low, high = alphas[max(best - 1, 0)], alphas[min(best + 1, len(alphas) - 1)]
    return max(float(bound(np.linspace(low, high, 2001)).min()), 0.0)
