"""What activations and their gradients become on the wire, and what they cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import Array, Key, PyTree, Transform, Wire

REMEMBERING = ("feedback", "momentum")
"""Kinds of transforms that keep what one message lacked for the next from the same sender."""
EXAMPLE = jax.ShapeDtypeStruct((2,), jnp.float32)
"""An activation: who keeps a state for a vector remembers. PowerSGD keeps one for matrices only."""


def check_wire(transform: Transform | None, name: str) -> None:
    """Raises where a transform cannot be put on a wire of activations.

    Raises:
      TypeError: if it is none.
      ValueError: if it keeps a memory between messages: every batch is of other examples.

    Example:
      >>> from fedjax_lite.transforms import qsgd
      >>> check_wire(qsgd(7), "uplink")
    """
    if transform is None:
        return
    check_slot(transform, name, Transform)
    kept = [kind for kind in transform.kinds if kind in REMEMBERING]
    if not kept and jax.tree.leaves(jax.eval_shape(transform.init, EXAMPLE)):
        kept = ["a transform that keeps a state"]
    if kept:
        raise ValueError(
            f"{name} must not remember one message for the next, got {kept[0]}: the next batch is "
            "of other examples; give the compressor alone, such as fl.qsgd(7)"
        )


def no_cost() -> Wire:
    """Nothing was sent.

    Example:
      >>> float(no_cost().bits)
      0.0
    """
    return Wire(jnp.float32(0), jnp.float32(0))


def add_cost(left: Wire, right: Wire, times: Array | float = 1.0) -> Wire:
    """What two things cost together, the second sent `times` times.

    Example:
      >>> float(add_cost(no_cost(), Wire(jnp.float32(8), jnp.float32(6)), 3).entropy)
      18.0
    """
    return Wire(*(a + times * b for a, b in zip(left, right, strict=True)))


def carried(
    transform: Transform | None, key: Key, value: PyTree, mask: Array
) -> tuple[PyTree, Wire]:
    """A batch of activations, or of their gradients, as they arrive.

    The transform is given each example's activation by itself, with a key of its own: it is
    clipped, noised, quantised alone. Where an activation is one number, the numbers of a batch are
    one value, those of padding 0, and what the transform makes of it is sent as a whole.

    Args:
      transform: None: sent as they are, all their bits.
      key: of this message.
      value: leaves `[B, ...]`.
      mask: bool `[B]`; what is padding is not sent and not billed, but where a transform is given
        single numbers: their batch is billed whole, and not at all where all of it is padding.

    Returns:
      What is decoded, of padding what it was, and the cost of the batch.

    Example:
      >>> from fedjax_lite.transforms import top_k
      >>> mask, h = jnp.array([True, True, False]), jnp.array([[1.0, 2.0], [4.0, 3.0], [5.0, 6.0]])
      >>> value, wire = carried(top_k(1), jax.random.key(0), h, mask)
      >>> value.tolist(), float(carried(None, None, value, mask)[1].bits)
      ([[0.0, 2.0], [4.0, 0.0], [5.0, 6.0]], 128.0)
    """
    size = mask.shape[0]
    count = mask.sum().astype(jnp.float32)
    if transform is None:
        bits = jnp.float32(trees.num_bits(value) / size) * count
        return value, Wire(bits, bits)
    if all(leaf.ndim == 1 for leaf in jax.tree.leaves(value)):
        whole = trees.where(mask, value, jax.tree.map(jnp.zeros_like, value))
        _, got, wire = send(transform, key, transform.init(whole), whole)
        got = trees.cast_like(got, value)
        return trees.where(mask, got, value), Wire(*(jnp.where(count > 0, b, 0) for b in wire))

    def one(key: Key, value: PyTree) -> tuple[PyTree, Wire]:
        _, got, wire = send(transform, key, transform.init(value), value)
        return trees.cast_like(got, value), wire

    got, wires = jax.vmap(one)(jax.random.split(key, size), value)
    return trees.where(mask, got, value), Wire(*(jnp.where(mask, bits, 0).sum() for bits in wires))
