"""`python -m fedjax_lite.verify` catches FedDyn, Mime and their like with a planted defect.

As in `test_verify.py`: a part of the library is replaced by a wrong one, and the checks that have
to fail are named. Each test names also what stays right, so that it cannot pass by an exception.
"""

import importlib

import jax
import jax.numpy as jnp
import optax
import pytest

from fedjax_lite.round.local import mean_grad
from fedjax_lite.types import Message
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import feddyn as feddyn_checks
from fedjax_lite.verify.techniques import fedopt as fedopt_checks
from fedjax_lite.verify.techniques import fedprox as fedprox_checks
from fedjax_lite.verify.techniques import mime as mime_checks
from fedjax_lite.verify.techniques import mimelite as mimelite_checks

FEDDYN, FEDPROX, MIME = (
    importlib.import_module(f"fedjax_lite.algorithms.{name}")
    for name in ("feddyn", "fedprox", "mime")
)


def verdicts(technique, *names):
    """``{check: verdict}`` of the checks with these names; what raises is no verdict."""
    chosen = {check.name: check for check in technique.checks() if check.name in names}
    assert set(chosen) == set(names), "no such check"
    found = records.run_checks("t", chosen.values())
    raised = [record.got for record in found if "Error" in record.got]
    assert not raised
    return {record.check: record.verdict for record in found}


def wrapped(patch, module, factory, **wrap):
    """Replaces functions of what a factory makes by ``wrap[name](good function, options)``."""
    original = getattr(module, factory)

    def make(*args, **options):
        good = original(*args, **options)
        bad = {name: wrong(getattr(good, name), options) for name, wrong in wrap.items()}
        return good._replace(**bad)

    patch.setattr(module, factory, make)


# -- FedDyn ---------------------------------------------------------------------------------

FULL, PARTIAL = "alpha=1: three rounds", "cohorts {1},{2},..: four rounds"
INVARIANT, WEIGHTED = "cohorts {1},{2},..: h = mean g_i", "p weights: three rounds"


def adds_the_linear_term(patch):
    """``+ <g_i, y>``."""

    def step(good, options):
        def bad(down, carry, batch):
            flipped = jax.tree.map(jnp.negative, carry.row)
            return good(down, carry._replace(row=flipped), batch)._replace(row=carry.row)

        return bad

    wrapped(patch, FEDDYN, "feddyn_client", step=step)


def keeps_the_gradients(patch):
    """`g_i` is never renewed."""

    def finish(good, options):
        return lambda down, carry: (carry.row, *good(down, carry)[1:])

    wrapped(patch, FEDDYN, "feddyn_client", finish=finish)


def server_with(patch, share, sign=1.0, use=1.0):
    """The server's correction moves by another share or sign, or is used in another way."""
    original = FEDDYN.feddyn_server

    def make(alpha, **options):
        good = original(alpha, **options)

        def update(key, server, value, cohort, metrics):
            part = share(metrics["weight"].sum() / server.totals.num_clients)
            h = server.correction + sign * alpha * part * value
            return server._replace(params=server.params - value - use * h / alpha, correction=h)

        return good._replace(update=update)

    patch.setattr(FEDDYN, "feddyn_server", make)


def same_alpha_for_everyone(patch):
    """``alpha_i = alpha`` also where clients are weighted."""

    def start(good, options):
        def bad(*args):
            carry = good(*args)
            return carry._replace(alpha=jnp.full_like(carry.alpha, options["alpha"]))

        return bad

    wrapped(patch, FEDDYN, "feddyn_client", start=start)


def weighs_the_models(patch):
    """The mean of the `y_i` by examples, where the rule wants the plain one."""

    def finish(good, options):
        def bad(down, carry):
            row, message, metrics = good(down, carry)
            return row, Message(message.value, carry.info.size.astype(jnp.float32)), metrics

        return bad

    wrapped(patch, FEDDYN, "feddyn_client", finish=finish)


FEDDYN_DEFECTS = {
    "linear term added": (adds_the_linear_term, {FULL}, set()),
    "gradients kept": (keeps_the_gradients, {FULL, INVARIANT}, set()),
    "h by 1/m": (lambda p: server_with(p, lambda s: 1.0), {PARTIAL, INVARIANT}, {FULL}),
    "h with the wrong sign": (
        lambda p: server_with(p, lambda s: s, -1.0),
        {FULL, INVARIANT},
        set(),
    ),
    "h unused": (lambda p: server_with(p, lambda s: s, use=0.0), {FULL}, {INVARIANT}),
    "h added to the mean": (lambda p: server_with(p, lambda s: s, use=-1.0), {FULL}, {INVARIANT}),
    "one alpha for all weights": (same_alpha_for_everyone, {WEIGHTED}, {FULL}),
    "weighted mean of models": (weighs_the_models, {WEIGHTED}, {PARTIAL}),
    "the right server, again": (lambda p: server_with(p, lambda s: s), set(), {FULL, PARTIAL}),
}
"""What is planted, checks that must fail, checks that must not."""


@pytest.mark.parametrize("defect", FEDDYN_DEFECTS)
def test_feddyn(defect, monkeypatch):
    plant, broken, sound = FEDDYN_DEFECTS[defect]
    plant(monkeypatch)
    expected = dict.fromkeys(broken, "FAIL") | dict.fromkeys(sound, "PASS")
    assert verdicts(feddyn_checks, *expected) == expected


# -- Mime and MimeLite ----------------------------------------------------------------------

PLAIN, HEAVY = "beta=0: three rounds", "beta=.9: three rounds"
ONE_STEP, UNIFORM = "beta=0, K=1 = FedSGD, uniform", "uniform: limit is the optimum"
LITE = "beta=0 = FedAvg"


def no_correction(patch):
    """MimeLite under the name of Mime."""
    original = MIME.mime_client
    patch.setattr(
        MIME,
        "mime_client",
        lambda *args, **options: original(*args, **{**options, "correct": False}),
    )


def corrected_by(patch, correct):
    """Another corrected gradient, given by ``(g, gradient at x, c)``."""
    original = MIME.mime_client

    def make(loss, learning_rate, *, momentum, **options):
        gradient = mean_grad(loss)

        def step(down, carry, batch):
            x, m = down.value
            _, g = gradient(carry.params, batch)
            _, anchor = gradient(x, batch)
            g = correct(g, anchor, down.preface)
            move = learning_rate * ((1 - momentum) * g + momentum * m)
            return carry._replace(params=carry.params - move)

        good = original(loss, learning_rate, momentum=momentum, **options)
        return good._replace(step=step)

    patch.setattr(MIME, "mime_client", make)


def momentum_moves_locally(patch):
    """Clients carry the momentum on from step to step, where it should be frozen."""

    def start(good, options):
        return lambda key, row, down, info: (good(key, row, down, info), down.value.momentum)

    def step(good, options):
        def bad(down, carry, batch):
            inner, m = carry
            new = good(down._replace(value=down.value._replace(momentum=m)), inner, batch)
            moved = (inner.params - new.params) / mime_checks.ETA  # (1 - beta) g + beta m
            return new, moved

        return bad

    def finish(good, options):
        return lambda down, carry: good(down, carry[0])

    wrapped(patch, MIME, "mime_client", start=start, step=step, finish=finish)


def momentum_of_the_next_round(patch):
    """Local steps with the momentum that already has this round's gradient."""

    def step(good, options):
        def bad(down, carry, batch):
            beta = options["momentum"]
            ahead = (1 - beta) * down.preface + beta * down.value.momentum
            return good(down._replace(value=down.value._replace(momentum=ahead)), carry, batch)

        return bad

    wrapped(patch, MIME, "mime_client", step=step)


def server_fed(patch, other):
    """The server's momentum gets something else than `c`."""

    def update(good, options):
        def bad(key, server, value, cohort, metrics):
            return good(key, server, value._replace(preface=other(value)), cohort, metrics)

        return bad

    wrapped(patch, MIME, "mime_server", update=update)


def mean_update_as_gradient(patch):
    server_fed(patch, lambda value: value.value / (mime_checks.ETA * mime_checks.STEPS))


def beta_the_other_way_round(patch):
    original = MIME.mime_server
    patch.setattr(
        MIME,
        "mime_server",
        lambda *args, momentum: original(*args, momentum=1 - momentum),
    )


def other_weights_for_c(patch):
    original = MIME.full_gradient
    patch.setattr(
        MIME, "full_gradient", lambda loss, *, weighting: original(loss, weighting="uniform")
    )


MIME_DEFECTS = {
    "no correction": (no_correction, {PLAIN, HEAVY}, {ONE_STEP}),
    "correction's sign": (lambda p: corrected_by(p, lambda g, a, c: g + a - c), {PLAIN}, set()),
    "c left out": (lambda p: corrected_by(p, lambda g, a, c: g - a), {PLAIN, ONE_STEP}, set()),
    "c added only": (lambda p: corrected_by(p, lambda g, a, c: g + c), {PLAIN, ONE_STEP}, set()),
    "momentum moves locally": (momentum_moves_locally, {HEAVY}, {PLAIN}),
    "momentum of the next round": (momentum_of_the_next_round, {HEAVY}, set()),
    "m from the mean update": (mean_update_as_gradient, {HEAVY}, {PLAIN}),
    "m descends": (lambda p: server_fed(p, lambda v: -v.preface), {HEAVY}, {PLAIN}),
    "beta for 1 - beta": (beta_the_other_way_round, {HEAVY}, {PLAIN}),
    "weights of c": (other_weights_for_c, {PLAIN, HEAVY}, {UNIFORM}),
    "the right gradient, again": (
        lambda p: corrected_by(p, lambda g, a, c: g - a + c),
        set(),
        {PLAIN, HEAVY},
    ),
}

MIMELITE_DEFECTS = {
    "momentum moves locally": (momentum_moves_locally, {HEAVY}, {LITE}),
    "momentum of the next round": (momentum_of_the_next_round, {HEAVY}, set()),
    "m from the mean update": (mean_update_as_gradient, {HEAVY}, {LITE}),
    "weights of c": (other_weights_for_c, {HEAVY}, {LITE}),
    "corrected": (lambda p: corrected_by(p, lambda g, a, c: g - a + c), {HEAVY, LITE}, set()),
}


@pytest.mark.parametrize("defect", MIME_DEFECTS)
def test_mime(defect, monkeypatch):
    plant, broken, sound = MIME_DEFECTS[defect]
    plant(monkeypatch)
    expected = dict.fromkeys(broken, "FAIL") | dict.fromkeys(sound, "PASS")
    assert verdicts(mime_checks, *expected) == expected


@pytest.mark.parametrize("defect", MIMELITE_DEFECTS)
def test_mimelite(defect, monkeypatch):
    plant, broken, sound = MIMELITE_DEFECTS[defect]
    plant(monkeypatch)
    expected = dict.fromkeys(broken, "FAIL") | dict.fromkeys(sound, "PASS")
    assert verdicts(mimelite_checks, *expected) == expected


# -- FedProx and FedAdam, where test_verify.py has a defect but not this one ------------------


@pytest.mark.parametrize("passed_on", [0.0, -1.0])
def test_fedprox_whose_mu_is_lost_or_pushes_away(passed_on, monkeypatch):
    """Defect 3: the first step does not show it, mu = 0 neither."""
    original = FEDPROX.proximal
    monkeypatch.setattr(
        FEDPROX,
        "proximal",
        lambda mu: optax.chain(original(mu), _pull(mu, passed_on - 1)),
    )
    broken, sound = "mu=1: K=2, round 1", "mu=0 = FedAvg"
    assert verdicts(fedprox_checks, broken, sound) == {broken: "FAIL", sound: "PASS"}


def _pull(mu, factor):
    def update(updates, state, params=None, *, anchor=None, **extra):
        move = lambda g, y, x: g + factor * mu * (y - x)  # noqa: E731
        return jax.tree.map(move, updates, params, anchor), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_fedadam_with_a_correction_one_round_ahead(monkeypatch):
    """Defect 14, exponent round + 1: 0.0735, 0.0962, 0.1269 in KNOWN_ANSWERS."""

    def scale(server_learning_rate):
        def update(updates, state, params=None):
            count, m, v = state
            m, v = 0.9 * m + 0.1 * updates, 0.99 * v + 0.01 * updates**2
            power = count + 2
            rate = server_learning_rate * jnp.sqrt(1 - 0.99**power) / (1 - 0.9**power)
            return -rate * m / (jnp.sqrt(v) + 1e-3), (count + 1, m, v)

        zeros = lambda params: (jnp.int32(0), jnp.zeros_like(params), jnp.zeros_like(params))  # noqa: E731
        return optax.GradientTransformation(zeros, update)

    def ahead(loss, optimizer, *, server_learning_rate, **slots):
        tx = scale(server_learning_rate)
        return fedopt_checks.fedavg(loss, optimizer, server_optimizer=tx, **slots)

    monkeypatch.setattr(fedopt_checks, "fedadam", ahead)
    assert verdicts(fedopt_checks, "FedAdam", "FedYogi") == {"FedAdam": "FAIL", "FedYogi": "PASS"}
    with jax.enable_x64(True):
        got = fedopt_checks.fed(ahead, server_learning_rate=0.1)
    assert max(abs(got - [0.0735108701, 0.0961511985, 0.1268802535])) < 1e-9
