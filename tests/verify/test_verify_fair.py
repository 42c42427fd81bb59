"""`python -m fedjax_lite.verify fair` fails where a fair method has a planted defect."""

import jax.numpy as jnp
import optax
import pytest

from fedjax_lite.algorithms.fair import afl, loss_first, q_fedavg, q_fedsgd, term
from fedjax_lite.types import Message
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import fair

Q, Q_SGD, RIGHT = (
    "q-FedAvg, q=2.0: three rounds",
    "q-FedSGD, q=1.0: minimiser",
    "TERM, tilt=0 = FedAvg",
)
MODEL, MIXTURE = "AFL: model of fifty rounds", "AFL: mixture of fifty rounds"
TERM = "TERM, tilt=.5: three rounds"


def without_the_norm(patch):
    """``h = L F^q``: steps that overshoot."""

    def bad(message, F, q, rate):
        return Message(message.value, message.weight * F**q)

    patch.setattr(q_fedavg, "fair_message", bad)
    patch.setattr(q_fedsgd, "fair_message", bad)


def without_the_rate(patch):
    """``|x - y|^2`` where ``|L (x - y)|^2`` is meant."""
    good = q_fedavg.fair_message
    patch.setattr(q_fedavg, "fair_message", lambda m, F, q, rate: good(m, F, q * rate**2, rate))


def half_the_loss(patch):
    """Clients weigh by ``F_i / 2``."""
    patch.setattr(loss_first, "ratio", lambda loss: loss.total / (2 * loss.count))


def without_projection(patch):
    """lambda shared out by division."""
    patch.setattr(optax.projections, "projection_simplex", lambda raised: raised / raised.sum())


def next_mixture(patch):
    """The model is weighed by ``lambda^2``: any other mixture than the one at hand."""
    good = afl.agnostic_server

    def make(*args):
        server = good(*args)

        def broadcast(state):
            return server.broadcast(state._replace(mixture=state.mixture**2))

        return server._replace(broadcast=broadcast)

    patch.setattr(afl, "agnostic_server", make)


def tilts_the_other_way(patch):
    """``exp(-t F)``."""
    good = term.term
    patch.setattr(fair, "term", lambda *args, tilt, **more: good(*args, tilt=-tilt, **more))


@pytest.mark.parametrize(
    ("defect", "caught", "right"),
    [
        (without_the_norm, (Q,), (Q_SGD, RIGHT, MODEL)),
        (without_the_rate, (Q,), (Q_SGD, RIGHT)),
        (half_the_loss, (TERM,), (RIGHT, MIXTURE)),
        (without_projection, (MIXTURE,), (RIGHT,)),
        (next_mixture, (MODEL,), (RIGHT,)),
        (tilts_the_other_way, (TERM,), (RIGHT, MODEL)),
    ],
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in fair.checks() if check.name in caught + right]
    assert len(chosen) == len(caught) + len(right)
    found = records.run_checks("fair", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    verdicts = {record.check: record.verdict for record in found}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")


def test_the_numbers_move_when_they_should():
    """The checks' own loops differ between strengths, so a constant could not pass."""
    assert len({round(fair.q_loop(1, q)[0], 6) for q in (0.0, 0.5, 1.0, 2.0)}) == 4
    assert float(jnp.abs(jnp.diff(jnp.array([fair.q_optimum(q) for q in (0.0, 1.0)])))[0]) > 0.2
