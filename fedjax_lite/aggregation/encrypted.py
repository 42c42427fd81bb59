"""encrypted_mean(): the mean of a round computed on encrypted updates, by CKKS on the host."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.crypto.ckks import CkksSecret, ckks_mean
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, Params, PyTree


class EncryptedState(NamedTuple):
    """The state of `encrypted_mean`; `compose` adds `metrics` to those of the round."""

    metrics: dict[str, Array]


@made
def encrypted_mean(*, secret: CkksSecret | None = None, divide: str = "client") -> Aggregator:
    r"""The weighted mean, added up under homomorphic encryption in every round.

    .. math::
        \bar\Delta = \mathrm{Dec}\Big(\sum_i \mathrm{Enc}(w_i \Delta_i)\Big) \Big/ \sum_i w_i

    What clients that share a key and a server without it would compute: `fedjax_lite.crypto`'s
    `ckks_mean` is called on the host from inside the compiled round. Beside it the plain mean is
    computed in float64, and the largest difference of a coordinate is in every round's metrics. A
    simulation of arithmetic, precision and size: here one process holds the updates and the key.

    Args:
      secret: keys; default fresh ones of the default parameters, made in the first round. At the
        default scale of ``2**40`` a mean of values of size 1 is off by less than 1e-6.
      divide: "client": after decryption; "server": by a product under encryption.

    Returns:
      An `Aggregator` over all messages of a cohort, with the metrics ``encrypted_gap``: the largest
      difference from the plain mean, and ``encrypted_bytes``: ciphertexts of all clients together
      (``uplink_bits`` are of the updates in the clear). Encryption draws randomness of the
      operating system: two runs agree to that gap, not in every bit.

    Raises:
      TypeError, ValueError: if `secret` is none, or `divide` is unknown.
      ImportError: in the first round, without tenseal; there, too, an error of the callback where
        an update is not finite, since a NaN would spoil a whole ciphertext.

    Example:
      >>> encrypted_mean(divide="nobody")
      Traceback (most recent call last):
      ...
      ValueError: divide must be 'client' or 'server', got 'nobody'

    Reference: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate
    Numbers", ASIACRYPT 2017, ePrint 2016/421.
    """
    if secret is not None and not isinstance(secret, CkksSecret):
        raise TypeError(f"secret must be a CkksSecret, got {shown(secret)}; crypto.CkksSecret()")
    if divide not in ("client", "server"):
        raise ValueError(f"divide must be 'client' or 'server', got {divide!r}")
    keys = functools.cache(lambda: CkksSecret() if secret is None else secret)

    def on_host(rows: Any, weights: Any) -> tuple[Any, Any, Any]:
        rows, weights = np.asarray(rows, np.float64), np.asarray(weights, np.float64)
        if not (weights > 0).any():  # nobody's aggregate is zero, says `stacked`
            return np.zeros(rows.shape[1:], np.float32), np.float32(0), np.float32(0)
        found, report = ckks_mean(Message(rows, weights), secret=keys(), divide=divide)
        plain = weights @ rows / weights.sum()
        mean = np.asarray(found)
        gap, size = np.abs(mean - plain).max(), report.uplink_bytes
        return mean.astype(np.float32), np.float32(gap), np.float32(size)

    def rule(
        key: Key, state: EncryptedState, stack: Stack, cohort: Cohort
    ) -> tuple[EncryptedState, PyTree]:
        leaves, structure = jax.tree.flatten(stack.values)
        rows = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)
        one = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = (jax.ShapeDtypeStruct(rows.shape[1:], jnp.float32), one, one)
        mean, gap, size = jax.pure_callback(
            on_host, shapes, rows, stack.weights, vmap_method="sequential"
        )
        parts, low = [], 0
        for leaf in leaves:
            high = low + math.prod(leaf.shape[1:])
            parts.append(mean[low:high].reshape(leaf.shape[1:]).astype(leaf.dtype))
            low = high
        metrics = {"encrypted_gap": gap, "encrypted_bytes": size}
        return EncryptedState(metrics), jax.tree.unflatten(structure, parts)

    def init_state(params: Params) -> EncryptedState:
        zero = jnp.float32(0)
        return EncryptedState({"encrypted_gap": zero, "encrypted_bytes": zero})

    return stacked(rule, init_state=init_state)
