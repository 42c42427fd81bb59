"""audit(): one run with canary clients, and the epsilon that it proves the method to have spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_fraction, check_key, check_non_negative
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.privacy.audit.bounds import check_confidence, epsilon_from_scores, one_run_epsilon
from fedjax_lite.privacy.audit.canaries import (
    Kind,
    canary_scores,
    canary_uplink,
    plant,
    with_canaries,
)
from fedjax_lite.privacy.audit.gaussian import gaussian_estimate, gaussian_lower_bound
from fedjax_lite.types import Array, FederatedAlgorithm, Key, Params, Transform

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Shares of the canaries that are guessed; the best counts, after a Bonferroni correction."""


Bound = Literal["one_run", "gaussian_one_run", "gaussian"]


class AuditFailed(AssertionError):
    """The run spent more privacy than its accountant says; `report` holds the figures."""

    def __init__(self, message: str, report: AuditReport) -> None:
        super().__init__(message)
        self.report = report


class AuditReport(NamedTuple):
    """What an audit found; figures of the host."""

    epsilon_lower_bound: float
    """At `delta`, with probability `confidence`."""
    accounted_epsilon: float
    """What the accountant says; infinite where there is none, or no noise."""
    passed: bool | None
    """Audited at most accounted; None where no finite epsilon was claimed: nothing to pass."""
    epsilon_estimate: float
    """Of the Gaussian mechanism with such scores; no bound (see `gaussian_estimate`)."""
    delta: float
    confidence: float
    num_rounds: int
    num_canaries: int
    guesses: int
    """Of the guesses by which the bound was got (method "one_run"); 0 for the others."""
    correct: int
    scores: np.ndarray
    """float64 `[m]`."""
    present: np.ndarray
    """bool `[m]`: the coins."""

    @property
    def verdict(self) -> str:
        """In words: "passed", "failed" or "no claim was made"."""
        return {True: "passed", False: "failed", None: "no claim was made"}[self.passed]

    def __str__(self) -> str:
        return (
            f"audit: {self.verdict}; epsilon >= {self.epsilon_lower_bound:.4g} with confidence "
            f"{self.confidence:g}, accounted {self.accounted_epsilon:.4g}, delta={self.delta:g}, "
            f"{self.num_canaries} canaries, {self.num_rounds} rounds"
        )


class Guesses(NamedTuple):
    """The best of several numbers of guesses."""

    epsilon: float
    guesses: int
    correct: int


def guess(
    scores: np.ndarray | Sequence[float],
    present: np.ndarray | Sequence[bool],
    *,
    delta: float = 0.0,
    confidence: float = 0.95,
    shares: Sequence[float] = SHARES,
) -> Guesses:
    """Guesses coins by the highest and the lowest scores, and bounds epsilon by the hits.

    For each share, that part of the canaries is guessed: half of it, those of the highest scores,
    as present, the other half, of the lowest, as absent. Numbers of guesses are fixed in advance,
    and the best bound holds after a union bound over them.

    Args:
      scores: `[m]`, higher means more likely present.
      present: bool `[m]`, the coins.
      delta: of the guarantee that is tested.
      confidence: in `(0, 1)`.
      shares: in `(0, 1]`.

    Returns:
      `Guesses`.

    Raises:
      ValueError: if scores are not finite, lengths differ or a share is out of range.

    Example:
      >>> coins = np.arange(200) % 2 == 0
      >>> found = guess(coins + 0.0, coins)
      >>> found.guesses, found.correct, round(found.epsilon, 3)
      (200, 200, 3.76)

    Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
    arXiv:2305.08846.
    """
    check_confidence(confidence)
    scores, present = np.asarray(scores, np.float64), np.asarray(present, bool)
    if scores.ndim != 1 or scores.shape != present.shape:
        raise ValueError(
            f"scores and present must be [m], got {list(scores.shape)} and {list(present.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite, {np.isnan(scores).sum()} are NaN: the run diverged; lower "
            "canary_norm (nothing clips it) or the learning rates"
        )
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must lie in (0, 1], got {shares}; give parts of the canaries")
    order, total = np.argsort(scores, kind="stable"), len(scores)
    corrected = 1 - (1 - confidence) / len(shares)
    found = []
    for share in shares:
        half = max(int(share * total) // 2, 1)
        if 2 * half > total:
            raise ValueError(f"scores must hold two canaries or more, got {total}")
        correct = int(present[order[-half:]].sum() + (~present[order[:half]]).sum())
        epsilon = one_run_epsilon(
            correct, 2 * half, num_canaries=total, delta=delta, confidence=corrected
        )
        found.append(Guesses(epsilon, 2 * half, correct))
    return max(found, key=lambda one: one.epsilon)


def audit(
    make: Callable[[Transform], FederatedAlgorithm],
    params: Params,
    *,
    data: FederatedDataset,
    num_rounds: int,
    num_canaries: int,
    delta: float,
    key: Key,
    confidence: float = 0.95,
    bound: Bound = "one_run",
    view: Literal["model", "rounds"] = "model",
    canary: Kind = "gaussian",
    canary_norm: float = 1e3,
    canary_size: int = 1,
    accounted_epsilon: float | None = None,
    strict: bool = True,
) -> AuditReport:
    r"""Audits a private method in one run: canary clients, and a lower bound on its epsilon.

    `m` canary clients join the population. By a fair coin each sends, whenever it is sampled, its
    own direction :math:`u_i` scaled far above any clipping norm, or nothing. An observer of the
    model scores each canary by :math:`\langle x_0 - x_T, u_i \rangle` and guesses the coins; the
    number of right guesses refutes every epsilon that is too small to allow it. The guarantee
    tested is that of one client added or removed.

    The bound is one of probability: a correct method is failed wrongly with probability at most
    ``1 - confidence``. That it passes proves nothing beyond this attack's strength, and honest
    clients drown the canaries where they are many or the model is small (a missing noise went
    unseen among 300 clients at 650 parameters): audit with few of them. The bound of a
    sampled cohort is far below the accounted figure, a missing clip or noise far above.

    Args:
      make: ``(uplink) ->`` the method, e.g. ``lambda uplink: fl.fedavg(..., uplink=uplink,
        privacy=...)``; a transform of its own goes behind: ``chain(uplink, qsgd(255))``. Its
        population is of ``data.num_clients + num_canaries`` clients.
      params: the initial model.
      data: the honest clients.
      num_rounds: rounds of the run.
      num_canaries: `m`; the strongest provable epsilon is about ``log(m / 3)``.
      delta: of the accounted guarantee, `[0, 1)`; 0 for a pure one. It must be the accountant's own
        where that is known, unless `accounted_epsilon` is given.
      key: of coins, directions and run; the audit is a function of it.
      confidence: probability that the bound holds, in `(0, 1)`.
      bound: "one_run", for any method. Where every client takes part in every round of Gaussian
        noise, two others are tighter: "gaussian_one_run" (see `epsilon_from_scores`), and
        "gaussian", which compares the noise with its claimed scale (see `gaussian_lower_bound`).
      view: "model": the observer sees the first and the last model; "rounds": each round's, and
        scores by the largest cosine, which finds a client that was sampled rarely.
      canary: "gaussian" or "coordinate"; see `direction`.
      canary_norm: length of a canary's message.
      canary_size: examples a canary has; more than the others', to find weights that must not be.
      accounted_epsilon: default what the method's accountant says after `num_rounds`. Where there
        is no accountant or no noise, no claim was made, and the report says so: ``passed`` is None.
      strict: raise `AuditFailed` where the audit fails, else only report it.

    Returns:
      An `AuditReport`.

    Raises:
      AuditFailed: if the audited epsilon exceeds the accounted one.
      TypeError: if the method sends something else than model updates.
      ValueError: if an argument is out of range, `delta` is not the accountant's, or the run
        diverges.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"x": jnp.zeros((4, 1))}, [0, 1, 2, 3])
      >>> report = audit(  # no privacy at all
      ...     lambda uplink: fl.fedavg(lambda w, e, key: 0 * e["x"][:, 0], optax.sgd(0.1),
      ...         plan=fl.Plan(batch_size=1), sampler=fl.everyone(), uplink=uplink),
      ...     jnp.zeros(300), data=data, num_rounds=1, num_canaries=64, delta=1e-5,
      ...     canary="coordinate", key=jax.random.key(0), accounted_epsilon=1.0, strict=False)
      >>> report.passed, report.correct == report.guesses
      (False, True)

    Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
    arXiv:2305.08846; Andrew et al., "One-shot Empirical Privacy Estimation for Federated
    Learning", 2023, arXiv:2302.03098.
    """
    check_key(key)
    check_count(num_rounds, "num_rounds", minimum=1)
    check_count(num_canaries, "num_canaries", minimum=2)
    check_fraction(delta, "delta")
    check_bound(bound, delta)
    if view not in ("model", "rounds"):
        raise ValueError(f'view must be "model" or "rounds", got {view!r}')
    key_run, key_coins, key_directions = jax.random.split(key, 3)
    uplink = canary_uplink(key_directions, norm=canary_norm, kind=canary, like=params)
    algo = make(uplink)
    if not isinstance(algo, FederatedAlgorithm):
        raise TypeError(f"make must return a FederatedAlgorithm, got {type(algo).__name__}")
    accounted = _accounted(algo, num_rounds, delta, accounted_epsilon)
    population = with_canaries(data, num_canaries, size=canary_size)
    present = jax.random.bernoulli(key_coins, 0.5, (num_canaries,))
    state = algo.init(key_run, params, population)
    state = plant(state, present, first=data.num_clients)

    @jax.jit
    def score(before: Params, after: Params) -> Array:
        change = trees.subtract(before, after)
        return canary_scores(change, key=key_directions, num_canaries=num_canaries, kind=canary)

    # Copies: a round may be given leave to reuse its state's memory.
    first = seen = jax.tree.map(jnp.copy, state.server.params)
    largest = None
    for _ in range(num_rounds):
        state, _ = algo.round(key_run, state, population)
        if view == "rounds":
            now = state.server.params
            norm = trees.global_norm(trees.subtract(seen, now))
            cosines = score(seen, now) / jnp.where(norm > 0, norm, 1.0)
            largest = cosines if largest is None else jnp.maximum(largest, cosines)
            seen = now
    scores = score(first, state.server.params) if largest is None else largest
    return judge(
        np.asarray(scores, np.float64),
        np.asarray(present),
        delta=delta,
        confidence=confidence,
        bound=bound,
        accounted_epsilon=accounted,
        num_rounds=num_rounds,
        strict=strict,
    )


def judge(
    scores: np.ndarray,
    present: np.ndarray,
    *,
    delta: float,
    accounted_epsilon: float,
    confidence: float = 0.95,
    bound: Bound = "one_run",
    num_rounds: int = 1,
    strict: bool = True,
) -> AuditReport:
    """Turns scores and coins into a report: the last step of `audit`, for runs of one's own.

    Args:
      scores: `[m]`, higher means more likely present.
      present: bool `[m]`, coins that were fair and independent.
      delta: see `audit`.
      accounted_epsilon: what is claimed; infinity: nothing.
      confidence: see `audit`.
      bound: see `audit`.
      num_rounds: for the report.
      strict: see `audit`.

    Returns:
      An `AuditReport`.

    Raises:
      AuditFailed: if the audited epsilon exceeds the accounted one.
      ValueError: if scores are not finite or `bound` does not fit.

    Example:
      >>> coins = np.arange(64) % 2 == 0
      >>> judge(1.0 * coins, coins, delta=0.0, accounted_epsilon=8.0).passed
      True
    """
    check_confidence(confidence)
    check_count(num_rounds, "num_rounds", minimum=1)
    check_non_negative(accounted_epsilon, "accounted_epsilon")
    check_bound(bound, delta)
    found = guess(scores, present, delta=delta, confidence=confidence)
    sides, sure = (scores[present], scores[~present]), {"delta": delta, "confidence": confidence}
    if bound == "gaussian":
        found = Guesses(gaussian_lower_bound(*sides, **sure), 0, 0)
    elif bound == "gaussian_one_run":
        found = Guesses(epsilon_from_scores(*sides, **sure, method=bound), 0, 0)
    epsilon = found.epsilon
    estimable = min(map(len, sides)) >= 2 and delta > 0
    estimate = gaussian_estimate(*sides, delta=delta) if estimable else math.nan
    report = AuditReport(
        epsilon_lower_bound=float(epsilon),
        accounted_epsilon=float(accounted_epsilon),
        passed=None if math.isinf(accounted_epsilon) else bool(epsilon <= accounted_epsilon),
        epsilon_estimate=float(estimate),
        delta=float(delta),
        confidence=float(confidence),
        num_rounds=num_rounds,
        num_canaries=len(scores),
        guesses=found.guesses,
        correct=found.correct,
        scores=scores,
        present=present,
    )
    if strict and report.passed is False:
        raise AuditFailed(
            f"audited epsilon {report.epsilon_lower_bound:.4g} exceeds the accounted "
            f"{report.accounted_epsilon:.4g} (delta {report.delta:g}, confidence "
            f"{report.confidence:g}, {report.num_canaries} canaries): clip, noise, weights, "
            "denominator or accounting of this method are wrong",
            report,
        )
    return report


def check_bound(bound: str, delta: float) -> None:
    """Raises ValueError where a bound is unknown, or asks for a delta that is not there."""
    if bound not in get_args(Bound):
        raise ValueError(f"bound must be one of {list(get_args(Bound))}, got {bound!r}")
    if bound != "one_run" and delta == 0:
        raise ValueError(f'delta must be positive with bound={bound!r}, got 0; use "one_run"')


def _accounted(
    algo: FederatedAlgorithm, num_rounds: int, delta: float, given: float | None
) -> float:
    """What the run may spend: the caller's figure, the accountant's, or no promise at all."""
    if given is not None:
        check_non_negative(given, "accounted_epsilon")
        return given
    if algo.accountant is None:
        return math.inf
    known = algo.accountant.delta
    if known is not None and delta != known:
        raise ValueError(
            f"delta must be the accountant's delta={known:g}, got {delta:g}: the accounted epsilon "
            "holds at that one only; or give accounted_epsilon for yours"
        )
    last = algo.accountant.max_rounds
    if last is not None and num_rounds > last:
        raise ValueError(
            f"num_rounds must be at most {last}, the rounds that the budget allows, got "
            f"{num_rounds}"
        )
    spent: dict[str, Any] = algo.accountant.spent(num_rounds)
    if "epsilon" not in spent:
        raise ValueError(
            f"accounted_epsilon must be given: the accountant speaks of {sorted(spent)} only"
        )
    return float(spent["epsilon"])
