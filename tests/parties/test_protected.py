"""Residuals under encryption: the plain gradient, and nothing in the clear."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.crypto.ckks import CkksSecret, CkksServer

pytest.importorskip("tenseal")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = {p: RNG.normal(size=(30, d)).astype(np.float32) for p, d in (("a", 2), ("b", 3))}
Y = (RNG.random(30) < 0.5).astype(np.float32)
DATA = fl.parties.from_columns(X, {"a": Y})


@pytest.fixture(scope="module")
def secret():
    return CkksSecret()


def test_equals_the_plain_gradient_and_training(secret):
    """Three steps by the protected gradients are three rounds of `vertical_sgd`."""
    model = fl.parties.regression("logistic", DATA)
    algo = fl.parties.vertical_sgd(model, optax.sgd(0.5), plan=fl.Plan(batch_size=None))
    state = algo.init(KEY, None, DATA)
    params = model.init(KEY)
    whole = fl.parties.joint(model)

    def loss(params):
        return whole.loss(params, DATA.examples_of(), None).mean()

    for _ in range(3):
        found = fl.parties.protected_gradients(model, params, DATA, secret=secret)
        expected = jax.grad(loss)(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
            (found.gradients.bottoms, found.gradients.heads),
            (expected.bottoms, expected.heads),
        )
        params = jax.tree.map(
            lambda w, g: w - 0.5 * jnp.asarray(g, w.dtype), params, found.gradients
        )
        state, _ = algo.round(KEY, state, DATA)
    same = state.server.params
    for party in X:
        np.testing.assert_allclose(params.bottoms[party], same.bottoms[party], atol=1e-5)
    assert np.abs(np.asarray(params.bottoms["b"])).max() > 0.05
    # A ciphertext of residuals goes down, one a column comes up: far more than 30 floats.
    assert found.uplink_bytes > found.downlink_bytes > 30 * 8


def test_what_the_holder_decrypts_is_masked(secret, monkeypatch):
    """A hundred times larger than any product, and other numbers each time."""
    seen = []
    decrypt = CkksSecret.decrypt
    monkeypatch.setattr(
        CkksSecret, "decrypt", lambda self, one: seen.append(decrypt(self, one)) or seen[-1]
    )
    model = fl.parties.regression("linear", DATA)
    for _ in range(2):
        fl.parties.protected_gradients(model, model.init(KEY), DATA, secret=secret)
    residuals = -Y / 30
    assert len(seen) == 2 * 3
    for column, (one, other) in enumerate(zip(seen[:3], seen[3:], strict=True)):
        product = residuals * X["b"][:, column]
        assert np.abs(one).mean() > 100 * np.abs(product).max()
        assert abs(np.corrcoef(one, product)[0, 1]) < 0.6
        assert np.abs(one - other).min() > 0


def test_products_and_sums_with_plain_numbers(secret):
    server = CkksServer(secret.public)
    a, b = RNG.normal(size=5000), RNG.normal(size=5000)  # more than one ciphertext holds
    sent = secret.encrypt(a)
    assert len(sent.parts) == 2
    np.testing.assert_allclose(secret.decrypt(server.multiply(sent, b)), a * b, atol=1e-5)
    np.testing.assert_allclose(secret.decrypt(server.shift(sent, b)), a + b, atol=1e-5)
    with pytest.raises(ValueError, match=r"values must be \[5000\] finite floats.*\[2\]"):
        server.multiply(sent, [1.0, 2.0])


def test_refusals(secret):
    net = fl.models.linear(2, (2,))
    other = fl.parties.vertical_model({"a": net, "b": net}, net, holder="a", combine="sum")
    with pytest.raises(ValueError, match="model must be made by regression"):
        fl.parties.protected_gradients(other, other.init(KEY), DATA, secret=secret)
    model = fl.parties.regression("linear", DATA)
    with pytest.raises(ValueError, match="mask must be positive, got 0"):
        fl.parties.protected_gradients(model, model.init(KEY), DATA, secret=secret, mask=0.0)
