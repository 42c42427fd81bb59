"""Functions of the round, of a client or of the parameters that return nothing of use."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.leaf_masks import mask_of

DATA = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
PARAMS = {"body": jnp.array(0.0), "head": jnp.array(1.0)}
OF_ALL = {"plan": fl.Plan(batch_size=1), "sampler": fl.everyone()}
SGD = optax.sgd(0.1)


def loss(w, e, key):
    return 0.5 * (w["body"] * w["head"] - e["b"]) ** 2


def nothing(*_):
    return None


def nowhere(params):
    return {"body": False}


LOCAL = fl.local_sgd(loss, SGD)
CASES = {
    "weighting": lambda: fl.fedavg(loss, SGD, weighting=nothing, **OF_ALL),
    "weighting of q-FedSGD": lambda: fl.q_fedsgd(
        loss, 0.1, q=1.0, weighting=nothing, sampler=fl.everyone()
    ),
    "weighting of SCAFFOLD": lambda: fl.scaffold(loss, 0.1, weighting=nothing, **OF_ALL),
    "learning_rate": lambda: fl.scaffold(loss, nothing, **OF_ALL),
    "learning_rate of q-FedAvg": lambda: fl.q_fedavg(loss, nothing, q=1.0, **OF_ALL),
    "learning_rate of q-FedSGD": lambda: fl.q_fedsgd(loss, nothing, q=1.0, sampler=fl.everyone()),
    "personal_optimizer": lambda: fl.ditto(
        loss, SGD, pull=0.5, personal_optimizer=nothing, **OF_ALL
    ),
    "personal_optimizer of APFL": lambda: fl.apfl(
        loss, SGD, personal_optimizer=nothing, mixing=0.5, **OF_ALL
    ),
    "client_optimizer of FedRep": lambda: fl.fedrep(loss, nothing, **OF_ALL),
    "head_optimizer": lambda: fl.fedrep(loss, SGD, head_optimizer=nothing, **OF_ALL),
    "is_local": lambda: fl.local_leaves(LOCAL, is_local=nothing, server=SERVER, **OF_ALL),
    "is_local of a part": lambda: fl.local_leaves(LOCAL, is_local=nowhere, server=SERVER, **OF_ALL),
    "is_head": lambda: fl.fedper(loss, SGD, is_head=nothing, **OF_ALL),
    "is_head of FedRep": lambda: fl.fedrep(loss, SGD, is_head=nothing, **OF_ALL),
    "is_head of LG-FedAvg": lambda: fl.lg_fedavg(loss, SGD, is_head=nothing, **OF_ALL),
    "is_head of FedBABU": lambda: fl.fedbabu(loss, SGD, is_head=nothing, **OF_ALL),
    "is_frozen": lambda: fl.frozen_leaves(loss, SGD, is_frozen=nothing, **OF_ALL),
    "limit": lambda: fl.fedavg(
        loss, SGD, plan=fl.Plan(batch_size=1, limit=nothing), sampler=fl.everyone()
    ),
    "epochs": lambda: fl.fedavg(
        loss, SGD, plan=fl.Plan(batch_size=1, epochs=nothing), sampler=fl.everyone()
    ),
    "steps": lambda: fl.fedavg(
        loss, SGD, plan=fl.Plan(batch_size=1, steps=nothing), sampler=fl.everyone()
    ),
}
SERVER = fl.optimizer_server(optax.sgd(1.0))


@pytest.mark.parametrize("case", CASES)
def test_the_function_is_named_and_what_it_returned(case):
    name = case.split()[0]

    def run(key):
        algo = CASES[case]()
        state = algo.init(key, PARAMS, DATA)
        return algo.round(key, state, DATA)

    with pytest.raises(TypeError, match=rf"\b{name}\b.* must return .*got ") as caught:
        jax.eval_shape(run, jax.random.key(0))
    assert name == "client_optimizer" or "client_optimizer" not in str(caught.value)


def test_a_strength_that_is_none():
    linear = fl.models.linear(2, (2,))
    parts = fl.models.adversarial(linear, linear, linear)
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    own = {"x": x, "y": jnp.array([1, 0]), "group": jnp.array([0, 1])}
    data, key = fl.data.from_arrays(own, [0, 1]), jax.random.key(0)
    algo = fl.debiasing(parts, SGD, strength=nothing, plan=fl.Plan(2), sampler=fl.everyone())
    with pytest.raises(TypeError, match=r"strength, a function .* must return a number, got None"):
        algo.round(key, algo.init(key, parts.init(key), data), data)


def test_functions_that_give_numbers_of_any_kind_pass():
    """Python's, numpy's, the device's and traced ones; weights may be arrays."""
    for rate in (0.5, np.float32(0.5), jnp.float32(0.5)):
        algo = fl.scaffold(loss, lambda r, rate=rate: rate, **OF_ALL)
        jax.eval_shape(algo.init, jax.random.key(0), PARAMS, DATA)
    for steps in (2, np.int64(2), jnp.int32(2)):
        plan = fl.Plan(batch_size=1, steps=lambda key, client, steps=steps: steps)
        assert int(plan.num_steps(jax.random.key(0), jnp.int32(0), jnp.int32(3))) == 2
    limited = fl.Plan(batch_size=1, limit=lambda key, info: info.num_steps // 2)
    assert int(limited.num_steps(jax.random.key(0), jnp.int32(0), jnp.int32(4))) == 2


def test_a_mask_is_a_bool_for_each_leaf():
    params = {"body": {"w": 1.0, "b": 2.0}, "head": 3.0}
    found = mask_of(lambda p: {"body": True, "head": False}, params, "is_head")
    assert found == {"body": {"w": True, "b": True}, "head": False}
    with pytest.raises(TypeError, match="is_head must return bools"):
        mask_of(lambda p: {"body": 1.0, "head": 0.0}, params, "is_head")
