"""Parameters that are made in the program that uses them give the same numbers.

Releases of jaxlib from 0.10.2 on reduce the product with a constant matrix wrongly on CPUs, see
"Numbers" among the guide's sharp edges: what starts at zero is such a matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
EXAMPLES = {
    "x": RNG.normal(size=(4096, 250)).astype(np.float32),
    "y": RNG.integers(0, 10, 4096),
}


@pytest.mark.parametrize("hidden", [(), (20,)])
def test_loss_at_the_start(hidden):
    """All logits are zero, so each loss is log 10, and the slope of a bias is its share."""
    make = fl.models.mlp(hidden, num_classes=10, input_shape=(250,))
    make = make if hidden else fl.models.linear(10, (250,))

    def start(key):
        params = make.init(key)
        params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
        return params

    def mean_loss(params, examples):
        return make.loss(params, examples, None).mean()

    for members in (1, 3):  # one model, and a sweep's
        keys = jax.random.split(KEY, members)
        inside = jax.jit(
            lambda keys, e: jax.vmap(lambda key: jax.value_and_grad(mean_loss)(start(key), e))(keys)
        )
        loss, slope = inside(keys, EXAMPLES)
        np.testing.assert_allclose(loss, np.log(10), rtol=1e-5)
        shares = np.bincount(EXAMPLES["y"], minlength=10) / 4096
        expected = np.tile(0.1 - shares, (members, 1))
        np.testing.assert_allclose(slope["head"]["bias"], expected, atol=1e-6)


def test_a_round_from_the_start():
    data = fl.data.from_arrays(EXAMPLES, np.arange(4096) // 64)
    model = fl.models.linear(10, (250,))
    algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=64), sampler=fl.everyone())

    def two_rounds(key, data):
        state = algo.init(key, model.init(key), data)
        for _ in range(2):
            state, metrics = algo.round(key, state, data)
        return state.server.params["head"], metrics["train_loss"]

    head, loss = jax.jit(two_rounds)(KEY, data)
    # Sixty-four clients with one step each: full gradient descent, by numpy in float64.
    x, onehot = EXAMPLES["x"].astype(float), np.eye(10)[EXAMPLES["y"]]
    kernel, bias = np.zeros((250, 10)), np.zeros(10)
    for _ in range(2):
        logits = x @ kernel + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = -np.log((shares * onehot).sum(1)).mean()
        kernel = kernel - 0.1 * x.T @ (shares - onehot) / 4096
        bias = bias - 0.1 * (shares - onehot).mean(0)
    np.testing.assert_allclose(head["kernel"], kernel, atol=1e-6)
    np.testing.assert_allclose(head["bias"], bias, atol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
