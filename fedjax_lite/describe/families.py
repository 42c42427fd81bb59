"""Optimizers that are known by what they do: hypotheses, each of them to be tried.

A family reads its numbers off a trial (the updates, and states of public classes) and says which
public factory would make it so. `optimizers` then holds what that makes against the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from fedjax_lite.describe.trials import DECAY, SMALL, STEPS, TINY, TINY_STEP, Trial, found_in
from fedjax_lite.round import server

ADAPTIVE = (
    *(optax.TraceState, optax.ScaleByAdamState, optax.ScaleByRmsState, optax.ScaleByRssState),
    server.AdaptiveState,
)
"""States of optimizers that are more than a step along what they are shown."""


class Reading(NamedTuple):
    """What a family reads off a trial."""

    rate: float
    """The learning rate."""
    numbers: dict[str, Any]
    """The factory's other arguments."""
    seen: np.ndarray | None
    """float32 `[K, 2]`: the gradients that the optimizer was shown in the first step; None where
    they cannot be told."""


class Family(NamedTuple):
    """A kind of optimizer."""

    name: str
    """In words."""
    factory: Callable[..., optax.GradientTransformation]
    """``(learning_rate, **numbers) -> optimizer``."""
    read: Callable[[Trial], Reading | None]
    """None: it is none of these."""
    keys: tuple[str, ...] = ()
    """What citations know it by."""


def _sgd(trial: Trial) -> Reading | None:
    rate = -trial.updates[STEPS, 0, 0] / SMALL
    if rate == 0 or any(found_in(trial.states[0], kind) for kind in ADAPTIVE):
        return None
    return Reading(float(rate), {}, -trial.updates[:, 0] / rate)


def _momentum(trial: Trial) -> Reading | None:
    first, second = (_only(state, optax.TraceState, trial) for state in trial.states)
    if first is None or second is None or any(found_in(trial.states[0], k) for k in ADAPTIVE[1:]):
        return None
    seen = np.asarray(first.trace)
    if seen[STEPS, 0] == 0 or trial.updates[STEPS, 0, 0] == 0:
        return None
    decay = float(second.trace[STEPS, 0] / seen[STEPS, 0])
    step, later = -trial.updates[STEPS, :2, 0] / SMALL
    nesterov = bool(abs(later - decay * step) > 1e-4 * abs(step))
    rate = float(step / (1 + decay) if nesterov else step)
    return Reading(rate, {"momentum": decay, "nesterov": nesterov}, seen)


def _adam(trial: Trial) -> Reading | None:
    state = _only(trial.states[0], optax.ScaleByAdamState, trial)
    if state is None:
        return None
    b1 = float(1 - state.mu[STEPS, 0] / SMALL)
    b2 = float(1 - state.nu[STEPS, 0] / SMALL**2)
    rate, eps = _solved(trial, (SMALL, SMALL), (TINY, TINY))
    seen = state.mu / (1 - b1)
    decay = 0.0 if rate == 0 or seen[DECAY].any() else float(-trial.updates[DECAY, 0, 0] / rate)
    decayed = {"weight_decay": decay} if decay else {}
    return Reading(rate, {"b1": b1, "b2": b2, "eps": eps, **decayed}, seen)


def _adamw(trial: Trial) -> Reading | None:
    reading = _adam(trial)
    return reading if reading and "weight_decay" in reading.numbers else None


def _rmsprop(trial: Trial) -> Reading | None:
    state = _only(trial.states[0], optax.ScaleByRmsState, trial)
    if state is None or not trial.updates[[STEPS, TINY_STEP], 0, 0].all():
        return None
    share = float(state.nu[STEPS, 0]) / SMALL**2
    # (share g^2 + eps) / (rate g)^2 is the inverse square of an update.
    ordinary, tiny = (float(trial.updates[k, 0, 0]) ** -2 for k in (STEPS, TINY_STEP))
    eps_part = (tiny - ordinary) / (TINY**-2 - SMALL**-2)
    share_part = ordinary - eps_part / SMALL**2
    if share <= 0 or share_part <= 0:
        return None
    rate = float(np.sqrt(share / share_part))
    numbers: dict[str, Any] = {"decay": 1 - share, "eps": _rounded(eps_part * rate**2)}
    if found_in(trial.states[0], optax.TraceState):
        numbers["momentum"] = float(trial.updates[STEPS, 1, 0] / trial.updates[STEPS, 0, 0])
    return Reading(rate, numbers, None)


def _adagrad(trial: Trial) -> Reading | None:
    state = _only(trial.states[0], optax.ScaleByRssState, trial)
    if state is None or state.sum_of_squares[DECAY, 0] <= 0:
        return None
    initial = float(state.sum_of_squares[DECAY, 0])
    rate = -trial.updates[STEPS, 0, 0] / SMALL * (initial + SMALL**2) ** 0.5
    return Reading(float(rate), {"initial_accumulator_value": initial}, None)


def _of_server(kind: str) -> Callable[[Trial], Reading | None]:
    """One of the adaptive server optimizers, which differ in their second moment."""

    def read(trial: Trial) -> Reading | None:
        state = _only(trial.states[0], server.AdaptiveState, trial)
        if state is None:
            return None
        first, second = state.momentum, state.second_moment
        b1 = float(1 - first[STEPS, 0] / SMALL)
        grown = float(abs(second[STEPS, 0] - second[DECAY, 0])) / SMALL**2
        b2 = 1 - grown
        initial = float(second[DECAY, 0]) / (b2 if kind == "adam" and b2 else 1)
        points = [(float(first[k, 0]), float(second[k, 0]) ** 0.5) for k in (STEPS, TINY_STEP)]
        rate, tau = _solved(trial, *points)
        numbers: dict[str, Any] = {"b1": b1} | ({} if kind == "adagrad" else {"b2": b2})
        numbers["tau"] = tau
        if tau <= 0 or abs(initial / tau**2 - 1) > 1e-3:
            numbers["initial_accumulator"] = _rounded(initial)
        return Reading(rate, numbers, first / (1 - b1))

    return read


def _only(state: Any, kind: type, trial: Trial) -> Any:
    """The one state of that class, if it is of the model that was tried."""
    found = found_in(state, kind)
    shape = trial.updates[:, 0].shape
    if len(found) != 1 or any(np.shape(x) not in (shape, shape[:1]) for x in found[0]):
        return None
    return found[0]


def _solved(trial: Trial, *points: tuple[float, float]) -> tuple[float, float]:
    """Rate and epsilon of updates ``-rate * top / (root + eps)``, from an ordinary and a tiny step.

    Args:
      trial: with the two updates.
      *points: ``(top, root)`` of either.
    """
    (top, root), (tiny_top, tiny_root) = points
    part = float(-trial.updates[STEPS, 0, 0]) / top
    tiny_part = float(-trial.updates[TINY_STEP, 0, 0]) / tiny_top
    if part == tiny_part:
        return part * root, 0.0
    eps = (tiny_part * tiny_root - part * root) / (part - tiny_part)
    return part * (root + eps), _rounded(eps)


def _rounded(value: float) -> float:
    """To three digits: more cannot be told from updates in float32."""
    return float(f"{value:.3g}")


FAMILIES = (
    Family("SGD", optax.sgd, _sgd),
    Family("SGD", optax.sgd, _momentum),
    Family("AdamW", optax.adamw, _adamw, ("scale_by_adam", "add_decayed_weights")),
    Family("Adam", optax.adam, _adam, ("scale_by_adam",)),
    Family("RMSProp", optax.rmsprop, _rmsprop),
    Family("Adagrad as optax has it", optax.adagrad, _adagrad),
    Family(
        "FedAdam's server step", server.adam, _of_server("adam"), ("fedjax_lite.round.server.adam",)
    ),
    Family(
        "FedYogi's server step", server.yogi, _of_server("yogi"), ("fedjax_lite.round.server.yogi",)
    ),
    Family(
        "FedAdagrad's server step",
        server.adagrad,
        _of_server("adagrad"),
        ("fedjax_lite.round.server.adagrad",),
    ),
)
