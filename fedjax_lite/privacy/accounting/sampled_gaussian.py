"""The privacy losses of one Poisson-sampled Gaussian, whole arrays at a time."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from fedjax_lite.types import Array


def sampled_gaussian_losses(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    r"""The discrete privacy loss distribution of one round, as dp-accounting makes it.

    Its own function asks for the divergence at some 30,000 privacy losses one by one, in Python,
    which is most of the time of a calibration; here one expression answers for all of them. With
    clients added, or removed, the mechanism's loss :math:`\epsilon` is reached where the Gaussian's
    is :math:`\mp\log(1 + (e^{\mp\epsilon} - 1) / q)`, and the divergence is the difference of two
    normal distribution functions there.

    Args:
      noise_multiplier: `z`, above 0.
      sampling_rate: `q` in `(0, 1)`.
      interval: discretisation of privacy losses.

    Returns:
      A ``PrivacyLossDistribution`` of dp-accounting, by its "connect the dots".

    Example:
      >>> loss = sampled_gaussian_losses(1.0, 0.5, 1e-3)
      >>> bool(loss.get_delta_for_epsilon(1.0) < 0.06)
      True

    Reference: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, arXiv:2207.04380.
    """
    name = "dp_accounting.pld."
    mechanism = importlib.import_module(name + "privacy_loss_mechanism")
    pmf = importlib.import_module(name + "pld_pmf")
    distribution = importlib.import_module(name + "privacy_loss_distribution")
    if not hasattr(pmf, "create_pmf_pessimistic_connect_dots_fixed_gap"):  # an older release
        return distribution.from_gaussian_mechanism(
            noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=interval
        )

    def one(adjacency: Any) -> Any:
        loss = mechanism.GaussianPrivacyLoss(
            noise_multiplier, sampling_prob=sampling_rate, adjacency_type=adjacency
        )
        bounds = loss.connect_dots_bounds()
        lower = math.floor(bounds.epsilon_lower / interval)
        upper = math.ceil(bounds.epsilon_upper / interval)
        removed = adjacency == mechanism.AdjacencyType.REMOVE
        epsilons = np.arange(lower, upper + 1) * interval
        deltas = _divergence(epsilons, noise_multiplier, sampling_rate, loss, removed)
        return pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lower, upper, deltas)

    kinds = mechanism.AdjacencyType
    return distribution.PrivacyLossDistribution(one(kinds.REMOVE), one(kinds.ADD))


def _divergence(epsilons: Array, z: float, q: float, loss: Any, removed: bool) -> Array:
    """The hockey-stick divergence at each epsilon; of dp-accounting's loss its distributions."""
    sign = 1.0 if removed else -1.0
    # With a client removed no loss lies below log(1 - q), with one added none above minus that.
    inside = sign * epsilons > math.log1p(-q)
    deltas = np.where(inside | (not removed), 0.0, -np.expm1(epsilons))
    exponents = sign * epsilons[inside] - math.log(q)
    # log(1 + (e^(sign epsilon) - 1) / q), of the Gaussian without sampling
    rest = -np.exp(np.minimum(math.log(1 / q - 1) - exponents, 0.0))
    with np.errstate(divide="ignore"):
        plain = sign * (exponents + np.log1p(rest))
    x = -0.5 - plain * z**2 + (0.0 if removed else 1.0)
    upper, lower = loss.mu_upper_cdf(x), loss.mu_lower_log_cdf(x)
    deltas[inside] = upper - np.exp(epsilons[inside] + lower)
    return np.clip(deltas, 0.0, 1.0)
