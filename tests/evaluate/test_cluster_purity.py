"""Purity against a count by hand over every cluster."""

import collections

import numpy as np
import pytest

import fedjax_lite as fl


def test_it_is_the_share_of_the_majorities():
    rng = np.random.default_rng(0)
    for _ in range(5):
        found, true = rng.integers(-1, 3, 30), rng.integers(0, 4, 30)
        right = 0
        for cluster in set(found.tolist()) - {-1}:
            right += collections.Counter(true[found == cluster]).most_common(1)[0][1]
        assert fl.cluster_purity(found, true) == right / (found >= 0).sum()


def test_names_of_clusters_do_not_matter_and_edges():
    assert fl.cluster_purity([5, 5, 9], [1, 1, 0]) == 1.0
    assert fl.cluster_purity([0, 0, 0, 0], [0, 1, 2, 3]) == 0.25
    assert np.isnan(fl.cluster_purity([-1, -1], [0, 1]))


def test_bad_input():
    with pytest.raises(ValueError, match="assignments must be integers"):
        fl.cluster_purity([0.0, 1.0], [0, 1])
    with pytest.raises(ValueError, match=r"groups must be one integer a client, 2 of them.*got 3"):
        fl.cluster_purity([0, 1], [0, 1, 1])
