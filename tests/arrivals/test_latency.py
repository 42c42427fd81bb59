"""Latencies: distributions by their quantiles, sums by hand, devices that stay what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_lite as fl
from fedjax_lite import arrivals
from fedjax_lite.arrivals.latency import as_latency

DRAWS = 4000
KEYS = jax.random.split(jax.random.key(3), DRAWS)
DISTRIBUTIONS = {
    "exponential": (arrivals.exponential(2.0), stats.expon(scale=2.0)),
    "half-normal": (arrivals.half_normal(2.0), stats.halfnorm(scale=2.0)),
    "log-normal": (arrivals.log_normal(2.0, 1.5), stats.lognorm(1.5, scale=2.0)),
    "pareto": (arrivals.pareto(2.0, 1.5), stats.pareto(1.5, scale=2.0)),
}


def info(client=0, size=40, steps=20):
    return fl.ClientInfo(*map(jnp.int32, (client, size, steps, 0)))


NO_BITS = arrivals.Traffic(0.0, 0.0)


def seconds(made, traffic=NO_BITS, **who):
    return float(made(jax.random.key(0), info(**who), traffic))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name):
    quantity, law = DISTRIBUTIONS[name]
    drawn = np.asarray(jax.vmap(lambda key: quantity.draw(key, info()))(KEYS))
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert stats.kstest(drawn * 1.3, law.cdf).pvalue < 1e-6  # the test sees a wrong scale


def test_a_client_by_its_parts():
    """(1, 2, 1) + (.1, .1, .4) * (20, 20, 10) + (2, 3, 1) = (5, 7, 6)."""
    made = arrivals.latency(
        compute=arrivals.per_client([0.1, 0.1, 0.4]),
        download=arrivals.per_client([8e6, 4e6, 8e6]),
        upload=arrivals.per_client([2e6, 4e6 / 3, 4e6]),
    )
    traffic = arrivals.Traffic(8e6, 4e6)
    found = [seconds(made, traffic, client=i, steps=k) for i, k in enumerate((20, 20, 10))]
    np.testing.assert_allclose(found, (5, 7, 6), rtol=1e-6)
    half = arrivals.Traffic(8e6, 2e6)  # a message of half the size takes half the time
    np.testing.assert_allclose(seconds(made, half, client=0), 4, rtol=1e-6)
    parts = made.parts(jax.random.key(0), info(client=1), traffic)
    np.testing.assert_allclose(parts, (2, 2, 3), rtol=1e-6)


def test_devices_stay_what_they_are():
    speeds = arrivals.of_device(arrivals.log_normal(1.0, 1.0), seed=1)
    of = lambda key, client: float(speeds.draw(key, info(client)))  # noqa: E731
    first = [of(KEYS[0], client) for client in range(20)]
    assert first == [of(KEYS[1], client) for client in range(20)]
    assert len(set(first)) == 20
    other = arrivals.of_device(arrivals.log_normal(1.0, 1.0), seed=2)
    assert first[0] != float(other.draw(KEYS[0], info(0)))


def test_tiers_have_their_shares():
    kinds = arrivals.tiers([1.0, 2.0, 4.0], [6, 3, 1])
    draw = jax.vmap(lambda client: kinds.draw(KEYS[0], info(client)))
    found = np.asarray(draw(jnp.arange(DRAWS)))
    counts = [(found == value).sum() for value in (1, 2, 4)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts, DRAWS * np.array([0.6, 0.3, 0.1])).pvalue > 1e-3
    assert stats.chisquare(counts, DRAWS * np.array([0.55, 0.3, 0.15])).pvalue < 1e-6


def test_luck_on_top_of_a_device():
    both = arrivals.product(arrivals.constant(3.0), arrivals.constant(2.0))
    assert float(both.draw(KEYS[0], info())) == 6
    two = arrivals.product(arrivals.exponential(1.0), arrivals.exponential(1.0))
    drawn = np.asarray(jax.vmap(lambda key: two.draw(key, info()))(KEYS))
    # E[XY] = 1 where the draws are apart; of one draw it would be E[X^2] = 2. Var(XY) = 3.
    assert abs(drawn.mean() - 1) < 4 * np.sqrt(3 / DRAWS)


def test_failures_have_their_rate():
    made = arrivals.failing(arrivals.latency(overhead=arrivals.constant(1.0)), 0.3)
    traffic = arrivals.Traffic(0.0, 0.0)
    drawn = np.asarray(jax.vmap(lambda key: made(key, info(), traffic))(KEYS))
    assert set(np.unique(drawn)) == {1.0, np.inf}
    lost = int(np.isinf(drawn).sum())
    assert stats.binomtest(lost, DRAWS, 0.3).pvalue > 1e-3
    assert stats.binomtest(lost, DRAWS, 0.25).pvalue < 1e-6


def test_settings_are_traced():
    @jax.jit
    def total(mean, rate):
        made = arrivals.failing(arrivals.latency(compute=arrivals.exponential(mean)), rate)
        return made(jax.random.key(0), info(), arrivals.Traffic(0.0, 0.0))

    assert float(total(2.0, 0.0)) == 2 * float(total(1.0, 0.0))
    assert np.isinf(total(2.0, 1.0))
    assert total._cache_size() == 1


def test_plain_functions_serve():
    assert seconds(as_latency(lambda key, info, traffic: 0.5 * info.size)) == 20
    made = arrivals.latency(overhead=arrivals.constant(1.0))
    assert as_latency(made) is made
    for wrong in (3.0, arrivals.constant(1.0), float):
        with pytest.raises(TypeError, match="latency must be a Latency, or a function"):
            as_latency(wrong)


def test_night_and_day():
    """Of 24 zones with 8 hours each, 8 zones are there at any time, and every client a third."""
    world = arrivals.day_and_night(awake=8 / 24, zones=24)
    ids = jnp.arange(2000)
    hours = jnp.arange(48) * 3600.0
    there = np.asarray(jax.vmap(lambda t: world.awake(ids, t + 1800))(hours))
    assert (there[:24] == there[24:]).all()
    assert (there[:24].sum(0) == 8).all()
    turns = (there[:24] != np.roll(there[:24], 1, 0)).sum(0)
    assert (turns == 2).all()  # comes once a day and goes once


def test_latencies_in_words():
    made = arrivals.failing(
        arrivals.latency(
            compute=arrivals.of_device(arrivals.log_normal(0.1, 1.5)),
            upload=arrivals.constant(1e6),
        ),
        0.1,
    )
    assert fl.describe(made) == (
        "simulated seconds; a local step takes log-normal with median 0.1 and sigma 1.5, drawn "
        "once for each client; uploads at 1e+06 bits a second; a message is lost with "
        "probability 0.1"
    )


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: arrivals.latency(), ValueError, "latency must have a part"),
        (lambda: arrivals.latency(compute=0.1), TypeError, "compute must be a Quantity"),
        (lambda: arrivals.constant(-1.0), ValueError, "value must be positive, got -1.0"),
        (lambda: arrivals.tiers([1.0, 2.0], [1.0]), ValueError, "shares must be"),
        (lambda: arrivals.tiers(["fast"], [1.0]), TypeError, "values must be"),
        (lambda: arrivals.per_client([1.0, 0.0]), ValueError, "values must be positive"),
        (lambda: arrivals.per_client(np.nan), ValueError, "values must be finite, got nan"),
        (lambda: arrivals.per_client([]), ValueError, "values must be"),
        (lambda: arrivals.product(), ValueError, "factors must be quantities"),
        (lambda: arrivals.day_and_night(awake=1.5), ValueError, "awake must lie in"),
        (lambda: arrivals.day_and_night(zones=0), ValueError, "zones must be at least 1"),
    ],
)
def test_mistakes(call, error, said):
    with pytest.raises(error, match=said):
        call()
