"""A first pass over the cohort: what it measures comes back to each client, or chooses by it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.engine.prologue import Prologue
from fedjax_lite.types import ClientUpdate, Cohort, Message

KEY = jax.random.key(0)
B = np.array([0.0, 1.0, 3.0, -2.0, 5.0], np.float32)
DATA = fl.data.from_arrays({"b": np.repeat(B, 2)}, np.repeat(np.arange(5), 2))
RATE, STEPS = 0.25, 2


def quadratic(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def probe():
    """Measures the loss at the broadcast; sends nothing."""
    return ClientUpdate(
        lambda params: (),
        lambda key, row, x, info: jnp.zeros(2),
        lambda x, c, batch: (
            c
            + jnp.stack(
                [fl.mean_loss(quadratic, x, batch) * batch.mask.sum(), 1.0 * batch.mask.sum()]
            )
        ),
        lambda x, c: ((), Message((), jnp.float32(1)), {"loss": c[0] / jnp.maximum(c[1], 1)}),
    )


def highest(number):
    """Those of the cohort with the highest losses go on."""

    def choose(key, cohort, measured):
        loss = jnp.where(cohort.mask, measured["loss"], -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-loss))
        return cohort._replace(mask=cohort.mask & (rank < number))

    return choose


def trained():
    """FedAvg after the probe, whose clients report what they had measured in it."""
    client = fl.local_sgd(quadratic, optax.sgd(RATE), weighting="uniform")

    def start(key, row, broadcast, info):
        return client.start(key, row, broadcast.value, info), info.found["loss"]

    def finish(broadcast, carry):
        row, message, metrics = client.finish(broadcast.value, carry[0])
        return row, message, {**metrics, "measured": carry[1]}

    def step(broadcast, carry, batch):
        return client.step(broadcast.value, carry[0], batch), carry[1]

    return ClientUpdate(client.init, start, step, finish, client.counts)


def server():
    plain = fl.optimizer_server(optax.sgd(1.0))
    return plain._replace(
        update=lambda key, state, value, *rest: plain.update(key, state, value.value, *rest)
    )


def power_of_choice(number, **slots):
    first = Prologue(probe(), fl.Plan(None), fl.mean(), None if number is None else highest(number))
    return fl.federated_algorithm(
        trained(),
        plan=fl.Plan(None, steps=STEPS),
        server=server(),
        prologue=first,
        **{"sampler": fl.everyone(), **slots},
    )


STRATEGIES = [fl.vmapped(), fl.chunked(2), fl.sequential(), fl.differentiable()]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_the_clients_of_the_highest_losses_train(strategy):
    """By hand: at x = 1 the losses are 1/2, 0, 2, 9/2, 8, so clients 3 and 4 go on."""
    algo = power_of_choice(2, strategy=strategy)
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    state, metrics = algo.round(KEY, state, DATA)
    ends = B + (1 - B) * (1 - RATE) ** STEPS
    assert float(state.server.params) == pytest.approx(ends[[3, 4]].mean(), rel=1e-6)
    assert int(metrics["num_clients"]) == 2
    assert float(metrics["measured"]) == pytest.approx((4.5 + 8.0) / 2)
    # All five downloaded the model; two sent one number, and the probe sends none.
    assert (float(metrics["downlink_bits"]), float(metrics["uplink_bits"])) == (5 * 32, 2 * 32)


def test_choosing_looks_at_the_current_model():
    algo = power_of_choice(1)
    state = algo.init(KEY, jnp.float32(4.0), DATA)  # client 3 is furthest from 4
    state, _ = algo.round(KEY, state, DATA)
    assert float(state.server.params) == pytest.approx(-2 + 6 * (1 - RATE) ** STEPS, rel=1e-6)


def test_who_was_not_asked_cannot_be_chosen():
    """`choose` that says everyone changes nothing: the cohort's own mask holds."""
    everybody = lambda key, cohort, measured: cohort._replace(mask=jnp.ones(5, bool))  # noqa: E731
    cohort = Cohort(jnp.arange(5), jnp.array([True, False, False, True, False]))
    results = []
    for choose in (None, everybody):
        algo = power_of_choice(None)
        first = algo.slots.prologue._replace(choose=choose)
        algo = fl.federated_algorithm(**{**algo.slots._asdict(), "prologue": first})
        state = algo.init(KEY, jnp.float32(1.0), DATA)
        results.append(float(algo.round(KEY, state, DATA, cohort)[0].server.params))
    assert results[0] == results[1]
    ends = B + (1 - B) * (1 - RATE) ** STEPS
    assert results[0] == pytest.approx(ends[[0, 3]].mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("choose", "error", "message"),
    [
        (lambda key, cohort, measured: cohort.mask, TypeError, "must return a Cohort"),
        (
            lambda key, cohort, measured: Cohort(jnp.arange(2), jnp.ones(2, bool)),
            ValueError,
            "leave the cohort's slots as they are",
        ),
    ],
)
def test_what_is_no_choice_is_named(choose, error, message):
    algo = power_of_choice(None)
    first = algo.slots.prologue._replace(choose=choose)
    algo = fl.federated_algorithm(**{**algo.slots._asdict(), "prologue": first})
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    with pytest.raises(error, match=message):
        algo.round(KEY, state, DATA)


def test_states_of_sampler_and_server_carry_metrics():
    """A clock in the sampler and a counter in the server are in the round's metrics."""
    from typing import Any, NamedTuple

    class Measuring(NamedTuple):
        params: Any
        metrics: dict

    draw = fl.everyone()
    clock = fl.Sampler(
        lambda num_clients: Measuring((), {"seconds": jnp.float32(0)}),
        lambda key, state, sizes: (
            Measuring((), {"seconds": state.metrics["seconds"] + 2.5}),
            draw.sample(key, (), sizes)[1],
        ),
    )
    plain = fl.optimizer_server(optax.sgd(1.0))

    def update(key, state, value, cohort, metrics):
        inner = plain.update(key, state.params[1], value, cohort, metrics)
        return Measuring((inner.params, inner), {"moves": state.metrics["moves"] + jnp.float32(1)})

    counter = fl.ServerUpdate(
        lambda params, population: Measuring(
            (params, plain.init(params, population)), {"moves": jnp.float32(0)}
        ),
        lambda state: state.params[0],
        update,
    )
    algo = fl.federated_algorithm(
        fl.local_sgd(quadratic, optax.sgd(RATE)),
        plan=fl.Plan(None),
        sampler=clock,
        server=counter,
    )
    state = algo.init(KEY, jnp.float32(1.0), DATA)
    for number in (1, 2):
        state, metrics = algo.round(KEY, state, DATA)
        assert (float(metrics["seconds"]), float(metrics["moves"])) == (2.5 * number, number)
