"""stacked(): an aggregator from a rule that needs all messages of a cohort at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_mask, shown
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, Params, PyTree


class Stack(NamedTuple):
    """All messages of a cohort; also the accumulator: slots are disjoint, so parts merge by +."""

    values: PyTree
    """Leaves `[C, ...]` in float32 or wider; zero where `mask` is False."""
    weights: Array
    """`[C]`, 0 for who does not count."""
    mask: Array
    """bool `[C]`: who sent a message that counts."""


Rule = Callable[[Key, PyTree, Stack, Cohort], tuple[PyTree, PyTree]]
"""``(key, state, stack, cohort) -> (state, value)``."""


class Slots(NamedTuple):
    """The accumulator of `stacked`."""

    values: PyTree
    weights: Array


def stacked(
    rule: Rule,
    *,
    init_state: Callable[[Params], PyTree] = lambda params: (),
    check: Callable[[int], None] = lambda cohort_size: None,
    like_message: bool = True,
) -> Aggregator:
    """An aggregator whose `rule` sees the whole stack of messages.

    Messages are written to their slot of a `[C, ...]` buffer; clients that are masked, and those
    of weight 0, are zero there and marked in ``stack.mask``. The aggregate of nobody is zero,
    whatever the rule says; of messages without leaves it is such a message, and the rule is not
    asked. Memory O(cohort x model).

    Args:
      rule: ``(key, state, stack, cohort) -> (state, value)``, under jit: who takes part is traced,
        the cohort's size `C` is not.
      init_state: ``(params) ->`` what the rule keeps between rounds.
      check: ``(C) -> None``, raises ValueError where the rule's condition cannot be met by any
        round of such a cohort; called when the round is built.
      like_message: whether the value must be shaped like a message; False for a rule that is
        looked at outside of a round, or hands on what another aggregator returns.

    Returns:
      An `Aggregator`.

    Raises:
      TypeError: (when the round is traced) if `rule` does not return a pair.
      ValueError: (when the round is traced) if messages do not have one scalar weight, or the
        rule's state or value is shaped otherwise than the last state or a message.

    Example:
      >>> def largest(key, state, stack, cohort):
      ...     rows = jnp.where(stack.mask[:, None], stack.values, -jnp.inf)
      ...     return state, rows.max(0)
      >>> aggregate_stack(stacked(largest), jnp.array([[1.0, 5.0], [2.0, 3.0]])).tolist()
      [2.0, 5.0]
    """

    def init(message: Message, cohort_size: int) -> Slots:
        check_scalar_weight(message)
        check(cohort_size)
        weight = jax.tree.leaves(message.weight)[0]
        return Slots(*trees.wide_zeros((message.value, weight), cohort_size))

    def add(acc: Slots, messages: Message, slots: Array, mask: Array) -> Slots:
        (weights,) = jax.tree.leaves(messages.weight)
        counts = mask & (weights > 0)
        cast = jax.tree.map(
            lambda x, leaf: x.astype(leaf.dtype), (messages.value, weights), (*acc,)
        )
        # A select, not a product: what a masked client sent may be NaN.
        cast = trees.where(counts, cast, jax.tree.map(jnp.zeros_like, cast))
        return Slots(*trees.scatter_rows((*acc,), slots, counts, cast))

    def finish(key: Key, state: PyTree, acc: Slots, cohort: Cohort) -> tuple[PyTree, PyTree]:
        if not jax.tree.leaves(acc.values):
            return state, acc.values
        stack = Stack(acc.values, acc.weights, acc.weights > 0)
        result = rule(key, state, stack, cohort)
        message = jax.tree.map(lambda leaf: leaf[0], acc.values) if like_message else None
        state, value = check_result(result, state, message)
        anybody = stack.mask.any()
        return state, jax.tree.map(lambda leaf: jnp.where(anybody, leaf, 0), value)

    return Aggregator(init_state, init, add, finish)


def check_result(result: object, state: PyTree, message: PyTree) -> tuple[PyTree, PyTree]:
    """What a rule returned, as a pair; raises where it is none or its parts have other shapes.

    The value may have any where `message` is None.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(f"rule must return (state, value), got {got}")
    new, value = result
    message = value if message is None else message
    for name, is_, was, of in (("value", value, message, "a message"),
                               ("state", new, state, "the state that it got")):  # fmt: skip
        shapes, wanted = (jax.tree.map(lambda leaf: list(jnp.shape(leaf)), x) for x in (is_, was))
        if shapes != wanted or jax.tree.structure(is_) != jax.tree.structure(was):
            raise ValueError(
                f"rule must return (state, value) with a {name} shaped like {of}: got shapes "
                f"{shapes}, not {wanted}"
            )
    return new, value


def void_below(least: Array | int, stack: Stack, value: PyTree) -> PyTree:
    """`value`, or zero where fewer than `least` clients came: a round without an aggregate."""
    enough = stack.mask.sum() >= least
    return jax.tree.map(lambda leaf: jnp.where(enough, leaf, 0), value)


def need_clients(rule: str, condition: str, least: int) -> Callable[[int], None]:
    """A check for `stacked`: at least `least` clients, or an error that states the condition."""

    def check(cohort_size: int) -> None:
        if cohort_size < least:
            raise ValueError(
                f"{rule} needs n >= {condition} = {least} clients, got a cohort of {cohort_size}; "
                "sample more clients or assume fewer Byzantine ones"
            )

    return check


def check_scalar_weight(message: Message) -> None:
    """Raises ValueError where a message has another weight than one number."""
    shapes = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(message.weight)]
    if shapes != [[]]:
        raise ValueError(
            f"a rule that sees the whole stack needs one weight per client, got weights of shapes "
            f"{shapes}; use mean(), or send one weight"
        )


def check_like_model(rule: str, state: PyTree, values: PyTree) -> None:
    """Raises ValueError where values `[C, ...]` are not shaped like what is kept of the model."""
    sent = jax.tree.map(lambda leaf: leaf.shape[1:], values)
    kept = jax.tree.map(jnp.shape, state)
    if sent != kept:
        raise ValueError(
            f"{rule} keeps a tree shaped like the model, so it needs messages of that shape; got "
            f"messages {sent} for a model {kept}"
        )


def check_aggregator_slot(inner: object, name: str = "inner") -> None:
    """Raises TypeError where `inner` is not an aggregator."""
    if not isinstance(inner, Aggregator):
        raise TypeError(f"{name} must be an Aggregator, got {inner!r}; was a factory not called?")


def aggregate_stack(
    aggregator: Aggregator,
    values: PyTree,
    *,
    weights: Array | None = None,
    mask: Array | None = None,
    key: Key | None = None,
    state: PyTree = None,
    cohort: Cohort | None = None,
) -> PyTree:
    """What an aggregator makes of a stack of values; for looking at a rule outside of a round.

    Args:
      aggregator: any.
      values: leaves `[C, ...]`.
      weights: `[C]`, default all 1.
      mask: bool `[C]`, default all True.
      key: a typed key, default ``jax.random.key(0)``.
      state: the aggregator's, default that of its start.
      cohort: who these are; default ids 0 to `C` - 1.

    Returns:
      The aggregate, leaves of a client's shape.

    Example:
      >>> from fedjax_lite.aggregation import mean
      >>> aggregate_stack(mean(), jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
      [2.0, 4.0]
    """
    return run_stack(aggregator, values, weights=weights, mask=mask, key=key, state=state,
                     cohort=cohort)[1]  # fmt: skip


def run_stack(
    aggregator: Aggregator,
    values: PyTree,
    *,
    weights: Array | None = None,
    mask: Array | None = None,
    key: Key | None = None,
    state: PyTree = None,
    cohort: Cohort | None = None,
) -> tuple[PyTree, PyTree]:
    """`aggregate_stack` with the aggregator's new state: ``(state, value)``."""
    values = jax.tree.map(jnp.asarray, values)
    sized = jax.tree.leaves((values, weights, mask))
    if not sized:
        raise ValueError("values have no leaves: give weights or a mask, [C], to count the clients")
    size = (*jnp.shape(sized[0]), 0)[0]
    if not size:
        raise ValueError(
            f"values must have a row a client, [C, ...], one at least, got {shown(values)} of "
            f"shape {list(jnp.shape(sized[0]))}; stack the clients' values"
        )
    if mask is not None:
        check_mask(mask, "mask", size=size)
    mask = jnp.ones(size, bool) if mask is None else jnp.asarray(mask, bool)
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights)
    slots = jnp.arange(size, dtype=jnp.int32)
    cohort = Cohort(slots, mask) if cohort is None else cohort

    @jax.jit
    def run(key: Key, state: PyTree, messages: Message, cohort: Cohort) -> tuple[PyTree, PyTree]:
        first = jax.tree.map(lambda leaf: leaf[0], messages)
        state = aggregator.init_state(first.value) if state is None else state
        here = aggregator if aggregator.at is None else aggregator.at(state)
        acc = here.add(here.init(first, size), messages, slots, mask)
        return here.finish(key, state, acc, cohort)

    key = jax.random.key(0) if key is None else key
    return run(key, state, Message(values, weights), cohort)
