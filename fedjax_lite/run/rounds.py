"""How one call of a run does several rounds: a compiled loop whose length is an argument."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.task_stream import TaskStream
from fedjax_lite.engine.lanes import chunked
from fedjax_lite.engine.mesh.cores import dealt_mesh, shared
from fedjax_lite.engine.mesh.placement import replicate
from fedjax_lite.engine.peak_memory import check_fits
from fedjax_lite.types import FederatedAlgorithm, Key, PyTree, RoundState


class Rounds(NamedTuple):
    """How a run does its rounds, whatever its data are."""

    start: Callable[[RoundState], RoundState]
    """The run's own copy of a state: `advance` may destroy what it is given."""
    advance: Callable[[RoundState, int], tuple[RoundState, PyTree]]
    """``(state, length) -> (state, metrics [capacity])``; entries behind `length` mean nothing."""
    names: Callable[[RoundState], frozenset[str]] | None = None
    """``(state) ->`` names of a round's metrics, before one is run; None: not known before."""


class HostData(Protocol):
    """A data set that brings its own way to do rounds, such as one that streams."""

    def rounds(self, algo: FederatedAlgorithm, key: Key, *, capacity: int) -> Rounds:
        """How `run` does at most `capacity` rounds a call on this data set."""
        ...


def rounds_of(algo: FederatedAlgorithm, key: Key, data: Any, *, capacity: int) -> Rounds:
    """The data set's own `Rounds` where it brings them, else `compiled_rounds`.

    Args:
      algo: what a round does.
      key: a typed key; every round is given the same.
      data: arrays handed to ``algo.round``, or a data set with a method `rounds`.
      capacity: rounds that one call does at most.

    Example:
      >>> def round(key, state, data, cohort=None):
      ...     return state._replace(round=state.round + 1), {"sum": data.sum()}
      >>> algo = FederatedAlgorithm(lambda *_: None, round)
      >>> rounds = rounds_of(algo, jax.random.key(0), np.ones(3), capacity=2)
      >>> state = rounds.start(RoundState(np.int32(0), (), (), (), (), ()))
      >>> state, metrics = rounds.advance(state, 2)
      >>> int(state.round), metrics["sum"].tolist()
      (2, [3.0, 3.0])
    """
    if hasattr(data, "rounds"):
        return data.rounds(algo, key, capacity=capacity)
    return compiled_rounds(algo, key, data, capacity=capacity)


def compiled_rounds(algo: FederatedAlgorithm, key: Key, data: PyTree, *, capacity: int) -> Rounds:
    """Rounds on data that lie on the device: all rounds of a call are one compiled loop.

    The first call checks that the compiled loop fits into memory, before it runs.

    Raises:
      ValueError: from the first `advance`, with the bytes needed, the bytes available, and the
        number of lanes that would fit.
    """
    data = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), data)
    mesh = dealt_mesh(algo) if isinstance(data, FederatedDataset | TaskStream) else None
    data = data if mesh is None else shared(data, mesh)
    checked = _checked.setdefault(algo.round, {})

    def names(state: RoundState) -> frozenset[str]:
        leaves, structure = jax.tree.flatten((state, data))
        shapes = (capacity, structure, *map(_aval, leaves))
        with watching(outputs_of(algo.round), state.server, getattr(data, "examples", None)):
            if shapes not in checked:
                checked[shapes] = check_memory(algo, key, state, data, capacity=capacity)
        return checked[shapes]

    def advance(state: RoundState, length: int) -> tuple[RoundState, PyTree]:
        names(state)  # checks labels and, of shapes that are new, memory
        state, metrics = many_rounds(key, state, data, np.int32(length), algo.round, capacity)
        wait((state.round, metrics))
        return state, metrics

    def start(state: RoundState) -> RoundState:
        return own(state if mesh is None else replicate(state, mesh=mesh))

    return Rounds(start, advance, names)


_checked: weakref.WeakKeyDictionary[Callable[..., Any], dict] = weakref.WeakKeyDictionary()
"""What was found to fit, by `algo.round`, and the names of its metrics: a second `run` of a program
does not ask again."""


def _aval(leaf: jax.Array) -> tuple[Any, ...]:
    return leaf.shape, leaf.dtype, leaf.sharding


def check_memory(
    algo: FederatedAlgorithm, key: Key, state: RoundState, data: PyTree, *, capacity: int
) -> frozenset[str]:
    """Raises ValueError where the compiled rounds cannot fit; the compiled program is kept.

    Returns:
      The names of the metrics.
    """

    def compiled(algo: FederatedAlgorithm) -> Any:
        return many_rounds.lower(key, state, data, np.int32(1), algo.round, capacity).compile()

    recompile, most_lanes = None, 1
    one_device = all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(state))
    if algo.sample is not None and algo.with_strategy is not None and one_device:
        with_strategy = algo.with_strategy
        sample = jax.eval_shape(algo.sample, key, state.round, state.sampler, data.sizes)
        most_lanes = sample[1].ids.shape[0]
        recompile = lambda lanes: compiled(with_strategy(chunked(lanes)))  # noqa: E731
    lowered = many_rounds.lower(key, state, data, np.int32(1), algo.round, capacity)
    check_fits(lowered.compile(), recompile, most_lanes)
    metrics = lowered.out_info[1]
    return frozenset(map(str, metrics)) if isinstance(metrics, Mapping) else frozenset()


@functools.partial(jax.jit, static_argnums=(4, 5), donate_argnums=1)
def many_rounds(
    key: Key,
    state: RoundState,
    data: PyTree,
    length: jax.Array,
    round_fn: Callable[..., Any],
    capacity: int,
) -> tuple[RoundState, PyTree]:
    """`length <= capacity` rounds; metrics `[capacity]`, zeros behind the first `length`.

    The length is an argument and not a shape, because XLA compiles loops of different known
    lengths (above all 1) to different arithmetic, and results must not depend on the grouping.
    """
    one_round = jax.jit(round_fn)  # traced once for both the shapes and the loop
    _, shapes = jax.eval_shape(one_round, key, state, data)
    table = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

    def body(index: Any, carry: Any) -> Any:
        state, table = carry
        state, metrics = one_round(key, state, data)
        return state, jax.tree.map(lambda t, m: t.at[index].set(m), table, metrics)

    return jax.lax.fori_loop(0, length, body, (state, table))


def own(state: PyTree) -> PyTree:
    """A copy that may be donated, without weak types, which would compile the loop again."""

    def copy(leaf: Any) -> jax.Array:
        leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(copy, state)


def wait(tree: PyTree) -> None:
    """Waits in Python, so that a signal is seen while the device still computes."""
    pause = 1e-4
    for leaf in jax.tree.leaves(tree):
        while not leaf.is_ready():
            time.sleep(pause)
            pause = min(2 * pause, 0.002)
    jax.block_until_ready(tree)  # raises what the computation raised
