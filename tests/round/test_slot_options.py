"""Slots that a method passes on: named, typed, and answered by its own name where misspelt."""

import inspect
import typing

import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.round.slot_options import FedAvgOptions, SlotOptions

FACTORIES = {
    fl.fedprox: {"client_optimizer": optax.sgd(0.1), "mu": 0.1},
    fl.fedadam: {"client_optimizer": optax.sgd(0.1), "server_learning_rate": 0.1},
    fl.scaffold: {"learning_rate": 0.1},
    fl.mime: {"learning_rate": 0.1},
}


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_a_misspelt_slot_is_answered_by_the_factorys_own_name(factory):
    """Not by the name of the function that it calls in the end."""
    given = {"loss": lambda w, e, key: w, "plan": fl.Plan(1), **FACTORIES[factory]}
    with pytest.raises(TypeError, match=rf"{factory.__name__}\(\).*'agregator'; did you mean aggr"):
        factory(**given, agregator=fl.mean())
    with pytest.raises(TypeError, match=rf"{factory.__name__}\(\).*'colour'; it takes .*uplink"):
        factory(**given, colour="red")


def test_slots_that_are_passed_on_are_those_of_a_round():
    """An editor completes them: every keyword is one of `federated_algorithm`."""
    known = set(inspect.signature(fl.federated_algorithm).parameters)
    assert set(SlotOptions.__annotations__) <= known
    fedavg = set(inspect.signature(fl.fedavg).parameters)
    assert set(typing.get_type_hints(FedAvgOptions)) <= fedavg
    assert fedavg - set(typing.get_type_hints(FedAvgOptions)) == {
        "loss",
        "client_optimizer",
        "server_optimizer",
    }
