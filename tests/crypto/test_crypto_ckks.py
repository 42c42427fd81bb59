"""CKKS through tenseal: the mean of ciphertexts, its error and its size."""

import chex
import jax
import numpy as np
import pytest

pytest.importorskip("tenseal", reason="CKKS needs tenseal, an optional extra")

from fedjax_lite.crypto import CkksSecret, CkksServer, ckks_mean
from fedjax_lite.types import Message

NUM_CLIENTS, SIZE = 5, 4096


@pytest.fixture(scope="module")
def secret():
    return CkksSecret()


@pytest.fixture(scope="module")
def messages():
    rng = np.random.default_rng(0)
    value = {"w": rng.normal(size=(NUM_CLIENTS, 63, 65)), "b": rng.normal(size=(NUM_CLIENTS, 1))}
    return Message(value, np.array([1.0, 2.0, 3.0, 4.0, 0.0]))


def expected(messages):
    weights = messages.weight / messages.weight.sum()
    return jax.tree.map(lambda leaf: np.tensordot(weights, leaf, 1), messages.value)


@pytest.mark.parametrize("divide", ["client", "server"])
def test_mean_of_five_clients(secret, messages, divide):
    """4096 floats fill one ciphertext of N = 8192: error below 1e-6, 81 bytes a float."""
    got, report = ckks_mean(messages, secret=secret, divide=divide)
    want = expected(messages)
    chex.assert_trees_all_equal_shapes(got, want)
    chex.assert_trees_all_close(got, want, atol=1e-6, rtol=0)
    assert report.bytes_per_float == pytest.approx(81, abs=2)
    assert report.blow_up == pytest.approx(report.bytes_per_float / 4)
    # Client 5 has weight 0 and sends nothing.
    assert report.plain_bytes == 4 * SIZE * (NUM_CLIENTS - 1)
    # The product uses up one of three moduli, so that the sum takes 57 bytes a float.
    per_float = report.downlink_bytes / SIZE
    assert per_float == pytest.approx(57 if divide == "server" else 81, abs=2)


def test_vectors_longer_than_a_ciphertext(secret):
    rng = np.random.default_rng(1)
    values = rng.normal(size=secret.slots + 3)
    sent = secret.encrypt(values)
    assert len(sent.parts) == 2
    total = CkksServer(secret.public).add([sent, secret.encrypt(2 * values)])
    np.testing.assert_allclose(secret.decrypt(total), 3 * values, atol=1e-6, rtol=0)


def test_the_server_cannot_decrypt(secret):
    """Its context holds no secret key, and a context that does is refused."""
    server = CkksServer(secret.public)
    assert not server._context.is_private()
    import tenseal

    part = secret.encrypt(np.ones(3)).parts[0]
    with pytest.raises(ValueError, match="secret"):
        tenseal.ckks_vector_from(server._context, part).decrypt()
    with pytest.raises(ValueError, match="must not hold the secret key"):
        CkksServer(secret._context.serialize(save_secret_key=True))


def test_ciphertexts_hide_equal_values(secret):
    a, b = (secret.encrypt(np.ones(4)) for _ in range(2))
    assert a.parts != b.parts
    other = CkksSecret()
    wrong = other.decrypt(a)
    assert np.abs(wrong - 1).min() > 1e-3


def test_bad_input_is_named(secret):
    with pytest.raises(ValueError, match="128-bit security"):
        CkksSecret(degree=4096)
    with pytest.raises(ValueError, match="finite"):
        secret.encrypt([1.0, np.nan])
    with pytest.raises(ValueError, match="one size"):
        CkksServer(secret.public).add([secret.encrypt([1.0]), secret.encrypt([1.0, 2.0])])
    message = Message(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="divide"):
        ckks_mean(message, divide="nobody")
    with pytest.raises(ValueError, match="weights"):
        ckks_mean(Message(np.ones((2, 3)), np.array([1.0, -1.0])))
