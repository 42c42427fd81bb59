"""What goes over the wire of the distributed discrete Gaussian, and its modular sum."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.discrete.grid import Grid
from fedjax_lite.privacy.discrete.sampler import discrete_gaussian
from fedjax_lite.transforms.clip import clip_by_global_norm
from fedjax_lite.transforms.flat import flatten
from fedjax_lite.transforms.hadamard import walsh_hadamard
from fedjax_lite.types import (
    Aggregator,
    Array,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    Transform,
    Wire,
)

MOST_ROUNDINGS = 64
"""Attempts at rounding within the norm's bound; then towards zero, which never lengthens."""
SLACK = 1e-5
"""Relative room for float32 in comparisons of norms."""


class Layout(NamedTuple):
    """How a value's leaves lie in one vector."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """A client's vector in the ring."""

    codes: Array
    """uint32 `[d]`, below ``2**bits``."""
    layout: Layout = dataclasses.field(metadata={"static": True})


@made
def noisy_codes(grid: Grid, *, size: int) -> Transform:
    """The client's side: clip, rotate, round, add noise, wrap.

    Args:
      grid: what was agreed on.
      size: coordinates of an update before padding.

    Returns:
      A `Transform` whose values are `Coded`.

    Raises:
      ValueError: in its `init`, if an update has another size.

    Example:
      >>> from fedjax_lite.privacy.discrete.grid import make_grid
      >>> grid = make_grid(clip=5.0, cohort_size=1, dimension=2, stddev=0.0, bits=16)
      >>> _, coded = noisy_codes(grid, size=2).update(jax.random.key(0), (), jnp.array([3.0, 4.0]))
      >>> coded.codes.shape, coded.codes.dtype
      ((2,), dtype('uint32'))
    """

    def init(value: PyTree) -> tuple[()]:
        found = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(value))
        if found != size:
            raise ValueError(
                f"dimension must be the number of coordinates of an update, {found}, got {size}"
            )
        return ()

    def send(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree, Wire]:
        key_round, key_noise = jax.random.split(key)
        clipped = clip_by_global_norm(trees.wide(value), grid.clip)
        leaves, structure = jax.tree.flatten(clipped)
        flat = flatten(leaves).astype(jnp.float32)
        flat = jnp.pad(flat, (0, grid.dimension - flat.size))
        rotated = walsh_hadamard(grid.signs() * flat) / grid.step
        whole = round_within(key_round, rotated, max_norm=grid.norm)
        noise = discrete_gaussian(key_noise, whole.shape, stddev=grid.stddev / grid.step)
        codes = (whole + noise).astype(jnp.uint32) & jnp.uint32(2**grid.bits - 1)
        layout = Layout(structure, tuple(leaf.shape for leaf in leaves))
        bits = jnp.float32(grid.bits * grid.dimension)
        return state, Coded(codes, layout), Wire(bits, bits)

    def update(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        return send(key, state, value)[:2]

    return Transform(init, update, send, kinds=("clip", "noise"))


class ModularSum(NamedTuple):
    """The accumulator: the ring's sum, and how many sent something."""

    codes: Coded
    count: Array


@made
def modular_mean(grid: Grid, *, cohort_size: int, min_clients: int) -> Aggregator:
    """The server's side: the sum modulo ``2**bits``, centred, rotated back, over a fixed number.

    It takes what `noisy_codes` sends. Weights do not count. Fewer than `min_clients` messages give
    zeros: the round is aborted, since their noise would not do.

    Args:
      grid: what was agreed on.
      cohort_size: the denominator.
      min_clients: messages, at least.

    Raises:
      TypeError: in its `init`, if messages are not `Coded`.
      ValueError: there, if a cohort has more than `cohort_size` slots.

    Example:
      >>> from fedjax_lite.privacy.discrete.grid import make_grid
      >>> grid = make_grid(clip=5.0, cohort_size=1, dimension=2, stddev=0.0, bits=20)
      >>> _, one = noisy_codes(grid, size=2).update(jax.random.key(0), (), jnp.array([3.0, 4.0]))
      >>> aggregator = modular_mean(grid, cohort_size=1, min_clients=1)
      >>> message = Message(jax.tree.map(lambda leaf: leaf[None], one), jnp.ones(1))
      >>> acc = aggregator.init(Message(one, jnp.float32(1)), 1)
      >>> acc = aggregator.add(acc, message, jnp.arange(1), jnp.ones(1, bool))
      >>> _, value = aggregator.finish(jax.random.key(0), (), acc, None)
      >>> value.round(2).tolist()
      [3.0, 4.0]
    """

    def init(message: Message, slots: int) -> ModularSum:
        if not isinstance(message.value, Coded):
            raise TypeError(
                f"messages must be Coded by noisy_codes, got {type(message.value).__name__}; "
                "hand the whole Mechanism to the algorithm as privacy=..."
            )
        if slots > cohort_size:
            raise ValueError(
                f"cohort_size must be at least the sampler's {slots} slots, got {cohort_size}: "
                "more clients would not fit into the ring"
            )
        zeros = jnp.zeros((grid.dimension,), jnp.uint32)
        return ModularSum(Coded(zeros, message.value.layout), jnp.int32(0))

    def add(acc: ModularSum, messages: Message, slots: Array, mask: Array) -> ModularSum:
        sent = jnp.where(mask[:, None], messages.value.codes, 0)
        # uint32 wraps at a multiple of 2**bits.
        total = acc.codes.codes + sent.sum(0, dtype=jnp.uint32)
        return ModularSum(Coded(total, acc.codes.layout), acc.count + mask.sum(dtype=jnp.int32))

    def finish(key: Key, state: PyTree, acc: ModularSum, cohort: Cohort) -> tuple[PyTree, PyTree]:
        ring = 2**grid.bits
        residue = (acc.codes.codes & jnp.uint32(ring - 1)).astype(jnp.int32)
        centred = jnp.where(residue >= ring // 2, residue - ring, residue)
        rotated = centred.astype(jnp.float32) * (grid.step / cohort_size)
        flat = grid.signs() * walsh_hadamard(rotated)
        flat = jnp.where(acc.count >= min_clients, flat, 0)
        leaves, low = [], 0
        for shape in acc.codes.layout.shapes:
            size = math.prod(shape)
            leaves.append(flat[low : low + size].reshape(shape))
            low += size
        return state, jax.tree.unflatten(acc.codes.layout.structure, leaves)

    def init_state(params: Params) -> tuple[()]:
        return ()

    return Aggregator(init_state, init, add, finish)


def round_within(key: Key, values: Array, *, max_norm: float) -> Array:
    r"""Rounds to a neighbouring integer at random, again until the norm is at most `max_norm`.

    A coordinate `x` becomes ``floor(x) + 1`` with probability ``x - floor(x)``. After 64 attempts
    it is rounded towards zero, which never lengthens, so that the bound holds always.

    Args:
      key: a typed key.
      values: float32 `[d]`, of norm at most `max_norm`.
      max_norm: see `rounded_norm`.

    Returns:
      int32 `[d]`.

    Example:
      >>> round_within(jax.random.key(0), jnp.array([2.0, -3.0]), max_norm=4.0).tolist()
      [2, -3]
    """
    limit = (max_norm * (1 - SLACK)) ** 2

    def attempt(count: Array) -> Array:
        draws = jax.random.uniform(jax.random.fold_in(key, count), values.shape)
        return jnp.floor(values + draws)

    def too_long(state: tuple[Array, Array]) -> Array:
        return (jnp.sum(state[1] ** 2) > limit) & (state[0] <= MOST_ROUNDINGS)

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        count = state[0] + 1
        last = jnp.trunc(values)
        return count, jnp.where(count <= MOST_ROUNDINGS, attempt(count), last)

    _, rounded = jax.lax.while_loop(too_long, again, (jnp.int32(0), attempt(jnp.int32(0))))
    return rounded.astype(jnp.int32)
