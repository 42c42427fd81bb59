"""Mixtures of experts: what an expert that nobody chose cannot spoil."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.models import Model, gated_experts

SAME = Model(lambda key: (), lambda w, e, key: e["x"], lambda w, e: e["x"])


@pytest.mark.parametrize("other", [1000.0, np.nan])
def test_an_expert_that_nobody_chose_spoils_nothing(other):
    """It says e^1000, or NaN; the router has soft gates of 2/3 and 1/3, under answers 1 and 0."""
    expert = SAME._replace(predict=lambda w, e: jnp.exp(w * e["x"])[:, None])
    router = SAME._replace(predict=lambda r, e: jnp.tile(r, (len(e["x"]), 1)))
    square = lambda outputs, y: 0.5 * (outputs[:, 0] - y) ** 2  # noqa: E731
    model = gated_experts(expert, router, 2, routing="top-1", loss=square)
    params = {"experts": jnp.array([0.0, other]), "router": jnp.log(jnp.array([2.0, 1.0]))}
    examples = {"x": jnp.array([1.0, 2.0]), "y": jnp.zeros(2)}

    @jax.jit
    def both(params):
        grad = jax.grad(lambda p: model.loss(p, examples, None).sum())(params)
        return model.predict(params, examples), grad

    outputs, grad = both(params)
    assert outputs.tolist() == [[1.0], [1.0]]
    assert grad["experts"].tolist() == [3.0, 0.0]  # (1 - 0) x, of x = 1 and 2
    slope = 2 * 2 / 3 * (1 - 2 / 3)
    np.testing.assert_allclose(grad["router"], [slope, -slope], rtol=1e-6)
