"""Concept shift: the same features, and another relation to the labels in each group of clients.

Groups are dealt as `rotation` deals its angles: with the same seed and as many values, a client's
group tells both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.partition.checks import check_seed
from fedjax_lite.data.partition.partition import FeatureSkew


def dealt_groups(num_clients: int, num_groups: int, *, seed: int = 0) -> np.ndarray:
    """The group of each client: equally many clients a group to within one, at random.

    Group `g` of `label_permutation`, `label_sign`, and of `rotation`, `brightness`, `contrast` with
    a list of values and the same seed has their `g`-th value.

    Args:
      num_clients: `N`.
      num_groups: `G`, as many as there are values.
      seed: of the skew.

    Returns:
      int64 `[N]`, from 0 to `G` - 1.

    Raises:
      ValueError: if a number is below 1 or the seed below 0.

    Example:
      >>> np.bincount(dealt_groups(8, 3)).tolist()
      [3, 3, 2]
    """
    check_count(num_clients, "num_clients", minimum=1)
    check_count(num_groups, "num_groups", minimum=1)
    check_seed(seed)
    return np.random.default_rng(seed).permutation(num_clients) % num_groups


@made
def label_permutation(permutations: Any, *, seed: int = 0, label: str = "y") -> FeatureSkew:
    r"""Renames the classes in each group of clients: :math:`y \leftarrow \pi_{g(i)}(y)`.

    No model fits two groups, since the same features have other labels; each on its own is as hard
    as it was. Negative labels, which stand for none, stay.

    Args:
      permutations: int `[G, classes]`, a permutation of ``0 .. classes - 1`` a group; ``[[0, 1],
        [1, 0]]`` flips the two classes for half of the clients.
      seed: who is in which group, see `dealt_groups`.
      label: the key of the labels.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if a row is no permutation, or (when it is used) a label is no class of them.
      TypeError: (when it is used) if labels are not integers.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> train = {"x": np.zeros(4), "y": np.array([0, 1, 2, -1])}
      >>> one = partition(train, iid(num_clients=1), label_permutation([[1, 2, 0]]))
      >>> one.examples["y"].tolist()
      [1, 2, 0, -1]

    Reference: Sattler, Müller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed
    Multi-Task Optimization under Privacy Constraints", 2019, arXiv:1910.01991, permuted labels.
    """
    table = np.asarray(permutations)
    if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
        raise ValueError(
            f"permutations must be integers [G, classes], got {shown(permutations)}; e.g. "
            "[[0, 1], [1, 0]]"
        )
    wrong = np.flatnonzero((np.sort(table, axis=1) != np.arange(table.shape[1])).any(1))
    if len(wrong):
        raise ValueError(
            f"permutations[{wrong[0]}] must hold each of 0 to {table.shape[1] - 1} once, got "
            f"{table[wrong[0]].tolist()}; np.roll(np.arange({table.shape[1]}), 1) is one"
        )
    check_seed(seed)

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        labels = _labels(examples, label)
        if labels.dtype.kind not in "iu":
            raise TypeError(
                f"examples[{label!r}] must be integers to be permuted, got {labels.dtype}; "
                "label_sign turns the sign of real labels"
            )
        if labels.size and labels.max() >= table.shape[1]:
            raise ValueError(
                f"examples[{label!r}] must lie below {table.shape[1]}, the classes that "
                f"permutations has, got {int(labels.max())}"
            )
        group = dealt_groups(num_clients, len(table), seed=seed)[owners]
        group = group.reshape((-1,) + (1,) * (labels.ndim - 1))
        renamed = table[group, np.maximum(labels, 0)].astype(labels.dtype)
        return {**examples, label: np.where(labels < 0, labels, renamed)}

    return FeatureSkew(apply, f"label_permutation({len(table)} groups, seed={seed})")


@made
def label_sign(signs: Any = (1, -1), *, seed: int = 0, label: str = "y") -> FeatureSkew:
    r"""Multiplies the labels of each group of clients: :math:`y \leftarrow s_{g(i)}\, y`.

    With (1, -1) the relation of features and labels is the opposite one for half of the clients.

    Args:
      signs: numbers `[G]`, finite, one a group.
      seed: who is in which group, see `dealt_groups`.
      label: the key of the labels, floats.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if `signs` are not finite numbers `[G]`.
      TypeError: (when it is used) if labels are not floats.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> train = {"x": np.zeros(2), "y": np.array([1.0, -2.0])}
      >>> partition(train, iid(num_clients=1), label_sign([-1])).examples["y"].tolist()
      [-1.0, 2.0]
    """
    factors = np.asarray(signs)
    if (
        factors.ndim != 1
        or not factors.size
        or factors.dtype.kind not in "iuf"
        or not np.isfinite(factors).all()
    ):
        raise ValueError(f"signs must be finite numbers [G], got {shown(signs)}; e.g. (1, -1)")
    check_seed(seed)

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        labels = _labels(examples, label)
        if labels.dtype.kind != "f":
            raise TypeError(
                f"examples[{label!r}] must be floats to be multiplied, got {labels.dtype}; "
                "label_permutation renames classes, label=... names others"
            )
        factor = factors[dealt_groups(num_clients, len(factors), seed=seed)][owners]
        factor = factor.astype(labels.dtype).reshape((-1,) + (1,) * (labels.ndim - 1))
        return {**examples, label: labels * factor}

    return FeatureSkew(apply, f"label_sign(signs={factors.tolist()}, seed={seed})")


def _labels(examples: Mapping[str, Any], label: str) -> np.ndarray:
    if label not in examples:
        raise ValueError(
            f"label={label!r} is not among the examples' keys {sorted(map(str, examples))}; name "
            "one of them by label=..."
        )
    return np.asarray(examples[label])
