"""Cryptography on the host: secure aggregation, secret sharing, homomorphic encryption.

The same modular sum inside a compiled round is `fedjax_lite.aggregation.secure.secure_mean`.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.crypto.additive import mpc_mean, reveal, share
    from fedjax_lite.crypto.beaver import Triple, TripleReusedError, deal_triple, multiply
    from fedjax_lite.crypto.ckks import Ciphertexts, CkksReport, CkksSecret, CkksServer, ckks_mean
    from fedjax_lite.crypto.field import (
        SECRET_PRIME,
        VECTOR_PRIME,
        lagrange_weights,
        polynomial,
        random_elements,
    )
    from fedjax_lite.crypto.fixed_point import check_ring, decode_mean, encode
    from fedjax_lite.crypto.prg import expand
    from fedjax_lite.crypto.psi import Points, PsiParty, private_intersection
    from fedjax_lite.crypto.secagg.client import Client
    from fedjax_lite.crypto.secagg.graph import complete, harary, is_connected
    from fedjax_lite.crypto.secagg.masks import add_masks, remove_masks
    from fedjax_lite.crypto.secagg.messages import (
        Advertisement,
        Confirmation,
        EncryptedShares,
        MaskedInput,
        Roster,
        SecAggAbort,
        Unmasking,
        UnmaskRequest,
        num_bytes,
    )
    from fedjax_lite.crypto.secagg.round import PHASES, SIGNED_PHASES, Outcome, secure_sum
    from fedjax_lite.crypto.secagg.server import Server
    from fedjax_lite.crypto.secagg.settings import Settings
    from fedjax_lite.crypto.shamir import Share, combine, combine_array, split, split_array

__all__ = [
    "Advertisement",
    "Ciphertexts",
    "CkksReport",
    "CkksSecret",
    "CkksServer",
    "Client",
    "Confirmation",
    "EncryptedShares",
    "MaskedInput",
    "Outcome",
    "PHASES",
    "Points",
    "PsiParty",
    "Roster",
    "SECRET_PRIME",
    "SIGNED_PHASES",
    "SecAggAbort",
    "Server",
    "Settings",
    "Share",
    "Triple",
    "TripleReusedError",
    "UnmaskRequest",
    "Unmasking",
    "VECTOR_PRIME",
    "add_masks",
    "check_ring",
    "ckks_mean",
    "combine",
    "combine_array",
    "complete",
    "deal_triple",
    "decode_mean",
    "encode",
    "expand",
    "harary",
    "is_connected",
    "lagrange_weights",
    "mpc_mean",
    "multiply",
    "num_bytes",
    "polynomial",
    "private_intersection",
    "random_elements",
    "remove_masks",
    "reveal",
    "secure_sum",
    "share",
    "split",
    "split_array",
]

load_when_asked(__name__)
