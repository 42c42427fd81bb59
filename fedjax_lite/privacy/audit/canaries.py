"""Canary clients: clients that send a known direction, so that their traces can be looked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_key, check_positive, check_whole, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.types import Array, Key, Params, PyTree, RoundState, Transform

Kind = Literal["gaussian", "coordinate"]


class CanaryRow(NamedTuple):
    """What the uplink of a client knows of its role."""

    index: Array
    """int32: which canary the client is; -1 for an honest client."""
    present: Array
    """bool: the auditor's coin. An absent canary sends zeros: it adds nothing to any sum."""


def direction(key: Key, index: Array | int, *, like: PyTree, kind: Kind = "gaussian") -> PyTree:
    """The unit vector that a canary sends, made anew from its number: nothing is stored.

    Args:
      key: of all canaries of an audit.
      index: which canary, an int or traced.
      like: a tree with the shapes and dtypes of an update, `D` numbers in all.
      kind: "gaussian": a random direction, nearly orthogonal to all others, with inner products
        of order ``1 / sqrt(D)``; no clipping can single it out. "coordinate": one entry, another
        for each canary: exactly orthogonal, and blind to the honest clients' updates where these
        are spread out; for at most `D` canaries.

    Returns:
      A tree like `like`, of norm 1.

    Raises:
      ValueError: if `kind` is unknown.

    Example:
      >>> u = direction(jax.random.key(0), 3, like={"w": jnp.zeros((4, 5)), "b": jnp.zeros(5)})
      >>> round(float(trees.global_norm(u)), 5)
      1.0

    Reference: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", 2023,
    arXiv:2302.03098.
    """
    check_whole(index, "index")
    check_kind(kind)
    leaves, treedef = jax.tree.flatten(like)
    if kind == "coordinate":
        size = sum(leaf.size for leaf in leaves)
        place = shuffle_index(key, jnp.asarray(index, jnp.int32), size)
        starts = [sum(leaf.size for leaf in leaves[:i]) for i in range(len(leaves))]
        parts = [
            (jnp.arange(leaf.size) == place - start).reshape(leaf.shape).astype(leaf.dtype)
            for leaf, start in zip(leaves, starts, strict=True)
        ]
        return jax.tree.unflatten(treedef, parts)
    keys = jax.random.split(jax.random.fold_in(key, index), len(leaves))
    parts = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    norm = trees.global_norm(parts)
    parts = [(part / norm).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, parts)


@made
def canary_uplink(
    key: Key, *, norm: float | Array = 1e3, kind: Kind = "gaussian", like: PyTree | None = None
) -> Transform:
    r"""Replaces what canaries send by :math:`\pm` nothing or ``norm * direction``.

    A client learns from its row of the uplink's state whether it is a canary (`plant` writes it),
    so this works with every method that has an uplink. It must come first in the chain: the
    method's own transforms, the mechanism's clip and local noise then act on it as on any message.

    Args:
      key: of all canaries; see `direction`.
      norm: length of the message, far above any clipping norm.
      kind: see `direction`.
      like: if given, a message of another structure or shape is a TypeError.

    Returns:
      A `Transform` that leaves honest clients' messages as they are.

    Raises:
      ValueError: if `norm` is not positive or `kind` unknown.

    Example:
      >>> uplink = canary_uplink(jax.random.key(0), norm=2.0)
      >>> row = CanaryRow(jnp.int32(0), jnp.array(True))
      >>> _, sent = uplink.update(jax.random.key(1), row, jnp.full(8, 9.0))
      >>> round(float(jnp.linalg.norm(sent)), 5)
      2.0
    """
    check_key(key)
    check_kind(kind)
    check_positive(norm, "norm")

    def init(value: PyTree) -> CanaryRow:
        if like is not None:
            check_same_shapes(value, like)
        return CanaryRow(jnp.int32(-1), jnp.array(False))

    def update(key_update: Key, row: CanaryRow, value: PyTree) -> tuple[CanaryRow, PyTree]:
        sign = direction(key, jnp.maximum(row.index, 0), like=value, kind=kind)

        def one(leaf: Array, unit: Array) -> Array:
            sent = jnp.where(row.present, (norm * unit).astype(leaf.dtype), jnp.zeros_like(leaf))
            return jnp.where(row.index >= 0, sent, leaf)

        return row, jax.tree.map(one, value, sign)

    return Transform(init, update)


def with_canaries(data: FederatedDataset, num_canaries: int, *, size: int = 1) -> FederatedDataset:
    """The population with canary clients behind it; their data are references, no copies.

    Args:
      data: `N` honest clients.
      num_canaries: `m`; canary `j` is client ``N + j``.
      size: examples that a canary seems to have; they train on them, and send something else.

    Returns:
      `N + m` clients on the same examples.

    Raises:
      TypeError: if `data` is not a `FederatedDataset`.
      ValueError: if `num_canaries` or `size` is below 1.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = with_canaries(from_arrays({"x": jnp.arange(3.0)}, [0, 0, 1]), 2)
      >>> data.sizes.tolist()
      [2, 1, 1, 1]
    """
    check_count(num_canaries, "num_canaries", minimum=1)
    check_count(size, "size", minimum=1)
    if not isinstance(data, FederatedDataset):
        raise TypeError(
            f"data must be a FederatedDataset, got {type(data).__name__}: an audit's population "
            "lies on the device"
        )
    order = data.order
    if order is None:
        order = jnp.arange(data.num_examples, dtype=jnp.int32)
    added = size * jnp.arange(1, num_canaries + 1, dtype=jnp.int32)
    return dataclasses.replace(
        data,
        offsets=jnp.concatenate([data.offsets, data.offsets[-1] + added]),
        order=jnp.concatenate([order, jnp.zeros(size * num_canaries, jnp.int32)]),
        max_client_size=max(data.max_client_size, size),
        splits={},
    )


def plant(state: RoundState, present: Array, *, first: int) -> RoundState:
    """Tells the canaries of a state who they are and on which side their coin fell.

    Args:
      state: of an algorithm with a `canary_uplink`.
      present: bool `[m]`, the coins.
      first: the client that is canary 0; the others follow it.

    Returns:
      The state with the rows of clients ``first .. first + m - 1`` filled in.

    Raises:
      ValueError: if the state holds no `canary_uplink`, or fewer clients.

    Example:
      >>> rows = CanaryRow(jnp.full(4, -1), jnp.zeros(4, bool))
      >>> state = RoundState(0, (), (), (rows,), (), ())
      >>> plant(state, jnp.array([True, False]), first=2).uplink[0].index.tolist()
      [-1, -1, 0, 1]
    """
    num_canaries, found = present.shape[0], []

    def one(node: PyTree) -> PyTree:
        if not isinstance(node, CanaryRow):
            return node
        found.append(node)
        if not 0 <= first <= node.index.shape[0] - num_canaries:
            raise ValueError(
                f"first must leave room for {num_canaries} canaries among "
                f"{node.index.shape[0]} clients, got {first}"
            )
        rows = first + jnp.arange(num_canaries)
        index = node.index.at[rows].set(jnp.arange(num_canaries, dtype=node.index.dtype))
        return CanaryRow(index, node.present.at[rows].set(present))

    uplink = jax.tree.map(one, state.uplink, is_leaf=lambda node: isinstance(node, CanaryRow))
    if not found:
        raise ValueError(
            "state holds no canaries: give the algorithm the audit's uplink, e.g. "
            "lambda uplink: fl.fedavg(..., uplink=uplink)"
        )
    return state._replace(uplink=uplink)


def canary_scores(update: Params, *, key: Key, num_canaries: int, kind: Kind = "gaussian") -> Array:
    r"""How much of each canary is in an update: :math:`\langle \Delta, u_i \rangle`.

    Directions are made one after the other, so the memory is that of the model.

    Args:
      update: what the observer sees, e.g. the model before minus the model after.
      key: see `direction`.
      num_canaries: `m`.
      kind: see `direction`.

    Returns:
      float32 `[m]`.

    Raises:
      ValueError: if there are more canaries than coordinates.

    Example:
      >>> key = jax.random.key(0)
      >>> update = 3.0 * direction(key, 1, like=jnp.zeros(500))
      >>> canary_scores(update, key=key, num_canaries=3).round().tolist()[1]
      3.0
    """
    check_count(num_canaries, "num_canaries", minimum=1)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(update))
    if kind == "coordinate" and num_canaries > size:
        raise ValueError(
            f"num_canaries must be at most the {size} coordinates of the model, got "
            f"{num_canaries}; use kind='gaussian'"
        )

    def one(index: Array) -> Array:
        unit = direction(key, index, like=update, kind=kind)
        products = jax.tree.map(
            lambda a, b: jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)), update, unit
        )
        return sum(jax.tree.leaves(products), jnp.float32(0))

    return jax.lax.map(one, jnp.arange(num_canaries, dtype=jnp.int32))


def check_kind(kind: str) -> None:
    """Raises ValueError where the kind of a canary is unknown."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {list(get_args(Kind))}, got {kind!r}")


def check_same_shapes(value: PyTree, like: PyTree) -> None:
    """Raises TypeError where a message is not shaped like the model."""
    shapes: Callable[[PyTree], list] = lambda tree: [  # noqa: E731
        jnp.shape(leaf) for leaf in jax.tree.leaves(tree)
    ]
    same = jax.tree.structure(value) == jax.tree.structure(like)
    if not same or shapes(value) != shapes(like):
        raise TypeError(
            "the audit reads canaries off the model, so messages must have the structure of "
            f"like={shown(like)}, {jax.tree.structure(like)} of shapes {shapes(like)}, got "
            f"{jax.tree.structure(value)} of shapes {shapes(value)}: audit a method that sends "
            "model updates only (FedAvg, FedProx, the FedOpt family), and give its model as like"
        )
