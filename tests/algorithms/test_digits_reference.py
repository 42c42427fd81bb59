"""FedAvg on scikit-learn's digits against an independent numpy run: accuracy after 50 rounds.

10 clients, all in every round, batches of 10, plain SGD at 0.1, weights by examples, three seeds;
the reference is the mean of three seeds, too, with a spread of .004 (IID) and .010 (shards).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fedjax_lite as fl

# model, IID: test accuracy with 1 and with 5 local epochs; and, dealt to one client, centralised.
REFERENCE = {
    ("softmax", "iid"): (0.943, 0.956),
    ("softmax", "shards"): (0.919, 0.943),
    ("softmax", "central"): (0.962,),
    ("mlp", "iid"): (0.962, 0.970),
    ("mlp", "shards"): (0.923, 0.937),
    ("mlp", "central"): (0.974,),
}
MODELS = {
    "softmax": fl.models.linear(10, input_shape=(64,)),
    "mlp": fl.models.mlp((64,), input_shape=(64,)),
}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    split = train_test_split(x, y.astype(np.int32), test_size=360, stratify=y, random_state=0)
    return split[0], split[2], {"x": jnp.asarray(split[1]), "y": jnp.asarray(split[3])}


def clients(deal, y):
    """The reference's own partitions, by numpy."""
    rng, owner = np.random.default_rng(0), np.zeros(len(y), int)
    if deal == "iid":
        for i, rows in enumerate(np.array_split(rng.permutation(len(y)), 10)):
            owner[rows] = i
    if deal == "shards":
        shards = np.array_split(np.argsort(y, kind="stable"), 20)
        for place, shard in enumerate(rng.permutation(20)):
            owner[shards[shard]] = place // 2
    return owner


@pytest.mark.sample(2, of="accuracy of an independent run")
@pytest.mark.parametrize(("name", "deal"), REFERENCE)
def test_accuracy_after_50_rounds(digits, name, deal):
    x, y, test = digits
    model, data = MODELS[name], fl.data.from_arrays({"x": x, "y": y}, clients(deal, y))

    def run(seed, epochs, data, test):
        plan = fl.Plan(batch_size=10, epochs=lambda key, client: epochs)
        algo = fl.fedavg(
            model.loss, optax.sgd(0.1), plan=plan, sampler=fl.everyone(), strategy=fl.vmapped()
        )
        key = jax.random.key(seed)
        state = algo.init(key, model.init(key), data)
        state, _ = jax.lax.scan(
            lambda state, _: (algo.round(key, state, data)[0], None), state, None, length=50
        )
        return (model.predict(state.server.params, test).argmax(-1) == test["y"]).mean()

    seeds = jax.jit(jax.vmap(run, (0, None, None, None)))
    for epochs, known in zip((1, 5), REFERENCE[name, deal], strict=False):
        reached = seeds(jnp.arange(3), jnp.int32(epochs), data, test).mean()
        assert abs(reached - known) <= 0.015, f"{epochs} epochs: {reached} against {known}"
