"""Batches visit every example once an epoch, in new orders, the same under every strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ragged_clients import PARAMS, SIZES, STRATEGIES, cohort, ragged, same

import fedjax_lite as fl

# -- which examples a client sees -------------------------------------------------------------


MAX_STEPS = 16


def recorder(batch_size):
    """A client whose row records the examples and the key word of each of its steps."""

    def init(params):
        return {
            "seen": jnp.full((MAX_STEPS, batch_size), -2, jnp.int32),
            "word": jnp.zeros(MAX_STEPS, jnp.uint32),
        }

    def start(key, row, broadcast, info):
        return init(None), jnp.int32(0)

    def step(broadcast, carry, batch):
        log, t = carry
        seen = jnp.where(batch.mask, batch.examples["i"], -1)
        log = {
            "seen": log["seen"].at[t].set(seen),
            "word": log["word"].at[t].set(jax.random.bits(batch.key, dtype=jnp.uint32)),
        }
        return log, t + 1

    def finish(broadcast, carry):
        return carry[0], fl.Message(jax.tree.map(jnp.zeros_like, broadcast), jnp.float32(1)), {}

    return fl.ClientUpdate(init, start, step, finish)


def recorded(plan, rounds=2, seeds=(0, 1), strategy=None, cohorts=(None,)):
    """rows[seed][round], each {"seen": [N, T, B], "word": [N, T]}."""
    data = ragged()
    width = data.max_client_size if plan.batch_size is None else plan.batch_size
    algo = fl.federated_algorithm(
        recorder(width),
        plan=plan,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )
    out = []
    for seed in seeds:
        key = jax.random.key(seed)
        state = algo.init(key, PARAMS, data)
        logs = []
        for r in range(rounds):
            state, _ = algo.round(key, state, data, cohorts[r % len(cohorts)])
            logs.append(jax.tree.map(np.asarray, state.clients))
        out.append(logs)
    return out


def epochs_of(log, client, batch_size, num_epochs):
    """The examples of each epoch in order, after the checks of shape and padding."""
    n = SIZES[client]
    per_epoch = -(-n // batch_size)
    seen = log["seen"][client]
    assert (seen[: num_epochs * per_epoch] != -2).all()
    assert (seen[num_epochs * per_epoch :] == -2).all(), "more steps than planned"
    orders = []
    for e in range(num_epochs):
        block = seen[e * per_epoch : (e + 1) * per_epoch].ravel()
        assert (block[:n] >= 0).all(), "padding before the end of the epoch"
        assert (block[n:] == -1).all()
        orders.append(block[:n].tolist())
    return orders


def owned(client):
    data = ragged()
    low, high = int(data.offsets[client]), int(data.offsets[client + 1])
    return sorted(np.asarray(data.order)[low:high].tolist())


@pytest.mark.parametrize("batch_size", [3, 12])
def test_every_example_exactly_once_an_epoch_in_a_new_order(batch_size):
    """Sizes 7, 0, 3, 12, 1, 5, 9, 2: some divide, some do not. Defects 15 to 17."""
    logs = recorded(fl.Plan(batch_size=batch_size, epochs=3))
    for client in range(8):
        orders = [
            order
            for seed in logs
            for log in seed
            for order in epochs_of(log, client, batch_size, 3)
        ]
        assert len(orders) == 12
        for order in orders:
            assert sorted(order) == owned(client)
        if SIZES[client] >= 7:  # a coincidence has probability 66 / 5040
            assert len(set(map(tuple, orders))) == 12, client


def test_keys_of_batches_are_all_different():
    logs = recorded(fl.Plan(batch_size=3, epochs=3))
    words = [
        word
        for seed in logs
        for log in seed
        for client in range(8)
        for word in log["word"][client, : 3 * -(-SIZES[client] // 3)]
    ]
    assert len(words) == 2 * 2 * 3 * sum(-(-SIZES // 3))
    assert len(set(words)) == len(words)


def test_whole_data_set_batches():
    logs = recorded(fl.Plan(batch_size=None, steps=2), rounds=1, seeds=(0,))[0][0]
    for client in range(8):
        for t in range(2 if SIZES[client] else 0):
            seen = logs["seen"][client, t]
            assert sorted(seen[seen >= 0].tolist()) == owned(client)
        assert (logs["seen"][client, 2 if SIZES[client] else 0 :] == -2).all()


def test_steps_may_stop_within_an_epoch_and_amounts_may_be_per_client():
    steps = np.array([0, 5, 1, 3, 4, 2, 7, 1])
    log = recorded(fl.Plan(batch_size=3, steps=steps), rounds=1, seeds=(0,))[0][0]
    for client in range(8):
        done = (log["seen"][client, :, 0] != -2).sum()
        assert done == (steps[client] if SIZES[client] else 0)
    first = log["seen"][3, :3].ravel()
    assert len(set(first.tolist())) == 9  # 3 of 4 batches of 12 examples: no repetition
    # Client 6: 9 examples, 3 batches an epoch, 7 steps: two whole epochs and a batch.
    seen = log["seen"][6]
    assert sorted(seen[:3].ravel()) == sorted(seen[3:6].ravel()) == owned(6)
    assert len(set(seen[6])) == 3


def test_the_same_batches_under_every_strategy_and_in_every_company():
    plan = fl.Plan(batch_size=4, epochs=2)
    alone = cohort([3, 0, 0, 0, 0, 0, 0, 0], [True] + [False] * 7)
    whole = recorded(plan, 2, (0,), STRATEGIES["vmapped"], (cohort(np.arange(8)),))[0]
    other = recorded(plan, 2, (0,), STRATEGIES["chunked3"], (cohort(np.arange(8)[::-1]), alone))[0]
    same(whole[0], other[0])
    same(jax.tree.map(lambda x: x[3], whole[1]), jax.tree.map(lambda x: x[3], other[1]))
