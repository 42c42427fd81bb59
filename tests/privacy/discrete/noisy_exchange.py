"""Clients that send noisy integers, and the decoded aggregate of them."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.privacy.discrete.wire import modular_mean, noisy_codes
from fedjax_lite.types import Message


def send(grid, updates, *, seed=0, **options):
    """The decoded aggregate of updates `[C, D]`, and the codes."""
    once = jax.jit(lambda key, updates: exchange(grid, updates, key, **options))
    value, codes = once(jax.random.key(seed), updates)
    return np.asarray(value), codes


def exchange(grid, updates, key, *, cohort_size, min_clients=1, mask=None):
    size = updates.shape[1]
    uplink = noisy_codes(grid, size=size)
    keys = jax.random.split(key, len(updates))
    _, coded = jax.vmap(uplink.update, in_axes=(0, None, 0))(keys, (), updates)
    aggregator = modular_mean(grid, cohort_size=cohort_size, min_clients=min_clients)
    acc = aggregator.init(
        Message(jax.tree.map(lambda leaf: leaf[0], coded), jnp.float32(1)), len(updates)
    )
    mask = jnp.ones(len(updates), bool) if mask is None else jnp.asarray(mask)
    for part in (slice(0, 1), slice(1, None)):
        some = jax.tree.map(lambda leaf: leaf[part], coded)  # noqa: B023
        weights = jnp.ones(mask[part].shape)
        acc = aggregator.add(acc, Message(some, weights), jnp.arange(len(mask))[part], mask[part])
    return aggregator.finish(jax.random.key(9), (), acc, None)[1], coded.codes
