"""The mean of a round under CKKS: to its precision the plain one, in training and by the laws."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.aggregation import aggregate_stack, encrypted_mean

PRECISION = 1e-6
"""Of CKKS at the default scale, for values of size 1: tests/crypto/test_crypto_ckks.py."""


@pytest.fixture(scope="module")
def secret():
    pytest.importorskip("tenseal", reason="CKKS needs tenseal, an optional extra")
    return fl.crypto.CkksSecret()


@pytest.mark.parametrize("divide", ["client", "server"])
def test_it_is_the_weighted_mean_of_who_came(secret, divide):
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(4, 3, 5)).astype("f4"), "b": rng.normal(size=4).astype("f4")}
    weights, mask = np.array([1.0, 2.0, 0.0, 5.0]), np.array([True, True, True, False])
    got = aggregate_stack(
        encrypted_mean(secret=secret, divide=divide),
        values, weights=jnp.asarray(weights), mask=jnp.asarray(mask),
    )  # fmt: skip
    for name, leaf in values.items():
        expected = np.tensordot([1 / 3, 2 / 3], leaf[:2].astype(np.float64), 1)
        np.testing.assert_allclose(got[name], expected, atol=PRECISION + 1e-7)
    nobody = aggregate_stack(encrypted_mean(secret=secret), values, mask=jnp.zeros(4, bool))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(nobody))


@pytest.mark.parametrize("law", testing.AGGREGATOR_LAWS)
def test_laws(secret, law):
    """Of the values: the gap and the length of ciphertexts are random."""
    sealed = encrypted_mean(secret=secret)

    def finish(key, state, acc, cohort):
        return state, sealed.finish(key, sealed.init_state(()), acc, cohort)[1]

    values = sealed._replace(init_state=lambda params: (), finish=finish)
    testing.check_aggregator(values, laws=[law])


def test_training_on_encrypted_updates(secret):
    """FedAvg by examples with momentum at the server, four rounds of three clients: the models of
    `mean`, the gap of every round within the precision, ciphertexts of three clients paid for."""
    data, key = testing.population(), jax.random.key(0)
    seen = {}
    for name, aggregator in {"plain": fl.mean(), "sealed": encrypted_mean(secret=secret)}.items():
        algo = fl.fedavg(
            testing.loss, optax.sgd(0.05), plan=fl.Plan(batch_size=2), sampler=fl.uniform(3),
            server_optimizer=optax.sgd(1.0, momentum=0.9), aggregator=aggregator,
        )  # fmt: skip
        state = algo.init(key, testing.init_params(jax.random.key(7)), data)
        rows = []
        for _ in range(4):
            state, metrics = jax.jit(algo.round)(key, state, data)
            rows.append(jax.device_get(metrics))
        seen[name] = state.server.params, rows
    (plain, _), (sealed, rows) = seen["plain"], seen["sealed"]
    for mine, theirs in zip(jax.tree.leaves(sealed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=20 * PRECISION)  # momentum adds gaps up
    for row in rows:
        assert 0 < row["encrypted_gap"] < PRECISION
        # A ciphertext is at least two polynomials of 8192 coefficients of 160 bits.
        assert row["encrypted_bytes"] > row["num_clients"] * 2 * 8192 * 16


def test_what_makes_no_sense_is_refused_by_name():
    with pytest.raises(TypeError, match="secret must be a CkksSecret"):
        encrypted_mean(secret=cast(Any, b"key"))
    with pytest.raises(ValueError, match="divide must be"):
        encrypted_mean(divide="nobody")


def test_an_update_that_is_not_finite_ends_the_round(secret):
    values = np.ones((2, 3), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(Exception, match="finite and not empty"):
        jax.block_until_ready(aggregate_stack(encrypted_mean(secret=secret), values))
