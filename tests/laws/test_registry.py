"""Every factory of the package is registered with the laws, and the slots there obey them."""

import ast
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.round.server import standing_still
from fedjax_lite.testing import registered_slots as registered
from fedjax_lite.testing.algorithm_laws import same

KINDS = {
    *("FederatedAlgorithm", "ClientUpdate", "ServerUpdate", "Aggregator", "Transform", "Sampler"),
    *("Strategy", "Mechanism", "Attack", "PoissonCohorts"),
}
"""What factories make. Server optimizers are those of `fedjax_lite.round.server`."""
NO_FACTORIES = {
    "mean_of_products": "its aggregate is more than a value; fedlora's exact ways are made with it",
    "centralised": "a federation of one client: laws choose cohorts of several",
    "stacked": "takes the rule; every robust aggregator is made with it",
    "encrypted_mean": "needs tenseal; its laws are run by tests/aggregation/test_encrypted.py",
    "standing_still": "federated_algorithm puts it around every server",
}
PLACES = (
    *("algorithms", "aggregation", "arrivals", "transforms", "privacy", "attacks", "engine"),
    *("selection", "parties"),
    *("round.sampling", "round.server", "round.local"),
)


def factories():
    """Public functions of the package by what they are annotated to return."""
    found = {}
    for module in (fl, *(importlib.import_module(f"fedjax_lite.{place}") for place in PLACES)):
        names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
        for name in names:
            made = inspect.unwrap(getattr(module, name))
            if not inspect.isfunction(made) or not made.__module__.startswith("fedjax_lite."):
                continue
            kind = str(made.__annotations__.get("return"))
            is_optimizer = (
                kind == "optax.GradientTransformation"
                and made.__module__ == "fedjax_lite.round.server"
            )
            if kind.split(".")[-1] in KINDS or is_optimizer:
                found[name] = kind
    return found


def registered_names():
    """Names of the functions that the registries call or hand on."""
    names = set()
    for path in Path(testing.__file__).parent.glob("regist*.py"):
        tree = ast.parse(path.read_text())
        assigned = [node for node in ast.walk(tree) if not isinstance(node, ast.alias)]
        names |= {node.id for node in assigned if isinstance(node, ast.Name)}
    return names


def test_every_factory_is_registered():
    found = factories()
    assert len(found) >= 75, sorted(found)  # the search itself still finds them
    there = registered_names()
    lacking = {name: kind for name, kind in found.items() if name not in there}
    assert lacking.keys() == NO_FACTORIES.keys(), f"register in fedjax_lite.testing: {lacking}"


OF_RULES = ("masked_messages_leave_no_trace", "order_of_slots_does_not_matter")
"""What an attack or a mechanism decides itself; how they fold is that of the rules below them."""


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", registered.attacks())
def test_attacks_on_the_mean(name):
    testing.check_aggregator(registered.attacks()[name], laws=OF_RULES)


@pytest.mark.parametrize("name", registered.mechanisms())
def test_mechanisms(name):
    mechanism = registered.mechanisms()[name]
    testing.check_sampler(mechanism.sampler, laws=list(testing.SAMPLER_LAWS)[:2])
    if mechanism.uplink is None:
        testing.check_aggregator(mechanism.aggregator, laws=OF_RULES)
    elif name == "local":
        testing.check_transform(mechanism.uplink, laws=["transform_is_pure", "zero_stays_finite"])
    else:  # codes of its own; the same code for the same key, whoever asks
        value, update = {"w": jnp.linspace(-1.0, 1.0, 5)}, jax.jit(mechanism.uplink.update)
        draws = [update(jax.random.key(k), (), value) for k in (0, 0, 1)]
        same(draws[0], draws[1], exact=True)
        with pytest.raises(AssertionError):
            same(draws[0], draws[2], exact=True)


def drawing(params, examples, key):
    """A loss whose value depends on its key: keys must not depend on lanes, slots or devices."""
    key_loss, key = jax.random.split(key)
    return testing.loss(params, examples, key_loss) * (1 + jax.random.uniform(key))


def one_round(strategy):
    plan = fl.Plan(batch_size=2)
    algo = fl.fedavg(drawing, optax.sgd(0.05), plan=plan, sampler=fl.everyone(), strategy=strategy)
    key, data = jax.random.key(0), testing.population()
    state = algo.init(key, testing.init_params(jax.random.key(7)), data)
    return algo.round(key, state, data)[0].server


@pytest.fixture(scope="module")
def expected():
    return one_round(registered.strategies()["vmapped"])


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", [name for name in registered.strategies() if name != "vmapped"])
def test_strategies_draw_the_same(name, expected):
    same(one_round(registered.strategies()[name]), expected)


@pytest.mark.parametrize("name", registered.servers())
def test_servers(name):
    """They move against the pseudo-gradient, keep their types, and stand still without a cohort."""
    server = standing_still(registered.servers()[name])
    state, value = server.init({"w": jnp.ones(2)}, None), {"w": jnp.array([0.5, -0.25])}
    for counts in (True, False, True):
        cohort = fl.Cohort(jnp.arange(1), jnp.array([counts]))
        new = server.update(jax.random.key(0), state, value, cohort, {})
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in (state, new)]
        assert shapes[0] == shapes[1]
        moved = np.asarray(new.params["w"] - state.params["w"])
        assert (np.sign(moved) == counts * -np.sign(value["w"])).all()
        if not counts:
            same(new, state, exact=True)
        state = new
