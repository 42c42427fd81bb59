"""Differential privacy: accounting, calibrated noise, clipped sums, adaptive clips, trees."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import privacy
from fedjax_lite.privacy.participation import overflow_probability
from fedjax_lite.types import Aggregator, Cohort, Message
from fedjax_lite.verify.records import Check

DELTA = 1e-5
ROWS = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
TABLE = {
    (1.0, 1.0, 1): (4.377178, 4.728507),
    (0.01, 1.1, 1000): (1.515370, 1.711770),
    (0.1, 1.0, 100): (7.046603, 7.903850),
}
"""``(q, z, T): (PLD, RDP)`` of dp-accounting at delta = 1e-5."""


def total(aggregator: Aggregator, rows: Any, rounds: int = 1) -> tuple[Any, np.ndarray]:
    """The state and the last aggregate of rounds with the same messages."""

    @jax.jit
    def run(rows: Any) -> Any:
        size = len(rows)
        template, mask = Message(rows[0], jnp.ones(())), jnp.ones(size, bool)
        cohort, messages = Cohort(jnp.arange(size), mask), Message(rows, jnp.arange(1.0, size + 1))

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            now = aggregator if aggregator.at is None else aggregator.at(state)
            acc = now.add(now.init(template, size), messages, jnp.arange(size), mask)
            return now.finish(key, state, acc, cohort)

        keys = jax.vmap(jax.random.key)(jnp.arange(rounds))
        state, values = jax.lax.scan(step, aggregator.init_state(rows[0]), keys)
        return state, values[-1]

    state, value = run(jnp.asarray(rows, jnp.result_type(float)))
    return state, np.asarray(value)


def adapted(norms: Any, rounds: int, **options: Any) -> float:
    """The clip after some rounds without noise."""
    aggregator = privacy.adaptive_sum(
        noise_multiplier=0.0, count_noise_multiplier=0.0, denominator=float(len(norms)), **options
    )
    return float(total(aggregator, np.asarray(norms)[:, None], rounds)[0].clip)


def adapting(norms: Any, rounds: int, clip: float) -> float:
    """The paper's rule: count who is not clipped."""
    for _ in range(rounds):
        clip *= math.exp(-0.2 * (np.mean(np.asarray(norms) <= clip) - 0.5))
    return clip


def accounted(method: Any) -> np.ndarray:
    """Epsilons of the table."""
    return np.array(
        [
            privacy.epsilon(
                noise_multiplier=z, sampling_rate=q, num_rounds=t, delta=DELTA, method=method
            )
            for q, z, t in TABLE
        ]
    )


def variances(rounds: int) -> np.ndarray:
    """Of tree noise on prefixes, over 1e5 coordinates."""
    aggregator = privacy.tree_sum(
        clip=1.0, noise_multiplier=1.0, denominator=1.0, num_rounds=rounds
    )
    nobody = Cohort(jnp.arange(1), jnp.zeros(1, bool))

    @jax.jit
    def run(template: Any) -> Any:
        message = Message(template, jnp.ones(()))

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            return aggregator.finish(key, state, aggregator.init(message, 1), nobody)

        keys = jax.vmap(jax.random.key)(jnp.arange(rounds))
        return jax.lax.scan(step, aggregator.init_state(template), keys)[1]

    return np.asarray(run(jnp.zeros(100_000))).cumsum(0).var(1)


def checks() -> list[Check]:
    """Section 4 of the known answers: epsilons, sigmas, fixed denominators, clips, prefixes."""
    norms = np.arange(1.0, 11.0)
    sigmas = {0.5: 7.031827, 1: 3.730632, 2: 1.993812, 4: 1.081162, 8: 0.600229}
    popcounts = np.array([1, 1, 2, 1, 2, 2, 3, 1])
    quiet: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 0.0}
    loud: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0, "denominator": 4.0}
    return [
        Check("epsilon by PLD", [v[0] for v in TABLE.values()], lambda: accounted("pld"), 1e-5),
        Check("epsilon by RDP", [v[1] for v in TABLE.values()], lambda: accounted("rdp"), 1e-5),
        Check(
            "mu = sqrt(T)/z without sampling",
            6.572970,
            lambda: privacy.epsilon(
                noise_multiplier=5.0, sampling_rate=1.0, num_rounds=50, delta=DELTA
            ),
            1e-6,
        ),
        Check(
            "no noise: epsilon is infinite",
            math.inf,
            lambda: privacy.epsilon(
                noise_multiplier=0.0, sampling_rate=0.1, num_rounds=1, delta=DELTA
            ),
        ),
        Check(
            "analytic Gaussian sigma",
            list(sigmas.values()),
            lambda: [privacy.gaussian_stddev(e, DELTA) for e in sigmas],
            1e-6,
        ),
        Check(
            "Poisson overflow P(X > 20)",
            1.4965e-3,
            lambda: overflow_probability(1000, 0.01, 20),
            1e-7,
        ),
        Check(
            "fixed denominator, weight 1",
            [0.225, 0.05],
            lambda: total(privacy.gaussian_sum(**quiet, denominator=4.0), ROWS)[1],
        ),
        Check(
            "NaN contributes nothing",
            [0.225, 0.05],
            lambda: total(
                privacy.gaussian_sum(**quiet, denominator=4.0), [*ROWS, [np.nan, np.inf]]
            )[1],
        ),
        Check(
            "adaptive clip, two rounds",
            adapting(norms, 2, 1.0),
            lambda: adapted(norms, 2, initial_clip=1.0),
            1e-6,
        ),
        Check(
            "adaptive clip finds the median",
            5.0530903166,
            lambda: adapted(norms, 120, initial_clip=1.0),
            1e-4,
        ),
        Check(
            "adaptive clip: the count's share",
            [1.0050378153, 0.5163977795],
            lambda: [privacy.update_noise(1.0, 5.0), privacy.update_noise(0.5, 1.0)],
        ),
        Check(
            "tree levels, T = 8, 1000, 1024",
            [4, 10, 11],
            lambda: [privacy.tree_sensitivity(t, t) ** 2 for t in (8, 1000, 1024)],
        ),
        # The error of a sample variance of 1e5 draws is sqrt(2e-5) = .45 %; five of them at 3.
        Check("tree noise: popcount(t) nodes", popcounts, lambda: variances(8), 0.07),
        Check(
            "tree, T = 1: Gaussian",
            [0.0, 0.0],
            lambda: (
                total(privacy.tree_sum(**loud, num_rounds=1), ROWS)[1]
                - total(privacy.gaussian_sum(**loud), ROWS)[1]
            ),
            0.0,
        ),
        Check(
            "matrix [1, .5], b = 2, T = 4: sensitivity^2",
            2.5,
            lambda: privacy.matrix_sensitivity([1.0, 0.5], num_rounds=4, separation=2) ** 2,
        ),
    ]
