"""Samplers by their distributions: exact laws, chi-square tests, counted overflows."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_lite as fl
from fedjax_lite.round.sampling import poisson_capacity

ALPHA = 1e-6
TRIALS = 20_000


def draw(sampler, sizes, trials=TRIALS, seed=0):
    """ids and mask `[trials, C]`."""
    sizes = jnp.asarray(sizes)
    state = sampler.init(sizes.shape[0])
    keys = jax.random.split(jax.random.key(seed), trials)
    _, cohort = jax.jit(jax.vmap(lambda key: sampler.sample(key, state, sizes)))(keys)
    assert cohort.ids.dtype == jnp.int32
    assert cohort.mask.dtype == bool
    return np.asarray(cohort.ids), np.asarray(cohort.mask)


def chi_square(observed, expected, df=None):
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    df = observed.size - 1 if df is None else df
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), df)


def binomial_ok(hits, trials, rate):
    return stats.binomtest(int(hits), trials, rate).pvalue > ALPHA


def distinct(ids, mask):
    return all(len(set(i[m])) == m.sum() for i, m in zip(ids[:500], mask[:500]))


# -- everyone, uniform ----------------------------------------------------------------------


def test_everyone_is_everyone():
    ids, mask = draw(fl.everyone(), np.ones(7), 3)
    assert (ids == np.arange(7)).all()
    assert mask.all()


@pytest.mark.parametrize(("population", "size"), [(5, 2), (10, 3), (7, 7), (12, 1), (13, 12)])
def test_uniform_inclusion_and_pairs(population, size):
    ids, mask = draw(fl.uniform(size), np.ones(population))
    assert mask.all()
    assert ids.min() >= 0
    assert ids.max() < population
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    member = np.zeros((TRIALS, population), bool)
    np.put_along_axis(member, ids, True, axis=1)
    share = size / population
    assert all(binomial_ok(member[:, i].sum(), TRIALS, share) for i in range(population))
    joint = share * (size - 1) / (population - 1)
    for i, j in itertools.combinations(range(population), 2):
        assert binomial_ok((member[:, i] & member[:, j]).sum(), TRIALS, joint), (i, j)


def test_uniform_subsets_are_equally_likely():
    ids, _ = draw(fl.uniform(3), np.ones(6))
    code = (1 << ids).sum(1)
    subsets = [sum(1 << i for i in s) for s in itertools.combinations(range(6), 3)]
    assert chi_square([(code == s).sum() for s in subsets], [TRIALS / 20] * 20) > ALPHA


def test_uniform_depends_on_the_key_alone():
    sampler = fl.uniform(4)
    one = sampler.sample(jax.random.key(1), (), jnp.ones(1000))[1].ids
    same = sampler.sample(jax.random.key(1), (), jnp.zeros(1000))[1].ids
    other = sampler.sample(jax.random.key(2), (), jnp.ones(1000))[1].ids
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_uniform_from_a_large_population():
    ids, _ = draw(fl.uniform(100), np.ones(1_000_000, np.int8), 50)
    assert distinct(ids, np.ones_like(ids, bool))
    assert chi_square(np.bincount(ids.ravel() // 100_000, minlength=10), [500] * 10) > ALPHA


# -- Poisson --------------------------------------------------------------------------------


def test_poisson_marginals_pairs_and_cohort_size():
    population, rate = 12, 0.3
    ids, mask = draw(fl.poisson(rate, capacity=population), np.ones(population))
    assert distinct(ids, mask)
    member = np.zeros((TRIALS, population), bool)
    rows, slots = np.nonzero(mask)
    member[rows, ids[rows, slots]] = True
    assert all(binomial_ok(member[:, i].sum(), TRIALS, rate) for i in range(population))
    for i, j in itertools.combinations(range(population), 2):
        assert binomial_ok((member[:, i] & member[:, j]).sum(), TRIALS, rate**2), (i, j)
    counts = np.bincount(member.sum(1), minlength=population + 1)
    expected = TRIALS * stats.binom.pmf(np.arange(population + 1), population, rate)
    # Merge the thin upper tail, so that the chi-square approximation holds.
    observed = [*counts[:8], counts[8:].sum()]
    assert chi_square(observed, [*expected[:8], expected[8:].sum()]) > ALPHA
    # A sampler of fixed size fails this one: the test has power.
    fixed = np.bincount(np.full(TRIALS, 4), minlength=population + 1)
    assert chi_square([*fixed[:8], fixed[8:].sum()], [*expected[:8], expected[8:].sum()]) < 1e-300


def test_poisson_empty_rounds_happen_as_often_as_they_should():
    _, mask = draw(fl.poisson(0.05), np.ones(20))
    assert binomial_ok((~mask.any(1)).sum(), TRIALS, 0.95**20)


def test_poisson_overflow_is_counted_and_the_rest_is_a_uniform_subset():
    population, rate, capacity = 8, 0.5, 3
    sampler = fl.poisson(rate, capacity=capacity)
    sizes = jnp.ones(population)

    def step(state, key):
        state, cohort = sampler.sample(key, state, sizes)
        return state, (state.overflow, cohort)

    keys = jax.random.split(jax.random.key(3), TRIALS)
    _, (overflow, cohort) = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))(
        sampler.init(population), keys
    )
    added = np.diff(np.asarray(overflow), prepend=0)
    counts = np.bincount(added, minlength=population - capacity + 1)
    pmf = stats.binom.pmf(np.arange(population + 1), population, rate)
    expected = TRIALS * np.concatenate([[pmf[: capacity + 1].sum()], pmf[capacity + 1 :]])
    assert chi_square(counts, expected) > ALPHA
    ids, mask = np.asarray(cohort.ids), np.asarray(cohort.mask)
    assert distinct(ids, mask)
    full = ids[mask.all(1)]
    assert (
        chi_square(np.bincount(full.ravel(), minlength=population), [full.size / population] * 8)
        > ALPHA
    )


@pytest.mark.parametrize(
    ("population", "rate"),
    [(10, 0.1), (100, 0.01), (100, 0.5), (1000, 0.01), (1000, 0.9), (10**5, 1e-3), (10**6, 1e-5)],
)
def test_capacity_keeps_overflow_rare_and_is_not_wasteful(population, rate):
    capacity = poisson_capacity(population, rate)
    assert 1 <= capacity <= population
    assert stats.binom.sf(capacity, population, rate) <= 1e-9
    # Chernoff is loose by a polynomial factor at most: never more than a few extra deviations.
    exact = int(stats.binom.isf(1e-9, population, rate))
    assert capacity <= exact + 3 + 0.6 * np.sqrt(population * rate * (1 - rate))
    if capacity < population:
        looser = poisson_capacity(population, rate, tail=1e-3)
        assert looser <= capacity
        assert stats.binom.sf(looser, population, rate) <= 1e-3


def test_poisson_at_its_ends():
    _, mask = draw(fl.poisson(0.0), np.ones(5), 50)
    assert not mask.any()
    ids, mask = draw(fl.poisson(1.0), np.ones(5), 50)
    assert mask.all()
    assert (np.sort(ids, axis=1) == np.arange(5)).all()


def test_poisson_rate_may_be_traced_with_a_capacity():
    def count(rate):
        sampler = fl.poisson(rate, capacity=6)
        keys = jax.random.split(jax.random.key(0), 500)
        sample = lambda k: sampler.sample(k, sampler.init(6), jnp.ones(6))[1].mask.sum()  # noqa: E731
        return jax.vmap(sample)(keys).sum()

    low, high = jax.jit(jax.vmap(count))(jnp.array([0.1, 0.8]))
    assert binomial_ok(int(low), 3000, 0.1)
    assert binomial_ok(int(high), 3000, 0.8)
    with pytest.raises(ValueError, match="capacity must be given where rate is traced"):
        jax.jit(lambda rate: fl.poisson(rate).init(3).overflow)(0.5)


# -- weighted -------------------------------------------------------------------------------


def test_weighted_is_plackett_luce():
    sizes = np.array([5, 1, 3, 0, 11])
    ids, mask = draw(fl.weighted(2), sizes)
    assert mask.all()
    assert (ids != 3).all()
    assert (ids[:, 0] != ids[:, 1]).all()
    share = sizes / sizes.sum()
    alive = [0, 1, 2, 4]
    first = np.bincount(ids[:, 0], minlength=5)[alive]
    assert chi_square(first, TRIALS * share[alive]) > ALPHA
    pairs, expected = [], []
    for i, j in itertools.permutations(alive, 2):
        pairs.append(((ids[:, 0] == i) & (ids[:, 1] == j)).sum())
        expected.append(TRIALS * share[i] * share[j] / (1 - share[i]))
    assert chi_square(pairs, expected) > ALPHA
    # Power: uniform draws fail.
    assert chi_square(first, np.full(4, TRIALS / 4)) < 1e-100


def test_weighted_leaves_slots_empty_rather_than_draw_the_empty():
    ids, mask = draw(fl.weighted(4), np.array([0, 2, 0, 7, 0]), 200)
    assert (mask.sum(1) == 2).all()
    assert all(set(i[m]) == {1, 3} for i, m in zip(ids, mask))


# -- drop-outs ------------------------------------------------------------------------------


def test_dropout_rate_and_independence():
    rate = 0.3
    ids, mask = draw(fl.dropout(fl.everyone(), rate), np.ones(6))
    assert (ids == np.arange(6)).all()
    assert all(binomial_ok((~mask[:, i]).sum(), TRIALS, rate) for i in range(6))
    for i, j in itertools.combinations(range(6), 2):
        assert binomial_ok((~mask[:, i] & ~mask[:, j]).sum(), TRIALS, rate**2), (i, j)


def test_dropout_is_independent_of_the_slot_and_of_being_sampled():
    """A client's drop-out is decided by its id, wherever it sits in the cohort."""
    ids, mask = draw(fl.dropout(fl.uniform(3), 0.4), np.ones(5))
    for slot in range(3):
        assert binomial_ok((~mask[:, slot]).sum(), TRIALS, 0.4), slot
    for client in range(5):
        here = ids == client
        assert binomial_ok((here & ~mask).sum(), int(here.sum()), 0.4), client
    ordered = fl.Sampler(
        lambda n: (), lambda k, s, sizes: (s, fl.Cohort(jnp.arange(6), jnp.ones(6, bool)))
    )
    turned = fl.Sampler(
        lambda n: (), lambda k, s, sizes: (s, fl.Cohort(jnp.arange(6)[::-1], jnp.ones(6, bool)))
    )
    for seed in range(20):
        key = jax.random.key(seed)
        one = fl.dropout(ordered, 0.5).sample(key, (), jnp.ones(6))[1].mask
        two = fl.dropout(turned, 0.5).sample(key, (), jnp.ones(6))[1].mask
        assert one.tolist() == two[::-1].tolist()


def test_dropout_ends_and_states():
    assert draw(fl.dropout(fl.everyone(), 0.0), np.ones(4), 100)[1].all()
    assert not draw(fl.dropout(fl.everyone(), 1.0), np.ones(4), 100)[1].any()
    sampler = fl.dropout(fl.poisson(1.0, capacity=2), 0.5)
    state, cohort = sampler.sample(jax.random.key(0), sampler.init(5), jnp.ones(5))
    assert int(state.overflow) == 3
    assert cohort.ids.shape == (2,)
    # Empty slots never come back to life.
    none = fl.dropout(fl.poisson(0.0, capacity=2), 0.0)
    assert not none.sample(jax.random.key(0), none.init(5), jnp.ones(5))[1].mask.any()


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.uniform(0), ValueError, "cohort_size must be at least 1, got 0"),
        (lambda: fl.uniform(-3), ValueError, "cohort_size must be at least 1, got -3"),
        (lambda: fl.uniform(cast(Any, 2.0)), TypeError, r"cohort_size must be an int, got 2\.0"),
        (lambda: fl.uniform(True), TypeError, "cohort_size must be an int, got True"),
        (lambda: fl.weighted(0), ValueError, "cohort_size must be at least 1, got 0"),
        (lambda: fl.uniform(6).init(5), ValueError, "cohort_size must be at most .* 6 of 5"),
        (lambda: fl.weighted(6).init(5), ValueError, "cohort_size must be at most .* 6 of 5"),
        (lambda: fl.poisson(0.5, capacity=6).init(5), ValueError, "capacity must be .* 6 of 5"),
        (lambda: fl.poisson(0.5, capacity=0), ValueError, "capacity must be at least 1, got 0"),
        (lambda: fl.poisson(-0.1), ValueError, r"rate must lie in \[0, 1\], got -0.1"),
        (lambda: fl.poisson(1.5), ValueError, r"rate must lie in \[0, 1\], got 1.5"),
        (lambda: fl.poisson(float("nan")), ValueError, r"rate must lie in \[0, 1\], got nan"),
        (lambda: fl.poisson("half"), TypeError, "rate must be a number .* got 'half'"),
        (lambda: fl.dropout(fl.everyone(), 1.1), ValueError, r"rate must lie in \[0, 1\]"),
        (lambda: fl.dropout(cast(Any, fl.everyone), 0.1), TypeError, "sampler must be a Sampler"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
