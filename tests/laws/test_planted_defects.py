"""Defects of other frameworks, planted in our FedProx, FedNova and Mime.

Each is caught by a check that ours passes. Numbers of defects are those of KNOWN_ANSWERS, section
11; those of SCAFFOLD have a file of their own, the masks (19) are in test_laws.py. A defect is
planted by replacing the part of the library that it would sit in.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.fednova import fednova
from fedjax_lite.algorithms.fedprox import fedprox
from fedjax_lite.algorithms.mime import mime
from fedjax_lite.verify.testbeds import ETA, P, locally, q2, quadratic, trajectory, whole

FEDPROX, FEDNOVA, MIME = (
    importlib.import_module(f"fedjax_lite.algorithms.{name}")
    for name in ("fedprox", "fednova", "mime")
)
TURNS = np.array([[True, False], [False, True]])


def cohorts(mask):
    """Both clients are asked in every round; those that are masked dropped out."""
    ids = jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32), mask.shape)
    return fl.Cohort(ids, jnp.asarray(mask))


def assert_close(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


# -- FedProx: defects 2 and 3 ---------------------------------------------------------------


def second_step_of_fedprox():
    """The first does not depend on mu; without it the answer is (-.0975, .72)."""
    algo = fedprox(quadratic, optax.sgd(ETA), mu=1.0, plan=whole(2), sampler=fl.everyone())
    with jax.enable_x64(True):
        assert_close(trajectory(algo, 1)[0], P @ [-0.095, 0.7])


def gradient_is_that_of_the_penalty():
    """``mu/2 |y - x|^2`` by central differences, which are exact for it."""
    mu, x, y, h = 0.7, np.array([1.0, -2.0]), np.array([1.5, 0.5]), 1e-3
    penalty = lambda y: mu / 2 * ((y - x) ** 2).sum()  # noqa: E731
    expected = [(penalty(y + d) - penalty(y - d)) / (2 * h) for d in h * np.eye(2)]
    with jax.enable_x64(True):
        pulled, _ = FEDPROX.proximal(mu).update(jnp.zeros(2), (), jnp.array(y), anchor=jnp.array(x))
    assert_close(pulled, expected)


def penalty_with_gradient(patch, gradient):
    """Another penalty, given by its gradient ``(mu, y, x)``."""

    def proximal(mu):
        def update(updates, state, params=None, *, anchor=None, **extra):
            pull = functools.partial(gradient, mu)
            pulled = jax.tree.map(lambda g, y, x: g + pull(y, x), updates, params, anchor)
            return pulled, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    patch.setattr(FEDPROX, "proximal", proximal)


def without_the_square(patch):
    """Autodiff of ``mu/2 |y - x|``: NaN at the anchor, where every client begins."""
    norm = lambda y, x: jnp.sqrt(jnp.sum((y - x) ** 2))  # noqa: E731
    penalty_with_gradient(patch, lambda mu, y, x: mu / 2 * jax.grad(norm)(y, x))


def without_the_square_but_guarded(patch):
    def gradient(mu, y, x):
        norm = jnp.sqrt(jnp.sum((y - x) ** 2))
        return jnp.where(norm > 0, mu / 2 * (y - x) / jnp.where(norm > 0, norm, 1), 0)

    penalty_with_gradient(patch, gradient)


def compared_with_itself(patch):
    penalty_with_gradient(patch, lambda mu, y, x: mu * (y - y))


def mu_is_not_passed_on(patch):
    patch.setattr(FEDPROX, "pulled", lambda optimizer, mu: optimizer)


# -- FedNova: defect 9, and its share of 8 --------------------------------------------------


def first_round_of_fednova():
    """K = (20, 2): ``tau_eff = 15.5``; p = 1 / m gives something else."""
    algo = fednova(quadratic, ETA, plan=whole((20, 2)), sampler=fl.everyone())
    d = (0.0 - locally(0.0, (20, 2))) / (ETA * np.array([20, 2]))
    assert P @ [20, 2] == 15.5
    with jax.enable_x64(True):
        assert_close(trajectory(algo, 1)[0], -15.5 * ETA * (P @ d))


def equal_work_of_some_is_fedavg():
    """One of two clients takes part."""
    algo = fednova(quadratic, ETA, plan=whole(5), sampler=fl.everyone())
    with jax.enable_x64(True):
        got = trajectory(algo, 2, cohorts=cohorts(TURNS))
    first = locally(0.0)[0]
    assert_close(got, [first, locally(first)[1]])


def uniform_shares(patch):
    good = FEDNOVA.nova_client
    patch.setattr(
        FEDNOVA,
        "nova_client",
        lambda *args, **options: good(*args, **{**options, "weighting": "uniform"}),
    )


def nova_step_times(patch, factor):
    original = FEDNOVA.nova_server

    def bad_server(optimizer):
        good = original(optimizer)

        def update(key, state, value, cohort, metrics):
            value = value._replace(tau=factor(value.tau, cohort))
            return good.update(key, state, value, cohort, metrics)

        return good._replace(update=update)

    patch.setattr(FEDNOVA, "nova_server", bad_server)


def times_population_over_cohort(patch):
    nova_step_times(patch, lambda tau, cohort: tau * 2 / cohort.mask.sum())


def planned_work_as_tau(patch):
    nova_step_times(patch, lambda tau, cohort: jnp.full_like(tau, 20.0))


# -- Mime: defect 22, short batches ---------


def momentum_is_the_pooled_gradient():
    """25 examples in batches of 10, 10 and 5: beta = 0, so m is the gradient of all 25."""
    b = np.arange(25.0) ** 2
    data = q2(np.ones(25), b, np.ones(25, int))
    data = fl.data.from_arrays({"a": data.examples["a"], "b": b}, np.zeros(25, int))
    plan = fl.Plan(batch_size=10, steps=1)
    algo = mime(quadratic, ETA, momentum=0.0, plan=plan, sampler=fl.everyone())
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    state, _ = algo.round(jax.random.key(0), state, data)
    np.testing.assert_allclose(state.server.momentum, -b.mean(), rtol=1e-5)


def mean_over_batches(patch):
    original = MIME.full_gradient

    def make(*args, **options):
        good = original(*args, **options)

        def step(down, carry, batch):
            new = good.step(down, carry, batch)
            share = new.count - carry.count
            return new._replace(
                total=carry.total + (new.total - carry.total) / share, count=carry.count + 1
            )

        return good._replace(step=step)

    patch.setattr(MIME, "full_gradient", make)


# -- the table ---

CASES: dict[str, tuple[Any, Any]] = {
    "2: no square, NaN": (without_the_square, second_step_of_fedprox),
    "2: no square": (without_the_square_but_guarded, second_step_of_fedprox),
    "2: no square, differences": (without_the_square_but_guarded, gradient_is_that_of_the_penalty),
    "3: term is zero": (compared_with_itself, second_step_of_fedprox),
    "3: mu unused": (mu_is_not_passed_on, second_step_of_fedprox),
    "8: planned steps": (planned_work_as_tau, first_round_of_fednova),
    "9: p = 1/m": (uniform_shares, first_round_of_fednova),
    "9: update x N/K": (times_population_over_cohort, equal_work_of_some_is_fedavg),
    "22: mean over batches": (mean_over_batches, momentum_is_the_pooled_gradient),
}


CHECKS: dict[str, Any] = {check.__name__: check for _, check in CASES.values()}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_ours_passes(name):
    CHECKS[name]()


@pytest.mark.parametrize("defect", CASES)
def test_planted_defect_is_caught(defect, monkeypatch):
    plant, check = CASES[defect]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_without_the_square_as_published(monkeypatch):
    without_the_square_but_guarded(monkeypatch)
    algo = fedprox(quadratic, optax.sgd(ETA), mu=1.0, plan=whole(2), sampler=fl.everyone())
    with jax.enable_x64(True):
        assert_close(trajectory(algo, 1)[0], P @ [-0.0725, 0.695])
