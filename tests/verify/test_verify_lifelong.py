"""`python -m fedjax_lite.verify lifelong` passes, and catches planted defects."""

import importlib

import jax
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import lifelong

EWC, FEDCURV = (importlib.import_module(f"fedjax_lite.algorithms.{n}") for n in ("ewc", "fedcurv"))
ONE, TWO = "EWC, lam=1: optimum", "EWC, two old tasks: optimum"
NONE, CURV = "EWC without old tasks = local optimum", "FedCurv, lam=1: optimum beside another"
ZERO = "FedCurv, lam=0 = FedAvg"


def failed(names):
    chosen = [check for check in lifelong.checks() if check.name in names]
    assert len(chosen) == len(names)
    found = records.run_checks("lifelong", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    return {record.check for record in found if record.verdict == "FAIL"}


@pytest.mark.sample(2, of="all checks of a technique pass")
def test_all_pass():
    found = records.run_checks("lifelong", lifelong.checks())
    assert {record.verdict for record in found} == {"PASS"}


def without_the_half(patch):
    """``lam`` for ``lam / 2``, as FedCurv has it."""
    good = EWC.ewc_penalty
    patch.setattr(EWC, "ewc_penalty", lambda lam, old: good(2 * lam, old))


def only_the_last_task(patch):
    forget = lambda old, fisher, optimum: fl.remember(fl.no_old_tasks(old.optimum), fisher, optimum)  # noqa: E731
    patch.setattr(lifelong, "remember", forget)


def pulls_away(patch):
    def wrong(lam, others):
        away = jax.tree.map(lambda leaf: -leaf, others)
        return good(lam, away)

    good = FEDCURV._curvature_pull
    patch.setattr(FEDCURV, "_curvature_pull", wrong)


def with_a_half(patch):
    good = FEDCURV._curvature_pull
    patch.setattr(FEDCURV, "_curvature_pull", lambda lam, others: good(lam / 2, others))


def no_pull(patch):
    nothing = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda g, state, params=None, **extra: (g, state)
    )
    patch.setattr(FEDCURV, "_curvature_pull", lambda lam, others: (nothing, lambda *_: 0.0))


DEFECTS = {
    "EWC without the half": (without_the_half, {ONE, TWO}, {NONE, CURV}),
    "EWC of the last task only": (only_the_last_task, {TWO}, {ONE, NONE}),
    "FedCurv with a half": (with_a_half, {CURV}, {ZERO, ONE}),
    "FedCurv pulls away": (pulls_away, {CURV}, {ZERO}),
    "FedCurv without a pull": (no_pull, {CURV}, {ZERO}),
}
"""What is planted, checks that must fail, checks that must not."""


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted(defect, monkeypatch):
    plant, broken, sound = DEFECTS[defect]
    plant(monkeypatch)
    assert failed(broken | sound) == broken
