"""`python -m fedjax_lite.verify selection` fails where a choice has a planted defect."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.aggregation.mean import mean
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import selection

IMPORTANCE, OORT, OPTIMAL, CHOICE, UNBIASED = (
    importlib.import_module(f"fedjax_lite.selection.{name}")
    for name in ("importance", "oort", "optimal", "power_of_choice", "unbiased")
)
PAIRS, RATIO = (
    "two of five, 2/5 each: all cohorts, mean and variance",
    "the mean of who came is a ratio, and biased",
)
BEST, TIES, LEANS = (
    "power-of-choice: two of five at the model of the moment",
    "power-of-choice: ties go to the lowest slot",
    "power-of-choice leans to whom the model serves badly",
)
GIVEN, DRAWN = "importance: inclusion", "importance: how often drawn"
OPT, USEFUL, EPOCH = (
    "optimal sampling: mean of two thousand rounds",
    "Oort: the most useful in time",
    "cyclic: everybody once in an epoch",
)


def weighs_by_one_in_n(patch):
    """pi is 1 / N where m / N is meant."""
    good = selection.uniform

    def bad(size):
        return good(size)._replace(inclusion=lambda sizes: jnp.full(sizes.shape, 1 / len(sizes)))

    patch.setattr(selection, "uniform", bad)


def divides_by_who_came(patch):
    """The weights are right, and a mean takes their effect away."""
    patch.setattr(UNBIASED, "total", mean)


def lowest_losses(patch):
    good = CHOICE.highest

    def bad(name, count):
        return lambda key, cohort, found: good(name, count)(key, cohort, {name: -found[name]})

    patch.setattr(CHOICE, "highest", bad)


def ties_to_the_last(patch):
    good = CHOICE.highest

    def bad(name, count):
        def choose(key, cohort, found):
            turned = good(name, count)(
                key, cohort._replace(mask=cohort.mask[::-1]), {name: found[name][::-1]}
            )
            return cohort._replace(mask=turned.mask[::-1])

        return choose

    patch.setattr(CHOICE, "highest", bad)


def losses_at_the_start(patch):
    """Candidates compute their loss at the first model, not at the newest."""
    good = CHOICE.loss_at
    start = lambda down: jnp.full_like(CHOICE.model_of(down), 0.3)  # noqa: E731
    patch.setattr(CHOICE, "loss_at", lambda loss, model: good(loss, start))


def all_alike(patch):
    """The first of the candidates: power-of-choice without its bias."""
    patch.setattr(
        CHOICE,
        "highest",
        lambda name, count: (
            lambda key, cohort, found: cohort._replace(
                mask=cohort.mask & (jnp.arange(cohort.mask.shape[0]) < count)
            )
        ),
    )


def shares_above_one(patch):
    """``m u / sum u``, and what is above 1 is lost."""

    def bad(scores, count):
        return jnp.minimum(1, jnp.asarray(scores) * count / jnp.asarray(scores).sum())

    patch.setattr(IMPORTANCE, "inclusion_probabilities", bad)


def sends_unweighted(patch):
    """Whoever sends weighs p, as if all had been sure to."""
    good = OPTIMAL.reweighed
    patch.setattr(OPTIMAL, "reweighed", lambda weight, factor: good(weight, weight / 150))


def slow_ones_welcome(patch):
    good = OORT.utility
    patch.setattr(OORT, "utility", lambda state, seconds, *rest: good(state, None, *rest))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("defect", "caught", "right"),
    [
        (weighs_by_one_in_n, (PAIRS,), (EPOCH,)),
        (divides_by_who_came, (PAIRS,), (EPOCH,)),
        (lowest_losses, (LEANS,), (EPOCH,)),
        (ties_to_the_last, (TIES,), (EPOCH,)),
        (losses_at_the_start, (BEST,), (EPOCH,)),
        (all_alike, (LEANS,), (EPOCH,)),
        (shares_above_one, (GIVEN,), (EPOCH,)),
        (sends_unweighted, (OPT,), (GIVEN,)),
        (slow_ones_welcome, (USEFUL,), (EPOCH,)),
    ],
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in selection.checks() if check.name in caught + right]
    assert len(chosen) == len(caught) + len(right)
    found = records.run_checks("selection", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    verdicts = {record.check: record.verdict for record in found}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")


def test_what_is_expected_is_what_it_says():
    """Two ways to the same numbers: enumeration against closed forms, and a bias that is one."""
    pairs = selection.weighed(selection.PAIRS, np.full(5, 0.4))
    assert np.mean(pairs) == pytest.approx(2 / 3)
    assert np.var(pairs) == pytest.approx(0.8666666667)
    shares = selection.shares_of(np.array([1.0, 1, 0, 2, 5]), 2)
    np.testing.assert_allclose(shares, [0.25, 0.25, 0, 0.5, 1])
    odd = selection.shares_of(selection.P * np.abs(selection.B), 3)
    assert odd.sum() == pytest.approx(3)
    assert odd.max() == 1
