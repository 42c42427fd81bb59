"""Local work in several phases: closed forms, batches, costs, all strategies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.engine.mesh.collective import AXIS
from fedjax_lite.types import ClientUpdate, Message, Phase

KEY = jax.random.key(0)
RATE = 0.25
SIZES = (3, 1, 5, 2)
DATA = fl.data.from_arrays(
    {"i": np.arange(11), "b": np.arange(11.0) - 3}, np.repeat(np.arange(4), SIZES)
)
STRATEGIES = {
    "vmapped": fl.vmapped(),
    "chunked": fl.chunked(2),
    "sequential": fl.sequential(),
    "differentiable": fl.differentiable(),
    "sharded": fl.sharded(jax.make_mesh((1,), (AXIS,)), fl.chunked(2)),
}


def move(part):
    """A step on one of two numbers, towards the mean of the batch."""

    def step(broadcast, carry, batch):
        target = (batch.examples["b"] * batch.mask).sum() / batch.mask.sum()
        moved = carry[part] - RATE * (carry[part] - target)
        return {**carry, part: moved}

    return step


def two_phases(head, body):
    def finish(x, carry):
        info = carry["info"]
        message = {part: x[part] - carry[part] for part in ("head", "body")}
        steps = {f"done_{i}": steps for i, steps in enumerate(info.phase_steps)}
        return (), Message(message, info.size.astype(float)), {**steps, "all": info.num_steps}

    return ClientUpdate(
        lambda params: (),
        lambda key, row, x, info: {**x, "info": info},
        (Phase(move("head"), head, "head"), Phase(move("body"), body, "body")),
        finish,
    )


def algorithm(client, plan, **slots):
    return fl.federated_algorithm(
        client,
        plan=plan,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        **slots,
    )


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_each_phase_does_its_own_steps(strategy):
    """Whole data sets a step: a client's part is at ``m + (x - m) (1 - eta)^K`` after K steps."""
    head, body = fl.Plan(None, steps=np.array([1, 2, 3, 0])), fl.Plan(None, epochs=2)
    algo = algorithm(two_phases(head, None), body, strategy=strategy)
    state = algo.init(KEY, {"head": jnp.array(1.0), "body": jnp.array(-2.0)}, DATA)
    state, metrics = algo.round(KEY, state, DATA)
    means = np.array(
        [np.mean(part) for part in np.split(np.arange(11.0) - 3, np.cumsum(SIZES)[:-1])]
    )
    shares = np.array(SIZES) / 11
    for part, start, steps in (("head", 1.0, np.array([1, 2, 3, 0])), ("body", -2.0, 2)):
        ends = means + (start - means) * (1 - RATE) ** steps
        assert float(state.server.params[part]) == pytest.approx((shares * ends).sum(), rel=1e-5)
    assert (int(metrics["head_steps"]), int(metrics["body_steps"])) == (6, 8)
    assert int(metrics["num_steps"]) == 14
    assert (float(metrics["done_0"]), float(metrics["done_1"])) == (6 / 4, 8 / 4)
    assert float(metrics["all"]) == 14 / 4


def seen_by(first, second, *, plans=(None, None)):
    """A client that writes down which examples each of two phases saw, in order."""

    def note(part):
        def step(broadcast, carry, batch):
            at, log = carry[part]
            return {**carry, part: (at + 1, log.at[at].set(batch.examples["i"][0]))}

        return step

    def start(key, row, x, info):
        return {name: (jnp.int32(0), jnp.full(10, -1)) for name in ("a", "b")}

    phases = (Phase(note("a"), plans[0], stream=first), Phase(note("b"), plans[1], stream=second))
    return ClientUpdate(
        lambda params: {"a": jnp.full(10, -1), "b": jnp.full(10, -1)},
        start,
        phases,
        lambda x, carry: (
            {name: carry[name][1] for name in ("a", "b")},
            Message(jnp.zeros(()), jnp.float32(1)),
            {},
        ),
    )


def orders(first, second):
    algo = algorithm(seen_by(first, second), fl.Plan(1, epochs=2))
    state = algo.init(KEY, jnp.zeros(()), DATA)
    rows = algo.round(KEY, state, DATA)[0].clients
    return np.asarray(rows["a"]), np.asarray(rows["b"])


def test_streams_say_which_phases_see_the_same_batches():
    """Two epochs a phase, each a permutation of the client's examples, whatever its stream."""
    same, own = orders(0, 0), orders(None, None)
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], own[0])
    assert (own[0] != own[1]).any()
    low = 0
    for client, size in enumerate(SIZES):
        for log in own:
            for epoch in range(2):
                drawn = log[client, epoch * size : (epoch + 1) * size]
                np.testing.assert_array_equal(np.sort(drawn), np.arange(low, low + size))
        low += size


def bodies(jaxpr, found):
    """Names of primitives in the body of each innermost loop."""
    for eqn in jaxpr.eqns:
        for name, value in eqn.params.items():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    if eqn.primitive.name == "while" and name == "body_jaxpr":
                        found.append(str(inner))
                    bodies(inner, found)
    return found


def test_a_phase_computes_its_own_step_only():
    """No loop has both steps: a head step costs what a head step costs."""

    def client():
        return ClientUpdate(
            lambda params: (),
            lambda key, row, x, info: x,
            (
                Phase(lambda x, y, batch: jnp.tan(y), fl.Plan(1)),
                Phase(lambda x, y, batch: jnp.atan(y), fl.Plan(2)),
            ),
            lambda x, y: ((), Message(x - y, jnp.float32(1)), {}),
        )

    algo = algorithm(client(), fl.Plan(1), strategy=fl.vmapped())
    state = algo.init(KEY, jnp.zeros(()), DATA)
    loops = bodies(jax.make_jaxpr(algo.round)(KEY, state, DATA).jaxpr, [])
    first = [text for text in loops if " tan " in text]
    second = [text for text in loops if " atan " in text]
    assert len(first) == len(second) == 1
    assert " atan " not in first[0]
    assert " tan " not in second[0]


def test_one_phase_costs_nothing():
    """A step, and the same step as a phase, are the same program, letter for letter."""
    client = fl.local_sgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.1))
    texts = []
    for step in (client.step, (Phase(client.step),)):
        algo = algorithm(client._replace(step=step), fl.Plan(2), strategy=fl.chunked(2))
        state = algo.init(KEY, jnp.zeros(()), DATA)
        texts.append(jax.jit(algo.round).lower(KEY, state, DATA).as_text())
    assert texts[0] == texts[1]


def test_gradients_go_through_phases():
    """The derivative of the round by the start: ``sum_i p_i (1 - eta)^(K_i)``, part by part."""
    head = fl.Plan(None, steps=np.array([1, 2, 3, 1]))
    algo = algorithm(two_phases(head, None), fl.Plan(None, epochs=2), strategy=fl.differentiable())

    def total(x):
        params = {"head": x, "body": x}
        state = algo.init(KEY, {"head": jnp.array(0.0), "body": jnp.array(0.0)}, DATA)
        state = state._replace(server=state.server._replace(params=params))
        return sum(algo.round(KEY, state, DATA)[0].server.params.values())

    shares = np.array(SIZES) / 11
    expected = (shares * (1 - RATE) ** np.array([1, 2, 3, 1])).sum() + (1 - RATE) ** 2
    assert float(jax.grad(total)(jnp.array(0.5))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ((), TypeError, "must hold Phases"),
        ((max, min), TypeError, "must hold Phases"),
        (3, TypeError, "step of a client must be a function"),
        ((Phase(max, name="a"), Phase(min, name="a")), ValueError, "different names"),
        ((Phase(max, plan=3),), TypeError, "a Plan"),
    ],
)
def test_bad_phases_are_named(step, error, message):
    client = fl.local_sgd(lambda w, e, key: w * e["b"], optax.sgd(0.1))
    with pytest.raises(error, match=message):
        algorithm(client._replace(step=step), fl.Plan(1))
