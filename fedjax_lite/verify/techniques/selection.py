"""Choosing clients: estimators over all cohorts, and choices by hand.

Five clients whose updates are b = (-2 .. 2), of n = (10 .. 50) examples: one step of rate 1 from 0
on ``-b x`` ends in b, so that a round's model is the estimate of ``sum p_i b_i = 2/3``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.data.population.dataset import FederatedDataset, from_owners
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.sampling import everyone, poisson, uniform
from fedjax_lite.selection.at_least_once import at_least_once
from fedjax_lite.selection.counted import counted
from fedjax_lite.selection.cyclic import cyclic
from fedjax_lite.selection.importance import importance
from fedjax_lite.selection.multinomial import multinomial
from fedjax_lite.selection.oort import oort
from fedjax_lite.selection.optimal import optimal
from fedjax_lite.selection.power_of_choice import power_of_choice
from fedjax_lite.selection.stratified import stratified
from fedjax_lite.selection.unbiased import unbiased
from fedjax_lite.types import Array, Cohort, FederatedAlgorithm, Sampler
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import trajectory

B, N = np.array([-2.0, -1, 0, 1, 2]), np.array([10, 20, 30, 40, 50])
P = N / N.sum()
TRUTH = float(P @ B)
PAIRS = list(itertools.combinations(range(5), 2))
SUBSETS = [s for k in range(6) for s in itertools.combinations(range(5), k)]
DRAWS = list(itertools.product(range(5), repeat=2))
WAY = 0.75
"""Of its way to its own optimum a client goes so much, where losses are ``(x - b)^2 / 2``."""


def linear(x: Array, examples: dict[str, Array], key: Any) -> Array:
    """A loss whose step is the client's b, wherever it starts."""
    return -examples["b"] * x


def square(x: Array, examples: dict[str, Array], key: Any) -> Array:
    """A loss that is highest for the client that is farthest away."""
    return 0.5 * (x - examples["b"]) ** 2


def population(b: Any = B, n: Any = N) -> FederatedDataset:
    """`n_i` copies of `b_i` a client."""
    owners = np.repeat(np.arange(len(n)), n)
    return from_owners({"b": np.asarray(b)[owners]}, owners, len(n))


def averaging(sampler: Sampler, loss: Any = linear, rate: float = 1.0) -> FederatedAlgorithm:
    """FedAvg with one step on a client's whole data."""
    return fedavg(loss, optax.sgd(rate), plan=Plan(None, steps=1), sampler=sampler)


def padded(cohorts: Sequence[Sequence[int]]) -> Cohort:
    """Cohorts of several lengths, leaves `[R, C]`."""
    size = max(len(cohort) for cohort in cohorts)
    ids = np.array([[*cohort, *[0] * (size - len(cohort))] for cohort in cohorts], np.int32)
    mask = np.arange(size) < np.array([len(cohort) for cohort in cohorts])[:, None]
    return Cohort(jnp.asarray(ids), jnp.asarray(mask))


def estimates(algo: FederatedAlgorithm, cohorts: Sequence[Sequence[int]]) -> Any:
    """The model after one round of each cohort, `[R]`."""
    moved = trajectory(algo, len(cohorts), data=population(), cohorts=padded(cohorts))
    return np.diff(np.asarray(moved), prepend=0.0)  # a linear loss: rounds add up


def weighed(cohorts: Sequence[Sequence[int]], chances: Any) -> list[float]:
    """Estimates of Horvitz and Thompson, a plain sum."""
    return [sum(P[i] * B[i] / chances[i] for i in cohort) for cohort in cohorts]


def shares_of(scores: Any, count: int) -> np.ndarray:
    """Inclusion probabilities: in proportion, at most 1, what is cut off shared out again."""
    scores, full = np.asarray(scores, float), np.zeros(len(scores), bool)
    while True:
        rest = np.where(full, 0, scores)
        chances = np.where(full, 1, rest * (count - full.sum()) / rest.sum())
        if not (chances > 1 + 1e-12).any():
            return chances
        full |= chances > 1


def frequencies(sampler: Sampler, num_draws: int = 4000) -> Any:
    """How often each of the five is in a cohort, `[5]`."""
    state, sizes = sampler.init(5), jnp.asarray(N)

    def draw(key: Any) -> Any:
        cohort = sampler.sample(key, state, sizes)[1]
        return jnp.zeros(5).at[cohort.ids].add(cohort.mask)

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), num_draws)).mean(0)


def by_choice(start: float, num_rounds: int, count: int, slots: Sequence[int]) -> list[float]:
    """Models of power-of-choice: the clients of the highest loss at the model of the moment."""
    x, models = start, []
    for _ in range(num_rounds):
        loss = np.round([(x - B[i]) ** 2 for i in slots], 9)
        first = sorted(range(len(slots)), key=lambda slot: (-loss[slot], slot))[:count]
        who = [slots[slot] for slot in first]
        x = float(np.average(x + WAY * (B[who] - x), weights=N[who]))
        models.append(x)
    return models


def chosen(start: float, num_rounds: int, count: int, slots: Sequence[int]) -> Any:
    """The same of the library, the candidates in these slots."""
    plain = averaging(everyone(), square, WAY)
    algo = power_of_choice(plain, square, cohort_size=count)
    cohorts = padded([slots] * num_rounds)
    return trajectory(algo, num_rounds, data=population(), start=start, cohorts=cohorts)


def chosen_once(start: float, cohorts: Sequence[Sequence[int]]) -> Any:
    """The model after one round of each of these candidates, of whom one trains, `[R]`."""
    algo = power_of_choice(averaging(everyone(), square, WAY), square, cohort_size=1)
    data, key = population(), jax.random.key(0)
    state = algo.init(key, jnp.asarray(start, float), data)
    one = lambda cohort: algo.round(key, state, data, cohort)[0].server.params  # noqa: E731
    return jax.jit(jax.vmap(one))(padded(cohorts))


def optimally(count: int, num_rounds: int) -> Any:
    """Mean estimate of optimal sampling over so many rounds."""
    algo = optimal(averaging(everyone()), cohort_size=count)
    x = trajectory(algo, num_rounds, data=population())
    return float(x[-1]) / num_rounds


def drawn(sampler: Sampler, num_rounds: int) -> np.ndarray:
    """Who took part in each round, bool `[R, 5]`."""
    sizes = jnp.asarray(N)

    def one(state: Any, key: Any) -> Any:
        state, cohort = sampler.sample(key, state, sizes)
        return state, jnp.zeros(5, bool).at[cohort.ids].max(cohort.mask)

    keys = jax.random.split(jax.random.key(1), num_rounds)
    return np.asarray(jax.jit(lambda keys: jax.lax.scan(one, sampler.init(5), keys)[1])(keys))


def longest_wait(there: np.ndarray) -> int:
    """The most rounds in a row from one turn of a client to its next."""
    turns = [np.flatnonzero(np.concatenate([[True], column, [True]])) for column in there.T]
    return max(int(np.diff(one).max()) for one in turns)


def gini() -> float:
    """Of four rounds of the same two clients, as the library counts."""
    sampler = counted(importance(2, [1.0, 1.0, 0, 0, 0]))
    state = sampler.init(5)
    for _ in range(4):
        state, _ = sampler.sample(jax.random.key(0), state, jnp.asarray(N))
    return float(state.metrics["participation_gini"])


def exploited() -> list[int]:
    """Whom Oort takes that knows all losses: the last client takes ten times its patience."""
    sampler = oort(
        1, seconds=[1.0, 1.0, 1.0, 1.0, 10.0], patience=1.0, exploration=0.0,
        least_exploration=0.0, cutoff=1.0,
    )  # fmt: skip
    state, sizes = sampler.init(5), jnp.asarray(N)
    state, _ = sampler.sample(jax.random.key(0), state, sizes)
    assert sampler.learn is not None
    losses = {"train_loss": jnp.array([3.0, 2.0, 1.0, 2.25, 2.0])}
    state = sampler.learn(state, Cohort(jnp.arange(5), jnp.ones(5, bool)), losses)
    return sampler.sample(jax.random.key(1), state, sizes)[1].ids.tolist()


def checks() -> list[Check]:
    """Unbiased weights, inclusion probabilities, choices by loss, turns, counts."""
    half, odd = np.full(5, 0.4), P * np.abs(B)
    inclusion = shares_of(odd, 2)
    senders = [s for s in SUBSETS if 2 not in s and 4 in s]
    spread = np.array(weighed(senders, np.where(inclusion > 0, inclusion, 1)))
    odds = [np.prod([inclusion[i] if i in s else 1 - inclusion[i] for i in (0, 1, 3)])
            for s in senders]  # fmt: skip
    se = float(np.sqrt(np.array(odds) @ (spread - TRUTH) ** 2 / 2000))
    poissons = unbiased(averaging(poisson(0.4, capacity=5)))
    ratio = [np.average(B[list(pair)], weights=N[list(pair)]) for pair in PAIRS]
    return [
        Check(  # factors are 32 bits wide
            "two of five, 2/5 each: all cohorts, mean and variance",
            [*weighed(PAIRS, half), TRUTH, 13 / 15],
            lambda: _with_moments(estimates(unbiased(averaging(uniform(2))), PAIRS)),
            1e-6,
        ),
        Check(
            "the mean of who came is a ratio, and biased",
            ratio,
            lambda: estimates(averaging(uniform(2)), PAIRS),
        ),
        Check(
            "Poisson cohorts: all subsets", weighed(SUBSETS, half),
            lambda: estimates(poissons, SUBSETS), 1e-6,
        ),
        Check(
            "two draws by size: all of them", weighed(DRAWS, 2 * P),
            lambda: estimates(unbiased(averaging(multinomial(2))), DRAWS),
        ),
        Check(
            "importance: inclusion", shares_of(odd, 3),
            lambda: importance(3, odd).inclusion(jnp.asarray(N)),  # type: ignore[misc]
            1e-6,
        ),
        Check(
            "importance: how often drawn", shares_of(odd, 3),
            lambda: frequencies(importance(3, odd)), 0.035,
        ),
        Check(
            "strata: how often drawn", [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3],
            lambda: frequencies(stratified([0, 0, 1, 1, 1], 1)), 0.035,
        ),
        Check(
            "optimal sampling: mean of two thousand rounds", TRUTH,
            lambda: optimally(2, 2000), 5 * se,
        ),
        Check(
            "power-of-choice: two of five at the model of the moment",
            by_choice(0.3, 4, 2, range(5)), lambda: chosen(0.3, 4, 2, range(5)),
        ),
        Check(
            "power-of-choice: ties go to the lowest slot",
            by_choice(0.0, 1, 1, [4, 0, 3]), lambda: chosen(0.0, 1, 1, [4, 0, 3]),
        ),
        Check(
            "power-of-choice leans to whom the model serves badly",
            float(np.mean([by_choice(0.4, 1, 1, one)[0] for one in PAIRS])),
            lambda: np.mean(chosen_once(0.4, PAIRS)),
        ),
        Check(
            "cyclic: everybody once in an epoch", [2.0] * 5,
            lambda: drawn(cyclic(2, reshuffle=True), 6).sum(0),
        ),
        Check(
            "at least once: the longest wait", 1.0,
            lambda: float(longest_wait(drawn(at_least_once(2, every=3), 40)) <= 3),
        ),
        # Counts (4, 4, 0, 0, 0): 12 ordered pairs differ by 4, over 2 * 25 * 8/5.
        Check("Gini of participation", 48 / 80, gini, 1e-7),
        # n l = 30, 40, 30, 90, 100; the last is scaled by (1/10)^2.
        Check("Oort: the most useful in time", [3.0], exploited),
    ]  # fmt: skip


def _with_moments(values: Any) -> list[float]:
    return [*values, float(np.mean(values)), float(np.var(values))]
