"""cluster_purity(): how far clusters that were found agree with groups that are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown


def cluster_purity(assignments: Any, groups: Any) -> float:
    r"""The share of the clients that are in a cluster whose largest group is their own.

    .. math::  \frac{1}{N} \sum_k \max_g\, \lvert \{i : k_i = k,\ g_i = g\} \rvert

    1 where no cluster mixes two groups; clusters may have any numbers. As many clusters as clients
    have purity 1, too, so it compares runs with the same number of clusters.

    Args:
      assignments: int `[N]`, the cluster of each client, as `fedjax_lite.cluster_assignments` gives
        them; those below 0 are of nobody and do not count.
      groups: int `[N]`, the true group of each client.

    Returns:
      A number in `(0, 1]`; NaN where nobody counts.

    Raises:
      ValueError: if they are not integers `[N]`, one each a client.

    Example:
      >>> cluster_purity([1, 1, 1, 0], [0, 0, 2, 1])  # cluster 1 holds one of another group
      0.75

    Reference: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008.
    """
    found, true = _integers(assignments, "assignments"), _integers(groups, "groups")
    if len(found) != len(true):
        raise ValueError(
            f"groups must be one integer a client, {len(found)} of them as there are assignments, "
            f"got {len(true)}"
        )
    here = found >= 0
    if not here.any():
        return float("nan")
    clusters = np.unique(found[here], return_inverse=True)[1]
    kinds = np.unique(true[here], return_inverse=True)[1]
    table = np.zeros((clusters.max() + 1, kinds.max() + 1), np.int64)
    np.add.at(table, (clusters, kinds), 1)
    return float(table.max(1).sum() / here.sum())


def _integers(values: Any, name: str) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers [N], one a client, got {shown(values)}; "
            "np.unique(names, return_inverse=True)[1] numbers names"
        )
    return found
