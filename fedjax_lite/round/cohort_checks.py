"""What is asked of a cohort that a caller gives: arrays of the right kind, each client once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.data.population.dataset import ClientData, CohortDataset
from fedjax_lite.data.population.task_stream import TaskStream
from fedjax_lite.types import Cohort


def check_cohort(cohort: Any, data: ClientData | TaskStream, rows: Any = ()) -> None:
    """Raises where a cohort is not int ids `[C]` and a bool mask `[C]`, or a row has two writers.

    Ids outside the population are empty slots, and so are masked ones; they may repeat. A client
    may be named twice, and counts twice, where it keeps nothing (sampling with replacement); where
    it has a row, both slots would write it, and which one is kept is nobody's choice. What is
    traced has a dtype and a shape, and no ids to compare.

    Args:
      cohort: `Cohort`, of numpy or jax arrays.
      data: the population, or one cohort of it: a stream fetched whom the sampler drew, and its ids
        are not looked at.
      rows: what clients keep between rounds, such as ``(state.clients, state.uplink)``. Where it
        has leaves the ids are looked at, which waits for them if they are being computed.

    Raises:
      TypeError: if it is no `Cohort`, or ids, mask or late have another type.
      ValueError: if the shapes differ, the cohort is empty, or a client with a row is there
        twice.

    Example:
      >>> from fedjax_lite.data import from_arrays
      >>> data = from_arrays({"x": np.zeros(6)}, np.arange(6))
      >>> check_cohort(Cohort(np.array([0, 5]), np.ones(2, bool)), data)
      >>> try:
      ...     check_cohort(Cohort(np.array([5, 5]), np.ones(2, bool)), data, np.zeros(6))
      ... except ValueError as error:
      ...     print(str(error)[:58])
      cohort must name each client once, got id 5 in 2 slots: it
    """
    check_slot(cohort, "cohort", Cohort)
    parts = [("ids", "iu", "integers"), ("mask", "b", "bool"), ("late", "b", "bool")]
    for name, kinds, due in parts if cohort.late is not None else parts[:2]:
        value = getattr(cohort, name)
        if not isinstance(value, np.ndarray | jax.Array):
            raise TypeError(
                f"cohort.{name} must be an array of {due} [C], got {shown(value)}; jnp.array(...)"
            )
        if np.dtype(value.dtype).kind not in kinds:
            remedy = (
                "they number the population's rows" if name == "ids" else f"{name} > 0 makes one"
            )
            raise TypeError(f"cohort.{name} must be {due} [C], got {value.dtype}; {remedy}")
    if cohort.ids.ndim != 1 or cohort.ids.shape != cohort.mask.shape or not cohort.ids.size:
        raise ValueError(
            f"cohort must be ids [C] and mask [C] of one slot at least, got "
            f"{list(cohort.ids.shape)} and {list(cohort.mask.shape)}; an empty slot has mask False"
        )
    if cohort.late is not None and cohort.late.shape != cohort.ids.shape:
        raise ValueError(
            f"cohort.late must be [C], one for each of the {cohort.ids.size} ids, got "
            f"{list(cohort.late.shape)}; False for who is not late, or None where nobody is"
        )
    if isinstance(data, CohortDataset) or not jax.tree.leaves(rows):
        return
    if not (_at_hand(cohort.ids) and _at_hand(cohort.mask)):
        return
    ids, mask = (np.asarray(part) for part in jax.device_get((cohort.ids, cohort.mask)))
    here = ids[mask & (ids >= 0) & (ids < data.num_clients)]
    found, counts = np.unique(here, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"cohort must name each client once, got id {int(found[counts > 1][0])} in "
            f"{int(counts.max())} slots: its row would be written twice; leave the repeats out, "
            "or mask them"
        )


def _at_hand(array: Any) -> bool:
    """Whether this host can read it: neither traced nor spread over several hosts."""
    if isinstance(array, jax.core.Tracer):
        return False
    return isinstance(array, np.ndarray) or array.is_fully_addressable
