"""FedRep, FedPer, LG-FedAvg, FedBABU: by hand, by what they equal, by what a step costs."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.personal.heads import head_mask
from fedjax_lite.testing.algorithm_laws import same
from fedjax_lite.types import ClientInfo

KEY = jax.random.key(0)
C = np.array([2.0, 4.0])


def product(w, e, key):
    return 0.5 * (w["body"] * w["head"] - e["c"]) ** 2


def two():
    return fl.data.from_arrays({"c": C}, [0, 1])


def steps(number):
    return fl.Plan(batch_size=None, steps=number)


def one_round(factory, rate=0.1, body=1.0, head=0.0, **options):
    common: Any = {"sampler": fl.everyone(), "weighting": "uniform", **options}
    algo = factory(product, optax.sgd(rate), **common)
    state = algo.init(KEY, {"body": jnp.array(body), "head": jnp.array(head)}, two())
    return algo.round(KEY, state, two())


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("num_steps", [1, 3])
def test_head_steps_then_body_steps(float64, num_steps):
    """With one body step KNOWN_ANSWERS 8: heads (1.5, 3), bodies (1.075, 1.3), server 1.1875."""
    h, w = np.zeros(2), np.ones(2)
    for _ in range(2):
        h = h - 0.5 * w * (w * h - C)
    np.testing.assert_allclose(h, [1.5, 3.0])
    for _ in range(num_steps):
        w = w - 0.1 * h * (w * h - C)
    if num_steps == 1:
        np.testing.assert_allclose(w, [1.075, 1.3])
    state, metrics = one_round(
        fl.fedrep, plan=steps(num_steps), head_plan=steps(2), head_optimizer=optax.sgd(0.5)
    )
    np.testing.assert_allclose(fl.personal_models(state)["head"], h, atol=1e-12)
    np.testing.assert_allclose(state.server.params["body"], w.mean(), atol=1e-12)
    assert state.server.params["head"] is None
    assert int(metrics["head_steps"]) == 4
    assert int(metrics["num_steps"]) == 4 + 2 * num_steps
    np.testing.assert_allclose(metrics["head_train_loss"], (5 + 1.25) / 2, rtol=1e-6)
    assert float(metrics["uplink_bits"]) == 2 * 64  # a body each


def test_heads_are_fitted_to_rows_held_out(float64):
    """Two head steps towards other targets, ``h - .5 w (w h - d)``, then a body step as ever."""
    held = np.array([1.0, 3.0])
    h = np.zeros(2)
    for _ in range(2):
        h = h - 0.5 * (h - held)
    w = 1 - 0.1 * h * (h - C)
    data = fl.data.with_splits(two(), {"held_out": fl.data.from_arrays({"c": held}, [0, 1])})
    algo = fl.fedrep(
        product,
        optax.sgd(0.1),
        plan=steps(1),
        head_plan=steps(2),
        head_optimizer=optax.sgd(0.5),
        head_data="held_out",
        sampler=fl.everyone(),
    )
    state = algo.init(KEY, {"body": jnp.array(1.0), "head": jnp.array(0.0)}, data)
    state, _ = algo.round(KEY, state, data)
    np.testing.assert_allclose(fl.personal_models(state)["head"], h, atol=1e-12)
    np.testing.assert_allclose(state.server.params["body"], w.mean(), atol=1e-12)


def test_bodies_of_their_own_under_a_shared_head(float64):
    state, metrics = one_round(fl.lg_fedavg, plan=steps(1), head=1.0)
    residual = 1.0 - C  # of body 1, head 1
    np.testing.assert_allclose(fl.personal_models(state)["body"], 1 - 0.1 * residual, atol=1e-12)
    np.testing.assert_allclose(state.server.params["head"], 1 - 0.1 * residual.mean(), atol=1e-12)
    assert state.server.params["body"] is None
    assert float(metrics["uplink_bits"]) == float(metrics["downlink_bits"]) == 2 * 64


def test_a_head_at_rest(float64):
    w = np.ones(2)
    for _ in range(3):
        w = w - 0.1 * 0.5 * (w * 0.5 - C)
    state, metrics = one_round(fl.fedbabu, plan=steps(3), head=0.5)
    assert float(state.server.params["head"]) == 0.5
    np.testing.assert_allclose(state.server.params["body"], w.mean(), atol=1e-12)
    # Neither way does the head cost a bit: clients know it.
    assert float(metrics["uplink_bits"]) == float(metrics["downlink_bits"]) == 2 * 64


COMMON = {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": fl.uniform(4)}
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


def run(factory, **options):
    data, params = testing.population(), testing.init_params(KEY)
    algo = factory(testing.loss, OPTIMIZER, **COMMON, **options)
    state = algo.init(KEY, params, data)
    for _ in range(2):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


def bias(params):
    return {name: name == "b" for name in params}


def nothing(params):
    return False


@pytest.fixture(scope="module")
def average():
    return run(fl.fedavg)[0]


@pytest.mark.sample(5, of="reductions to another method")
@pytest.mark.parametrize("factory", [fl.fedper, fl.fedrep, fl.fedbabu])
def test_without_a_head_they_are_fedavg_in_every_bit(factory, average):
    state, _ = run(factory, is_head=nothing)
    same(state.server.params, average.server.params, exact=True)


@pytest.mark.sample(5, of="reductions to another method")
def test_fedper_is_local_leaves_and_lg_fedavg_the_other_half():
    def by_hand(is_local):
        def factory(loss, optimizer, **options):
            return fl.local_leaves(
                fl.local_sgd(loss, optimizer), is_local=is_local,
                server=fl.optimizer_server(optax.sgd(1.0)), **options,
            )  # fmt: skip

        return run(factory)[0]

    same(run(fl.fedper, is_head=bias)[0], by_hand(bias), exact=True)
    weights = lambda params: {name: name != "b" for name in params}  # noqa: E731
    same(run(fl.lg_fedavg, is_head=bias)[0], by_hand(weights), exact=True)


@pytest.mark.sample(5, of="reductions to another method")
def test_no_head_work_leaves_heads_as_they_were():
    """And bodies are FedBABU's: both train the body under the initial head."""
    none = fl.Plan(batch_size=2, epochs=lambda key, client: jnp.int32(0))
    state, metrics = run(fl.fedrep, is_head=bias, head_plan=none)
    assert int(metrics["head_steps"]) == 0
    np.testing.assert_array_equal(fl.personal_models(state)["b"], np.zeros(7))
    resting, _ = run(fl.fedbabu, is_head=bias)
    same(state.server.params["w"], resting.server.params["w"], exact=True)


WIDTHS, BATCH = (60, 80, 100, 5), 16


def test_a_head_step_costs_the_forward_pass_and_the_heads_gradient(optimised):
    """Multiplications by XLA's own count, beside those of the products that each needs."""
    model = fl.models.mlp(WIDTHS[1:-1], num_classes=WIDTHS[-1], input_shape=(WIDTHS[0],))
    algo = fl.fedrep(model.loss, optax.sgd(0.1), **COMMON)
    assert algo.slots is not None
    params, (client, *_), server = model.init(KEY), algo.slots, algo.slots.server
    row, broadcast = client.init(params), server.broadcast(server.init(params, None))
    info = ClientInfo(*map(jnp.int32, (0, BATCH, 1, 0)))
    carry = client.start(KEY, row, broadcast, info)
    examples = {"x": jnp.ones((BATCH, WIDTHS[0])), "y": jnp.zeros(BATCH, int)}
    batch = fl.Batch(examples, jnp.ones(BATCH, bool), KEY)
    products = [2 * BATCH * a * b for a, b in itertools.pairwise(WIDTHS)]
    forward, backward = sum(products), 2 * sum(products) - products[0]  # no gradient of the input
    # The head's own gradient; and for the body, which rests not, all but that.
    needed = {"head": forward + products[-1], "": forward + backward - products[-1]}
    assert isinstance(client.step, tuple)
    for phase in client.step:
        compiled = jax.jit(phase.step).lower(broadcast, carry, batch).compile()
        cost = compiled.cost_analysis()
        flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
        assert needed[phase.name] <= flops < 1.15 * needed[phase.name], phase.name


def test_what_is_called_head():
    params = fl.models.mlp((3,), num_classes=2, input_shape=(4,)).init(KEY)
    found = head_mask(None)(params)
    assert {name: all(jax.tree.leaves(part)) for name, part in found.items()} == {
        "dense1": False, "head": True,
    }  # fmt: skip
    for factory in (fl.fedper, fl.fedrep, fl.lg_fedavg, fl.fedbabu):
        algo = factory(testing.loss, optax.sgd(0.1), **COMMON)
        with pytest.raises(ValueError, match=r"is_head must be given .* got \['b', 'w'\]"):
            algo.init(KEY, testing.init_params(KEY), testing.population())
        wrong: Any = "head"
        with pytest.raises(TypeError, match="is_head must be a function"):
            factory(testing.loss, optax.sgd(0.1), is_head=wrong, **COMMON)
    with pytest.raises(TypeError, match="head_plan must be a Plan"):
        fl.fedrep(testing.loss, optax.sgd(0.1), head_plan=wrong, **COMMON)
