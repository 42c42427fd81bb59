"""The keys of one round, from the key of a run and the round's number."""

from __future__ import annotations

import jax

from fedjax_lite.types import Array, Key

ROUND_STREAM = 0x726F756E


def round_keys(key: Key, round: Array) -> Array:
    """Keys of one round: sampling, clients, server, prologue.

    A stream apart: ``split(key)[i]`` equals ``fold_in(key, i)``, and the caller may have used the
    same key to initialise the model.
    """
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, ROUND_STREAM), round), 4)


def split_pass_key(key: Key) -> tuple[Key, Key]:
    """Keys of one pass over a cohort: its clients' (each folded with an id), its aggregate's."""
    key_clients, key_aggregate = jax.random.split(key)
    return key_clients, key_aggregate


def clients_key(key: Key, round: Array) -> Key:
    """The key that a round gives to its clients, each of which folds its id into it."""
    return split_pass_key(round_keys(key, round)[1])[0]
