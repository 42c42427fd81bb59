"""`python -m fedjax_lite.verify parties` catches vertical and split learning with a planted defect.

As in `test_verify_planted.py`: checks that have to fail are named, and one that stays right.
"""

import importlib

import jax
import pytest

from fedjax_lite.types import Wire
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import parties

SPLIT_STEP, PARALLEL, TURNS, VERTICAL, EXCHANGE = (
    importlib.import_module(f"fedjax_lite.parties.{name}")
    for name in ("split_step", "split_parallel", "split_turns", "vertical_round", "exchange")
)
LOGISTIC, COX = "logistic over columns = the pooled table", "cox over columns = the pooled table"
BCD, ONCE = "FedBCD, three steps an exchange", "FedBCD with one step = vertical SGD"
RESIDUALS, NUMBERS = "residuals on the wire", "bits: a number a person, up and down"
AVERAGED, IN_TURN = "SplitFed 1 = FedAvg by the chain rule", "one client, in turn, labels stay"
ORDERS, ONE_SERVER = (
    "split learning in turn, in one of two orders",
    "SplitFed 2, in one of two orders",
)
CROSSED, CROSSED_U = (
    "bits of a cut: activations, labels, halves",
    "bits of a U: no labels, both ways twice",
)


def failing(*names):
    """Which of these checks fail; what raises is no verdict."""
    chosen = [check for check in parties.checks() if check.name in names]
    assert len(chosen) == len(set(names)), "no such check"
    found = records.run_checks("t", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    return {record.check for record in found if record.verdict == "FAIL"}


def test_returned_gradients_that_are_doubled(monkeypatch):
    good = EXCHANGE.exchange

    def bad(*args, **options):
        found = good(*args, **options)
        return found._replace(returned=jax.tree.map(lambda g: 2 * g, found.returned))

    monkeypatch.setattr(VERTICAL, "exchange", bad)
    assert failing(LOGISTIC, COX, BCD, ONCE, NUMBERS) == {LOGISTIC, COX, BCD, ONCE}


def test_fedbcd_whose_holder_is_stale_too(monkeypatch):
    """All repeat the gradient of the exchange: right for one step only."""
    good = VERTICAL.local_gradient

    def frozen(model, exchanged, agent, own, batch):
        """The holder's own activation is the one of the exchange."""
        if agent not in model.heads:
            return good(model, exchanged, agent, own, batch)
        h = exchanged.seen[agent][agent]
        residual = jax.grad(
            lambda h: EXCHANGE.head_loss(
                model, agent, own["head"], {**exchanged.seen[agent], agent: h}, batch
            )
        )(h)
        x = batch.examples["x"][agent]
        return {"bottom": x.T @ residual, "head": jax.tree.map(lambda w: 0 * w, own["head"])}

    monkeypatch.setattr(VERTICAL, "local_gradient", frozen)
    assert failing(BCD, ONCE, LOGISTIC) == {BCD}


def test_a_bit_that_is_not_billed(monkeypatch):
    for module in (EXCHANGE, SPLIT_STEP):
        good = module.carried

        def bad(*args, good=good):
            value, wire = good(*args)
            return value, Wire(wire.bits - 1, wire.entropy)

        monkeypatch.setattr(module, "carried", bad)
    names = (NUMBERS, CROSSED, CROSSED_U)
    assert failing(*names, LOGISTIC, AVERAGED) == set(names)


def change_of_steps(patch, change):
    good = SPLIT_STEP.split_gradients
    for module in (PARALLEL, TURNS):
        patch.setattr(
            module, "split_gradients", lambda *args, **wires: change(good(*args, **wires))
        )


def test_a_client_that_gets_back_twice_the_gradient(monkeypatch):
    change_of_steps(
        monkeypatch,
        lambda found: found._replace(client=jax.tree.map(lambda g: 2 * g, found.client)),
    )
    learnt = {AVERAGED, IN_TURN, ORDERS, ONE_SERVER}
    assert failing(*learnt, CROSSED) == learnt


def test_a_server_that_stands_still(monkeypatch):
    change_of_steps(
        monkeypatch,
        lambda found: found._replace(server=jax.tree.map(lambda g: 0 * g, found.server)),
    )
    learnt = {AVERAGED, IN_TURN, ORDERS, ONE_SERVER}
    assert failing(*learnt, CROSSED_U) == learnt


def test_halves_that_are_not_handed_on(monkeypatch):
    """Split learning that averages, and SplitFed 2 that hands on."""
    split = importlib.import_module("fedjax_lite.parties.split")
    good = split.split_in_turn
    monkeypatch.setattr(
        split,
        "split_in_turn",
        lambda *args, handed_on, **options: good(*args, handed_on=not handed_on, **options),
    )
    assert failing(ORDERS, ONE_SERVER, IN_TURN, CROSSED) == {ORDERS, ONE_SERVER}


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_residuals_of_another_size(monkeypatch, scale):
    good = EXCHANGE.carried

    def bad(transform, key, value, mask):
        value, wire = good(transform, key, value, mask)
        return value * scale, wire

    monkeypatch.setattr(EXCHANGE, "carried", bad)
    assert failing(RESIDUALS, LOGISTIC, NUMBERS) == {RESIDUALS, LOGISTIC}
