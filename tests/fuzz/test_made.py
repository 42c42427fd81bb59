"""Every public factory signs what it makes: its own name, and the arguments that it was given."""

import inspect
import sys
from pathlib import Path

import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_calls import LEFT_OUT, PACKAGES, called, module_of, public, valid_arguments

import fedjax_lite as fl
from fedjax_lite.checks.made import maker_of

PARTS = ("Aggregator", "Attack", "ClientUpdate", "FeatureSkew", "FederatedAlgorithm", "Mechanism",
         "Model", "Partitioner", "Sampler", "ServerUpdate", "Strategy", "Transform",
         "optax.GradientTransformation", "optax.GradientTransformationExtraArgs")  # fmt: skip
BUILDING = {"transforms.compressor", "aggregation.stacked", "transforms.over_tree"}
"""What factories are built with, of the user's functions: their parts are the user's own."""
FACTORIES = {
    name: value
    for name, value in public().items()
    if inspect.isfunction(value)
    and value.__annotations__.get("return") in PARTS
    and name not in BUILDING
}


@pytest.mark.parametrize("full", FACTORIES)
def test_factories_sign_what_they_make(full):
    factory = FACTORIES[full]
    given = valid_arguments(full, factory)
    note = maker_of(called(factory, given))
    assert note is not None
    assert (note.name, note.module) == (full.split(".")[-1], factory.__module__)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in given:
            starred = parameter.kind is parameter.VAR_POSITIONAL  # a tuple is made anew
            same = note.arguments[name] if starred else (note.arguments[name],)
            mine = given[name] if starred else (given[name],)
            assert all(a is b for a, b in zip(same, mine, strict=True))
        elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert note.arguments[name] is parameter.default


def test_there_are_all_kinds_of_factories():
    found = {value.__annotations__["return"] for value in FACTORIES.values()}
    assert found == set(PARTS)
    assert len(FACTORIES) > 90
    for name in LEFT_OUT:  # no factory is left out, but one that only wraps
        value = getattr(module_of(name.rpartition(".")[0]), name.rpartition(".")[2], None)
        if inspect.isfunction(value) and value.__annotations__.get("return") in PARTS:
            assert name == "drift.with_client_losses"
    assert set(PACKAGES) >= {name.rpartition(".")[0] for name in FACTORIES}


def test_what_users_build_is_their_own_until_they_sign_it():
    halve = fl.Transform(lambda value: (), lambda key, state, value: (state, value / 2))
    assert maker_of(halve) is None

    @fl.made
    def halved(inner, *, times=1, **rest):
        return inner._replace(update=halve.update)

    clip = fl.clip(2.0)
    part = halved(clip, more=3)
    assert part.made.name == "halved"
    assert part.made.arguments == {"inner": clip, "times": 1, "more": 3}
    assert part.made.before is clip.made
    assert clip.made.replaced(clip) == part.made.replaced(part) == []
    assert clip.made.replaced(part) == ["update"]
    assert maker_of(optax.sgd(0.1)) is None


def test_the_note_survives_jit_and_wrappers():
    import functools

    import jax

    loss = fl.models.linear(3, (4,)).loss
    assert maker_of(functools.partial(jax.jit(loss))).name == "linear"
    assert maker_of(functools.partial(loss, key=None)) is None  # no longer the same
