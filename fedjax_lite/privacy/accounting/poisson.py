"""Accounting of the Poisson-subsampled Gaussian mechanism: epsilon of delta, rounds and noise."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from fedjax_lite.checks.arguments import check_count, check_fraction
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_delta, gdp_epsilon
from fedjax_lite.privacy.accounting.sampled_gaussian import sampled_gaussian_losses
from fedjax_lite.privacy.arguments import check_delta, check_epsilon, check_noise_multiplier

Method = Literal["pld", "rdp"]
INTERVAL = 1e-4
"""Discretisation of privacy losses; bounds stay bounds at any, and tighten as it shrinks."""
COARSE = 1e-3
"""For searches: an upper bound some 2e-4 above, twenty times as fast."""


def epsilon(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    num_rounds: int,
    delta: float,
    method: Method = "pld",
) -> float:
    r"""Epsilon after `num_rounds` rounds of the Poisson-subsampled Gaussian mechanism.

    In each round every client takes part with probability `q`, independently, and noise
    :math:`\mathcal N(0, (z S)^2 I)` is added to a sum that one client moves by at most `S`.
    Neighbouring populations differ in one client, added or removed.

    Args:
      noise_multiplier: `z`, standard deviation over sensitivity; 0 gives infinity.
      sampling_rate: `q` in `[0, 1]`.
      num_rounds: `T`; 0 spends nothing.
      delta: in `(0, 1)`.
      method: "pld" (privacy loss distributions, tight; at `q` = 1 the exact Gaussian curve with
        ``mu = sqrt(T) / z``) or "rdp" (Rényi divergences, an upper bound that is looser).

    Returns:
      epsilon.

    Raises:
      ValueError: if an argument is out of range.
      ImportError: if dp-accounting is not installed.

    Example:
      >>> stated = dict(noise_multiplier=1.1, sampling_rate=0.01, num_rounds=1000, delta=1e-5)
      >>> round(epsilon(**stated), 4), round(epsilon(**stated, method="rdp"), 4)
      (1.5154, 1.7118)

    Reference: Koskela, Jälkö, Honkela 2020, arXiv:1906.03049; Doroshenko et al., "Connect the
    Dots", 2022, arXiv:2207.04380; Mironov, Talwar, Zhang 2019, arXiv:1908.10530.
    """
    check_delta(delta)
    _check(noise_multiplier, sampling_rate, num_rounds, method)
    if num_rounds == 0 or sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if method == "rdp":
        orders, losses = _rdp(float(noise_multiplier), float(sampling_rate))
        rdp = _dp_accounting("rdp.rdp_privacy_accountant")
        return float(rdp.compute_epsilon(orders, num_rounds * losses, delta)[0])
    if sampling_rate == 1:
        return gdp_epsilon(delta, math.sqrt(num_rounds) / noise_multiplier)
    loss = composed(float(noise_multiplier), float(sampling_rate), num_rounds, INTERVAL)
    return float(loss.get_epsilon_for_delta(delta))


def delta(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    num_rounds: int,
    epsilon: float,
    method: Method = "pld",
) -> float:
    """Delta at a given epsilon; otherwise as `epsilon`.

    Example:
      >>> round(delta(noise_multiplier=1.0, sampling_rate=1.0, num_rounds=1, epsilon=1.0), 6)
      0.126937
    """
    check_epsilon(epsilon)
    _check(noise_multiplier, sampling_rate, num_rounds, method)
    if num_rounds == 0 or sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return 1.0
    if method == "rdp":
        orders, losses = _rdp(float(noise_multiplier), float(sampling_rate))
        rdp = _dp_accounting("rdp.rdp_privacy_accountant")
        return float(rdp.compute_delta(orders, num_rounds * losses, epsilon)[0])
    if sampling_rate == 1:
        return gdp_delta(epsilon, math.sqrt(num_rounds) / noise_multiplier)
    loss = composed(float(noise_multiplier), float(sampling_rate), num_rounds, INTERVAL)
    return float(loss.get_delta_for_epsilon(epsilon))


def event(*, noise_multiplier: float, sampling_rate: float, num_rounds: int) -> Any:
    """The mechanism as an event of dp-accounting, for accountants of one's own.

    Returns:
      ``SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(z)), T)``.

    Example:
      >>> event(noise_multiplier=1.1, sampling_rate=0.01, num_rounds=10).count
      10
    """
    _check(noise_multiplier, sampling_rate, num_rounds, "pld")
    dp = _dp_accounting()
    one = dp.GaussianDpEvent(noise_multiplier)
    one = one if sampling_rate == 1 else dp.PoissonSampledDpEvent(sampling_rate, one)
    return dp.SelfComposedDpEvent(one, num_rounds)


@functools.lru_cache(maxsize=64)
def composed(
    noise_multiplier: float, sampling_rate: float, num_rounds: int, interval: float
) -> Any:
    """The privacy loss distribution of `num_rounds` rounds; one round's is kept for the others."""
    return _one_round(noise_multiplier, sampling_rate, interval).self_compose(num_rounds)


Sampled = tuple[tuple[float, float, int], ...]
"""Poisson-sampled Gaussians: ``(noise multiplier, sampling rate, rounds)`` of each."""


def mixed(sampled: Sampled, mu: float, interval: float) -> Any:
    """The privacy loss distribution of several of them, and of one Gaussian of this `mu`."""
    losses = [composed(z, q, rounds, interval) for z, q, rounds in sampled]
    if mu > 0 or not losses:
        losses.append(_one_round(1 / mu if mu else math.inf, 1.0, interval))
    return functools.reduce(lambda whole, loss: whole.compose(loss), losses)


def mixed_rdp_epsilon(sampled: Sampled, mu: float, delta: float) -> float:
    """Epsilon by Rényi divergences of several of them, and of one Gaussian of this `mu`.

    Example:
      >>> one = mixed_rdp_epsilon(((1.0, 0.5, 3),), 0.0, 1e-5)
      >>> one == epsilon(noise_multiplier=1.0, sampling_rate=0.5, num_rounds=3, delta=1e-5,
      ...                method="rdp")
      True
    """
    rdp = _dp_accounting("rdp.rdp_privacy_accountant")
    orders, _ = _rdp(1.0, 1.0)
    losses = np.asarray(orders) * mu**2 / 2
    for z, q, rounds in sampled:
        losses = losses + rounds * np.asarray(_rdp(z, q)[1])
    return float(rdp.compute_epsilon(orders, losses, delta)[0])


@functools.lru_cache(maxsize=16)
def _one_round(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    distribution = _dp_accounting("pld.privacy_loss_distribution")
    if 0 < sampling_rate < 1 and math.isfinite(noise_multiplier):
        return sampled_gaussian_losses(noise_multiplier, sampling_rate, interval)
    return distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=interval
    )


@functools.lru_cache(maxsize=64)
def _rdp(noise_multiplier: float, sampling_rate: float) -> tuple[Any, Any]:
    """Orders and Rényi divergences of one round; of `T` rounds they are `T` times as large."""
    rdp = _dp_accounting("rdp.rdp_privacy_accountant")
    accountant = rdp.RdpAccountant()
    with _quiet():  # orders below 2 that do not converge are left out, with a warning each
        accountant.compose(
            event(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, num_rounds=1)
        )
    return accountant._orders, accountant._rdp


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _dp_accounting(name: str = "") -> Any:
    import importlib

    try:
        return importlib.import_module(".".join(filter(None, ("dp_accounting", name))))
    except ImportError as error:
        raise ImportError(
            'privacy accounting needs dp-accounting: pip install "fedjax_lite[privacy]"'
        ) from error


def _check(noise_multiplier: float, sampling_rate: float, num_rounds: int, method: str) -> None:
    check_noise_multiplier(noise_multiplier)
    check_fraction(sampling_rate, "sampling_rate")
    check_count(num_rounds, "num_rounds", minimum=0)
    if method not in ("pld", "rdp"):
        raise ValueError(f"method must be 'pld' or 'rdp', got {method!r}")
