"""Checks of what a user states about privacy, before anything is computed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax

from fedjax_lite.checks.arguments import check_count

MOST_EPSILON = 1e4
"""A finite budget above this is a slip; its noise is too small for the accountants' grids."""


def check_budget(epsilon: Any) -> None:
    """Raises where no noise can be calibrated for `epsilon`: it is negative, or finite and huge."""
    check_epsilon(epsilon)
    if MOST_EPSILON < epsilon < float("inf"):
        raise ValueError(
            f"epsilon must be at most {MOST_EPSILON:g}, got {epsilon}, which protects nobody; give "
            "a smaller one, or infinity for no noise"
        )


def check_epsilon(epsilon: Any) -> None:
    """Raises where `epsilon` is not a number of at least 0 (infinity: no bound)."""
    _check_number(epsilon, "epsilon")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")


def check_delta(delta: Any, *, num_clients: int | None = None) -> None:
    """Raises where `delta` lies outside `(0, 1)`; warns where it is at least ``1 / num_clients``.

    A mechanism that publishes all data of one client drawn at random is (0, 1 / N)-private.
    """
    _check_number(delta, "delta")
    if not 0 < delta < 1:
        raise ValueError(
            f"delta must lie in (0, 1), got {delta}; well below 1 / num_clients, e.g. 1e-5"
        )
    if isinstance(num_clients, int) and num_clients > 0 and delta >= 1 / num_clients:
        warnings.warn(
            f"delta={delta:g} is not below 1 / num_clients = {1 / num_clients:.3g}: so large a "
            "delta allows publishing all data of one client drawn at random, whatever epsilon is; "
            "choose it well below, e.g. 1e-5",
            stacklevel=3,
        )


def check_noise_multiplier(noise_multiplier: Any) -> None:
    """Raises where `noise_multiplier` is not a concrete number of at least 0."""
    _check_number(noise_multiplier, "noise_multiplier")
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier must be finite and >= 0, got {noise_multiplier}")


def check_clip(clip: Any, noise_multiplier: Any, name: str = "clip") -> None:
    """Raises where the norm bound is not positive, or infinite beside noise (traced: any)."""
    _check_number(clip, name)
    if not clip > 0:
        raise ValueError(f"{name} must be positive, got {clip}; give the largest norm of an update")
    if math.isinf(clip) and (is_traced(noise_multiplier) or noise_multiplier != 0):
        raise ValueError(
            f"{name} must be finite where there is noise: its standard deviation is "
            f"noise_multiplier * {name}; {name}=inf goes with noise_multiplier=0 only"
        )


def check_population(num_clients: Any, expected: float, name: str) -> None:
    """Raises where more clients are asked for than there are."""
    check_count(num_clients, "num_clients", minimum=1)
    if not 0 < expected <= num_clients:
        raise ValueError(
            f"{name} must lie in (0, num_clients], got {expected} of {num_clients} clients"
        )


def is_traced(value: Any) -> bool:
    """Whether this is a value of a sweep, or another that is known only when a program runs.

    Example:
      >>> is_traced(1.1)
      False
    """
    return isinstance(value, jax.core.Tracer)


def shown(noise_multiplier: Any) -> str:
    """A noise multiplier for a description.

    Example:
      >>> shown(1.25)
      '1.25'
    """
    return "traced" if is_traced(noise_multiplier) else f"{noise_multiplier:.6g}"


def _check_number(value: Any, name: str) -> None:
    if is_traced(value):
        raise TypeError(
            f"{name} must be a plain number: accounting runs on the host, so it cannot be traced; "
            "a sweep over budgets takes noise_multiplier=fl.privacy.calibrate(epsilons, mechanism, "
            "...) instead"
        )
    try:
        float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
