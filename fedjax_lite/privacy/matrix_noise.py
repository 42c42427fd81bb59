"""Correlated noise from a banded Toeplitz matrix: DP-FTRL with less noise than a tree."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import (
    check_count,
    check_finite,
    check_non_negative,
    check_one,
    check_positive,
)
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import gdp_accountant, stated_noise
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_mu
from fedjax_lite.privacy.arguments import check_clip, check_delta, shown
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.gaussian import add_rows, noise_stddev, zero_sum
from fedjax_lite.privacy.participation import epoch_rounds, once_an_epoch
from fedjax_lite.privacy.tree_noise import noise_rounds
from fedjax_lite.round.ledger import MATRIX
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import (
    Aggregator,
    Array,
    Cohort,
    Entry,
    Key,
    Mechanism,
    Message,
    Params,
    PyTree,
)


class MatrixState(NamedTuple):
    """What the noise of later rounds still needs."""

    round: Array
    """int32: rounds done."""
    recent: PyTree
    """The last ``bands - 1`` correlated noises, of jax-privacy's streaming matrix."""


@made
def matrix_noise(
    *,
    clip: float,
    num_clients: int,
    cohort_size: int,
    num_rounds: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    bands: int | None = None,
    coefficients: Sequence[float] | np.ndarray | None = None,
    per_layer: bool = False,
    seed: int = 0,
) -> Mechanism:
    r"""DP-FTRL with matrix factorization: round `t` adds row `t` of :math:`C^{-1} Z`.

    .. math::
        \bar\Delta_t = \frac 1m \Big( \sum_{i \in S_t} \mathrm{clip}(\Delta_i)
                       + z\, s\, S\, (C^{-1} Z)_t \Big), \qquad Z_t \sim \mathcal N(0, I),

    with `C` lower triangular, banded and Toeplitz, and `s` the sensitivity of `C` to one client's
    turns. Noises of neighbouring rounds cancel in the prefix sums that the model is made of.

    Args:
      clip: `S`, the largest norm of an update; infinity only without noise.
      num_clients: `N`. A run on another population is refused.
      cohort_size: `m`; clients take turns (`once_an_epoch`).
      num_rounds: `T`, fixed in advance; the run stops there, later rounds give NaN.
      delta: in `(0, 1)`.
      epsilon: the budget of the run.
      noise_multiplier: `z` instead (one of the two); 0 is NOT PRIVATE. Unlike the tree's, it is
        the noise over the *whole* sensitivity, so that ``mu = 1 / z``. May be traced.
      bands: number of bands of `C`, optimised for the mean error of the prefix sums; default the
        rounds of an epoch, at most 32 and `T`. 1 is independent noise.
      coefficients: first column of `C` instead, positive and not increasing.
      per_layer: see `clip_clients`.
      seed: of the order of turns.

    Returns:
      A `Mechanism`; the state holds ``bands - 1`` copies of the model.

    Raises:
      ValueError: if an amount is out of range, or not exactly one of epsilon and noise is given.
      ImportError: if jax-privacy is not installed.

    Guarantees:
      (epsilon, delta)-DP for adding or removing one client with all its data, to whoever sees all
      models: exactly Gaussian with ``mu = 1 / z`` after `T` rounds, and `matrix_sensitivity` of
      the rounds so far over that of all before.
      As all mechanisms, with a secret key that serves one run, and where nothing but
      `state.server.params` is published: `MatrixState` holds the noise itself (see
      `fedjax_lite.privacy`).

    Example:
      >>> dp = matrix_noise(clip=1.0, num_clients=4, cohort_size=1, num_rounds=4, delta=1e-5,
      ...                   noise_multiplier=1.0, coefficients=[1.0, 0.5])
      >>> round(dp.accountant.spent(4)["epsilon"], 6)
      4.377178

    Reference: Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu, "(Amplified) Banded
    Matrix Factorization", 2023, arXiv:2306.08153.
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta, num_clients=num_clients)
    check_one(epsilon=epsilon, noise_multiplier=noise_multiplier)
    sampler = once_an_epoch(num_clients, cohort_size, seed=seed)
    apart = epoch_rounds(num_clients, cohort_size)
    if coefficients is None:
        bands = min(apart, num_rounds, 32) if bands is None else bands
        coefficients = banded_coefficients(num_rounds, bands)
    elif bands is not None:
        raise ValueError("give bands or coefficients, not both")
    coefficients = np.asarray(coefficients, np.float64)
    sensitivity = matrix_sensitivity(coefficients, num_rounds=num_rounds, separation=apart)
    z = stated_noise(
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        calibrate=lambda budget: 1 / gdp_mu(budget, delta),
    )
    check_clip(clip, z)
    return Mechanism(
        sampler=sampler,
        aggregator=matrix_sum(
            clip=clip,
            noise_multiplier=z * sensitivity,
            denominator=float(cohort_size),
            num_rounds=num_rounds,
            coefficients=coefficients,
            per_layer=per_layer,
        ),
        accountant=gdp_accountant(
            lambda rounds: (
                matrix_sensitivity(
                    coefficients[:rounds], num_rounds=min(rounds, num_rounds), separation=apart
                )
                / (z * sensitivity)
                if z
                else math.inf
            ),
            delta=delta,
            max_rounds=num_rounds,
            noise_multiplier=z,
            what=f"matrix mechanism, {len(coefficients)} bands, per client (add or remove one of "
            f"{num_clients}, all its data): z={shown(z)}, sensitivity {sensitivity:.6g}, every "
            f"client once in {apart} rounds, {num_rounds} rounds in all",
            entry=Entry(MATRIX, (z, _digest(coefficients, num_rounds, apart))),
            clock=noise_rounds,
            epsilon=epsilon,
        ),
    )


def _digest(coefficients: np.ndarray, num_rounds: int, apart: int) -> float:
    """A number that tells strategies apart, for the ledger."""
    text = repr((coefficients.tolist(), num_rounds, apart))
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]))


def banded_coefficients(num_rounds: int, bands: int) -> np.ndarray:
    """The banded Toeplitz strategy of least mean error of the prefix sums, `[bands]`, norm 1.

    Args:
      num_rounds: `T`.
      bands: at most `T`.

    Returns:
      float64 `[bands]`.

    Raises:
      ValueError: if an amount is out of range.
      ImportError: if jax-privacy is not installed.

    Example:
      >>> banded_coefficients(8, 1).tolist()
      [1.0]
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_count(bands, "bands", minimum=1)
    if bands > num_rounds:
        raise ValueError(f"bands must be at most num_rounds, got {bands} for {num_rounds} rounds")
    if bands == 1:
        return np.ones(1)
    return np.array(_optimised(num_rounds, bands))


@functools.lru_cache(maxsize=16)
def _optimised(num_rounds: int, bands: int) -> tuple[float, ...]:
    """Numbers also while a sweep traces the mechanism, which comes here once more."""
    with jax.ensure_compile_time_eval():
        found = _toeplitz().optimize_banded_toeplitz(n=num_rounds, bands=bands)
        found = np.asarray(found, np.float64)
    # Rounding must not break what the bound of the sensitivity needs.
    return tuple(np.minimum.accumulate(np.maximum(found, 0.0)).tolist())


def matrix_sensitivity(
    coefficients: Sequence[float] | np.ndarray, *, num_rounds: int, separation: int
) -> float:
    """How far one client can move ``C x`` when its turns lie at least `separation` rounds apart.

    Args:
      coefficients: first column of `C`, non-negative and not increasing.
      num_rounds: `T`.
      separation: `b`; a client has at most ``ceil(T / b)`` turns.

    Returns:
      The l2 sensitivity for updates of norm 1.

    Raises:
      ValueError: if the coefficients are negative, increase or begin with 0.

    Example:
      >>> round(matrix_sensitivity([1.0, 0.5], num_rounds=4, separation=2) ** 2, 6)
      2.5

    Reference: Kalinin, Lampert, "Banded Square Root Matrix Factorization for Differentially Private
    Model Training", 2024, arXiv:2405.13763, theorem 2.
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_count(separation, "separation", minimum=1)
    coefficients = np.asarray(coefficients, np.float64)
    if coefficients.ndim != 1 or not 1 <= len(coefficients) <= num_rounds:
        raise ValueError(
            f"coefficients must be 1 to num_rounds={num_rounds} numbers, got shape "
            f"{list(coefficients.shape)}"
        )
    # Written so that NaN fails too.
    if not (
        coefficients[0] > 0 and (coefficients >= 0).all() and (np.diff(coefficients) <= 0).all()
    ):
        raise ValueError(
            "coefficients must begin above 0, be >= 0 and not increase: only then is the worst "
            f"client known, got {coefficients[:8].tolist()}"
        )
    column = np.zeros(num_rounds)
    column[: len(coefficients)] = coefficients
    moved = np.zeros(num_rounds)
    for turn in range(0, num_rounds, separation):  # from the first round on, as often as can be
        moved[turn:] += column[: num_rounds - turn]
    return float(np.linalg.norm(moved))


def _told(value: Any) -> str:
    """In one line."""
    return " ".join(repr(value).split())[:60]


@made
def matrix_sum(
    *,
    clip: float | Array,
    noise_multiplier: float | Array,
    denominator: float | Array,
    num_rounds: int,
    coefficients: Sequence[float] | np.ndarray,
    per_layer: bool = False,
) -> Aggregator:
    """The aggregator of `matrix_noise`; `clip` and `noise_multiplier` may be traced.

    Args:
      clip: `S` > 0.
      noise_multiplier: standard deviation of `Z` over `clip`: `z` times the sensitivity of `C`.
      denominator: `m`, fixed.
      num_rounds: `T`; rounds beyond it give NaN: their noise was not planned for.
      coefficients: first column of `C`, `[bands]`.
      per_layer: see `clip_clients`.

    Returns:
      An `Aggregator` with the state `MatrixState`.

    Raises:
      ValueError: if an amount is out of range.
      ImportError: if jax-privacy is not installed.

    Example:
      >>> agg = matrix_sum(clip=1.0, noise_multiplier=1.0, denominator=1.0, num_rounds=4,
      ...                  coefficients=[1.0, 0.5, 0.25])
      >>> agg.init_state(jnp.zeros(2)).recent.shape
      (2, 2)
    """
    column = np.asarray(coefficients)
    check_finite(column, "coefficients")
    if column.ndim != 1 or not column.size:
        raise ValueError(
            f"coefficients must be numbers [bands], of one at least, got {_told(coefficients)} of "
            f"shape {list(column.shape)}; give the first column of C, such as [1.0, 0.5]"
        )
    check_positive(clip, "clip")
    check_non_negative(noise_multiplier, "noise_multiplier")
    check_positive(denominator, "denominator")
    check_count(num_rounds, "num_rounds", minimum=1)
    column = column.astype(np.float64)

    def inverse() -> Any:  # C^-1, row by row
        dtype = jnp.result_type(float)
        return _toeplitz().inverse_as_streaming_matrix(jnp.asarray(column, dtype))

    def init_state(params: Params) -> MatrixState:
        return MatrixState(jnp.int32(0), inverse().init_multiply(trees.wide_zeros(params)))

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        return add_rows(acc, clip_clients(messages.value, clip, per_layer=per_layer), mask)

    def finish(
        key: Key, state: MatrixState, acc: PyTree, cohort: Cohort
    ) -> tuple[MatrixState, PyTree]:
        if jax.tree.structure(acc) != jax.tree.structure(state.recent):
            raise ValueError(
                "privacy: matrix noise needs messages with the structure of the parameters, got "
                f"{jax.tree.structure(acc)}; use a method that sends one update (FedAvg)"
            )
        fresh = gaussian_like(key, acc, noise_stddev(noise_multiplier, clip))
        noise, recent = inverse().multiply_next(fresh, state.recent)
        planned = state.round < num_rounds
        value = jax.tree.map(
            lambda total, n: jnp.where(planned, (total + n) / denominator, jnp.nan), acc, noise
        )
        return MatrixState(state.round + 1, recent), value

    return Aggregator(init_state, zero_sum, add, finish)


def _toeplitz() -> Any:
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise ImportError(
            'matrix noise needs jax-privacy: pip install "fedjax_lite[privacy]"'
        ) from error
    return toeplitz
