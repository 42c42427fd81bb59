"""Pieces of secure aggregation: the neighbours' graph, key agreement, the masks' generator."""

import itertools

import numpy as np
import pytest

from fedjax_lite import crypto
from fedjax_lite.crypto.secagg.keys import agree


@pytest.mark.parametrize(("num_clients", "degree"), [(7, 2), (8, 3), (9, 4), (10, 5), (6, 5)])
def test_harary_graphs(num_clients, degree):
    """Regular, symmetric, and connected after any degree - 1 of them are gone."""
    ids = [5 * i for i in range(num_clients)]
    graph = crypto.harary(ids, degree=degree, rng=np.random.default_rng(0))
    for u in ids:
        assert len(graph[u]) == degree
        assert u not in graph[u]
        assert all(u in graph[v] for v in graph[u])
    for gone in itertools.combinations(ids, degree - 1):
        assert crypto.is_connected(graph, set(ids) - set(gone))
    # One more can cut a client off.
    assert not crypto.is_connected(graph, set(ids) - graph[ids[0]]) or num_clients == degree + 1


def test_harary_orders_are_random():
    graphs = {
        tuple(sorted(crypto.harary(range(9), degree=2, rng=np.random.default_rng(s))[0]))
        for s in range(20)
    }
    assert len(graphs) > 5


@pytest.mark.parametrize(("num_clients", "degree"), [(4, 4), (5, 3)])
def test_graphs_that_do_not_exist(num_clients, degree):
    with pytest.raises(ValueError, match="degree"):
        crypto.harary(range(num_clients), degree=degree, rng=np.random.default_rng(0))


def test_keys_are_bound_to_round_and_purpose():
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = b.public_key().public_bytes_raw()
    keys = {agree(a, public, r, p) for r in (b"1", b"2") for p in (b"mask", b"shares")}
    assert len(keys) == 4
    assert agree(b, a.public_key().public_bytes_raw(), b"1", b"mask") in keys


def test_the_generator_is_aes_in_counter_mode():
    """The first block is AES-256 of the zero counter, known for the zero key."""
    # NIST's AESAVS, appendix C.
    block = bytes.fromhex("dc95c078a2408989ad48a21492842087")
    assert crypto.expand(bytes(32), 4).astype("<u4").tobytes() == block
    with pytest.raises(ValueError, match="32 bytes"):
        crypto.expand(bytes(16), 4)


def test_a_changed_share_beside_enough_others_is_noticed():
    """More shares than the threshold: whichever is changed, they lie on no common polynomial."""
    shares = crypto.split(42, [1, 2, 3, 4, 5], threshold=3, prime=97)
    arrays = crypto.split_array([5, 96], num_shares=5, threshold=3, prime=97)
    assert crypto.combine(shares, threshold=3, prime=97) == 42
    np.testing.assert_array_equal(
        crypto.combine_array(arrays, points=[1, 2, 3, 4, 5], threshold=3, prime=97), [5, 96]
    )
    for i in range(5):
        changed = [*shares]
        changed[i] = crypto.Share(i + 1, (shares[i].value + 1) % 97)
        with pytest.raises(ValueError, match="shares must lie on one polynomial"):
            crypto.combine(changed, threshold=3, prime=97)
        table = arrays.copy()
        table[i, 1] = (table[i, 1] + 1) % 97
        with pytest.raises(ValueError, match="shares must lie on one polynomial"):
            crypto.combine_array(table, points=[1, 2, 3, 4, 5], threshold=3, prime=97)
