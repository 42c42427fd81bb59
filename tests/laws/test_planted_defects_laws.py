"""One wrong implementation a law: each is caught by that law, and what it was made of passes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.types import Cohort, Message, Sampler

# -- algorithms -------------------------------------------------------------------------------


def averaging(change=None, **slots):
    """FedAvg whose client may be changed, ``change(client) -> client``."""

    def make(rate, sampler, strategy):
        client = fl.local_sgd(testing.loss, optax.sgd(rate))
        return fl.federated_algorithm(
            client if change is None else change(client),
            plan=fl.Plan(batch_size=2),
            sampler=sampler,
            server=fl.optimizer_server(optax.sgd(1.0)),
            strategy=strategy,
            **slots,
        )

    return make


def ignores_the_mask(client):
    def step(broadcast, carry, batch):
        everything = jnp.ones_like(batch.mask)
        return client.step(broadcast, carry, batch._replace(mask=everything))

    return client._replace(step=step)


def uses_a_key_twice(client):
    def step(broadcast, carry, batch):
        return client.step(broadcast, client.step(broadcast, carry, batch), batch)

    return client._replace(step=step)


def counting(client):
    """A row that counts the rounds of a client."""

    def finish(broadcast, carry):
        row, carry = carry
        _, message, metrics = client.finish(broadcast, carry)
        return row + 1, message, metrics

    return client._replace(
        init=lambda params: jnp.zeros(()),
        start=lambda key, row, *rest: (row, client.start(key, (), *rest)),
        step=lambda broadcast, carry, batch: (carry[0], client.step(broadcast, carry[1], batch)),
        finish=finish,
    )


def rows_of_the_empty_move(strategy):
    """A strategy that writes the rows of clients without data."""

    def execute(job, table, acc):
        work = job.work
        new, acc, metrics = strategy.execute(job, table, acc)
        at = jnp.where(work.mask & (work.sizes == 0), work.rows, job.data.num_rows)
        rows = jax.tree.map(lambda leaf: leaf.at[at].add(1, mode="drop"), new.clients)
        return new._replace(clients=rows), acc, metrics

    return strategy._replace(execute=execute)


def careless(rate, sampler, strategy):
    return averaging(counting)(rate, sampler, rows_of_the_empty_move(strategy))


RIGHT, COUNTING = averaging(), averaging(counting)  # laws keep programs by who makes them


@pytest.mark.parametrize(
    ("defect", "right", "law"),
    [
        (averaging(ignores_the_mask), RIGHT, "padding_leaves_no_trace"),
        (averaging(uses_a_key_twice), RIGHT, "keys_are_used_once"),
        (careless, COUNTING, "empty_clients_change_nothing"),
        (careless, COUNTING, "empty_cohort_changes_nothing"),
    ],
)
def test_wrong_algorithm_is_caught(defect, right, law):
    testing.check_algorithm(right, laws=[law])
    with pytest.raises(AssertionError, match=f"law '{law}'"):
        testing.check_algorithm(defect, laws=[law])


def local_only(rate, sampler, strategy):
    plan = fl.Plan(batch_size=2, epochs=2)
    return fl.local_only(
        testing.loss, optax.sgd(rate), plan=plan, sampler=sampler, strategy=strategy
    )


@pytest.mark.parametrize("law", ["finite", "never_retraces", "vmap_equals_loop"])
def test_what_clients_learn_counts_as_learnt(law):
    """Nobody moves the server's model here; it is the clients' own that do."""
    testing.check_algorithm(local_only, laws=[law])


# -- aggregators ------------------------------------------------------------------------------


def rule(function):
    def whole(key, state, stack, cohort):
        return state, jax.tree.map(lambda leaf: function(leaf, stack, cohort), stack.values)

    return fl.aggregation.stacked(whole)


def column(mask, leaf):
    return mask.reshape((-1,) + (1,) * (leaf.ndim - 1))


def total(leaf, stack):
    return jnp.where(column(stack.mask, leaf), leaf, 0).sum(0)


AGGREGATORS = {
    "divides by C": (
        lambda leaf, stack, cohort: total(leaf, stack) / leaf.shape[0],
        "equal_messages_aggregate_to_themselves",
    ),
    "does not divide": (
        lambda leaf, stack, cohort: total(leaf, stack),
        "equal_messages_aggregate_to_themselves",
    ),
    "nothing ever": (
        lambda leaf, stack, cohort: 0 * total(leaf, stack),
        "equal_messages_aggregate_to_themselves",
    ),
    "first live slot": (
        lambda leaf, stack, cohort: jnp.where(stack.mask.any(), leaf[jnp.argmax(stack.mask)], 0),
        "order_of_slots_does_not_matter",
    ),
    "weights by slot": (
        lambda leaf, stack, cohort: (
            jnp.where(column(stack.mask, leaf), leaf * column(jnp.arange(1.0, 6.0), leaf), 0).sum(0)
            / jnp.maximum(jnp.where(stack.mask, jnp.arange(1.0, 6.0), 0).sum(), 1)
        ),
        "order_of_slots_does_not_matter",
    ),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_wrong_aggregator_is_caught_by_this_law_alone(name):
    function, law = AGGREGATORS[name]
    others = [other for other in testing.AGGREGATOR_LAWS if other != law]
    testing.check_aggregator(rule(function), laws=others)
    with pytest.raises(AssertionError, match=law):
        testing.check_aggregator(rule(function))


def test_a_lost_chunk_is_caught():
    good = fl.mean()

    def add(acc, messages: Message, slots, mask):
        return good.add(jax.tree.map(jnp.zeros_like, acc), messages, slots, mask)

    with pytest.raises(AssertionError, match="folds_merge_by_addition"):
        testing.check_aggregator(good._replace(add=add))


# -- samplers ---------------------------------------------------------------------------------


def three(choose):
    """A sampler of three, ``choose(key, state, sizes) -> ids``, that counts its rounds."""

    def sample(key, state, sizes):
        ids = choose(key, state, sizes).astype(jnp.int32)
        return state + 1, Cohort(ids, sizes[ids] > 0)

    return Sampler(lambda num_clients: jnp.int32(0), sample)


def stateless(choose):
    one = three(choose)
    return Sampler(
        lambda num_clients: (), lambda key, state, sizes: ((), one.sample(key, 0, sizes)[1])
    )


def permuted(key, sizes):
    return jax.random.permutation(key, sizes.shape[0])[:3]


@pytest.mark.parametrize(
    ("sampler", "law"),
    [
        (stateless(lambda key, state, sizes: permuted(jax.random.key(0), sizes)), "cohorts_follow"),
        (stateless(lambda key, state, sizes: jnp.arange(3)), "nobody_is_left_out"),
        (three(lambda key, state, sizes: jnp.arange(3)), "nobody_is_left_out"),
        (three(lambda key, state, sizes: permuted(key, sizes[:5])), "nobody_is_left_out"),
        (three(lambda key, state, sizes: jnp.zeros(3)), "sampled_ids_are_distinct"),
    ],
)
def test_wrong_sampler_is_caught(sampler, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_sampler(sampler, laws=[name for name in testing.SAMPLER_LAWS if law in name])


def test_right_samplers_pass():
    testing.check_sampler(stateless(lambda key, state, sizes: permuted(key, sizes)))
    turns = three(lambda key, state, sizes: (3 * state + jnp.arange(3)) % sizes.shape[0])
    testing.check_sampler(turns)  # in turns, whatever the key
    assert np.all(np.asarray(turns.sample(None, 0, jnp.ones(7, int))[1].ids) == [0, 1, 2])
