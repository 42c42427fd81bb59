"""Secure aggregation on sparse graphs: the same sum, fewer bytes, survivors that fall apart."""

import numpy as np
import pytest
from secagg_vectors import LENGTH, plain_sum, some_vectors

from fedjax_lite.crypto import Client, SecAggAbort, Server, Settings, secure_sum


@pytest.mark.parametrize("degree", [2, 4, 5])
def test_sparse_graph_gives_the_same_sum(degree):
    """SecAgg+: 8 clients, k neighbours, one or two drop-outs around each secret."""
    vectors, threshold = some_vectors(8), (degree + 1) // 2 + 1
    ids = sorted(vectors)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drops = {ids[2]: "mask", ids[5]: "unmask"} if degree > 2 else {}
        outcome = secure_sum(vectors, threshold=threshold, degree=degree, drops=drops, rng=rng)
        counted = [i for i in ids if drops.get(i) != "mask"]
        np.testing.assert_array_equal(outcome.total, plain_sum(vectors, counted))


def test_sparse_graph_saves_bytes():
    """A client sends k instead of n - 1 ciphertexts of 12 + 66 + 16 bytes and two ids.

    A proof takes 32 bytes, and so does what binds a client to its seed.
    """
    vectors = some_vectors(8)
    dense = secure_sum(vectors, threshold=5)
    sparse = secure_sum(vectors, threshold=3, degree=4)
    one = 12 + 66 + 16 + 2 * 4
    assert set(dense.sent["share"].values()) == {7 * one}
    assert set(sparse.sent["share"].values()) == {4 * one}
    assert set(dense.sent["advertise"].values()) == {4 + 32 + 32 + 32 + 32}
    assert set(dense.sent["mask"].values()) == {4 + 4 * LENGTH + 7 * 4 + 32}
    assert set(sparse.sent["mask"].values()) == {4 + 4 * LENGTH + 4 * 4 + 32}
    assert set(dense.sent["unmask"].values()) == {4 + 8 * (4 + 33) + 32}


def test_survivors_that_fall_apart_abort():
    """A ring of 6 with threshold 2: two opposite drop-outs leave two groups."""
    vectors = some_vectors(6)
    server = Server(Settings(b"r", 2, LENGTH), degree=2, rng=np.random.default_rng(0))
    clients = {i: Client(i, server.settings) for i in vectors}
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    ids = sorted(vectors)
    first = ids[0]
    opposite = next(
        i for i in ids if i != first and not server.graph[i] & {first, *server.graph[first]}
    )
    inputs = [clients[i].mask(boxes[i], vectors[i]) for i in ids if i not in (first, opposite)]
    with pytest.raises(SecAggAbort, match="fall apart"):
        server.collect(inputs)


def neighbourhood_of_three(vectors, seed):
    """Three in a row on the ring that the server will draw for degree 4, and drops of the rest."""
    ids = sorted(vectors)
    kept = {ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:3]}
    return kept, {i: "share" for i in ids if i not in kept}


def test_sparse_graph_needs_min_survivors():
    """The threshold counts neighbours: 3 of 100 finish a round unless a minimum is set."""
    vectors = some_vectors(100)
    kept, drops = neighbourhood_of_three(vectors, 7)

    def run(drops, **options):
        rng = np.random.default_rng(7)
        return secure_sum(vectors, threshold=3, degree=4, drops=drops, rng=rng, **options)

    outcome = run(drops)
    assert set(outcome.survivors) == kept
    np.testing.assert_array_equal(outcome.total, plain_sum(vectors, kept))
    with pytest.raises(SecAggAbort, match=r"server: 3 clients .* min_survivors 4"):
        run(drops, min_survivors=4)
    # Exactly as many as the minimum are enough.
    assert set(run(drops, min_survivors=3).survivors) == kept


@pytest.mark.parametrize("num_clients", [9, 10])
@pytest.mark.parametrize("num_drops", [0, 1, 2])
def test_odd_degrees_survive_early_drop_outs(num_clients, num_drops):
    """An odd number advertise: 5 neighbours become 6, and the threshold stays above half."""
    vectors = some_vectors(num_clients)
    ids = sorted(vectors)
    drops = dict.fromkeys(ids[:num_drops], "advertise")
    outcome = secure_sum(vectors, threshold=4, degree=5, drops=drops)
    np.testing.assert_array_equal(outcome.total, plain_sum(vectors, ids[num_drops:]))
    one = 12 + 66 + 16 + 2 * 4
    neighbours = 5 + (num_clients - num_drops) % 2
    assert set(outcome.sent["share"].values()) == {neighbours * one}
