"""Cryptography: masks, shares, products, fixed point, and the protocol against jit's sums."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import crypto
from fedjax_lite.aggregation.secure import secure_mean
from fedjax_lite.types import Cohort, Message
from fedjax_lite.verify.records import Check

X, OWN, PAIRS = {1: 5, 2: 9, 3: 12}, {1: 1, 2: 2, 3: 4}, {(1, 2): 7, (1, 3): 3, (2, 3): 11}
P = 97
VALUES = np.random.default_rng(0).uniform(-1, 1, (4, 8)).astype(np.float32)


def word(number: int) -> np.ndarray:
    """A vector of one word."""
    return np.array([number], np.uint32)


def sent() -> dict[int, np.ndarray]:
    """The masked numbers of three clients."""
    return {
        u: crypto.add_masks(
            word(x),
            client=u,
            own=word(OWN[u]),
            pairs={v: word(PAIRS[min(u, v), max(u, v)]) for v in X if v != u},
        )
        for u, x in X.items()
    }


def unmasked(survivors: tuple[int, ...]) -> int:
    """The server's sum modulo 32; the others dropped out after sharing."""
    left = {
        (u, v): word(PAIRS[min(u, v), max(u, v)])
        for u in survivors
        for v in X
        if v not in survivors
    }
    y = sent()
    total = np.stack([y[u] for u in survivors]).sum(0, dtype=np.uint32)
    return (
        int(crypto.remove_masks(total, own=[word(OWN[u]) for u in survivors], pairs=left)[0]) % 32
    )


def beaver() -> int:
    """12 * 34 modulo 97 from shares, by the triple (5, 7, 35)."""
    triple = crypto.deal_triple((), num_parties=3, modulus=P, values=(5, 7))
    x, y = (crypto.share(v, num_shares=3, modulus=P) for v in (12, 34))
    return int(crypto.reveal(crypto.multiply(x, y, triple=triple), modulus=P))


def in_jit(mask: Any, masks: str) -> np.ndarray:
    """The mean of `VALUES` over some clients by `secure_mean`."""
    aggregator, present = secure_mean(max_abs=1.0, bits=16, masks=masks), jnp.asarray(mask)
    messages = Message(jnp.asarray(VALUES), jnp.ones(4))

    @jax.jit
    def run(messages: Message) -> Any:
        acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), 4)
        acc = aggregator.add(acc, messages, jnp.arange(4), present)
        cohort = Cohort(jnp.arange(4, dtype=jnp.int32), present)
        return aggregator.finish(jax.random.key(0), aggregator.init_state(()), acc, cohort)[1]

    return np.asarray(run(messages))


def by_protocol(mask: Any) -> np.ndarray:
    """The same by keys, shares and masks between four clients and a server."""
    codes = crypto.encode(VALUES, max_abs=1.0, bits=16)
    drops = {i: "mask" for i in range(4) if not mask[i]}
    outcome = crypto.secure_sum(dict(enumerate(codes)), threshold=3, drops=drops)
    return crypto.decode_mean(outcome.total, len(outcome.survivors), max_abs=1.0, bits=16)


def plain(mask: Any) -> np.ndarray:
    """The plain mean of the fixed-point numbers, by the formula in float64."""
    codes = np.round((VALUES.astype(np.float64) + 1) / 2 * (2**16 - 1))
    return codes[np.asarray(mask)].mean(0) * 2 / (2**16 - 1) - 1


def checks() -> list[Check]:
    """Numbers modulo 32 and 97; equal sums with and without a drop-out."""
    points, curve = range(1, 6), (42, 7, 13)
    everybody, one_less = [True] * 4, [True, True, False, True]
    found = [
        Check(
            "masked numbers mod 32",
            [16, 15, 2],
            lambda: [int(y[0]) % 32 for y in sent().values()],
            0,
        ),
        Check("sum of three mod 32", 26, lambda: unmasked((1, 2, 3)), 0),
        Check("client 3 dropped: 5 + 9", 14, lambda: unmasked((1, 2)), 0),
        Check(
            "Shamir shares of 42 mod 97",
            [62, 11, 83, 84, 14],
            lambda: [crypto.polynomial(curve, x, prime=P) for x in points],
            0,
        ),
        Check(
            "Lagrange weights at 0",
            [3, 94, 1, 14, 23, 61],
            lambda: (
                crypto.lagrange_weights((1, 2, 3), prime=P)
                + crypto.lagrange_weights((1, 3, 5), prime=P)
            ),
            0,
        ),
        Check("Beaver: 12 * 34 mod 97", 12 * 34 % P, beaver, 0),
        Check(
            "fixed point: -1, -.4, 1 in 2 bits",
            [0, 1, 3],
            lambda: crypto.encode(np.array([-1, -0.4, 1]), max_abs=1.0, bits=2),
            0,
        ),
        Check(
            "sums in jit = fixed-point mean", plain(everybody), lambda: in_jit(everybody, "none")
        ),
        Check("one dropped, masks cancel", plain(one_less), lambda: in_jit(one_less, "pairwise")),
    ]
    if importlib.util.find_spec("cryptography"):
        found.append(
            Check("the protocol, one dropped", plain(one_less), lambda: by_protocol(one_less))
        )
    return found
