"""Clients trained apart from a round: the same numbers, each from a broadcast of its own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing, trees
from fedjax_lite.engine.one_client import train_clients
from fedjax_lite.engine.program import Table

KEY = jax.random.key(3)
DATA = testing.population()
PARAMS = testing.init_params(jax.random.key(7))
IDS = jnp.array([5, 2, 1, 6, 3])


def stacked(tree, number):
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], number, 0), tree)


def rows_at(table, ids):
    return jax.tree.map(lambda leaf: leaf[ids], table)


def test_a_round_is_its_clients_and_their_mean():
    """SCAFFOLD's rows and model, with stochastic uplinks, out of clients that trained alone."""
    algo = fl.scaffold(
        testing.loss,
        0.05,
        plan=fl.Plan(batch_size=2, epochs=2),
        sampler=fl.uniform(5),
        uplink=fl.chain(fl.gaussian_noise(0.1), fl.error_feedback(fl.top_k(3))),
        option=1,
    )
    state = algo.init(KEY, PARAMS, DATA)
    earlier = fl.Cohort(jnp.array([0, 6, 2, 5, 4]), jnp.ones(5, bool))
    state, _ = algo.round(KEY, state, DATA, earlier)  # rows and residuals that are not zero
    after, _ = algo.round(KEY, state, DATA, fl.Cohort(IDS, jnp.ones(5, bool)))
    train = jax.jit(lambda *args: train_clients(algo.slots, *args))
    done = train(
        KEY,
        stacked(algo.slots.server.broadcast(state.server), 5),
        rows_at(Table(state.clients, state.uplink), IDS),
        IDS,
        state.round,
        DATA,
    )
    assert np.asarray(done.counts).tolist() == (np.asarray(DATA.sizes)[IDS] > 0).tolist()
    weights = np.where(done.counts, done.messages.weight, 0)
    moved = jax.tree.map(
        lambda v: np.tensordot(weights, np.where(np.isfinite(v), v, 0), 1) / weights.sum(),
        jax.device_get(done.messages.value["params"]),
    )
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
    close(trees.subtract(state.server.params, moved), after.server.params)
    close(done.rows, rows_at(Table(after.clients, after.uplink), IDS))


def quadratic(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def test_each_from_its_own_model_and_one_of_them_twice():
    """After K whole-data steps a client is at ``b + (x - b) (1 - eta)^K``, from any x."""
    targets = np.array([1.0, -2.0, 4.0], np.float32)
    data = fl.data.from_arrays({"b": targets}, [0, 1, 2])
    algo = fl.fedavg(quadratic, optax.sgd(0.25), plan=fl.Plan(None, steps=3), sampler=fl.everyone())
    ids, start = np.array([2, 0, 2, 1]), np.array([0.0, 3.0, -1.0, 7.0], np.float32)
    mask = jnp.array([True, True, True, False])
    train = jax.jit(functools.partial(train_clients, algo.slots))
    done = train(KEY, jnp.asarray(start), Table((), ()), ids, jnp.int32(4), data, mask)
    ends = targets[ids] + (start - targets[ids]) * 0.75**3
    np.testing.assert_allclose(start - done.messages.value, np.where(mask, ends, start), rtol=1e-6)
    assert done.counts.tolist() == mask.tolist()
    assert done.metrics["client_steps"].tolist() == [3.0, 3.0, 3.0, 0.0]


def test_what_cannot_train_alone_is_named():
    with pytest.raises(TypeError, match=r"slots must be those of an algorithm.*algo\.slots"):
        train_clients(None, KEY, PARAMS, Table((), ()), IDS, jnp.int32(0), DATA)
    mime = fl.mime(testing.loss, 0.1, plan=fl.Plan(2), sampler=fl.uniform(2))
    with pytest.raises(ValueError, match="prologue"):
        train_clients(mime.slots, KEY, PARAMS, Table((), ()), IDS, jnp.int32(0), DATA)


def test_rows_of_who_does_not_count_stay():
    """Of an empty lane and of a client without data, though `finish` of this client counts up."""
    inner = fl.local_sgd(quadratic, optax.sgd(0.25))
    client = inner._replace(
        init=lambda params: jnp.int32(0),
        start=lambda key, row, x, info: (row, inner.start(key, (), x, info)),
        step=lambda x, carry, batch: (carry[0], inner.step(x, carry[1], batch)),
        finish=lambda x, carry: (carry[0] + 1, *inner.finish(x, carry[1])[1:]),
    )
    data = fl.data.from_arrays({"b": np.array([1.0, 2.0], np.float32)}, [0, 2], num_clients=3)
    algo = fl.federated_algorithm(
        client,
        plan=fl.Plan(1),
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )
    rows = Table(jnp.array([10, 20, 30]), ())
    mask = jnp.array([True, True, False])
    done = train_clients(
        algo.slots, KEY, jnp.zeros(3), rows, jnp.arange(3), jnp.int32(0), data, mask
    )
    assert done.rows.clients.tolist() == [11, 20, 30]
    assert done.counts.tolist() == [True, False, False]
