"""Laws of the slots: aggregators, transforms, samplers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.testing.algorithm_laws import run_laws, same
from fedjax_lite.types import Aggregator, Cohort, Message, PyTree, Sampler, Transform

KEY = jax.random.key  # made on use: no key at import


@functools.lru_cache(maxsize=32)
def compiled(function: Callable) -> Callable:
    """One compiled function for several laws."""
    return jax.jit(function)


def value_tree(*, scale: float = 1.0) -> PyTree:
    """A small value with two leaves."""
    leaves = {"a": np.array([3.0, -4.0, 0.5]), "b": np.array([[1.0, 2.0]])}
    return {name: jnp.asarray(scale * leaf) for name, leaf in leaves.items()}


def messages(num_clients: int = 5) -> Message:
    """Messages `[C, ...]` of different values and weights."""
    factors = np.arange(1.0, num_clients + 1)
    values = {
        name: jnp.asarray(factors.reshape((-1,) + (1,) * leaf.ndim) * np.float64(leaf) - 1.0)
        for name, leaf in value_tree().items()
    }
    return Message(values, jnp.asarray(factors * 10))


def row(stack: PyTree, i: int | slice | np.ndarray) -> PyTree:
    """Some rows of a stack, taken without compiling anything."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[i]), stack)


def aggregate(
    aggregator: Aggregator, stack: Message, mask: jax.Array, *, num_lanes: int | None = None
) -> tuple[PyTree, PyTree]:
    """The aggregate of a stack of messages `[C, ...]`, folded in chunks of lanes."""
    size = mask.shape[0]
    acc = aggregator.init(row(stack, 0), size)
    for low in range(0, size, num_lanes or size):
        acc = add_part(aggregator, acc, stack, mask, slice(low, low + (num_lanes or size)))
    return finish(aggregator, acc, mask, row(stack.value, 0))


def finish(
    aggregator: Aggregator,
    acc: PyTree,
    mask: jax.Array,
    value: PyTree,
    ids: np.ndarray | None = None,
) -> tuple[PyTree, PyTree]:
    """The aggregate of an accumulator in the first round, of clients `ids` (their slots)."""
    ids = np.arange(mask.shape[0]) if ids is None else ids
    cohort = Cohort(jnp.asarray(ids, jnp.int32), mask)
    return compiled(aggregator.finish)(KEY(0), aggregator.init_state(value), acc, cohort)


def add_part(
    aggregator: Aggregator, acc: PyTree, stack: Message, mask: jax.Array, part: slice
) -> PyTree:
    """Adds the messages of some slots."""
    slots = np.arange(mask.shape[0])[part]
    some, mask = row(stack, part), jnp.asarray(np.asarray(mask)[part])
    return compiled(aggregator.add)(acc, some, jnp.asarray(slots), mask)


def folds_merge_by_addition(aggregator: Aggregator) -> None:
    """Chunks of any length, and accumulators added afterwards, give the same aggregate."""
    stack, mask = messages(), jnp.array([True, True, False, True, True])
    whole = aggregate(aggregator, stack, mask)
    for lanes in (1, 2, 3):
        same(aggregate(aggregator, stack, mask, num_lanes=lanes), whole)
    parts = [
        add_part(aggregator, aggregator.init(row(stack, 0), 5), stack, mask, part)
        for part in (slice(0, 2), slice(2, 5))
    ]
    merged = jax.tree.map(jnp.add, *parts)
    same(finish(aggregator, merged, mask, row(stack.value, 0)), whole)


def masked_messages_leave_no_trace(aggregator: Aggregator) -> None:
    """NaN in a masked message has exactly zero effect."""
    stack, mask = messages(), jnp.array([True, False, True, True, True])

    def spoil(value: float) -> Message:
        put = lambda leaf: jnp.asarray(np.concatenate([leaf[:1], 0 * leaf[:1] + value, leaf[2:]]))  # noqa: E731
        return jax.tree.map(lambda leaf: put(np.asarray(leaf)), stack)

    same(
        aggregate(aggregator, spoil(jnp.nan), mask),
        aggregate(aggregator, spoil(0.0), mask),
        exact=True,
    )


def nothing_aggregates_to_zero(aggregator: Aggregator) -> None:
    """The aggregate of nobody is zero."""
    _, value = aggregate(aggregator, messages(), jnp.zeros(5, bool))
    chex.assert_trees_all_equal(value, jax.tree.map(np.zeros_like, value))


def equal_messages_aggregate_to_themselves(aggregator: Aggregator) -> None:
    """Where three of five slots are live and say the same, that is the aggregate (or its sign).

    A rule that divides by the number of slots fails. A sum with a fixed denominator is tried with
    the denominator 3; the messages have a norm of 0.67 and weight 1. A rule for which three are too
    few, and whose answer is zero then, is asked again with five.
    """
    said = jax.tree.map(lambda leaf: np.full_like(np.asarray(leaf), 0.3), messages().value)
    stack = Message(jax.tree.map(jnp.asarray, said), jnp.asarray(np.ones(5)))
    _, value = aggregate(aggregator, stack, jnp.array([True, False, True, False, True]))
    if all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(value)):
        _, value = aggregate(aggregator, stack, jnp.ones(5, bool))
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        leaf, name = np.asarray(leaf), jax.tree_util.keystr(path)
        close = np.abs(leaf - 0.3).max() < 5e-3 or (leaf == 1).all()
        assert close, f"{name}: three live slots of five say 0.3, the aggregate is {leaf}"


def order_of_slots_does_not_matter(aggregator: Aggregator) -> None:
    """Clients that sit in other slots, with all that is theirs, give the same aggregate."""
    stack, mask = messages(), np.array([True, True, False, True, True])
    _, expected = aggregate(aggregator, stack, jnp.asarray(mask))
    order = np.array([3, 0, 4, 2, 1])
    there, moved = row(stack, order), jnp.asarray(mask[order])
    acc = add_part(aggregator, aggregator.init(row(stack, 0), 5), there, moved, slice(0, 5))
    _, value = finish(aggregator, acc, moved, row(stack.value, 0), order)
    same(value, expected, message="where clients sit in other slots")


def aggregate_has_the_shape_of_a_value(aggregator: Aggregator) -> None:
    """The aggregate has a value's structure and shapes, and states keep theirs."""
    stack = messages()
    state, value = aggregate(aggregator, stack, jnp.ones(5, bool))
    template = row(stack.value, 0)
    chex.assert_trees_all_equal_shapes(value, template)
    chex.assert_trees_all_equal_shapes(state, aggregator.init_state(template))


AGGREGATOR_LAWS: dict[str, Callable[[Aggregator], None]] = {
    law.__name__: law
    for law in (
        folds_merge_by_addition,
        masked_messages_leave_no_trace,
        nothing_aggregates_to_zero,
        equal_messages_aggregate_to_themselves,
        order_of_slots_does_not_matter,
        aggregate_has_the_shape_of_a_value,
    )
}

LAWS_OF_NOISE = tuple(
    name
    for name, law in AGGREGATOR_LAWS.items()
    if law not in (nothing_aggregates_to_zero, equal_messages_aggregate_to_themselves)
)
"""Those that hold for an aggregator that adds noise: the others ask for exact values."""


def check_aggregator(aggregator: Aggregator, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws of aggregators on one of one's own.

    Example:
      >>> import fedjax_lite as fl
      >>> check_aggregator(fl.mean())
    """
    run_laws(AGGREGATOR_LAWS, aggregator, laws)


def transform_keeps_shapes(transform: Transform) -> None:
    """Values keep structure, shapes and dtypes; states keep theirs."""
    value = value_tree()
    state = transform.init(value)
    new_state, new = jax.eval_shape(transform.update, KEY(0), state, value)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, value)
    chex.assert_trees_all_equal_shapes(new_state, state)


def transform_is_pure(transform: Transform) -> None:
    """The same key gives the same bits, and jit changes nothing."""
    value = value_tree()
    state = transform.init(value)
    once = transform.update(KEY(0), state, value)
    same(transform.update(KEY(0), state, value), once, exact=True)
    same(compiled(transform.update)(KEY(0), state, value), once)


def transform_maps_over_clients(transform: Transform) -> None:
    """A vmap over clients with a key each equals a loop."""
    factors = (1.0, 2.0, -1.0)
    values = [value_tree(scale=factor) for factor in factors]
    stack = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *values)
    keys = jax.random.split(KEY(1), 3)
    state = transform.init(value_tree())
    _, many = jax.jit(jax.vmap(transform.update, in_axes=(0, None, 0)))(keys, state, stack)
    for i, one in enumerate(values):
        same(row(many, i), compiled(transform.update)(keys[i], state, one)[1])


def zero_stays_finite(transform: Transform) -> None:
    """A zero value gives no NaN."""
    value = value_tree(scale=0.0)
    state = transform.init(value)
    chex.assert_tree_all_finite(compiled(transform.update)(KEY(0), state, value))


TRANSFORM_LAWS: dict[str, Callable[[Transform], None]] = {
    law.__name__: law
    for law in (
        transform_keeps_shapes,
        transform_is_pure,
        transform_maps_over_clients,
        zero_stays_finite,
    )
}


def check_transform(transform: Transform, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws of transforms on one of one's own.

    Example:
      >>> import fedjax_lite as fl
      >>> check_transform(fl.clip(1.0))
    """
    run_laws(TRANSFORM_LAWS, transform, laws)


SIZES = np.array([3, 5, 1, 0, 4, 7, 2], np.int32)


def sampled_ids_are_distinct(sampler: Sampler) -> None:
    """Real slots hold different clients of the population, unless the sampler says otherwise."""
    state = sampler.init(SIZES.shape[0])
    for seed in range(10):
        state, cohort = compiled(sampler.sample)(KEY(seed), state, SIZES)
        ids = np.asarray(cohort.ids)[np.asarray(cohort.mask)].tolist()
        assert sampler.repeats or len(set(ids)) == len(ids), f"a client came up twice: {ids}"
        assert all(0 <= i < SIZES.shape[0] for i in ids), f"outside the population: {ids}"


def sampling_is_pure(sampler: Sampler) -> None:
    """The same key gives the same cohort, jit changes nothing, dtypes are int32 and bool."""
    state = sampler.init(SIZES.shape[0])
    sizes = jnp.asarray(SIZES)
    once = sampler.sample(KEY(0), state, sizes)
    same(sampler.sample(KEY(0), state, sizes), once, exact=True)
    same(compiled(sampler.sample)(KEY(0), state, sizes), once, exact=True)
    assert (once[1].ids.dtype, once[1].mask.dtype) == (jnp.int32, jnp.bool_)


def nobody_is_left_out_for_good(sampler: Sampler) -> None:
    """Who takes part depends on the key, or on the state: every client with data comes up.

    A sampler that ignores its key and keeps nothing draws the same few for ever.
    """
    met: set[int] = set()
    state = sampler.init(SIZES.shape[0])
    for seed in range(60):
        state, cohort = compiled(sampler.sample)(KEY(seed), state, SIZES)
        met |= set(np.asarray(cohort.ids)[np.asarray(cohort.mask)].tolist())
    absent = set(np.flatnonzero(SIZES).tolist()) - met
    assert not absent, f"clients {sorted(absent)} did not come up in 60 rounds with 60 keys"


def cohorts_follow_the_key(sampler: Sampler) -> None:
    """Where a cohort is not everyone, and nothing was kept from it, another key gives another."""
    state = sampler.init(SIZES.shape[0])
    draws = [compiled(sampler.sample)(KEY(seed), state, SIZES) for seed in range(20)]
    who = [frozenset(np.asarray(c.ids)[np.asarray(c.mask)].tolist()) for _, c in draws]
    everyone = set(np.flatnonzero(SIZES).tolist()) <= who[0]
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(draws[0][0])]
    kept = any((a != np.asarray(b)).any() for a, b in zip(after, jax.tree.leaves(state)))
    assert len(set(who)) > 1 or everyone or kept, f"20 keys gave the cohort {sorted(who[0])}"


SAMPLER_LAWS: dict[str, Callable[[Sampler], None]] = {
    law.__name__: law
    for law in (
        sampled_ids_are_distinct,
        sampling_is_pure,
        nobody_is_left_out_for_good,
        cohorts_follow_the_key,
    )
}


def check_sampler(sampler: Sampler, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws of samplers on one of one's own.

    Example:
      >>> import fedjax_lite as fl
      >>> check_sampler(fl.uniform(3))
    """
    run_laws(SAMPLER_LAWS, sampler, laws)
