"""TaskStream: a population whose data change over the rounds, stage after stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.one_line import leaf_words, length
from fedjax_lite.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskStream:
    """Stages of one population over the same examples; a round takes the stage of its number.

    Made by `task_stream`. It stands where a `FederatedDataset` stands in ``algo.init``,
    ``algo.round`` and `run`: the round's number picks the stage *inside* the compiled round, so a
    change of stage compiles nothing, and a run that is resumed in the middle of one goes on bit for
    bit. Everything of a round sees its stage alone: batches, sizes, weights, samplers.

    Attributes:
      examples: leaves `[E, ...]`, of all stages.
      offsets: int32 `[T, N + 1]`: in stage `t` client `i` owns the examples
        ``order[t, offsets[t, i]:offsets[t, i + 1]]``.
      order: int32 `[T, M]`, padded behind a stage's last example.
      starts: int32 `[T]`, the round in which each stage begins; the first is 0.
      max_client_size: largest client of any stage. Static.
    """

    examples: PyTree
    offsets: Array
    order: Array
    starts: Array
    max_client_size: int = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        """Counts, names and types; no values."""
        counts = f"{length(self.offsets)} stages of {length(self.offsets[0], -1)} clients"
        return f"TaskStream({counts}{leaf_words(self.examples)})"

    @property
    def num_stages(self) -> int:
        """`T`."""
        return self.offsets.shape[0]

    @property
    def num_clients(self) -> int:
        """The size `N` of the population, the same in all stages."""
        return self.offsets.shape[1] - 1

    @property
    def num_rows(self) -> int:
        """Rows of a table of client state: `N`."""
        return self.num_clients

    @property
    def num_examples(self) -> int:
        """Examples of the largest stage, `M`."""
        return self.order.shape[1]

    @property
    def sizes(self) -> Array:
        """int32 `[N]`: the most that each client owns in any stage; what servers are told when they
        start.
        """
        return jnp.diff(self.offsets, axis=1).max(0)

    def stage_of(self, round: Any) -> Array:
        """int32: the stage of a round, which may be traced.

        Args:
          round: its number, from 0.
        """
        return jnp.searchsorted(self.starts, jnp.asarray(round), side="right").astype(jnp.int32) - 1

    def at_round(self, round: Any) -> FederatedDataset:
        """What clients own in a round, which may be traced; its `order` ends in padding.

        Args:
          round: its number, from 0.
        """
        stage = self.stage_of(round)
        return FederatedDataset(
            self.examples, self.offsets[stage], self.order[stage], self.max_client_size
        )

    def stage(self, index: int) -> FederatedDataset:
        """A stage as a data set of its own, for scoring or for a Fisher information.

        Args:
          index: its number, from 0.

        Raises:
          ValueError: if there is no such stage.
        """
        if not 0 <= index < self.num_stages:
            raise ValueError(f"index must be in [0, {self.num_stages}), got {index}")
        offsets = self.offsets[index]
        order = self.order[index, : int(offsets[-1])]
        return FederatedDataset(self.examples, offsets, order, int(jnp.diff(offsets).max()))


def task_stream(stages: Sequence[FederatedDataset], starts: Sequence[int]) -> TaskStream:
    """A population whose clients' data change over the rounds: tasks that come one after the other.

    Args:
      stages: one data set a stage, of the same clients in the same order and with examples of the
        same structure and dtypes. Parts of one data set (`split_tasks`, `split_clients`) share
        their examples; others are joined. Clients may change at different times: a stage says what
        each of them has. A client without examples in a stage does not train in it.
      starts: the round in which each stage begins: 0 first, then ascending. The last stage lasts.

    Returns:
      A `TaskStream`, for ``algo.init``, ``algo.round`` and `run`. It takes the memory of the
      examples, and of `T` orders, each as long as the longest.

    Raises:
      TypeError: if a stage is no `FederatedDataset`.
      ValueError: if there is no stage, numbers of clients or structures differ, or `starts` are not
        as many, do not begin with 0 or do not ascend.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"y": np.array([0, 1, 0, 1, 1])}, [0, 0, 1, 1, 1])
      >>> stages = split_tasks(data, data.examples["y"])
      >>> stream = task_stream(stages, [0, 10])
      >>> [stream.at_round(r).sizes.tolist() for r in (0, 9, 10, 99)]
      [[1, 1], [1, 1], [1, 2], [1, 2]]
    """
    given: list[Any] = list(stages) if isinstance(stages, list | tuple) else [stages]
    if not given:
        raise ValueError("stages must hold one data set at least, got none; split_tasks makes some")
    for stage in given:
        if not isinstance(stage, FederatedDataset):
            raise TypeError(
                f"stages must hold FederatedDatasets, got {shown(stage)}; fl.data.split_tasks("
                "data, tasks), or a list of several"
            )
        if stage.num_clients != given[0].num_clients:
            raise ValueError(
                f"stages must have the same clients, got {given[0].num_clients} and "
                f"{stage.num_clients}; from_arrays(..., num_clients={given[0].num_clients})"
            )
    begins = _starts(starts, len(given))
    examples, shifts = _joined(given)
    orders = []
    for stage, shift in zip(given, shifts, strict=True):
        rows = np.arange(stage.num_examples) if stage.order is None else np.asarray(stage.order)
        orders.append(rows[: int(stage.offsets[-1])] + shift)
    longest = max(map(len, orders))
    padded = [np.pad(order, (0, longest - len(order))) for order in orders]
    return TaskStream(
        examples,
        jnp.stack([stage.offsets for stage in given]),
        jnp.asarray(np.stack(padded).astype(np.int32)),
        jnp.asarray(begins),
        max(int(stage.sizes.max()) for stage in given),
    )


def split_tasks(
    data: FederatedDataset, tasks: Any, *, num_tasks: int | None = None
) -> list[FederatedDataset]:
    """The parts of a population that belong to each task, over the same examples.

    Args:
      data: the population.
      tasks: integers `[E]`, the task of each pooled example, such as ``task_of_label[y]``; -1 for
        one that belongs to none.
      num_tasks: `T`; None: the largest task and those below it.

    Returns:
      `T` data sets of all clients, for `task_stream` or to score by. Nothing is copied: they hold
      the same ``examples``.

    Raises:
      TypeError: if `data` is no `FederatedDataset`.
      ValueError: if `tasks` are not integers `[E]` from -1 to ``T - 1``, or a task has no example.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"y": np.array([0, 1, 2, 2])}, [0, 0, 0, 1])
      >>> early, late = split_tasks(data, np.array([0, 0, 1])[data.examples["y"]])
      >>> early.sizes.tolist(), late.sizes.tolist(), late.examples is data.examples
      ([2, 0], [1, 1], True)
    """
    if not isinstance(data, FederatedDataset):
        raise TypeError(
            f"data must be a FederatedDataset, got {shown(data)}; build one with "
            "fl.data.from_arrays(examples, client_ids)"
        )
    given, size = np.asarray(tasks), jax.tree.leaves(data.examples)[0].shape[0]
    if given.shape != (size,) or given.dtype.kind not in "iu":
        raise ValueError(
            f"tasks must be integers [{size}], one for each pooled example, got "
            f"{given.dtype}{list(given.shape)}; np.array([0, 0, 1])[labels]"
        )
    if num_tasks is not None:
        check_count(num_tasks, "num_tasks", minimum=1)
    number = int(given.max()) + 1 if num_tasks is None else num_tasks
    if number < 1 or given.min() < -1 or given.max() >= number:
        raise ValueError(
            f"tasks must lie in [-1, {number}), got {given.min()}..{given.max()}; -1 is no task"
        )
    rows = np.arange(size) if data.order is None else np.asarray(data.order)
    owners = np.repeat(np.arange(data.num_clients), np.asarray(data.sizes))
    found = []
    for task in range(number):
        mine = given[rows] == task
        if not mine.any():
            raise ValueError(
                f"tasks must all have examples, got none of task {task}; number those that have "
                "some from 0 on"
            )
        sizes = np.bincount(owners[mine], minlength=data.num_clients)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        order = jnp.asarray(rows[mine].astype(np.int32))
        found.append(FederatedDataset(data.examples, jnp.asarray(offsets), order, int(sizes.max())))
    return found


def _starts(starts: Any, number: int) -> np.ndarray:
    found = np.asarray(starts)
    if found.shape != (number,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"starts must be integers [{number}], the round in which each stage begins, got "
            f"{shown(starts)}; [0, 10, ...]"
        )
    if found[0] != 0 or (np.diff(found) <= 0).any() or found[-1] >= 2**31:
        raise ValueError(
            f"starts must begin with round 0 and ascend, got {found.tolist()}; [0, 10, ...]"
        )
    return found.astype(np.int32)


def _joined(stages: list[FederatedDataset]) -> tuple[PyTree, list[int]]:
    """The examples of all stages, each once, and where each stage's begin."""
    kinds = [
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", stage.examples)
        for stage in stages
    ]
    for kind in kinds[1:]:
        if kind != kinds[0]:
            raise ValueError(
                f"stages must have examples of the same structure, shapes and dtypes, got "
                f"{kinds[0]} and {kind}; give all of them the same arrays by name"
            )
    different: list[PyTree] = []
    places = []
    for stage in stages:
        leaves = jax.tree.leaves(stage.examples)
        for place, known in enumerate(different):
            if all(a is b for a, b in zip(leaves, jax.tree.leaves(known), strict=True)):
                places.append(place)
                break
        else:
            places.append(len(different))
            different.append(stage.examples)
    begins = np.cumsum([0, *(jax.tree.leaves(one)[0].shape[0] for one in different)])
    if len(different) == 1:
        return different[0], [0] * len(stages)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *different)
    return joined, [int(begins[place]) for place in places]
