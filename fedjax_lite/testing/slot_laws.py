"""Laws of the slots: aggregators, transforms, samplers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

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


def row(stack: PyTree, i: int | slice) -> PyTree:
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
    aggregator: Aggregator, acc: PyTree, mask: jax.Array, value: PyTree
) -> tuple[PyTree, PyTree]:
    """The aggregate of an accumulator in the first round."""
    cohort = Cohort(jnp.asarray(np.arange(mask.shape[0], dtype=np.int32)), mask)
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
    for leaf in jax.tree.leaves(value):
        assert (np.asarray(leaf) == 0).all(), f"got {leaf}"


def aggregate_has_the_shape_of_a_value(aggregator: Aggregator) -> None:
    """The aggregate has a value's structure and shapes, and states keep theirs."""
    stack = messages()
    state, value = aggregate(aggregator, stack, jnp.ones(5, bool))
    template = row(stack.value, 0)
    assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, template)
    before = aggregator.init_state(template)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, before)


AGGREGATOR_LAWS: dict[str, Callable[[Aggregator], None]] = {
    law.__name__: law
    for law in (
        folds_merge_by_addition,
        masked_messages_leave_no_trace,
        nothing_aggregates_to_zero,
        aggregate_has_the_shape_of_a_value,
    )
}


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
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), value
    )
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)


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
    for leaf in jax.tree.leaves(compiled(transform.update)(KEY(0), state, value)):
        assert np.isfinite(np.asarray(leaf)).all(), f"got {leaf}"


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


SIZES = jnp.array([3, 5, 1, 0, 4, 7, 2], jnp.int32)


def sampled_ids_are_distinct(sampler: Sampler) -> None:
    """Real slots hold different clients of the population."""
    state = sampler.init(SIZES.shape[0])
    for seed in range(10):
        state, cohort = compiled(sampler.sample)(KEY(seed), state, SIZES)
        ids = np.asarray(cohort.ids)[np.asarray(cohort.mask)].tolist()
        assert len(set(ids)) == len(ids), f"a client came up twice: {ids}"
        assert all(0 <= i < SIZES.shape[0] for i in ids), f"outside the population: {ids}"


def sampling_is_pure(sampler: Sampler) -> None:
    """The same key gives the same cohort, jit changes nothing, dtypes are int32 and bool."""
    state = sampler.init(SIZES.shape[0])
    once = sampler.sample(KEY(0), state, SIZES)
    same(sampler.sample(KEY(0), state, SIZES), once, exact=True)
    same(compiled(sampler.sample)(KEY(0), state, SIZES), once, exact=True)
    assert (once[1].ids.dtype, once[1].mask.dtype) == (jnp.int32, jnp.bool_)


SAMPLER_LAWS: dict[str, Callable[[Sampler], None]] = {
    law.__name__: law for law in (sampled_ids_are_distinct, sampling_is_pure)
}


def check_sampler(sampler: Sampler, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws of samplers on one of one's own.

    Example:
      >>> import fedjax_lite as fl
      >>> check_sampler(fl.uniform(3))
    """
    run_laws(SAMPLER_LAWS, sampler, laws)
