"""Epsilon, delta and noise: published tables, closed forms, and what every bound must obey."""

import itertools
import logging
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats

import fedjax_lite.privacy as dp
from fedjax_lite.privacy.accounting.accountants import overflowing_epsilon, poisson_accountant
from fedjax_lite.privacy.accounting.calibrate_noise import largest_count
from fedjax_lite.privacy.accounting.sampled_gaussian import sampled_gaussian_losses
from fedjax_lite.round.sampling import poisson_capacity

DELTA = 1e-5
TABLE = [  # q, z, T, epsilon by PLD, by RDP: dp-accounting 0.6.0, recomputed for KNOWN_ANSWERS 4
    (1.0, 1.0, 1, 4.377178, 4.728507),
    (1.0, 5.0, 50, 6.572970, 7.077392),
    (0.01, 1.1, 1000, 1.515370, 1.711770),
    (0.1, 1.0, 100, 7.046603, 7.903850),
    (0.1, 0.8, 200, 15.511428, 17.245708),
]


def stated(q, z, num_rounds):
    return {"sampling_rate": q, "noise_multiplier": z, "num_rounds": num_rounds}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("q", "z", "num_rounds", "pld", "rdp"), TABLE)
def test_table(q, z, num_rounds, pld, rdp):
    mechanism = stated(q, z, num_rounds)
    assert dp.epsilon(**mechanism, delta=DELTA) == pytest.approx(pld, rel=1e-6)
    assert dp.epsilon(**mechanism, delta=DELTA, method="rdp") == pytest.approx(rdp, rel=1e-6)
    assert dp.delta(**mechanism, epsilon=pld) == pytest.approx(DELTA, rel=1e-3)
    assert pld < rdp


def test_equals_dp_accounting_itself():
    """The event, put through the package's own accountant."""
    from dp_accounting.pld import PLDAccountant

    mechanism = stated(0.01, 1.1, 1000)
    accountant = PLDAccountant().compose(dp.event(**mechanism))
    theirs = accountant.get_epsilon(DELTA)
    assert dp.epsilon(**mechanism, delta=DELTA) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(
    ("z", "q"), [(1.0, 0.1), (0.35, 0.01), (5.0, 0.5), (0.1, 0.3), (1.0, 0.999), (0.5, 1e-6)]
)
def test_losses_of_whole_arrays_equal_those_of_one_at_a_time(z, q):
    """The distribution of dp-accounting, in both directions, to the last digits."""
    from dp_accounting.pld import privacy_loss_distribution

    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=1e-2
    )
    ours = sampled_gaussian_losses(z, q, 1e-2)
    for epsilon in (-1.0, 0.0, 0.1, 1.0, 3.0):
        there = theirs.get_delta_for_epsilon(epsilon)
        assert ours.get_delta_for_epsilon(epsilon) == pytest.approx(there, rel=1e-9, abs=1e-14)
    for direction in ("_pmf_remove", "_pmf_add"):
        one, other = (getattr(losses, direction).to_dense_pmf() for losses in (ours, theirs))
        assert one._lower_loss == other._lower_loss
        np.testing.assert_allclose(one._probs, other._probs, rtol=0, atol=1e-10)


def test_no_subsampling_is_the_closed_form():
    """Gaussian differential privacy: ``mu = sqrt(T) / z``, against an integral of the densities."""
    for mu in (0.3, 1.0, 2.5):
        for epsilon in (0.0, 0.5, 2.0):
            # delta = integral of (N(mu, 1) - e^eps N(0, 1))+, positive beyond x = eps/mu + mu/2
            density = lambda x: stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x)  # noqa: B023, E731
            numeric = integrate.quad(density, epsilon / mu + mu / 2, mu + 40, epsabs=1e-14)[0]
            assert dp.gdp_delta(epsilon, mu) == pytest.approx(numeric, abs=1e-11)
    assert dp.epsilon(**stated(1.0, 5.0, 50), delta=DELTA) == dp.gdp_epsilon(
        DELTA, math.sqrt(50) / 5
    )


def test_gaussian_inverses_agree():
    for epsilon, delta in itertools.product((0.1, 1.0, 8.0, 50.0), (1e-10, 1e-5, 0.1)):
        mu = dp.gdp_mu(epsilon, delta)
        assert dp.gdp_epsilon(delta, mu) == pytest.approx(epsilon, rel=1e-9)
        assert dp.gdp_delta(epsilon, mu) <= delta * (1 + 1e-9)
    assert dp.gdp_delta(500.0, 30.0) == pytest.approx(
        math.exp(stats.norm.logcdf(-500 / 30 + 15))
        - math.exp(500 + stats.norm.logcdf(-500 / 30 - 15)),
        rel=1e-9,
    )
    assert dp.gdp_epsilon(DELTA, 0.0) == 0
    assert dp.gdp_epsilon(DELTA, math.inf) == math.inf
    assert dp.gdp_mu(math.inf, DELTA) == math.inf


@pytest.mark.parametrize(
    ("epsilon", "sigma"),
    [(0.5, 7.031827), (1, 3.730632), (2, 1.993812), (4, 1.081162), (8, 0.600229)],
)
def test_analytic_gaussian(epsilon, sigma):
    """Defect 28: the classical formula is another, larger number, proved for epsilon <= 1 only."""
    ours = dp.gaussian_stddev(epsilon, DELTA)
    assert ours == pytest.approx(sigma, abs=1e-6)
    classical = math.sqrt(2 * math.log(1.25 / DELTA)) / epsilon
    assert ours < classical * 0.999
    assert dp.gaussian_stddev(epsilon, DELTA, sensitivity=2.0) == pytest.approx(2 * ours)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("method", "known"), [("rdp", 0.993726), pytest.param("pld", 0.935925, marks=pytest.mark.slow)]
)
def test_calibration(method, known):
    """KNOWN_ANSWERS 4: the least noise, never less."""
    target = {"epsilon": 8.0, "delta": DELTA, "sampling_rate": 0.1, "num_rounds": 100}
    z = dp.noise_multiplier(**target, method=method)
    assert z == pytest.approx(known, abs=2e-6)
    assert dp.epsilon(**stated(0.1, z, 100), delta=DELTA, method=method) <= 8.0
    assert dp.epsilon(**stated(0.1, z - 2e-6, 100), delta=DELTA, method=method) > 8.0


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rounds", "pld", "rdp"), [(1500, 0.6162, 0.7138), (3000, 0.6328, 0.7247)]
)
def test_calibration_at_small_rates(num_rounds, pld, rdp):
    target = {"epsilon": 2.0, "delta": 1e-6, "sampling_rate": 1e-3, "num_rounds": num_rounds}
    assert dp.noise_multiplier(**target) == pytest.approx(pld, abs=1e-4)
    assert dp.noise_multiplier(**target, method="rdp") == pytest.approx(rdp, abs=1e-4)


def test_epsilon_grows_with_rounds_and_rate_and_falls_with_noise():
    def rdp(q, z, num_rounds):
        return dp.epsilon(**stated(q, z, num_rounds), delta=DELTA, method="rdp")

    assert rdp(0.1, 1.0, 10) < rdp(0.1, 1.0, 20) < rdp(0.2, 1.0, 20) < rdp(0.2, 0.9, 20)
    pld = [dp.epsilon(**stated(0.1, 1.0, t), delta=DELTA) for t in (0, 1, 10, 100)]
    assert pld[0] == 0
    assert pld == sorted(pld)
    assert dp.epsilon(**stated(0.1, 0.0, 1), delta=DELTA) == math.inf
    assert dp.delta(**stated(0.1, 0.0, 1), epsilon=1.0) == 1.0


def test_orders_that_do_not_converge_are_not_logged_round_by_round(caplog):
    with caplog.at_level(logging.WARNING):
        dp.epsilon(**stated(0.1, 1.001, 10), delta=DELTA, method="rdp")
    assert not caplog.records


def test_overflow_probability():
    """Binomial tails of KNOWN_ANSWERS 4."""
    for size, q, capacity, tail in (
        (1000, 0.01, 20, 1.4965e-3),
        (1000, 0.01, 30, 6.42e-8),
        (100, 0.1, 20, 8.076e-4),
        (100, 0.1, 30, 6.05e-9),
    ):
        assert dp.overflow_probability(size, q, capacity) == pytest.approx(tail, rel=1e-3)
    assert poisson_capacity(1000, 0.01) > 30
    cohorts = dp.poisson_cohorts(1000, 0.01)
    # The exact tail, in integers: q = 1 / 100.
    exact = sum(math.comb(1000, k) * 99 ** (1000 - k) for k in range(cohorts.capacity + 1, 1001))
    assert 0 < cohorts.overflow < 1e-40
    assert cohorts.overflow == pytest.approx(float(Fraction(exact, 100**1000)), rel=1e-9)


def test_weak_noise_has_a_finite_epsilon():
    """An overflow of 1e-16, times e^42.8, was more than delta: epsilon was infinite."""
    mechanism = {"sampling_rate": 0.01, "delta": DELTA}
    private = dp.central_gaussian(clip=1.0, num_clients=1000, noise_multiplier=0.35, **mechanism)
    plain = dp.epsilon(**mechanism, noise_multiplier=0.35, num_rounds=1000)
    assert plain == pytest.approx(42.77, abs=0.01)
    assert private.accountant.spent(1000)["epsilon"] == pytest.approx(plain, rel=1e-6)
    loose = {"clip": 1.0, "num_clients": 1000, "num_rounds": 1000, "method": "rdp", **mechanism}
    assert dp.central_gaussian(**loose, epsilon=25.0).accountant.max_rounds == 1000
    with pytest.raises(ValueError, match=r"default capacity.*lower epsilon or give capacity=num"):
        dp.central_gaussian(**loose, epsilon=200.0)
    with pytest.raises(ValueError, match=r"capacity=20 is too small.*leave capacity out"):
        dp.central_gaussian(**loose, epsilon=2.0, capacity=20)


def test_overflow_is_paid_for():
    """(epsilon, delta - (1 + e^epsilon) T p): the statistical distance to Poisson sampling."""
    mechanism = stated(0.1, 1.0, 100)
    plain = dp.epsilon(**mechanism, delta=DELTA)
    for overflow in (1e-13, 1e-12, 1e-11):
        ours = overflowing_epsilon(**mechanism, delta=DELTA, overflow=overflow)
        total = dp.delta(**mechanism, epsilon=ours) + (1 + math.exp(ours)) * 100 * overflow
        assert plain < ours
        assert total <= DELTA * (1 + 1e-6)
    assert overflowing_epsilon(**mechanism, delta=DELTA, overflow=1e-8) == math.inf
    assert overflowing_epsilon(**mechanism, delta=DELTA, overflow=0.0) == plain
    with pytest.raises(ValueError, match="capacity=20 is too small"):
        dp.central_gaussian(
            clip=1.0,
            num_clients=100,
            sampling_rate=0.1,
            capacity=20,
            epsilon=8.0,
            num_rounds=100,
            delta=DELTA,
        )


def test_budget_ends_after_the_last_round_within_it():
    options = {"overflow": 0.0, "delta": DELTA, "num_rounds": None, "what": "a sum"}
    for method in ("pld", "rdp"):
        accountant = poisson_accountant(
            noise_multiplier=1.0, sampling_rate=0.1, method=method, epsilon=3.0, **options
        )
        last = accountant.max_rounds
        assert accountant.spent(last)["epsilon"] <= 3.0 < accountant.spent(last + 1)["epsilon"]
        assert last == largest_count(
            lambda t: dp.epsilon(**stated(0.1, 1.0, t), delta=DELTA, method=method) <= 3.0  # noqa: B023
        )
        assert f"up to round {last}" in accountant.description
    exact = poisson_accountant(
        noise_multiplier=5.0, sampling_rate=1.0, method="pld", epsilon=6.573, **options
    )
    assert exact.max_rounds == 50
    with pytest.raises(ValueError, match="does not allow one round"):
        poisson_accountant(
            noise_multiplier=1.0, sampling_rate=1.0, method="pld", epsilon=1.0, **options
        )


def test_largest_count():
    for limit in (0, 1, 2, 3, 7, 8, 100):
        assert largest_count(lambda n: n <= limit) == limit  # noqa: B023
    assert largest_count(lambda n: True, most=37) == 37


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"num_rounds": -1}, "num_rounds"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"method": "moments"}, "method"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        dp.epsilon(**{**stated(0.1, 1.0, 10), "delta": DELTA, **change})


def test_bad_targets():
    good = {"epsilon": 1.0, "delta": DELTA, "sampling_rate": 0.1, "num_rounds": 10}
    for change in ({"epsilon": 0.0}, {"epsilon": -1.0}, {"num_rounds": 0}, {"sampling_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dp.noise_multiplier(**{**good, **change})
    assert dp.noise_multiplier(**{**good, "epsilon": math.inf}) == 0.0
    with pytest.raises(ValueError, match="mu"):
        dp.gdp_delta(1.0, np.nan)
