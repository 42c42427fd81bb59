"""Clients of unequal sizes, and the cohorts and comparisons that tests of the engine share."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_lite as fl
from fedjax_lite.data.population.dataset import FederatedDataset

STRATEGIES = {
    "vmapped": fl.vmapped(),
    "chunked2": fl.chunked(2),
    "chunked3": fl.chunked(3),
    "sequential": fl.sequential(),
    "auto": fl.auto(),
}
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2])
close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
same = chex.assert_trees_all_equal


def cohort(ids, mask=None):
    mask = np.ones(len(ids), bool) if mask is None else mask
    return fl.Cohort(jnp.asarray(ids, jnp.int32), jnp.asarray(mask))


def regression(w, e, key):
    """Noise from the batch's key, so that keys, too, must agree."""
    noise = 0.01 * jax.random.normal(key, e["y"].shape)
    return 0.5 * (e["x"] @ w["w"] + w["b"] + noise - e["y"]) ** 2


def ragged(poison=None, poisoned=()):
    """Eight clients, one empty, shuffled rows; built directly, so that it may hold NaN."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(8), SIZES))
    x = rng.normal(size=(len(owners), 4)).astype(np.float32)
    y = rng.normal(size=len(owners)).astype(np.float32)
    if poison is not None:
        hit = np.isin(owners, poisoned)
        x[hit], y[hit] = poison, poison
    return FederatedDataset(
        examples={"x": jnp.asarray(x), "y": jnp.asarray(y), "i": jnp.arange(len(owners))},
        offsets=jnp.asarray(np.concatenate([[0], np.cumsum(SIZES)]), jnp.int32),
        order=jnp.asarray(np.argsort(owners, kind="stable"), jnp.int32),
        max_client_size=12,
    )


PARAMS = {"w": jnp.array([0.1, -0.2, 0.3, 0.4]), "b": jnp.array(0.5)}
