"""describe(): what users wrote is called theirs, by name; what they signed by its settings."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.describe import describe
from fedjax_lite.describe.notes import read
from fedjax_lite.types import Aggregator, ClientUpdate, Sampler, Transform

PLAN = fl.Plan(batch_size=10, epochs=3)


def loss(params, examples, key):
    return params * examples["x"]


def make(**options):
    slots = {"plan": PLAN, "sampler": fl.uniform(4), **options}
    return fl.fedavg(loss, optax.sgd(0.25), **slots)


def text_of(algorithm):
    return " ".join(describe(algorithm).split())


def my_transform(factor):
    return Transform(lambda value: (), lambda key, state, value: (state, value * factor))


def my_client():
    inner = fl.local_sgd(loss, optax.sgd(0.25))

    def finish(broadcast, carry):
        return inner.finish(broadcast, carry)

    return ClientUpdate(inner.init, inner.start, inner.step, finish)


def first_three(key, state, sizes):
    return state, fl.Cohort(jnp.arange(3, dtype=jnp.int32), jnp.ones(3, bool))


def test_the_users_own_parts_are_called_so():
    module = __name__
    signed = describe(fl.made(my_rule)(fl.median(), limit=3))
    assert signed == f"your own `my_rule` ({module}) with limit 3 around the coordinate-wise median"
    algorithm = fl.federated_algorithm(
        my_client(),
        plan=PLAN,
        sampler=Sampler(lambda num_clients: (), first_three),
        server=fl.optimizer_server(optax.sgd(1.0)),
        uplink=my_transform(2.0),
        aggregator=my_rule(fl.median()),
    )
    text = text_of(algorithm)
    assert text.startswith("Your own algorithm (client `my_client`) ")
    assert f"Cohort: each round your own `first_three` ({module})." in text
    assert f"sent your own `my_transform` ({module})." in text
    assert f"your own `my_rule` ({module}); a message weighs what" in text


def test_phases_are_told_in_their_order():
    """With names, plans and what they read; the algorithm's plan where they have none."""
    phases = (
        fl.Phase(my_rule, fl.Plan(5), "losses"),
        fl.Phase(my_rule),
        fl.Phase(my_rule, fl.Plan(None, steps=2), "tuning", data="held_out"),
    )
    algorithm = fl.federated_algorithm(
        my_client()._replace(step=phases),
        plan=PLAN,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )
    assert (
        "Local work: 1 epoch in batches of 5 (losses), then 3 epochs in batches of 10, then 2 "
        "steps in one batch of all its data (tuning, on 'held_out', data of its own). "
    ) in text_of(algorithm)


PARTS = [fl.qsgd(7), fl.krum(1), fl.optimizer_server(optax.sgd(1.0)),
         fl.local_sgd(loss, optax.sgd(0.5))]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_part_with_a_field_of_the_users_is_not_called_ours(part):
    for field in (name for name in part._fields if callable(getattr(part, name))):
        changed = read(part._replace(**{field: first_three}))
        assert (changed.own, changed.name) == (True, "first_three"), field


def my_rule(inner, limit=None):
    def finish(key, state, acc, cohort):
        return inner.finish(key, state, acc, cohort)

    return Aggregator(inner.init_state, inner.init, inner.add, finish)


def test_an_algorithm_that_is_not_composed():
    def my_round(key, state, data, cohort=None):
        return state, {}

    text = describe(fl.FederatedAlgorithm(make().init, my_round))
    assert text.startswith("An algorithm of your own: `test_an_algorithm_that_is_not_composed`")


def logged(algorithm, where):
    def logged_round(key, state, data, cohort=None):
        return algorithm.round(key, state, data, cohort)

    return algorithm._replace(round=logged_round)


def test_a_wrapper_is_looked_through():
    algorithm = make()
    whole = "FedAvg (McMahan et al., 2017)"
    for wrapped, words in (
        (logged(algorithm, "here"), f", its round replaced by your own `logged` ({__name__}); the "
         "slots that it had"),
        (fl.made(logged)(algorithm, "here"), f", wrapped in your own `logged` ({__name__})"),
        (fl.made(lambda: make())(), f", made by your own `<lambda>` ({__name__})"),
    ):  # fmt: skip
        title, *rest = describe(wrapped).splitlines()
        assert title == whole + words
        assert rest == describe(algorithm).splitlines()[1:]
    bare = fl.made(lambda inner: fl.FederatedAlgorithm(inner.init, inner.round))
    assert describe(bare(algorithm)).splitlines()[1:] == describe(algorithm).splitlines()[1:]
    assert fl.citation(bare(algorithm)) == fl.citation(algorithm)
    again = algorithm._replace(round=functools.partial(jax.jit(algorithm.round)))
    assert describe(again) == describe(algorithm)


def test_an_algorithm_whose_factory_signs_is_told_by_its_settings():
    @fl.made
    def pulled(loss, rate, *, mu, plan, sampler):
        return fl.federated_algorithm(
            my_client(), plan=plan, sampler=sampler, server=fl.optimizer_server(optax.sgd(1.0))
        )

    own = pulled(loss, 0.5, mu=0.125, plan=PLAN, sampler=fl.uniform(4))
    text = text_of(own)
    assert text.startswith("Your own algorithm `pulled` Cohort: each round 4 clients")
    assert f"Local steps: your own `pulled` ({__name__}) with rate 0.5, mu 0.125." in text
    assert f"Loss: your own `loss` ({__name__})." in text


def test_methods_are_found_inside_of_wrappers_that_keep_nothing():
    scaffold = fl.scaffold(loss, 0.5, plan=PLAN, sampler=fl.uniform(4))
    bare = fl.made(lambda inner: fl.FederatedAlgorithm(inner.init, inner.round))(scaffold)
    title, *rest = describe(bare).splitlines()
    assert (
        title == f"SCAFFOLD (Karimireddy et al., 2020), wrapped in your own `<lambda>` ({__name__})"
    )
    assert rest == describe(scaffold).splitlines()[1:]


def test_what_was_really_given_is_told_not_what_a_wrapper_calls_so():
    @fl.made
    def mine(weighting, client_optimizer, server_learning_rate):
        return make(weighting="uniform")

    text = text_of(mine("examples", optax.adam(0.5), 3.0))
    assert text.startswith(f"FedAvg (McMahan et al., 2017), made by your own `mine` ({__name__}) ")
    assert "a message weighs 1." in text
    assert "Local steps: SGD with learning rate 0.25." in text
    drifting = fl.federated_algorithm(
        fl.drift.with_client_losses(fl.local_sgd(loss, optax.sgd(0.25)), other_loss),
        plan=PLAN, sampler=fl.uniform(4), server=fl.optimizer_server(optax.sgd(1.0)),
    )  # fmt: skip
    assert f"Loss: your own `loss` ({__name__})." in text_of(drifting)


def other_loss(params, examples, key):
    return 2 * params * examples["x"]
