"""Defects 6, 7, 8 and 20, planted in our SCAFFOLD: each is caught by a check that ours passes.

Numbers of defects are those of KNOWN_ANSWERS, section 11. A defect is planted by replacing the
part of the library that it would sit in; a check is a plain numpy loop, an invariant or a law.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.scaffold import scaffold
from fedjax_lite.types import Message
from fedjax_lite.verify.techniques.scaffold import loop
from fedjax_lite.verify.testbeds import ETA, A, B, locally, quadratic, trajectory, whole

SCAFFOLD = importlib.import_module("fedjax_lite.algorithms.scaffold")
START = 3.0
"""Away from zero: a control that is copied from weights of zero is right by chance."""
FULL = np.array([[True, True]] * 3)
TURNS = np.array([[True, False], [False, True]] * 2)


def cohorts(mask):
    """Both clients are asked in every round; those that are masked dropped out."""
    ids = jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32), mask.shape)
    return fl.Cohort(ids, jnp.asarray(mask))


def assert_close(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def scaffold_of_the_paper(mask, steps):
    return loop([np.flatnonzero(here) for here in mask], steps=steps, start=START)


def scaffold_run(mask, steps=(5, 5), *, start=START):
    def read(state):
        return jnp.stack([state.server.params, state.server.control, *state.clients])

    algo = scaffold(quadratic, ETA, plan=whole(steps), sampler=fl.everyone())
    with jax.enable_x64(True):
        return trajectory(algo, len(mask), start=start, cohorts=cohorts(mask), read=read)


def first_round_is_uniform_fedavg():
    assert_close(scaffold_run(FULL[:1])[0, 0], locally(START).mean())


def trajectory_with_dropouts():
    assert_close(scaffold_run(TURNS), scaffold_of_the_paper(TURNS, (5, 5)))


def trajectory_of_everyone():
    assert_close(scaffold_run(FULL), scaffold_of_the_paper(FULL, (5, 5)))


def trajectory_of_unequal_work():
    assert_close(scaffold_run(FULL, (7, 2)), scaffold_of_the_paper(FULL, (7, 2)))


def control_is_the_mean_of_controls():
    path = scaffold_run(TURNS)
    assert_close(path[:, 1], path[:, 2:].mean(axis=1))


def controls_from_weights(patch, client, server):
    """Defect 6: clients', server's, or both controls are copies of the model."""
    make_client, make_server = SCAFFOLD.scaffold_client, SCAFFOLD.scaffold_server

    def bad_server(*args, **options):
        good = make_server(*args, **options)
        return good._replace(
            init=lambda params, *rest: good.init(params, *rest)._replace(control=params)
        )

    if client:
        patch.setattr(
            SCAFFOLD,
            "scaffold_client",
            lambda *args, **options: make_client(*args, **options)._replace(
                init=lambda params: jnp.array(params)
            ),
        )
    if server:
        patch.setattr(SCAFFOLD, "scaffold_server", bad_server)


def control_moves_by(patch, share):
    """The server's control moves by another share of the mean change than arrived / N."""
    original = SCAFFOLD.scaffold_server

    def bad_server(*args, **options):
        good = original(*args, **options)

        def update(key, server, value, cohort, metrics):
            new = good.update(key, server, value, cohort, metrics)
            return new._replace(control=server.control + share(cohort) * value["control"])

        return good._replace(update=update)

    patch.setattr(SCAFFOLD, "scaffold_server", bad_server)


def without_the_cohort_factor(patch):
    control_moves_by(patch, lambda cohort: 1.0)


def planned_instead_of_arrived(patch):
    """Here the cohort has as many slots as there are clients; FedBioMed counts all of them."""
    control_moves_by(patch, lambda cohort: cohort.ids.shape[0] / 2)


def bad_client(patch, **wrap):
    """Replaces functions of SCAFFOLD's client by ``wrap[name](good function)``."""
    original = SCAFFOLD.scaffold_client

    def make(*args, **options):
        good = original(*args, **options)
        return good._replace(**{name: bad(getattr(good, name)) for name, bad in wrap.items()})

    patch.setattr(SCAFFOLD, "scaffold_client", make)


def sends_the_control(patch):
    def finish(good):
        def bad(broadcast, carry):
            row, message, metrics = good(broadcast, carry)
            return row, message._replace(value={**message.value, "control": row}), metrics

        return bad

    bad_client(patch, finish=finish)


def flipped_sign(patch):
    def start(good):
        def bad(*args):
            carry = good(*args)
            return carry._replace(correction=-carry.correction)

        return bad

    bad_client(patch, start=start)


def planned_steps(patch):
    def start(good):
        return lambda key, row, down, info: good(
            key, row, down, info._replace(num_steps=jnp.int32(7))
        )

    bad_client(patch, start=start)


def divides_by_no_steps(patch):
    """Neither the guard of the division nor a weight of 0 for who did nothing."""

    def finish(good):
        def bad(down, carry):
            row, message, metrics = good(down, carry)
            work = ETA * carry.info.num_steps
            moved = jax.tree.map(lambda x, y: (x - y) / work, down.params, carry.params)
            change = jax.tree.map(lambda new, c: new - c, moved, down.control)
            message = Message({**message.value, "control": change}, jnp.ones_like(message.weight))
            return row, message, metrics

        return bad

    bad_client(patch, finish=finish)


def idle_client():
    """A client that has no time for a step is as one that dropped out."""
    alone = np.array([[True, False]] * 3)
    assert_close(scaffold_run(FULL, (5, 0)), scaffold_of_the_paper(alone, (5, 5)))


def controls(client, server):
    return functools.partial(controls_from_weights, client=client, server=server)


CASES: dict[str, tuple[Any, Any]] = {
    "6: clients' controls are weights": (controls(True, False), first_round_is_uniform_fedavg),
    "6: server's control is weights": (controls(False, True), first_round_is_uniform_fedavg),
    "6: both": (controls(True, True), trajectory_with_dropouts),
    "7: no m/N": (without_the_cohort_factor, control_is_the_mean_of_controls),
    "7: no m/N, trajectory": (without_the_cohort_factor, trajectory_with_dropouts),
    "8: sends c_i": (sends_the_control, trajectory_of_everyone),
    "8: flipped sign": (flipped_sign, trajectory_of_everyone),
    "8: planned clients": (planned_instead_of_arrived, control_is_the_mean_of_controls),
    "8: planned steps": (planned_steps, trajectory_of_unequal_work),
    "20: no steps": (divides_by_no_steps, idle_client),
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


def test_without_the_factor_as_published(monkeypatch):
    """Why defect 7 needs the invariant: the limit is the optimum all the same."""
    without_the_cohort_factor(monkeypatch)
    path = scaffold_run(np.tile(TURNS, (100, 1)), start=0.0)
    assert_close([path[0, 1], path[1, 0]], [0.90487625, 1.1184209375], 1e-10)
    assert_close(path[-1, 0], (A * B).sum() / A.sum())


def test_flipped_sign_as_published(monkeypatch):
    """It begins as FedAvg and goes astray afterwards."""
    flipped_sign(monkeypatch)
    path = scaffold_run(np.tile(FULL, (20, 1)), start=0.0)
    assert_close(path[:3, 0], [0.5592, 0.7759, 0.7463], 5e-5)
    assert abs(path[-1, 0] - 1.4) > 1e3
