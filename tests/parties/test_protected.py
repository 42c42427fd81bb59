"""Residuals under encryption: the plain gradient, and nothing in the clear."""

from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.crypto.ckks import CkksSecret, CkksServer
from fedjax_lite.crypto.normals import secret_normals
from fedjax_lite.parties.protected import _Party, laid_out

tenseal = pytest.importorskip("tenseal")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, BOUND = 300, 8.0
X = {p: RNG.normal(size=(N, d)).astype(np.float32) for p, d in (("a", 2), ("b", 3))}
Y = (X["b"][:, 0] + RNG.normal(size=N) > 0).astype(np.float32)
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
        found = fl.parties.protected_gradients(model, params, DATA, secret=secret, bound=BOUND)
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
    # A ciphertext of residuals goes down, one a column comes up: far more than the numbers in them.
    assert found.uplink_bytes > found.downlink_bytes > N * 8
    assert found.context_bytes == pytest.approx(len(secret.public), rel=0.01)


def test_what_the_holder_decrypts_is_masked(secret, monkeypatch):
    """A hundred times larger than any product, and other numbers each time."""
    seen = []
    decrypt = CkksSecret.decrypt
    monkeypatch.setattr(
        CkksSecret, "decrypt", lambda self, one: seen.append(decrypt(self, one)) or seen[-1]
    )
    model = fl.parties.regression("linear", DATA)
    for _ in range(2):
        fl.parties.protected_gradients(model, model.init(KEY), DATA, secret=secret, bound=BOUND)
    residuals = -Y  # of the sum of losses
    assert len(seen) == 2 * 3
    for column, (one, other) in enumerate(zip(seen[:3], seen[3:], strict=True)):
        product = residuals * X["b"][:, column]
        assert np.abs(one).mean() > 100 * np.abs(product).max()
        # Of independent numbers a correlation has deviation 0.06: ten of them.
        assert abs(np.corrcoef(one[:N], product)[0, 1]) < 0.6
        # Masks fill the whole ciphertext, and have one deviation, whatever the column.
        np.testing.assert_allclose([one.std(), other.std()], 1e3 * BOUND, rtol=0.1)
        assert np.abs(one - other).min() > 0


def second(secret, ciphertext):
    """The first coefficient of a ciphertext's second polynomial, which a plain sum leaves alone."""
    (part,) = ciphertext.parts
    return tenseal.ckks_vector_from(secret._context, part).ciphertext()[0].data(1)


def test_ciphertexts_cannot_be_recomputed(secret):
    """Of the same residuals, columns and masks two others come up, of zeros as long as any."""
    server = CkksServer(secret.public)
    sent = secret.encrypt(laid_out(-Y.astype(float), secret.slots))
    x = np.stack([X["b"][:, 0], np.zeros(N)], axis=1)
    party = _Party(server, x, 1e3, secret.slots)
    one, other = party.products(sent), party.products(sent)
    column = laid_out(x[:, 0], secret.slots, last=1.0)
    assert server.multiply(sent, column) == server.multiply(sent, column)  # as a guess would be
    for a, b in zip(one, other, strict=True):
        assert a.parts != b.parts
        assert second(secret, a) != second(secret, b)
    assert second(secret, one[0]) != second(secret, server.multiply(sent, column))
    # Compression of random bits varies by some thousandths; another modulus would be a third more.
    assert one[1].num_bytes == pytest.approx(one[0].num_bytes, rel=0.02)
    sums = [secret.decrypt(m)[:N].sum() for m in one]
    np.testing.assert_allclose(party.unmasked(np.array(sums)), x.T @ -Y, atol=1e-4)


def test_normals_are_normal():
    """Mean, deviation and tails of a hundred thousand, each within five deviations."""
    found = secret_normals(100_000)
    assert abs(found.mean()) < 5 / 316
    assert abs((found**2).mean() - 1) < 5 * 2**0.5 / 316
    beyond = 2 * NormalDist().cdf(-2)
    assert abs((np.abs(found) > 2).mean() - beyond) < 5 * (beyond / 100_000) ** 0.5
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / 316


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
    options: Any = {"secret": secret, "bound": BOUND}
    with pytest.raises(ValueError, match="model must be made by regression"):
        fl.parties.protected_gradients(other, other.init(KEY), DATA, **options)
    model = fl.parties.regression("linear", DATA)
    with pytest.raises(ValueError, match="mask must be positive, got 0"):
        fl.parties.protected_gradients(model, model.init(KEY), DATA, **options, mask=0.0)
    row, column = np.argwhere(np.abs(X["b"]) > 1)[0]
    with pytest.raises(ValueError, match=rf"got 1, .*row {row}, column {column} of"):
        fl.parties.protected_gradients(model, model.init(KEY), DATA, secret=secret, bound=1.0)
