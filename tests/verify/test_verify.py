"""`python -m fedjax_lite.verify`: everything passes, and planted defects do not."""

import importlib
import io
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import verify
from fedjax_lite.verify import command, limits, records, table, testbeds
from fedjax_lite.verify.techniques import (
    fedavg,
    feddyn,
    fednova,
    fedopt,
    fedprox,
    mime,
    scaffold,
    shuffle,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.sample(2, of="all checks of a technique pass")
@pytest.mark.parametrize("name", verify.technique_names())
def test_every_technique_passes(name):
    failed = [record for record in verify.run([name]) if record.verdict != "PASS"]
    assert not failed


# -- what is expected -----------------------------------------------------------------------


def test_numpy_loops_give_the_published_trajectories():
    """Against numbers of KNOWN_ANSWERS, which were computed elsewhere."""
    both, alone = [(0, 1)] * 2, [(0,), (1,)]
    close = {"rtol": 0, "atol": 6e-11}
    for got, x, c in (
        (scaffold.loop(both), [0.5592104688, 0.9585129855], [-2.2368418750, -1.5972100672]),
        (scaffold.loop(both, option=1), [0.5592104688, 0.9979976030], [-3.5, -2.1019738281]),
        (
            scaffold.loop(both, weights=testbeds.P),
            [0.1664957031, 0.3452546370],
            [-0.6659828125, -0.7150357354],
        ),
        (scaffold.loop(alone), [-0.2262190625, 1.1944667376], [0.4524381250, -2.6151525376]),
    ):
        np.testing.assert_allclose(got[:, :2], np.transpose([x, c]), **close)
    np.testing.assert_allclose(feddyn.loop([(0, 1)] * 3), [1.1, 1.25, 1.325], **close)
    np.testing.assert_allclose(feddyn.loop(alone), [-0.75, 2.3], **close)
    weighted = feddyn.loop([(0, 1)] * 2, weights=testbeds.P)
    np.testing.assert_allclose(weighted, [0.7333333333, 0.7], **close)
    np.testing.assert_allclose(mime.loop(2, 0.0), [0.2646053711, 0.4311883388], **close)
    np.testing.assert_allclose(mime.loop(2, 0.9), [0.0307104817, 0.0877400098], **close)
    lite = mime.loop(900, 0.9, lite=True)
    np.testing.assert_allclose(
        lite[[0, 1, -1]], [0.0294761664, 0.0853365759, 0.7120963001], **close
    )
    np.testing.assert_allclose(
        [testbeds.fixed(testbeds.shrink()), testbeds.fixed(testbeds.shrink((20, 2)))],
        [0.4929637737, -0.5272575904],
        **close,
    )
    assert abs(fednova.first_round() - 1.0221199424) < 6e-11
    averaging = testbeds.averaging(3)
    np.testing.assert_allclose(averaging, [0.1664957031, 0.2767584321, 0.3497805531], **close)


# -- what a check says ----------------------------------------------------------------------


def measured(expected, value, tolerance=1e-9):
    return records.run_check("t", records.Check("c", expected, lambda: value, tolerance))


def test_verdicts():
    assert measured(1.0, 1.0 + 1e-10).verdict == "PASS"
    assert measured(1.0, 1.0 + 1e-8).verdict == "FAIL"
    assert measured([1.0, 2.0, 3.0], [1.0, 2.5, 3.0]).got == "2.5 at 1 of 3"
    assert measured(np.inf, np.inf).verdict == "PASS"
    for nothing in (np.nan, np.inf, [1.0, 1.0], None, "one"):
        assert measured(1.0, nothing).verdict == "FAIL"
    assert measured([1.0, 2.0], [1.0, np.nan]).verdict == "FAIL"


def test_what_raises_fails_and_does_not_hide_the_rest():
    def broken():
        raise RuntimeError("boom")

    checks = [records.Check("a", 1.0, broken), records.Check("b", 1.0, lambda: 1.0)]
    first, second = records.run_checks("t", checks)
    assert (first.verdict, first.got, second.verdict) == ("FAIL", "RuntimeError: boom", "PASS")


# -- planted defects ------------------------------------------------------------------------


def failing(technique, *names):
    """Which of these checks fail; what raises is no verdict."""
    chosen = [check for check in technique.checks() if check.name in names]
    assert len(chosen) == len(set(names)), "no such check"
    found = records.run_checks("t", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    return {record.check for record in found if record.verdict == "FAIL"}


def test_fedavg_that_ignores_sizes(monkeypatch, capsys):
    def ignorant(plan, *, rate=testbeds.ETA, loss=testbeds.quadratic, **options):
        options["weighting"] = "uniform"
        return fl.fedavg(loss, optax.sgd(rate), plan=plan, sampler=fl.everyone(), **options)

    monkeypatch.setattr(fedavg, "averaged", ignorant)
    assert command.main(["fedavg"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    lines = [line for line in printed.splitlines() if "uniform, fixed point" in line]
    assert len(lines) == 1
    assert lines[0].endswith("PASS"), "the uniform one stays right"


def test_fedadam_with_bias_correction(monkeypatch):
    def corrected(loss, optimizer, *, server_learning_rate, **slots):
        adam = optax.adam(server_learning_rate, 0.9, 0.99, eps=1e-3)
        return fl.fedavg(loss, optimizer, server_optimizer=adam, **slots)

    monkeypatch.setattr(fedopt, "fedadam", corrected)
    checks = [check.name for check in fedopt.checks()]
    assert failing(fedopt, *checks) == {"FedAdam"}


def test_fedprox_without_the_half(monkeypatch):
    original = fl.fedprox
    monkeypatch.setattr(
        sys.modules[original.__module__],
        "fedprox",
        lambda *args, mu, **options: original(*args, mu=2 * mu, **options),
    )
    broken, sound = "mu=1: K=2, round 1", "mu=0 = FedAvg"
    assert failing(fedprox, broken, sound) == {broken}


def test_fednova_that_does_not_normalise(monkeypatch):
    def plain(steps, *, rate=testbeds.ETA, loss=testbeds.quadratic, **options):
        plan = testbeds.whole(steps)
        return fl.fedavg(loss, optax.sgd(rate), plan=plan, sampler=fl.everyone())

    monkeypatch.setattr(fednova, "normalised", plain)
    broken = {"K=(20,2), fixed point", "linear losses: exact direction"}
    assert failing(fednova, *broken, "equal steps = FedAvg") == broken


def test_a_shuffle_that_loses_an_index(monkeypatch):
    monkeypatch.setattr(shuffle, "shuffle_index", lambda key, i, n: jnp.maximum(i, 1) % n)
    images = "images of [0, n), n = 1..64 and more"
    assert failing(shuffle, images) == {images}


# -- the command ----------------------------------------------------------------------------


def test_unknown_names_are_an_error_that_lists_the_names(capsys):
    assert command.main(["fedavg", "fedsquare"]) == 2
    captured = capsys.readouterr()
    assert "'fedsquare'" in captured.err
    assert "scaffold" in captured.err
    assert not captured.out
    with pytest.raises(ValueError, match="no technique is named"):
        verify.run(["fedsquare"])


def test_as_its_user_runs_it(monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_lite.verify", "clip", "mean"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["technique", "check", "expected", "got", "error", "verdict"]
    assert lines[-1] == f"{len(lines) - 2} passed, 0 failed"
    assert "\x1b" not in done.stdout
    monkeypatch.setattr(sys, "argv", ["verify", "nonsense"])
    # Tests that import every module have it, which runpy warns of.
    monkeypatch.delitem(sys.modules, "fedjax_lite.verify.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:  # what a process would end with
        runpy.run_module("fedjax_lite.verify", run_name="__main__")
    assert ended.value.code == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_colours_and_the_same_words():
    rows = [
        records.Record("t", "good [x]", "1", "1", 0.0, "PASS"),
        records.Record("t", "bad", "1", "2", 1.0, "FAIL"),
    ]
    terminal, pipe = Terminal(), io.StringIO()
    table.print_records(rows, file=terminal)
    table.print_records(rows, file=pipe)
    for text in ("good [x]", "FAIL", "1 passed, 1 failed"):
        assert text in terminal.getvalue()
        assert text in pipe.getvalue()
    assert "┃" in terminal.getvalue()


# -- one's own algorithm --------------------------------------------------------------------


def averaging(loss, rate, **slots):
    return fl.fedavg(loss, optax.sgd(rate), **slots)


def by_name(found):
    return {record.check: record for record in found}


def test_check_of_fedavg():
    found = by_name(verify.check(averaging, laws=["structure_is_stable", "finite"]))
    assert found["law: finite"].verdict == "PASS"
    assert not any(record.verdict == "FAIL" for record in found.values())
    assert found["= FedAvg, example weights"].got == "holds"
    assert found["= FedAvg, uniform weights"].got == "does not hold"
    assert found["one client = gradient descent"].got == "holds"
    assert found["K=1 = FedSGD, example weights"].got == "holds"
    assert found["K=5: nearest known point"].got == "FedAvg's fixed point"
    assert found["K=(20,2): nearest known point"].got == "FedAvg's fixed point"
    assert abs(found["K=5: limit"].error - abs(0.4929637737 - 5 / 7)) < 1e-9


def test_check_tells_fednova_from_fedavg():
    found = by_name(verify.check(fl_fednova(), laws=[]))
    assert found["= FedAvg, example weights"].got == "holds"
    assert found["K=(20,2): nearest known point"].got == "FedNova's fixed point"


def fl_fednova():
    from fedjax_lite.algorithms.fednova import fednova

    return fednova


def test_check_finds_the_optimum_of_a_method_without_drift():
    def descent(loss, rate, *, plan, **slots):
        return fl.fedsgd(loss, optax.sgd(rate), **slots)

    found = by_name(verify.check(descent, laws=[]))
    for label in ("K=5", "K=(20,2)"):
        assert found[f"{label}: nearest known point"].got == "optimum"
        assert found[f"{label}: distance to optimum"].error < 1e-9
    assert found["= FedAvg, example weights"].got == "does not hold"


def test_check_reports_a_broken_law_and_goes_on():
    def compiled_in(loss, rate, **slots):
        return fl.fedavg(loss, optax.sgd(0.05), **slots)

    found = by_name(verify.check(compiled_in, laws=["never_retraces", "finite"]))
    assert found["law: never_retraces"].verdict == "FAIL"
    assert "learning rate has no effect" in found["law: never_retraces"].got
    assert found["law: finite"].verdict == "PASS"


def test_check_of_what_diverges_or_raises():
    def uphill(loss, rate, **slots):
        return fl.fedavg(lambda w, e, key: -loss(w, e, key), optax.sgd(rate), **slots)

    def raises(loss, rate, **slots):
        raise RuntimeError("boom")

    assert "still moving" in by_name(verify.check(uphill, laws=[]))["K=5: limit"].got
    found = verify.check(raises, laws=["finite"])
    assert {record.verdict for record in found} == {"FAIL"}
    assert all("boom" in record.got for record in found)
    text = table.plain(found)
    assert text.endswith(f"0 passed, {len(found)} failed")


def test_errors_of_check():
    with pytest.raises(TypeError, match="factory must be a function"):
        verify.check(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gravity"):
        verify.check(averaging, laws=["gravity"])


def test_known_points():
    points = limits.known_points((20, 2))
    assert abs(points["FedNova's fixed point"] - 0.9549131032) < 6e-11
    assert abs(points["mean of the local optima"] + 0.25) < 1e-12
    assert "FedNova's fixed point" not in limits.known_points((5, 5))
    assert not jax.config.jax_enable_x64, "float64 stays inside"


def test_scaffold_without_the_cohort_factor_and_with_a_flipped_sign(monkeypatch):
    """Both end at the optimum or begin like FedAvg: the trajectories and the invariant tell."""
    module = importlib.import_module("fedjax_lite.algorithms.scaffold")
    original = module.scaffold_server

    def planted(factor):
        def server(*args, **options):
            good = original(*args, **options)

            def update(key, state, value, cohort, metrics):
                new = good.update(key, state, value, cohort, metrics)
                change = new.control - state.control
                return new._replace(control=state.control + factor * change)

            return good._replace(update=update)

        return server

    monkeypatch.setattr(module, "scaffold_server", planted(2.0))  # N / m for cohorts of one of two
    broken, sound = "cohorts {1},{2},..: c = mean c_i", "round 1 = FedAvg, uniform"
    assert failing(scaffold, broken, sound) == {broken}
    monkeypatch.setattr(module, "scaffold_server", planted(-1.0))
    path = "option II: x, c, c_i"
    assert failing(scaffold, path) == {path}
