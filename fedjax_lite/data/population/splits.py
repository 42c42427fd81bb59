"""Other data of the same clients, for phases of local work that do not read what they train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.dataset import CohortDataset
from fedjax_lite.data.population.sharded import ShardedDataset


def with_splits(data: Any, splits: Mapping[str, Any]) -> Any:
    """The same population, whose clients have other data beside those that they train on.

    A `fedjax_lite.Phase` with ``data="held_out"`` draws its batches from the split of this name: a
    head, a share in a mixture or a learning rate that each client tunes on rows of its own which
    its model has not seen. Its plan's epochs are passes over the split; a client without rows there
    does no step in it. All else, weights, cohorts and who takes part, goes by `data` alone, so a
    client that has nothing to train on does not tune either. Phases that read no split are not
    touched, and cost what they cost.

    Nothing is copied: the parts of `split_clients` go on sharing their examples.

    Args:
      data: a `FederatedDataset`, or a `StreamedDataset`, which then reads the cohort's part of
        each split with it.
      splits: by name, populations of the same kind and of the same clients, in the same order.
        Those that `data` has already stay, but for names given anew.

    Returns:
      A population of the type of `data`, for ``algo.init``, ``algo.round`` and `run`.

    Raises:
      TypeError: if `data` or a split is another kind of population.
      ValueError: if there is no split, a name is empty, or the numbers of clients differ.

    Example:
      >>> import numpy as np
      >>> from fedjax_lite.data.partition.split import split_clients
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"x": np.arange(8.0)}, [0, 0, 0, 0, 1, 1, 1, 1])
      >>> train, held_out = split_clients(data, 0.25, seed=0)
      >>> both = with_splits(train, {"held_out": held_out})
      >>> both.sizes.tolist(), both.splits["held_out"].sizes.tolist()
      ([3, 3], [1, 1])
    """
    remedy = "fl.data.with_splits(train, {'held_out': held_out})"
    if not _carries(data):
        other = "build one with fl.data.from_arrays(examples, client_ids)"
        if isinstance(data, ShardedDataset):
            other = "give splits to the data set that shard_population is handed"
        elif isinstance(data, CohortDataset):
            other = "give splits to the StreamedDataset that the cohort comes from"
        raise TypeError(
            f"data must be a FederatedDataset or a StreamedDataset, got {shown(data)}; {other}"
        )
    if not isinstance(splits, Mapping) or not splits:
        raise ValueError(f"splits must be populations by name, got {shown(splits)}; {remedy}")
    for name, split in splits.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"splits must have names, got {shown(name)}; {remedy}")
        if type(split) is not type(data):
            raise TypeError(
                f"splits must be of data's own kind, {type(data).__name__}, got {shown(split)} for "
                f"{name!r}; {remedy}"
            )
        if split.num_clients != data.num_clients:
            raise ValueError(
                f"splits must have the {data.num_clients} clients of data, got "
                f"{split.num_clients} for {name!r}; fl.data.split_clients makes such parts"
            )
    alone = {name: dataclasses.replace(split, splits={}) for name, split in splits.items()}
    return dataclasses.replace(data, splits={**data.splits, **alone})


def _carries(data: Any) -> bool:
    """Whether a population can have splits put beside it."""
    if isinstance(data, ShardedDataset | CohortDataset):
        return False
    return dataclasses.is_dataclass(data) and hasattr(data, "splits") and hasattr(data, "sizes")
