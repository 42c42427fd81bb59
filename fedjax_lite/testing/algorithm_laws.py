"""Laws of federated algorithms; each is a function that raises AssertionError if broken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.differentiable import differentiable
from fedjax_lite.engine.lanes import chunked, sequential, vmapped
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.sampling import everyone, uniform
from fedjax_lite.testing.idling import idle
from fedjax_lite.testing.padding import overwritten
from fedjax_lite.testing.problem import SIZES, init_params, population
from fedjax_lite.types import (
    Cohort,
    FederatedAlgorithm,
    Key,
    Params,
    PyTree,
    RoundState,
    Sampler,
)

Make = Callable[[Any, Sampler, Strategy], FederatedAlgorithm]
"""``(learning_rate, sampler, strategy) -> algorithm`` on the problem of `fedjax_lite.testing`."""

RATE = 0.05
NUM_ROUNDS = 3
FOUR, ALL = uniform(4), everyone()
IDLE = 4
"""A client with data that does no step in `CHUNKS`; other strategies are not held against it."""
LANES, CHUNKS, SINGLE = vmapped(), idle(chunked(3), IDLE), sequential()
SPOILT = overwritten(SINGLE)
SCANNED = differentiable(100)  # more steps than the laws' population gives anyone


def check_algorithm(make: Make, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws on an algorithm of one's own.

    Args:
      make: ``(learning_rate, sampler, strategy) -> FederatedAlgorithm``; the learning rate may
        be traced. It trains `fedjax_lite.testing.loss`.
      laws: names out of `ALGORITHM_LAWS`; default all.

    Raises:
      AssertionError: naming the law that does not hold.
      ValueError: if a law's name is unknown.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite import testing
      >>> make = lambda rate, sampler, strategy: fl.fedsgd(
      ...     testing.loss, optax.sgd(rate), sampler=sampler, strategy=strategy)
      >>> check_algorithm(make, laws=["finite"])
    """
    run_laws(ALGORITHM_LAWS, make, laws)


def run_laws(table: dict[str, Callable], subject: Any, laws: Iterable[str] | None) -> None:
    """Runs laws of a table by name; the failing law is named in the error."""
    for name in table if laws is None else laws:
        if name not in table:
            raise ValueError(f"laws must be among {sorted(table)}, got {name!r}")
        try:
            table[name](subject)
        except AssertionError as error:
            raise AssertionError(f"law {name!r} does not hold: {error}") from error


@functools.lru_cache(maxsize=16)
def build(make: Make, sampler: Sampler, strategy: Strategy) -> FederatedAlgorithm:
    """One algorithm object for several laws, so that they share its compiled round."""
    return make(RATE, sampler, strategy)


@functools.lru_cache(maxsize=4)
def compiled_scan(make: Make) -> Callable[[Key, RoundState, FederatedDataset], RoundState]:
    """Some rounds as one program, to which its caller gives the state away."""
    algo = build(make, FOUR, CHUNKS)

    def scan(key: Key, state: RoundState, data: FederatedDataset) -> RoundState:
        one = lambda state, _: algo.round(key, state, data)  # noqa: E731
        return jax.lax.scan(one, state, None, length=NUM_ROUNDS)[0]

    return jax.jit(scan, donate_argnums=1)


def four_clients(ids: list[int], mask: list[bool] | None = None) -> Cohort:
    """A cohort in four slots: all laws that choose theirs run the same programs."""
    mask = [True] * 4 if mask is None else mask
    return Cohort(jnp.asarray(np.array(ids, np.int32)), jnp.asarray(np.array(mask)))


@functools.lru_cache(maxsize=8)
def problem(
    float64: bool, poisoned: int | None, zeroed: int | None
) -> tuple[Key, Params, FederatedDataset]:
    """A key, parameters and data, made once."""
    data = population(poisoned=poisoned, zeroed=zeroed)
    return jax.random.key(0), init_params(jax.random.key(7)), data


def start(
    make: Make,
    *,
    sampler: Sampler = FOUR,
    strategy: Strategy = CHUNKS,
    poisoned: int | None = None,
    zeroed: int | None = None,
) -> tuple[FederatedAlgorithm, Key, RoundState, FederatedDataset]:
    """The algorithm, a key, its first state and the data of the tiny problem."""
    algo = build(make, sampler, strategy)
    key, params, data = problem(jax.config.jax_enable_x64, poisoned, zeroed)
    return algo, key, algo.init(key, params, data), data


def rounds(
    algo: FederatedAlgorithm,
    key: Key,
    state: RoundState,
    data: FederatedDataset,
    num_rounds: int = NUM_ROUNDS,
    cohort: Cohort | None = None,
) -> RoundState:
    """Several rounds, one call each."""
    for _ in range(num_rounds):
        state, _ = algo.round(key, state, data, cohort)
    return state


def same(left: PyTree, right: PyTree, *, exact: bool = False, message: str = "") -> None:
    """Asserts that two trees agree: in every bit, or up to float32 rounding of a leaf's scale."""

    def agree(a: Any, b: Any) -> bool:
        a, b = np.asarray(a), np.asarray(b)
        if exact or a.dtype.kind != "f":
            return a.tobytes() == b.tobytes()
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        return np.allclose(a, b, rtol=2e-5, atol=2e-6 * scale, equal_nan=True)

    chex.assert_trees_all_equal_comparator(
        *(agree, lambda a, b: f"{a} against {b}", left, right),
        custom_message=message,
        include_default_message=False,
    )


def learnt(state: RoundState) -> tuple[PyTree, PyTree]:
    """Where an algorithm can keep what it learns: at the server, or with its clients."""
    return state.server, state.clients


def row_of(client: int, state: RoundState) -> tuple[PyTree, PyTree]:
    """All that is kept of a client."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[client], (state.clients, state.uplink))


def padding_leaves_no_trace(make: Make) -> None:
    """What fills up a short batch has no effect: ``batch.mask`` is respected."""
    cohort = four_clients([5, 2, 0, 4])  # 7, 1, 3 and 4 examples in batches of two, as a rule
    results = []
    for strategy in (SINGLE, SPOILT):
        algo, key, state, data = start(make, strategy=strategy)
        state, metrics = algo.round(key, state, data, cohort)
        results.append((learnt(state), state.aggregator, metrics))
    same(results[1], results[0], message="where padding was overwritten")


def structure_is_stable(make: Make) -> None:
    """State structure, shapes and dtypes are the same before and after a round."""
    algo, key, state, data = start(make)
    shape = jax.eval_shape(lambda: state)
    after = jax.eval_shape(algo.round, key, state, data)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(shape, after)


def jit_changes_nothing(make: Make) -> None:
    """A compiled round equals the round run operation by operation."""
    algo, key, state, data = start(make, strategy=LANES)  # in which the fewest operations differ
    cohort = four_clients([0, 3, 2, 6])  # few steps, a last batch that is not full, nothing at all
    with jax.disable_jit():
        eager = algo.round(key, state, data, cohort)
    same(algo.round(key, state, data, cohort), eager)


def scan_equals_calls(make: Make) -> None:
    """A scan over rounds equals a call a round."""
    algo, key, state, data = start(make)
    called = rounds(algo, key, state, data)
    same(compiled_scan(make)(key, jax.tree.map(jnp.copy, state), data), called)


def vmap_equals_loop(make: Make) -> None:
    """A vmap over seeds equals a loop over them, and seeds differ."""
    algo, _, state, data = start(make)
    keys = jax.random.split(jax.random.key(3), 3)
    many = jax.jit(jax.vmap(algo.round, in_axes=(0, None, None)))(keys, state, data)
    many = jax.device_get(many)
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda leaf: leaf[i], many)  # noqa: B023
        same(one, algo.round(key, state, data))
    moved = any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(learnt(many[0])))
    assert moved, "two seeds gave the same round: keys do not depend on the seed"


def strategies_agree(make: Make) -> None:
    """Every execution strategy gives the same rounds."""
    cohort = four_clients([5, 2, 1, 6])
    results = []
    for strategy in (LANES, CHUNKS, SINGLE, SCANNED):
        algo, key, state, data = start(make, strategy=strategy)
        results.append(rounds(algo, key, state, data, cohort=cohort))
    same(results[0], results[1], message="between vmapped and chunked(3)")
    same(results[0], results[2], message="between vmapped and sequential")
    same(results[0], results[3], message="between vmapped and differentiable")


def never_retraces(make: Make) -> None:
    """One trace serves every round and every value of the learning rate."""
    chex.clear_trace_counter()  # it takes functions of the same text for one

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one_round(rate, key, state, data):
        return make(rate, FOUR, CHUNKS).round(key, state, data)[0]

    _, key, state, data = start(make)
    first = one_round(RATE, key, state, data)
    second = one_round(RATE, key, first, data)
    other = one_round(RATE / 2, key, first, data)
    changed = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*(jax.tree.leaves(learnt(state)) for state in (second, other)), strict=True)
    ]
    assert any(changed), "the learning rate has no effect: it was compiled in"


def no_host_transfer(make: Make) -> None:
    """A round of a compiled program moves nothing between host and device."""
    algo, key, state, data = start(make)
    state, _ = algo.round(key, state, data)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(algo.round(key, state, data))


def keys_are_used_once(make: Make) -> None:
    """JAX's key-reuse checker finds nothing."""
    algo, key, state, data = start(make)
    try:
        with jax.debug_key_reuse(True):
            algo.round(key, state, data)
    except jax.errors.KeyReuseError as error:
        raise AssertionError(f"a key is used twice: {error}") from error


def slots_do_not_matter(make: Make) -> None:
    """A cohort in another order gives the same state."""
    algo, key, state, data = start(make, strategy=CHUNKS)
    cohort = four_clients([5, 0, 3, 1], [True, True, True, False])
    shuffled = four_clients([3, 5, 1, 0], [True, True, False, True])
    same(algo.round(key, state, data, cohort)[0], algo.round(key, state, data, shuffled)[0])


def masked_clients_leave_no_trace(make: Make) -> None:
    """A masked client's data, NaN included, have exactly zero effect."""
    cohort = four_clients([0, 5, 1, 6], [True, False, True, True])
    results = []
    for poisoned, zeroed in ((5, None), (None, 5)):
        for strategy in (LANES, CHUNKS, SINGLE):
            algo, key, state, data = start(
                make, strategy=strategy, poisoned=poisoned, zeroed=zeroed
            )
            results.append(algo.round(key, state, data, cohort))
    for poisoned, zeroed in zip(results[:3], results[3:], strict=True):
        same(poisoned, zeroed, exact=True)
    before, after = state, results[0][0]
    same(row_of(5, after), row_of(5, before), exact=True, message="of a masked client")


def empty_clients_change_nothing(make: Make) -> None:
    """A client without data leaves no trace beside others."""
    assert SIZES[3] == 0
    algo, key, state, data = start(make, strategy=CHUNKS)
    pair = four_clients([0, 3, 1, 1], [True, True, False, False])
    alone = four_clients([0, 3, 1, 1], [True, False, False, False])
    after = algo.round(key, state, data, pair)[0]
    same(after.server, algo.round(key, state, data, alone)[0].server)
    same(row_of(3, after), row_of(3, state), exact=True, message="of a client without data")


def empty_cohort_changes_nothing(make: Make) -> None:
    """A round in which nobody counts leaves server and rows as they are, after any history.

    Nobody counts where all dropped out, and where those who did not have no data, or did no step
    and are given weight 0 for it, which ``num_clients`` tells.
    """
    algo, key, state, data = start(make, strategy=CHUNKS)
    for cohort in (
        four_clients([5, 2, 1, 6]),
        four_clients([0, 5, 1, 4], [True, True, False, True]),
    ):
        state, _ = algo.round(key, state, data, cohort)
    for nobody in (
        four_clients([0, 1, 2, 5], [False] * 4),
        four_clients([0, 3, 2, 5], [False, True, False, False]),
        four_clients([0, 3, IDLE, 5], [False, True, True, False]),
    ):
        after, metrics = algo.round(key, state, data, nobody)
        if metrics.get("num_clients", 0) > 0:
            continue  # an update that is not made of steps, or one that counts without them
        same(after.server, state.server, exact=True)
        same((after.clients, after.uplink), (state.clients, state.uplink), exact=True)
        assert int(after.round) == int(state.round) + 1


def finite(make: Make) -> None:
    """Everything is finite after rounds with everyone, metrics included, and something moved."""
    algo, key, state, data = start(make, sampler=ALL)
    before = state
    for _ in range(NUM_ROUNDS):
        state, metrics = algo.round(key, state, data)
    chex.assert_tree_all_finite((state, metrics))
    pairs = zip(*(jax.tree.leaves(learnt(one)) for one in (before, state)), strict=True)
    moved = any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    assert moved, "three rounds changed neither the server nor a client"


def survives_a_checkpoint(make: Make) -> None:
    """A state written to bytes and read back in mid-run ends in the same bits."""
    algo, key, state, data = start(make)
    straight = rounds(algo, key, state, data, 4)
    half = rounds(algo, key, state, data, 2)
    leaves, structure = jax.tree.flatten(half)
    stored = [(np.asarray(leaf).tobytes(), leaf.dtype, leaf.shape) for leaf in leaves]
    restored = [jnp.asarray(np.frombuffer(b, d).reshape(s)) for b, d, s in stored]
    same(rounds(algo, key, jax.tree.unflatten(structure, restored), data, 2), straight, exact=True)


def caller_keeps_its_arrays(make: Make) -> None:
    """Donating the state does not destroy the parameters that the caller passed in."""
    algo = build(make, FOUR, CHUNKS)
    params, data, key = init_params(jax.random.key(7)), population(), jax.random.key(0)
    before = jax.tree.map(np.array, params)
    compiled_scan(make)(key, algo.init(key, params, data), data)
    same(jax.tree.map(np.array, params), before, exact=True)


ALGORITHM_LAWS: dict[str, Callable[[Make], None]] = {
    law.__name__: law
    for law in (
        structure_is_stable,
        jit_changes_nothing,
        scan_equals_calls,
        vmap_equals_loop,
        strategies_agree,
        padding_leaves_no_trace,
        never_retraces,
        no_host_transfer,
        keys_are_used_once,
        slots_do_not_matter,
        masked_clients_leave_no_trace,
        empty_clients_change_nothing,
        empty_cohort_changes_nothing,
        finite,
        survives_a_checkpoint,
        caller_keeps_its_arrays,
    )
}
