"""byzantine(): some clients of a run are hostile, and know what all the others sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import known_population
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.aggregation.stacked import (
    Slots,
    Stack,
    check_aggregator_slot,
    check_scalar_weight,
    stacked,
)
from fedjax_lite.checks.arguments import check_count, check_fraction, check_one
from fedjax_lite.checks.made import Made, made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, Params, PyTree


class Scene(NamedTuple):
    """What an attack sees of a round: everything."""

    values: PyTree
    """Leaves `[C, ...]`: what all clients would send, hostile ones included, had they obeyed."""
    weights: Array
    """`[C]`, of the messages."""
    honest: Array
    """bool `[C]`: honest clients that take part."""
    byzantine: Array
    """bool `[C]`: hostile clients that take part."""
    ids: Array
    """int32 `[C]`."""


class Attack(NamedTuple):
    """How hostile clients replace what they send."""

    init: Callable[[Params], PyTree]
    """``(params) -> state``, what the attackers remember; ``()`` for nothing."""
    make: Callable[[Key, PyTree, Scene], tuple[PyTree, PyTree]]
    """``(key, state, scene) -> (state, rows)``; leaves of rows `[C, ...]`, or `[1, ...]` where all
    attackers send the same. Only the rows of hostile clients are used."""
    made: Made | None = None
    """Which factory made it; None: your own."""


class Attacked(NamedTuple):
    """The state of a `byzantine` aggregator; `compose` adds `metrics` to those of the round."""

    inner: PyTree
    attack: PyTree
    metrics: dict[str, Array]
    """``num_byzantine``, the hostile clients that took part, and the metrics of `inner`."""


@made
def byzantine(
    attack: Attack,
    *,
    inner: Aggregator | None = None,
    fraction: float | Array | None = None,
    clients: Sequence[int] | Array | None = None,
    num_clients: int | None = None,
    seed: int = 0,
) -> Aggregator:
    """Lets some clients attack, in the same round and knowing all messages, then aggregates.

    Who is hostile is fixed for the whole run; in each round those of them attack that take part.
    Hostile clients train like the others, and what they would have sent is replaced (the weight is
    kept). Three ways to say who they are:

    * ``clients=[3, 7]``: these ids, each once;
    * ``fraction=0.2, num_clients=N``: exactly ``floor(0.2 N)`` ids, drawn with `seed`;
    * ``fraction=0.2``: each client with probability 0.2, by a hash of `seed` and its id. Good for
      any population, but their number is random.

    Args:
      attack: e.g. ``sign_flip()``.
      inner: what aggregates honest and hostile messages; default `mean()`.
      fraction: share of hostile clients in [0, 1]; may be traced where `num_clients` is not given.
      clients: ids of hostile clients; an array of JAX may be traced, and -1 is padding in it, so
        that one program serves any number of them.
      num_clients: the population's size `N`, for an exact number of hostile clients.
      seed: of the draw; none of the run's keys has to do with it.

    Returns:
      An `Aggregator` whose state is ``Attacked(state of inner, state of the attack, metrics)``.
      It keeps the whole stack of messages, O(cohort x model). At the end of a round it needs, in
      stacks of that size: one more for what is sent under the attack, one more where `inner` sees
      a stack itself (`median`, `krum`), and one more under `gaussian`, whose rows differ. So two
      more for ``alie``, ``ipm`` or ``min_max`` against ``krum``, three for ``gaussian``.

    Raises:
      TypeError: if `attack` or `inner` has the wrong type.
      ValueError: unless exactly one of `fraction` and `clients` is given, or where they lie out of
        range or name a client twice; when a state is made or a round is built, if an id lies
        outside the population or `num_clients` is not its size.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack, median
      >>> from fedjax_lite.attacks import sign_flip
      >>> u = jnp.array([[1.0], [1.0], [1.0], [1.0]])
      >>> aggregate_stack(byzantine(sign_flip(), clients=[2]), u).tolist()
      [0.5]
      >>> aggregate_stack(byzantine(sign_flip(), clients=[2], inner=median()), u).tolist()
      [1.0]
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an Attack, got {attack!r}; was a factory not called?")
    inner = mean() if inner is None else inner
    check_aggregator_slot(inner)
    if num_clients is not None:
        check_count(num_clients, "num_clients", minimum=1)
    is_member = membership(fraction=fraction, clients=clients, num_clients=num_clients, seed=seed)

    check_here = population_check(clients, num_clients)

    def init_state(params: Params) -> Attacked:
        check_here()
        state = inner.init_state(params)
        return Attacked(state, attack.init(params), _metrics(state, jnp.float32(0)))

    def rule(key: Key, state: Attacked, stack: Stack, cohort: Cohort) -> tuple[Attacked, PyTree]:
        key_attack, key_inner = jax.random.split(key)
        hostile = stack.mask & is_member(cohort.ids)
        scene = Scene(stack.values, stack.weights, stack.mask & ~hostile, hostile, cohort.ids)
        attack_state, rows = attack.make(key_attack, state.attack, scene)
        rows = jax.tree.map(lambda new, old: new.astype(old.dtype), rows, stack.values)
        values = trees.where(hostile, rows, stack.values)
        here = inner if inner.at is None else inner.at(state.inner)
        size = stack.mask.shape[0]
        messages = Message(values, stack.weights)
        acc = here.init(jax.tree.map(lambda leaf: leaf[0], messages), size)
        acc = here.add(acc, messages, jnp.arange(size, dtype=jnp.int32), stack.mask)
        inner_state, value = here.finish(key_inner, state.inner, acc, cohort)
        metrics = _metrics(inner_state, hostile.sum().astype(jnp.float32))
        return Attacked(inner_state, attack_state, metrics), value

    def init(message: Message, cohort_size: int) -> Slots:
        check_scalar_weight(message)
        check_here()
        inner.init(message, cohort_size)  # for its conditions
        return aggregator.init(message, cohort_size)

    aggregator = stacked(rule, init_state=init_state, like_message=False)  # the inner one checks
    return aggregator._replace(init=init)


def membership(
    *,
    fraction: float | Array | None = None,
    clients: Sequence[int] | Array | None = None,
    num_clients: int | None = None,
    seed: int = 0,
) -> Callable[[Array], Array]:
    """Who is hostile, as a function ``ids -> bool``; arguments and errors as in `byzantine`.

    Example:
      >>> membership(clients=[3, 7])(jnp.arange(8)).tolist()
      [False, False, False, True, False, False, False, True]
      >>> int(membership(fraction=0.25, num_clients=8)(jnp.arange(8)).sum())
      2
    """
    check_one(fraction=fraction, clients=clients)
    check_count(seed, "seed", minimum=0)
    if clients is not None:
        check_ids(clients)
        return lambda ids: (ids[:, None] == jnp.asarray(clients, jnp.int32).reshape(-1)).any(1)
    check_fraction(fraction, "fraction")
    if num_clients is not None:
        chosen = byzantine_clients(num_clients, fraction=fraction, seed=seed)
        return membership(clients=chosen)

    def by_hash(ids: Array) -> Array:
        key = jax.random.key(seed)
        draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids)
        return draws < fraction

    return by_hash


def check_ids(clients: Any) -> None:
    """Raises where concrete ids are no list of different clients; traced ones pass.

    Raises:
      TypeError: if they are not integers.
      ValueError: if they are not `[K]`, negative or repeated; in arrays of JAX -1 is padding.

    Example:
      >>> check_ids([3, 7])
      >>> check_ids(jnp.array([3, -1, -1]))
      >>> try:
      ...     check_ids([3, 3])
      ... except ValueError as error:
      ...     print(error)
      clients must name each client once, got 3 more than once; leave the repeats out
    """
    if isinstance(clients, jax.core.Tracer):
        return
    ids = np.asarray(clients)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"clients must be integer ids [K], got {ids.dtype} {list(ids.shape)}; e.g. [3, 7]"
        )
    if isinstance(clients, jax.Array):  # of a member of a sweep: elsewhere it would be traced
        ids = ids[ids != -1]
    if ids.size and (ids.min() < 0 or ids.max() >= 2**31):
        raise ValueError(
            f"clients must be ids from 0 on, got {int(ids.min())} to {int(ids.max())}; they number "
            "the rows of the population"
        )
    found, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"clients must name each client once, got {int(found[counts > 1][0])} more than once; "
            "leave the repeats out"
        )


def population_check(clients: Any, num_clients: int | None) -> Callable[[], None]:
    """A check of hostile clients against the population, where one is known.

    Example:
      >>> from fedjax_lite.aggregation.conditions import in_population
      >>> try:
      ...     with in_population(6):
      ...         population_check([9], None)()
      ... except ValueError as error:
      ...     print(error)
      clients must be ids of the population, in [0, 6), got 9; name others or partition into more
    """
    traced = clients is None or isinstance(clients, jax.core.Tracer) or not np.size(clients)
    largest = -1 if traced else int(np.max(np.asarray(clients)))

    def check() -> None:
        population = known_population()
        if population is None:
            return
        if largest >= population:
            raise ValueError(
                f"clients must be ids of the population, in [0, {population}), got {largest}; name "
                "others or partition into more"
            )
        if num_clients is not None and num_clients != population:
            raise ValueError(
                f"num_clients must be the population's size {population}, got {num_clients}: "
                f"another would draw ids of no client or spare some; give {population}"
            )

    return check


def byzantine_clients(num_clients: int, *, fraction: Any, seed: int = 0) -> np.ndarray:
    """Draws exactly ``floor(fraction * num_clients)`` ids, sorted: the clients that attack.

    For attacks on data, which have to name their clients, and to know whom `byzantine` with the
    same arguments chose.

    Args:
      num_clients: `N`.
      fraction: in [0, 1].
      seed: of the draw.

    Returns:
      int32 ids.

    Raises:
      ValueError: if `fraction` lies outside [0, 1] or `num_clients` is not positive.

    Example:
      >>> len(byzantine_clients(25, fraction=0.2))
      5
    """
    check_count(num_clients, "num_clients", minimum=1)
    check_fraction(fraction, "fraction")
    if isinstance(fraction, jax.core.Tracer):
        raise TypeError("fraction must not be traced with num_clients: it fixes how many there are")
    check_count(seed, "seed", minimum=0)
    count = int(np.floor(float(fraction) * num_clients * (1 + 1e-12)))
    drawn = np.random.default_rng(seed).choice(num_clients, size=count, replace=False)
    return np.sort(drawn).astype(np.int32)


def _metrics(inner_state: PyTree, num_byzantine: Array) -> dict[str, Array]:
    return {**getattr(inner_state, "metrics", {}), "num_byzantine": num_byzantine}
