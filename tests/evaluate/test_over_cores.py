"""Clients dealt to cores for scoring: each once, no core much longer than another."""

import numpy as np
import pytest

from fedjax_lite.evaluate.over_cores import deal_clients, in_order


@pytest.mark.parametrize(("num_clients", "num_cores"), [(1, 2), (2, 2), (7, 4), (100, 64), (5, 1)])
def test_every_client_is_dealt_once_and_comes_back_in_order(num_clients, num_cores):
    work = np.random.default_rng(num_clients).integers(0, 9, num_clients)
    dealt = deal_clients(work, num_cores)
    assert len(dealt) == -(-num_clients // num_cores) * num_cores
    assert sorted(dealt[dealt >= 0]) == list(range(num_clients))
    found = np.where(dealt < 0, 99, work[dealt])
    np.testing.assert_array_equal(in_order(found, dealt), work)


def test_cores_have_alike_much_to_do():
    """In turns there and back two cores differ by the longest client at most."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        work = rng.pareto(1.5, rng.integers(2, 40))
        dealt = deal_clients(work, 4).reshape(4, -1)
        loads = np.where(dealt < 0, 0, work[dealt]).sum(1)
        assert np.ptp(loads) <= work.max() + 1e-12
