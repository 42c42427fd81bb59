"""shuffle_index: a keyed bijection of ``[0, n)`` for any traced ``n``, without sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_whole
from fedjax_lite.engine.derived_keys import derive, word
from fedjax_lite.types import Array, Key

NUM_ROUNDS = 28


def shuffle_index(key: Key, index: Array, size: Array | int) -> Array:
    """Where a random permutation of ``[0, size)`` sends `index`.

    A swap-or-not shuffle: in round `r` an index `x` meets its partner ``k_r - x mod n``, and the
    two change places or not by a keyed coin that both of them see the same:

        x' = k_r - x  (mod n);    x <- x'  if  coin_r(max(x, x'))  else  x.

    Each round is an involution, so the whole is an exact bijection for *every* `n`; `n` may be
    traced, so ragged client sizes need no padding and no sort. O(len(index)) work, no memory.

    Args:
      key: typed key; one key is one permutation.
      index: int32 `[...]`, each in ``[0, size)``.
      size: int32 scalar, ``1 <= size < 2**31``; a size of 0 is treated as 1.

    Returns:
      int32 `[...]`, in ``[0, size)``.

    Example:
      >>> sorted(shuffle_index(jax.random.key(0), jnp.arange(5), 5).tolist())
      [0, 1, 2, 3, 4]

    Reference: Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012,
    arXiv:1208.1176.
    """
    check_whole(index, "index")
    check_whole(size, "size")
    return permute(word(derive(key, [(0,), (1,)])), 0, index, size, unroll=1)


def permute(
    seed: Array, epoch: Array | int, index: Array, size: Array | int, *, unroll: int = 4
) -> Array:
    """`shuffle_index` with its key as two words, uint32 `[2]`, and a counter.

    The words of the rounds come from an integer hash, not from threefry: inside a training loop
    that is a handful of fused integer operations a step; ``unroll`` of its rounds at a time.
    """
    size = jnp.maximum(jnp.asarray(size), 1).astype(jnp.uint32)
    counter = np.arange(2 * NUM_ROUNDS, dtype=np.uint32)
    base = mix(seed[1] ^ mix(jnp.asarray(epoch).astype(jnp.uint32) + np.uint32(0x9E3779B9)))
    words = mix(mix(seed[0] ^ counter) + base).reshape(NUM_ROUNDS, 2)
    coins = words[:, 1]
    shifts = jax.lax.rem(words[:, 0], jnp.broadcast_to(size, coins.shape))  # no signs to look at
    x = jnp.asarray(index).astype(jnp.uint32)

    def swap(x: Array, words: tuple[Array, Array]) -> tuple[Array, None]:
        # k - x mod n without overflow: both are below n < 2**31.
        shift, coin = words
        partner = shift + jnp.where(x > shift, size, np.uint32(0)) - x
        heads = mix(jnp.maximum(x, partner) ^ coin) >= np.uint32(1 << 31)
        return jnp.where(heads, partner, x), None

    # A loop, not 28 rounds in a row: XLA fuses a long chain into one kernel, and where several
    # users of it fuse it again, compiling takes minutes (seen with jaxlib 0.12).
    x, _ = jax.lax.scan(swap, x, (shifts, coins), unroll=unroll)
    return x.astype(jnp.int32)


def mix(x: Array) -> Array:
    """A 32-bit integer hash in which every input bit flips about half of the output."""
    x = _shifted(x, 16) * np.uint32(0x7FEB352D)
    x = _shifted(x, 15) * np.uint32(0x846CA68B)
    return _shifted(x, 16)


def _shifted(x: Array, distance: int) -> Array:
    return jax.lax.bitwise_xor(x, jax.lax.shift_right_logical(x, jax.lax.full_like(x, distance)))
