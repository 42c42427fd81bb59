"""Clients that do not count, and rounds in which none does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import transforms as tr
from fedjax_lite.aggregation import stacked
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.types import Aggregator, Cohort, Message, ServerUpdate

KEY = jax.random.key(0)
SIZES = (2, 3, 1, 2, 0)
DATA = fl.data.from_arrays(
    {"b": np.array([1, 3, 2, 2, 5, 4, 0, 8], np.float32)}, np.repeat(range(5), SIZES), num_clients=5
)
# Clients 0 and 1 count; 2 weighs nothing, 3 does no step, 4 has no data.
STEPS = np.array([1, 1, 1, 0, 1])
PLAN = fl.Plan(batch_size=None, steps=STEPS)


def weight(info):
    return jnp.where(info.id == 2, 0.0, 1.0)


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def cohort(*ids, mask=None):
    mask = np.ones(len(ids), bool) if mask is None else mask
    return Cohort(jnp.array(ids, jnp.int32), jnp.asarray(mask))


NOBODY = cohort(2, 3, 4, 0, mask=[True, True, True, False])
SLOTS = {"plan": PLAN, "sampler": fl.uniform(4)}


def restless():
    """A server that moves whatever it is shown."""
    start = lambda params, population: params  # noqa: E731
    return ServerUpdate(start, lambda x: x, lambda key, x, value, cohort, metrics: x - value + 1)


def counting_rounds():
    """A rule that remembers how often it was asked."""

    def rule(key, state, stack, cohort):
        return state + 1, jax.tree.map(lambda rows: rows.sum(0), stack.values)

    return stacked(rule, init_state=lambda params: jnp.int32(0))


def fedavg(**slots):
    return fl.fedavg(loss, optax.sgd(0.5), **{"weighting": weight, **SLOTS, **slots})


ALGORITHMS = {
    "momentum": lambda: fedavg(server_optimizer=optax.sgd(1.0, momentum=0.9)),
    "decay": lambda: fedavg(server_optimizer=optax.adamw(0.1, weight_decay=0.1)),
    "yogi": lambda: fl.fedyogi(loss, optax.sgd(0.5), server_learning_rate=0.1, **SLOTS,
                               weighting=weight),
    "own server": lambda: fl.federated_algorithm(
        fl.local_sgd(loss, optax.sgd(0.5), weighting=weight), server=restless(), **SLOTS),
    "own rule": lambda: fedavg(aggregator=counting_rounds()),
    "centered clipping": lambda: fedavg(aggregator=fl.centered_clipping(0.3)),
    "median": lambda: fedavg(aggregator=fl.median(), server_optimizer=optax.adam(0.1)),
    "attacked": lambda: fedavg(aggregator=fl.byzantine(fl.sign_flip(), clients=[2, 3, 4])),
    "diagnosed": lambda: fedavg(aggregator=fl.diagnosed(fl.median()),
                                server_optimizer=optax.adam(0.1)),
    "scaffold": lambda: fl.scaffold(loss, 0.5, weighting=weight, **SLOTS),
    "fednova": lambda: fl.fednova(loss, 0.5, weighting=weight, **SLOTS,
                                  server_optimizer=optax.sgd(1.0, momentum=0.9)),
    "feddyn": lambda: fl.feddyn(loss, optax.sgd(0.5), alpha=0.1, weighting=weight, **SLOTS),
    "mime": lambda: fl.mime(loss, 0.5, weighting=weight, **SLOTS),
    "compressed": lambda: fedavg(uplink=tr.error_feedback(tr.top_k(1)), downlink=tr.top_k(1)),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_round_of_nobody_changes_nothing(name):
    algo = ALGORITHMS[name]()
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    state, first = algo.round(KEY, state, DATA, cohort(0, 1, 2, 4))
    after, metrics = algo.round(KEY, state, DATA, NOBODY)
    assert (int(first["num_clients"]), int(metrics["num_clients"])) == (2, 0)
    assert float(metrics["uplink_bits"]) == 0

    def kept(state):  # what a broadcast costs may change: everybody has heard this one
        server = state.server
        return (getattr(server, "inner", server), state.aggregator, state.clients, state.uplink)

    chex.assert_trees_all_equal(kept(state), kept(after))
    assert int(after.round) == 2


@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.chunked(2), fl.engine.differentiable()])
def test_who_does_not_count_is_in_no_mean(strategy):
    """Sent are x - y_i = -(b_i mean) / 2 from 0; weighed 1 each by clients 0 and 1 alone."""
    algo = fedavg(strategy=strategy, sampler=fl.everyone())
    state = algo.init(KEY, jnp.float32(0.0), DATA)
    new, metrics = algo.round(KEY, state, DATA)
    means = np.array([2.0, 3.0])
    assert float(new.server.params) == pytest.approx((means / 2).mean())
    assert int(metrics["num_clients"]) == 2
    # The mean over the examples of the two: b^2 / 2 of 1, 3 and of 2, 2, 5.
    wanted = np.mean(np.array([1, 3, 2, 2, 5.0]) ** 2) / 2
    assert float(metrics["train_loss"]) == pytest.approx(wanted)
    assert float(metrics["uplink_bits"]) == 2 * 32


def test_a_constant_weight_does_not_bring_the_empty_in():
    """A client update that weighs 1 whatever happened: no data, no part in the mean, no row."""
    client = fl.local_sgd(loss, optax.sgd(0.5))
    own = client._replace(
        init=lambda params: jnp.zeros(()),
        start=lambda key, row, x, info: (client.start(key, (), x, info), row),
        step=lambda x, c, b: (client.step(x, c[0], b), c[1]),
        finish=lambda x, c: (c[1] + 1, client.finish(x, c[0])[1]._replace(weight=1.0), {"one": 1}),
    )
    algo = fl.federated_algorithm(
        own, plan=fl.Plan(batch_size=None), sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )  # fmt: skip
    new, metrics = algo.round(KEY, algo.init(KEY, jnp.float32(0.0), DATA), DATA)
    assert float(new.server.params) == pytest.approx(np.mean([2, 3, 4, 4]) / 2)
    assert new.clients.tolist() == [1, 1, 1, 1, 0]
    assert (float(metrics["one"]), int(metrics["num_clients"])) == (1.0, 4)


def test_an_update_that_is_not_made_of_steps_counts():
    client = fl.ClientUpdate(
        lambda params: jnp.zeros(()),
        lambda key, row, x, info: (row, info.size),
        lambda x, carry, batch: carry,
        lambda x, c: (c[0] + 1, Message(x - c[1].astype(jnp.float32), c[1]), {}),
    )
    algo = fl.federated_algorithm(
        client, plan=fl.Plan(batch_size=None, steps=lambda key, i: 0), sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )  # fmt: skip
    new, metrics = algo.round(KEY, algo.init(KEY, jnp.float32(0.0), DATA), DATA)
    sizes = np.array(SIZES)
    assert float(new.server.params) == pytest.approx((sizes**2).sum() / sizes.sum())
    assert (int(metrics["num_clients"]), int(metrics["num_steps"])) == (4, 0)
    assert new.clients.tolist() == [1, 1, 1, 1, 0]


def test_a_private_server_is_not_told():
    mechanism = fl.privacy.central_gaussian(
        clip=1.0, noise_multiplier=1.0, delta=1e-5, sampling_rate=0.5, num_clients=5, capacity=5
    )
    algo = fl.fedavg(loss, optax.sgd(0.5), plan=PLAN, privacy=mechanism)
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    with pytest.warns(UserWarning, match="not the mechanism's own sampling"):
        after, _ = algo.round(KEY, state, DATA, cohort(3, 4))
    assert float(after.server.params) != 1.0


@pytest.mark.parametrize("of", ["update", "model"])
def test_a_broadcast_is_billed_once(of):
    """scaled_sign of one number takes 1 + 32 bits; the start is sent exactly, 32."""
    algo = fedavg(downlink=Downlink(tr.scaled_sign(), of=of))
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    here, gone = cohort(0, 1), cohort(0, 1, mask=[False, False])
    nothing = cohort(3, 3)
    listeners = 5 if of == "update" else 2
    found = []
    for drawn in (gone, here, gone, nothing, nothing, here):
        state, metrics = algo.round(KEY, state, DATA, drawn)
        found.append(float(metrics["downlink_bits"]))
    sign = 33 * listeners
    # A change waits for the round that uses it; without memory the model is sent each time.
    unused = 0 if of == "update" else sign
    assert found == [0, 32 * listeners, 0, unused, unused, sign]


def test_masks_of_an_aggregator_say_who_counts():
    def finish(key, state, acc, cohort):
        return state, cohort.mask.sum() * jnp.ones(())

    plain = fl.aggregation.mean()
    count = Aggregator(plain.init_state, plain.init, plain.add, finish)
    algo = fedavg(aggregator=count, server_optimizer=optax.sgd(1.0), sampler=fl.everyone())
    new, _ = algo.round(KEY, algo.init(KEY, jnp.float32(5.0), DATA), DATA)
    assert float(new.server.params) == 3.0


def test_who_comes_too_late_has_downloaded_and_nothing_else():
    on_time = np.array([True, False, False, False])
    drawn = cohort(0, 1, 4, 9, mask=on_time)._replace(late=jnp.array([True, True, True, True]))
    alone = cohort(0, 1, 4, 9, mask=on_time)
    algo = fedavg()
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    (kept, metrics), (other, billed) = (algo.round(KEY, state, DATA, c) for c in (alone, drawn))
    chex.assert_trees_all_equal(kept, other)
    assert (int(metrics["num_clients"]), int(billed["num_clients"])) == (1, 1)
    # 9 is nobody; 0 is on time, whatever else is said of it.
    assert [float(m["downlink_bits"]) for m in (metrics, billed)] == [32, 3 * 32]
    assert [float(m["uplink_bits"]) for m in (metrics, billed)] == [32, 32]
