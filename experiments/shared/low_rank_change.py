"""How much of what training does to a model's kernels has low rank, and what that part gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def low_rank_parts(
    base: Any, trained: Any, score: Callable[[Any], dict[str, float]], ranks: Sequence[int]
) -> list[dict[str, float]]:
    r"""The change of every kernel cut to its first singular values, and the score of that model.

    .. math::  W_r = W_0 + \sum_{k \le r} \sigma_k u_k v_k', \qquad
               \text{share} = \text{mean over kernels of }
               \sum_{k \le r} \sigma_k^2 / \sum_k \sigma_k^2

    No adapter of rank `r` comes nearer to the trained kernels. What else was trained stays so.

    Args:
      base: parameters before, dicts of arrays; kernels are the leaves called "kernel", `[m, n]`.
      trained: after.
      score: an evaluator of parameters, which gives "test_accuracy".
      ranks: `r`.

    Returns:
      One row a rank: ``rank, share, accuracy``.
    """
    rows = []
    for rank in ranks:
        shares: list[float] = []

        def cut(path: Any, before: Any, after: Any, rank: int = rank, shares: Any = shares) -> Any:
            if path[-1].key != "kernel":
                return after
            before = np.asarray(before, np.float64)
            u, s, v = np.linalg.svd(np.asarray(after, np.float64) - before, full_matrices=False)
            shares.append(float((s[:rank] ** 2).sum() / max((s**2).sum(), 1e-300)))
            return (before + (u[:, :rank] * s[:rank]) @ v[:rank]).astype(np.float32)

        model = jax.tree_util.tree_map_with_path(cut, base, trained)
        rows.append(
            {
                "rank": rank,
                "share": float(np.mean(shares)),
                "accuracy": score(model)["test_accuracy"],
            }
        )
    return rows


def mean_over_seeds(seeds: list[list[dict[str, float]]], before: float) -> list[dict[str, float]]:
    """The mean of each rank's row, and its gain.

    Args:
      seeds: what `low_rank_parts` gave for each.
      before: accuracy of the model before training.

    Returns:
      One row a rank: ``rank, share, accuracy, gain``.
    """
    means = [
        {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for rows in zip(*seeds, strict=True)
    ]
    return [{**row, "rank": int(row["rank"]), "gain": row["accuracy"] - before} for row in means]
