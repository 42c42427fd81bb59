"""Estimators of the whole population's mean: all cohorts enumerated, and norms by chance.

Five clients whose updates are b = (-2 .. 2), with n = (10 .. 50) examples: from x = 0 one step of
rate 1 on -b x ends in b, so the model after a round is the estimate of ``sum p_i b_i = 2/3``.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
B, N = np.array([-2.0, -1, 0, 1, 2]), np.array([10, 20, 30, 40, 50])
P = N / N.sum()
OWNERS = np.repeat(np.arange(5), N)
DATA = fl.data.from_arrays({"b": B[OWNERS].astype(np.float32)}, OWNERS)
TRUTH = P @ B


def loss(w, examples, key):
    return -examples["b"] * w


def averaging(sampler, **options):
    plan = fl.Plan(batch_size=None, steps=1)
    return fl.fedavg(loss, optax.sgd(1.0), plan=plan, sampler=sampler, **options)


def estimates(algo, cohorts):
    """The model after a round of each cohort, a list of ids."""
    size = max(map(len, cohorts), default=1)
    ids = np.array([[*ids, *[0] * (size - len(ids))] for ids in cohorts])
    mask = np.arange(size) < np.array([len(ids) for ids in cohorts])[:, None]
    state = algo.init(KEY, jnp.float32(0), DATA)
    one = lambda ids, mask: algo.round(KEY, state, DATA, fl.Cohort(ids, mask))[0].server.params  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(ids), jnp.asarray(mask)))


def moments(algo, cohorts, chances):
    found, chances = estimates(algo, cohorts), np.asarray(chances)
    assert chances.sum() == pytest.approx(1)
    mean = chances @ found
    return mean, chances @ (found - mean) ** 2


PAIRS = list(itertools.combinations(range(5), 2))
SUBSETS = [s for k in range(6) for s in itertools.combinations(range(5), k)]


def test_two_of_five():
    """Horvitz and Thompson: 2/3, variance 0.8666...; the ratio that mean() takes is biased."""
    chances = [1 / 10] * 10
    mean, variance = moments(fl.selection.unbiased(averaging(fl.uniform(2))), PAIRS, chances)
    by_hand = [2.5 * sum(P[i] * B[i] for i in pair) for pair in PAIRS]
    assert [mean, variance] == pytest.approx([2 / 3, np.var(by_hand)], rel=1e-5)
    assert variance == pytest.approx(0.8666666667, rel=1e-5)
    mean, variance = moments(averaging(fl.uniform(2)), PAIRS, chances)
    assert [mean, variance] == pytest.approx([0.4353174603, 0.7956559902], rel=1e-5)


def test_poisson():
    chances = [0.4 ** len(s) * 0.6 ** (5 - len(s)) for s in SUBSETS]
    sampler = fl.poisson(0.4, capacity=5)
    mean, variance = moments(fl.selection.unbiased(averaging(sampler)), SUBSETS, chances)
    assert [mean, variance] == pytest.approx([2 / 3, 0.6 / 0.4 * (P * B) @ (P * B)], rel=1e-5)
    assert variance == pytest.approx(0.8266666667, rel=1e-5)
    assert moments(averaging(sampler), SUBSETS, chances)[0] == pytest.approx(0.3371692840, rel=1e-5)


def test_two_draws_in_proportion_to_the_data():
    """Scheme I: the plain mean of the draws, or each weighed by p / (m p): the same."""
    cohorts = list(itertools.product(range(5), repeat=2))
    chances = [P[i] * P[j] for i, j in cohorts]
    sampler = fl.selection.multinomial(2)
    for algo in (
        averaging(sampler, weighting="uniform"),
        fl.selection.unbiased(averaging(sampler)),
    ):
        assert moments(algo, cohorts, chances) == pytest.approx([2 / 3, 7 / 9], rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "variance"),
    [(P * np.abs(B), 0.9955555556), (P, 1.5555555556), (np.ones(5), 2.3111111111)],
)
def test_one_draw_by_importance(scores, variance):
    """By the norms of what is sent has the least variance."""
    shares = scores / scores.sum()
    algo = fl.selection.unbiased(averaging(fl.selection.importance(1, scores)))
    found = moments(algo, [[i] for i in range(5)], shares)
    assert found == pytest.approx([2 / 3, variance], rel=1e-5)


def test_weights_of_ones_own():
    weights = np.array([1.0, 0, 3, 1, 5])
    algo = fl.selection.unbiased(averaging(fl.uniform(2)), weights=weights)
    assert moments(algo, PAIRS, [1 / 10] * 10)[0] == pytest.approx(weights @ B / 10, rel=1e-5)
    algo = fl.selection.unbiased(averaging(fl.uniform(2)), weights="uniform")
    assert moments(algo, PAIRS, [1 / 10] * 10)[0] == pytest.approx(B.mean(), abs=1e-6)


def test_everyone_is_fedavg_and_nothing_more_is_billed():
    plain, algo = averaging(fl.everyone()), fl.selection.unbiased(averaging(fl.everyone()))
    rows = []
    for one in (plain, algo):
        state, metrics = one.round(KEY, one.init(KEY, jnp.float32(0), DATA), DATA)
        rows.append([float(state.server.params), *(float(metrics[k]) for k in sorted(metrics))])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)


# -- optimal sampling -----------------------------------------------------------------------


def test_optimal_sampling_is_unbiased_and_bills_what_is_sent():
    """pi by water-filling of |p b| = (20, 20, 0, 40, 100) / 150 to two clients."""
    algo = fl.selection.optimal(averaging(fl.everyone()), cohort_size=2)
    state = algo.init(KEY, jnp.float32(0), DATA)

    def one(key):
        new, metrics = algo.round(key, state, DATA)
        return new.server.params, metrics

    keys = jax.random.split(KEY, 4000)
    found, metrics = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys)
    chances = np.array([0.25, 0.25, 0, 0.5, 1])
    sent = [s for s in itertools.product([0, 1], repeat=5) if not s[2] and s[4]]
    values, odds = [], []
    for who in np.array(sent):
        factor = np.where(who, P / np.where(chances > 0, chances, 1), 0)
        values.append(factor @ B)
        odds.append(np.where(who, chances, 1 - chances)[[0, 1, 3, 4]].prod())
    values, odds = np.array(values), np.array(odds)
    assert odds @ values == pytest.approx(2 / 3)
    distance = np.abs(np.asarray(found)[:, None] - values)
    assert distance.min(1).max() < 1e-5
    spread = np.sqrt(odds @ values**2 - TRUTH**2)
    assert abs(np.mean(found) - TRUTH) < 5 * spread / np.sqrt(4000)
    assert np.std(found) == pytest.approx(spread, rel=0.06)
    senders = np.asarray(metrics["num_clients"])
    assert senders.mean() == pytest.approx(2, abs=0.06)
    # Everybody sends one number, and is sent the model; senders send theirs, and hear two numbers.
    np.testing.assert_array_equal(metrics["uplink_bits"], 32 * 5 + 32 * senders)
    np.testing.assert_array_equal(metrics["downlink_bits"], 32 * 5 + 64 * senders)


def test_all_of_them_is_the_mean():
    algo = fl.selection.optimal(averaging(fl.everyone()), cohort_size=5)
    state, metrics = algo.round(KEY, algo.init(KEY, jnp.float32(0), DATA), DATA)
    assert float(state.server.params) == pytest.approx(TRUTH, rel=1e-6)
    assert int(metrics["num_clients"]) == 4  # an update of zero is not worth a message


def test_a_rehearsal_draws_what_training_draws():
    """Random amounts of work: the norm that chose is that of what is sent, so one client of all the
    weight always gives the mean."""
    plan = fl.Plan(batch_size=7, steps=lambda key, client: jax.random.randint(key, (), 1, 9))
    plain = fl.fedavg(loss, optax.sgd(1.0), plan=plan, sampler=fl.everyone())
    algo = fl.selection.optimal(plain, cohort_size=5)
    ends = [
        float(one.round(KEY, one.init(KEY, jnp.float32(0), DATA), DATA)[0].server.params)
        for one in (plain, algo)
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


# -- refusals -------------------------------------------------------------------------------


def test_what_cannot_be_is_named():
    unbiased, optimal = fl.selection.unbiased, fl.selection.optimal
    with pytest.raises(ValueError, match=r"must say how often it draws whom, got weighted"):
        unbiased(averaging(fl.weighted(2)))
    with pytest.raises(ValueError, match=r"aggregator of the algorithm .* got median"):
        unbiased(averaging(fl.uniform(2), aggregator=fl.median()))
    with pytest.raises(TypeError, match="algo must be an algorithm"):
        unbiased(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="weights must be 'examples', 'uniform'"):
        unbiased(averaging(fl.uniform(2)), weights="size")
    short = unbiased(averaging(fl.uniform(2)), weights=np.ones(4))
    with pytest.raises(ValueError, match=r"weights must be .* got 4 for a population of 5"):
        short.init(KEY, jnp.float32(0), DATA)
    private = fl.privacy.central_gaussian(
        clip=1.0, noise_multiplier=1.0, num_clients=5, sampling_rate=0.5, delta=1e-5
    )
    plan = fl.Plan(1)
    with pytest.raises(ValueError, match="must not be private"):
        optimal(fl.fedavg(loss, optax.sgd(1.0), plan=plan, privacy=private), cohort_size=1)
    rows = fl.scaffold(loss, 0.1, plan=plan, sampler=fl.everyone())
    with pytest.raises(ValueError, match=r"keep nothing between rounds|one scalar weight"):
        optimal(rows, cohort_size=1).init(KEY, jnp.float32(0), DATA)
    twice = fl.scaffold(loss, 0.1, plan=plan, sampler=fl.selection.multinomial(3))
    with pytest.raises(ValueError, match="must not draw a client twice"):
        twice.init(KEY, jnp.float32(0), DATA)
