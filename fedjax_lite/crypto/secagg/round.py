"""A whole round of secure aggregation on the host, with drop-outs before every phase."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.crypto.secagg.client import Client
from fedjax_lite.crypto.secagg.messages import MaskedInput, is_id, num_bytes
from fedjax_lite.crypto.secagg.server import Server
from fedjax_lite.crypto.secagg.settings import Settings

PHASES = ("advertise", "share", "mask", "unmask")
SIGNED_PHASES = ("advertise", "share", "mask", "confirm", "unmask")


class Outcome(NamedTuple):
    """What came of a round."""

    total: np.ndarray
    """uint32 `[D]`: the sum over the survivors modulo 2**32."""
    survivors: tuple[int, ...]
    """Whose vectors are in the sum: those who got as far as sending them."""
    sent: dict[str, dict[int, int]]
    """Bytes that each client sent, by phase."""
    received: dict[str, dict[int, int]]
    """Bytes that each client was sent, by phase."""
    masked: tuple[MaskedInput, ...]
    """What the server saw of the vectors."""


def secure_sum(
    vectors: Mapping[int, Any],
    *,
    threshold: int,
    degree: int | None = None,
    min_survivors: int | None = None,
    signed: bool = False,
    drops: Mapping[int, str] | None = None,
    round_id: bytes | None = None,
    rng: np.random.Generator | None = None,
) -> Outcome:
    r"""The sum of clients' vectors modulo 2**32, of which the server sees nothing else.

    Runs the protocol of Bonawitz et al. between `Client` and `Server` objects in one process.
    Encode floats with `encode` first, and send their number (or weight) as one more entry.

    What comes is the exact sum over the survivors, or `SecAggAbort` with whom and why: every
    message carries a proof of its content, round and sender, ciphertexts are bound to both ends,
    and every secret that shares give is held against what its owner advertised. This covers
    messages that are lost, doubled, damaged or of another round or client. Not covered in any
    model: clients that send wrong vectors.

    Threat models, for `n` clients of which `m` collude with the server:

    * Honest but curious (`signed` False; ``t > n / 2``, with `degree` ``t > (k + 1) / 2``). Server
      and up to ``m = t - 1`` clients follow the protocol, pool what they see, and learn the sum
      over the survivors only (and their number and ids). Proofs are digests, which everybody can
      compute: they show accidents, not malice. A server that invents clients, swaps keys or tells
      clients different lists of survivors is not covered; that one which asks a client twice gets
      nothing is.
    * Active adversary (`signed` True; ``t > 2n / 3``, ``m < n / 3``). Server and `m` clients do as
      they like. Everybody knows everybody's Ed25519 public key beforehand (public-key
      infrastructure), messages are signed, and before any share is given away at least `t`
      survivors sign the same list of survivors and check each other's signatures (the paper's
      consistency check). Two lists would need ``2t`` signatures, of which ``n - m`` honest clients
      give one each and `m` colluding ones two: ``2t > n + m`` rules this out, and likewise that
      both secrets of a client get `t` shares. The server learns the sum over one set of at least
      `t` clients, ``t - m`` of them honest. It may still end the round, or leave clients out.

    A sum hides a client only among the honest others in it: ``min_survivors - m``
    at least (with `degree`: where the colluding do not part the others in the graph,
    see `harary`). With `degree` the threshold counts neighbours alone, so that without
    `min_survivors` a round of 100 may reveal a sum of 3: set it to the ``(1 - delta) n`` of Bell et
    al., `delta` the share of drop-outs that a round is to bear.

    Args:
      vectors: uint32 `[D]` by client id.
      threshold: `t`, above half of the clients (with `degree` `k`: of ``k + 1``; with `signed`:
        above two thirds of the clients): so many must be left at the end, and fewer together learn
        nothing.
      degree: None for masks between all pairs, `k` for SecAgg+; an odd one becomes ``k + 1`` where
        an odd number of clients advertise keys. Not with `signed`.
      min_survivors: vectors that a revealed sum has at least, of all clients; None for the
        threshold. The server checks it, and every client before it gives a share away.
      signed: run the protocol for an active adversary, with Ed25519 keys made on the spot; between
        real parties give `Settings` their true public keys.
      drops: phase by client: "advertise", "share", "mask" or "unmask" (with `signed` "confirm" as
        well), the first that the client does not take part in. One that drops after "mask" is
        counted: its vector is there.
      round_id: different in every round; default 16 random bytes.
      rng: draws the ring of SecAgg+.

    Returns:
      An `Outcome`.

    Raises:
      SecAggAbort: if too few are left in some phase.
      TypeError: if an argument has another type.
      ValueError: if vectors, threshold, min_survivors or drops make no sense.

    Example:
      >>> vectors = {i: np.full(3, 10**i, np.uint32) for i in range(4)}
      >>> outcome = secure_sum(vectors, threshold=3, drops={2: "mask"})
      >>> outcome.total.tolist(), outcome.survivors
      ([1011, 1011, 1011], (0, 1, 3))
      >>> secure_sum(vectors, threshold=3, drops={2: "confirm"}, signed=True).total.tolist()
      [1111, 1111, 1111]

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", CCS 2017, ePrint 2017/281; Bell et al., CCS 2020, ePrint 2020/704.
    """
    if not isinstance(signed, bool):
        raise TypeError(f"signed must be True or False, got {shown(signed)}")
    phases = SIGNED_PHASES if signed else PHASES
    arrays = _checked_vectors(vectors)
    last = _checked_drops(arrays, {} if drops is None else drops, phases)
    check_count(threshold, "threshold", minimum=2)
    if degree is not None:
        check_count(degree, "degree", minimum=2)
    holders = len(arrays) if degree is None else min(degree + 1, len(arrays))
    if not holders < 2 * threshold <= 2 * holders:
        raise ValueError(
            f"threshold must be above half of the {holders} clients that hold a secret's shares "
            f"and at most all of them, got {threshold}; use {holders // 2 + 1}"
        )
    if min_survivors is not None:
        check_count(min_survivors, "min_survivors", minimum=1)
        if min_survivors > len(arrays):
            raise ValueError(
                f"min_survivors must be at most the number of clients {len(arrays)}, got "
                f"{min_survivors}; None takes the threshold"
            )
    length = next(iter(arrays.values())).size
    round_id = secrets.token_bytes(16) if round_id is None else round_id
    keys: dict[int, Any] = dict.fromkeys(arrays)
    identities = None
    if signed:
        generate = primitives().asymmetric.ed25519.Ed25519PrivateKey.generate
        keys = {i: generate() for i in arrays}
        identities = {i: key.public_key().public_bytes_raw() for i, key in keys.items()}
    settings = Settings(round_id, threshold, length, min_survivors, identities)
    server = Server(settings, degree=degree, rng=rng)
    clients = {i: Client(i, settings, identity=keys[i]) for i in sorted(arrays)}
    sent: dict[str, dict[int, int]] = {phase: {} for phase in phases}
    received: dict[str, dict[int, int]] = {phase: {} for phase in phases}

    def phase(name: str, inbox: Mapping[int, Any]) -> list[Any]:
        """What clients answer in a phase to what is in their inbox."""
        replies = []
        for i in sorted(inbox):
            if last[i] > phases.index(name):
                given = inbox[i]
                if given is not None:
                    received[name][i] = num_bytes(given)
                arguments = () if given is None else (given,)
                if name == "mask":
                    arguments = (*arguments, arrays[i])
                reply = getattr(clients[i], name)(*arguments)
                sent[name][i] = num_bytes(reply)
                replies.append(reply)
        return replies

    rosters = server.roster(phase("advertise", dict.fromkeys(clients)))
    boxes = server.forward(phase("share", rosters))
    masked = phase("mask", boxes)
    request = server.collect(masked)
    survivors = request.survivors
    there = survivors
    if signed:
        confirmations = phase("confirm", dict.fromkeys(survivors, request))
        request = server.confirm(confirmations)
        there = frozenset(message.client for message in confirmations)
    total = server.reveal(phase("unmask", dict.fromkeys(there, request)))
    return Outcome(total, tuple(sorted(survivors)), sent, received, tuple(masked))


def _checked_vectors(vectors: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """One uint32 `[D]` each."""
    if not isinstance(vectors, Mapping):
        raise TypeError(
            f"vectors must be a mapping of clients to uint32 [D], got {shown(vectors)}; "
            "dict(enumerate(vectors)) numbers rows"
        )
    if not vectors:
        raise ValueError("vectors must be of one client at least, got {}; give {id: uint32 [D]}")
    for i in vectors:
        if not is_id(i):
            raise ValueError(
                f"vectors must map ids from 0 to 2**31 - 1, got {shown(i)}; number the clients"
            )
    arrays = {int(i): np.asarray(vector) for i, vector in vectors.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or () in shapes:
        raise ValueError(
            f"vectors must be one [D] each, got shapes {sorted(map(list, shapes))}; flatten them "
            "and pad them to one length"
        )
    wrong = sorted(i for i, array in arrays.items() if array.dtype != np.uint32)
    if wrong:
        raise ValueError(
            f"vectors must be uint32, got {arrays[wrong[0]].dtype} of client {wrong[0]}; encode "
            "them first"
        )
    return arrays


def _checked_drops(
    vectors: Mapping[int, Any], drops: Mapping[int, str], phases: tuple[str, ...]
) -> dict[int, int]:
    """The first phase that each client does not take part in."""
    if not isinstance(drops, Mapping):
        raise TypeError(
            f"drops must be a mapping of clients to phases, got {shown(drops)}; {{3: 'mask'}}"
        )
    unknown = [shown(i) for i in drops if i not in vectors]
    wrong = [shown(phase) for phase in drops.values() if phase not in phases]
    if unknown or wrong:
        raise ValueError(
            f"drops must map clients to one of {phases}, got clients [{', '.join(unknown)}] "
            f"without a vector and phases [{', '.join(wrong)}]"
        )
    return {i: phases.index(drops[i]) if i in drops else len(phases) for i in vectors}
