"""Sums modulo 2**32: an aggregator's accumulator as one vector, and a vector as an accumulator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS
from fedjax_lite.engine.phases import step_names
from fedjax_lite.engine.program import Job, Program, Strategy, Table
from fedjax_lite.types import Aggregator, Array, Message, PyTree

FEWEST = {
    "secure_mean": "threshold",
    "modular_mean": "min_clients",
    "secure_gaussian_sum": None,
}
"""Aggregators whose accumulator is a sum of integers, and which of their arguments says how many
clients there are to be in it; None: any number will do."""
WORD_BITS = 32


class Unsent(dict):
    """Metrics of clients that aggregate securely: those that the protocol tells, and no other."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"algo must need sums only to be aggregated securely, got one that reads {name!r} of "
            "each client; take a method whose server and sampler do not (fl.fedavg, fl.uniform), "
            "or fl.deploy.server"
        )


def check_sums(aggregator: Aggregator, secure: SecureSettings) -> None:
    """Raises where an aggregator is no sum of integers, or a sum might have too few clients.

    Raises:
      ValueError: that names what to give instead.

    Example:
      >>> import fedjax_lite as fl
      >>> check_sums(fl.secure_mean(max_abs=1.0), SecureSettings(threshold=2))
      >>> try:
      ...     check_sums(fl.median(), SecureSettings(threshold=2))
      ... except ValueError as error:
      ...     print(str(error)[:60])
      algo must sum integers to be aggregated securely, got median
    """
    made = aggregator.made
    if made is None or made.name not in FEWEST or made.replaced(aggregator):
        raise ValueError(
            f"algo must sum integers to be aggregated securely, got {made}; give it "
            "aggregator=fl.secure_mean(...), or fl.privacy.distributed_discrete_gaussian(...) or "
            "secure_gaussian(...) as privacy"
        )
    if made.arguments.get("masks", "none") != "none":
        raise ValueError(
            "masks of secure_mean must be 'none', got 'pairwise': they simulate those of the "
            "protocol, which now comes itself"
        )
    count = FEWEST[made.name]
    least = 1 if count is None else made.arguments[count]
    if secure.fewest < least:
        raise ValueError(
            f"min_survivors of secure must be at least {least}, which the aggregator needs, got "
            f"{secure.fewest}; SecureSettings(threshold, min_survivors={least})"
        )


class Layout(NamedTuple):
    """An accumulator as a vector."""

    init: Callable[[], PyTree]
    """``() -> acc`` of nobody."""
    length: int
    """Words of a vector."""


def layout_of(aggregator: Aggregator, message: Message, cohort_size: int) -> Layout:
    """The layout of an aggregator's accumulator.

    Args:
      aggregator: of `check_sums`.
      message: shapes of one client's.
      cohort_size: `C`.
    """

    def init() -> PyTree:
        return aggregator.init(message, cohort_size)

    leaves = jax.tree.leaves(jax.eval_shape(init))
    return Layout(init, sum(math.prod(leaf.shape) for leaf in leaves if _is_words(leaf)))


def one_vector(
    aggregator: Aggregator, layout: Layout, message: Message, counts: Array, slots: Array
) -> Array:
    """One client's accumulator: its message in each of its slots.

    Args:
      aggregator: of `check_sums`.
      layout: of its accumulator.
      message: what the client would send in the clear.
      counts: bool scalar, whether it counts.
      slots: int32 `[k]`, its places in the cohort.

    Returns:
      uint32 `[length]`.
    """
    times = slots.shape[0]
    lanes = jax.tree.map(lambda x: jnp.broadcast_to(x, (times, *jnp.shape(x))), message)
    acc = aggregator.add(layout.init(), lanes, slots, jnp.broadcast_to(counts, (times,)))
    return flattened(acc)


def flattened(acc: PyTree) -> Array:
    """The integers of an accumulator, uint32 `[length]`.

    Example:
      >>> flattened({"codes": jnp.arange(2, dtype=jnp.uint32), "count": jnp.int32(1),
      ...            "seen by nobody": jnp.float32(0.5)}).tolist()
      [0, 1, 1]
    """
    words = [
        leaf.astype(jnp.uint32).reshape(-1) for leaf in jax.tree.leaves(acc) if _is_words(leaf)
    ]
    return jnp.concatenate(words)


def refilled(acc: PyTree, vector: Array) -> PyTree:
    """An accumulator with the integers of a vector; what is no integer was not sent, and is NaN.

    Example:
      >>> acc = {"codes": jnp.zeros(2, jnp.uint32), "count": jnp.int32(0)}
      >>> refilled(acc, jnp.array([4, 5, 6], jnp.uint32))["codes"].tolist()
      [4, 5]
    """
    leaves, structure = jax.tree.flatten(acc)
    found, low = [], 0
    for leaf in leaves:
        if not _is_words(leaf):
            found.append(jnp.full_like(leaf, jnp.nan))
            continue
        high = low + math.prod(leaf.shape)
        found.append(vector[low:high].reshape(leaf.shape).astype(leaf.dtype))
        low = high
    return jax.tree.unflatten(structure, found)


def summed(total: Array, came: Array) -> Strategy:
    """The strategy of a server that learnt the sum of its clients' accumulators, and nothing else.

    Args:
      total: uint32 `[length]`.
      came: bool `[C]`: whose vector is in it.
    """

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        acc = refilled(acc, total)
        there = job.work.mask & came
        counted = there & present_in(job.program, acc)
        bits = jnp.where(there, jnp.float32(WORD_BITS * total.shape[0]), 0)
        steps = {
            CLIENT_STEPS: job.work.num_steps,
            **{name: job.work.steps_of(i) for name, i in step_names(job.program.phases).items()},
        }
        metrics = {
            "uplink_bits": bits,
            "uplink_entropy_bits": bits,
            CLIENT_COUNTED: counted.astype(jnp.float32),
            **{name: jnp.where(there, n, 0).astype(jnp.float32) for name, n in steps.items()},
        }
        return table, acc, Unsent(metrics)

    return Strategy(execute, "summed()")


def present_in(program: Program, acc: Any) -> Array:
    """Bool `[C]`, or True: who counts by the sum itself, which knows whose weight was 0."""
    return acc.present > 0 if program.weighed else jnp.bool_(True)


def wrong_slots(acc: Any, came: np.ndarray) -> list[int]:
    """Slots that a sum counts twice, or though nobody was there: somebody sent a wrong vector."""
    if not hasattr(acc, "present"):
        return []
    return np.flatnonzero(np.asarray(acc.present) > came).tolist()


def _is_words(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.integer)
