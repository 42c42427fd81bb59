"""The slots of an algorithm are data: wiring them again gives the same algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
DATA = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 3.0, 5.0])}, [0, 1, 1, 2])
PLAN = fl.Plan(batch_size=1)


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def private():
    return fl.privacy.local_gaussian(
        clip=1.0, noise_multiplier=2.0, num_clients=3, delta=1e-3, num_rounds=9, cohort_size=2
    )


def renamed(algo):
    return algo._replace(models=None)


ALGORITHMS = {
    "plain": lambda: fl.fedavg(loss, optax.sgd(0.5), plan=PLAN, sampler=fl.uniform(2)),
    "downlink": lambda: fl.fedavg(
        loss, optax.sgd(0.5), plan=PLAN, sampler=fl.uniform(2), downlink=fl.qsgd(3),
        uplink=fl.qsgd(5), aggregator=fl.median(),
    ),
    "private": lambda: fl.fedavg(loss, optax.sgd(0.5), plan=PLAN, privacy=private()),
    "prologue": lambda: fl.mime(loss, 0.1, plan=PLAN, sampler=fl.uniform(2)),
}  # fmt: skip


def after_a_round(algo):
    state = algo.init(KEY, jnp.array(0.5), DATA)
    return algo.round(KEY, state, DATA)[0].server.params


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_slots_wired_again_are_the_same_algorithm(name):
    algo = ALGORITHMS[name]()
    again = fl.federated_algorithm(**algo.slots._asdict())
    assert after_a_round(again) == after_a_round(algo)
    assert again.slots is not algo.slots
    for field in set(algo.slots._fields):
        assert getattr(again.slots, field) is getattr(algo.slots, field), field
    assert again.made.name == "federated_algorithm"
    assert again.made.arguments["plan"] is PLAN


@pytest.mark.parametrize("name", ["plain", "private"])
def test_defaults_and_mechanisms_are_told_as_they_take_effect(name):
    slots = ALGORITHMS[name]().slots
    assert slots.client.made.name == "local_sgd"
    assert slots.server.made.name == "optimizer_server"
    assert slots.strategy.made.name == "auto"
    if name == "private":
        assert slots.sampler is slots.privacy.sampler
        assert slots.aggregator is slots.privacy.aggregator
        assert slots.uplink is None  # nothing before the mechanism's own
    else:
        assert slots.aggregator.made.name == "mean"
        assert slots.uplink.made.name == "identity"


def test_another_strategy_changes_that_slot_only_and_not_the_name():
    algo = fl.fedavgm(loss, optax.sgd(0.5), plan=PLAN, sampler=fl.uniform(2), momentum=0.5)
    chunks = fl.chunked(2)
    other = algo.with_strategy(chunks)
    assert other.slots.strategy is chunks
    changed = [
        n for n in algo.slots._fields if getattr(algo.slots, n) is not getattr(other.slots, n)
    ]
    assert changed == ["strategy"]
    for one in (algo, other, other.with_strategy(fl.vmapped())):
        assert one.made.name == "fedavgm"
        assert one.made.arguments["momentum"] == 0.5
        assert one.made.replaced(one) == []
    assert [algo.made.name, algo.made.before.name, algo.made.before.before.name] == [
        "fedavgm", "fedavg", "federated_algorithm",
    ]  # fmt: skip
    assert other.made.before.arguments["strategy"] is chunks  # which fedavg lists


def test_algorithms_are_hashed_by_identity_whatever_their_arguments_are():
    plan = fl.Plan(batch_size=1, epochs=np.array([1, 2, 1]))
    weights = np.array([1.0, 2.0, 3.0])
    inner = fl.fedavg(
        loss, optax.sgd(0.5), plan=plan, sampler=fl.uniform(2),
        weighting=fl.aggregation.inverse_variance(weights, floor=0.1),
    )  # fmt: skip
    assert {inner: 1, inner.slots: 2}[inner] == 1
    assert inner != inner._replace(slots=inner.slots._replace(plan=PLAN))
    wrapped = fl.made(renamed)(inner)
    assert wrapped.made.arguments["algo"] is inner
    assert wrapped.made.before is inner.made
    assert wrapped.slots is inner.slots
