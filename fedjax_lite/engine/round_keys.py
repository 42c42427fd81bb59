"""The keys of one round, from the key of a run and the round's number."""

from __future__ import annotations

from typing import NamedTuple

import jax

from fedjax_lite.engine.derived_keys import derive, word
from fedjax_lite.types import Array, Key

ROUND_STREAM = 0x726F756E


class PassKeys(NamedTuple):
    """The keys of one pass over a cohort."""

    clients: Key
    """Each client folds its id into it."""
    aggregate: Key

    def clone(self) -> PassKeys:
        """The same keys once more, for a pass that is meant to repeat another."""
        return PassKeys(*map(jax.random.clone, self))


class RoundKeys(NamedTuple):
    """The keys of one round, no two of them alike."""

    sample: Key
    server: Key
    choice: Key
    """Of who goes on after a prologue."""
    training: PassKeys
    prologue: PassKeys


_TRAINING = 1


def round_keys(key: Key, round: Array) -> RoundKeys:
    """Keys of one round.

    A stream apart: ``split(key)[i]`` equals ``fold_in(key, i)``, and the caller may have used the
    same key to initialise the model.

    Args:
      key: of the run.
      round: int32 scalar.
    """
    ends = [(0,), (2,), (4,), (_TRAINING, 0), (_TRAINING, 1), (3, 0), (3, 1)]
    sample, server, choice, *passes = derive(key, [(ROUND_STREAM, round, *end) for end in ends])
    return RoundKeys(sample, server, choice, PassKeys(*passes[:2]), PassKeys(*passes[2:]))


def pass_keys(key: Key) -> PassKeys:
    """The keys of one pass that is no part of a round."""
    return PassKeys(*derive(key, [(0,), (1,)]))


class ClientKeys(NamedTuple):
    """What is random in one client's round."""

    start: Key
    seed: Array
    """uint32 `[2]`: of its shuffle."""
    batch: Key
    """Each step folds its number into it."""
    uplink: Key


def client_keys(key: Key, client: Array) -> ClientKeys:
    """The keys of one client, from the one that a pass gives to all of them, and its id."""
    paths = [(client, 0), (client, 2), (client, 3), (client, 1, 0), (client, 1, 1)]
    keys = derive(key, paths)
    return ClientKeys(keys[0], word(keys[3:]), keys[1], keys[2])


def clients_key(key: Key, round: Array) -> Key:
    """The key that a round gives to its clients, each of which folds its id into it."""
    return derive(key, [(ROUND_STREAM, round, _TRAINING, 0)])[0]
