"""One exchange: activations to whoever holds labels, their gradients back, then local steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.data.population.counting import counted
from fedjax_lite.parties.model import Joint, VerticalModel, part_keys
from fedjax_lite.parties.wires import add_cost, carried, no_cost
from fedjax_lite.round.local import mean_loss
from fedjax_lite.types import Array, Batch, Key, Params, PyTree, Transform, Wire

WIRE_STREAM = 2**16
"""Keys of messages are folded from here on; those of the parts of a model begin at 0."""


class Exchanged(NamedTuple):
    """What a batch's exchange leaves with the parties."""

    seen: dict[str, dict[str, Array]]
    """By holder: the activations of all parties as it has them, its own exact."""
    returned: dict[str, Array]
    """By party: the gradient at its activation that others returned, summed over them, `[B, ...]`;
    of a party that nobody returned anything zeros."""
    sent: dict[str, Array]
    """By party: its activations as others received them."""
    by_holder: dict[str, dict[str, Array]]
    """By holder, then by party: the summands of `returned`."""
    losses: dict[str, Array]
    """By holder: the mean loss."""
    up: Wire
    down: Wire


def agents_of(model: VerticalModel) -> tuple[str, ...]:
    """Everybody who trains something: parties with features, and holders of labels.

    Example:
      >>> agents_of(VerticalModel(None, {"lab": 1}, {"court": 2}, None))
      ('court', 'lab')
    """
    return tuple(sorted({*model.bottoms, *model.heads}))


def own_params(model: VerticalModel, params: Joint, agent: str) -> dict[str, Params]:
    """What one agent trains: its bottom, its head, or both."""
    own = {}
    if agent in model.bottoms:
        own["bottom"] = params.bottoms[agent]
    if agent in model.heads:
        own["head"] = params.heads[agent]
    return own


def exchange(
    model: VerticalModel,
    params: Joint,
    batch: Batch,
    *,
    uplink: Transform | None,
    downlink: Transform | None,
    present: dict[str, Array] | None,
) -> Exchanged:
    """Activations up, gradients down.

    Args:
      model: in pieces.
      params: of all.
      batch: examples ``{"x": {party: ...}, "y": {holder: ...}}``.
      uplink: on the activations.
      downlink: on the gradients.
      present: bool scalars by party, False for one that sends nothing in this batch; its stand-in
        takes its place. None: all are there.
    """
    examples, mask = batch.examples, batch.mask
    keys = part_keys(batch.key, model.bottoms, model.heads)
    up, down = no_cost(), no_cost()
    exact, sent = {}, {}
    for i, (party, part) in enumerate(model.bottoms.items()):
        exact[party] = part.apply(params.bottoms[party], examples["x"][party], keys[party])
        receivers = len(set(model.heads) - {party})
        there = jnp.float32(1) if present is None else present[party].astype(jnp.float32)
        sent[party] = exact[party]
        if receivers:
            key = _wire_key(batch.key, 0, i)
            sent[party], wire = carried(uplink, key, exact[party], mask)
            up = add_cost(up, wire, receivers * there)
    seen, losses, by_holder = {}, {}, {}
    returned = jax.tree.map(jnp.zeros_like, exact)
    for j, holder in enumerate(model.heads):
        mine = {**sent, **({holder: exact[holder]} if holder in exact else {})}
        if present is not None:
            mine = {
                party: h
                if party == holder
                else jnp.where(present[party], h, params.stand_ins[party].astype(h.dtype))
                for party, h in mine.items()
            }
        seen[holder] = mine

        def of_head(activations: Any, holder: str = holder) -> Array:
            return head_loss(model, holder, params.heads[holder], activations, batch)

        losses[holder], gradients = jax.value_and_grad(of_head)(mine)
        by_holder[holder] = {}
        for i, party in enumerate(exact):
            if party == holder:
                continue
            key = _wire_key(batch.key, 1 + j, i)
            there = jnp.float32(1) if present is None else present[party].astype(jnp.float32)
            gradient, wire = carried(downlink, key, gradients[party], mask)
            down = add_cost(down, wire, there)
            keep = mask if present is None else mask & present[party]
            gradient = trees.where(keep, gradient, jnp.zeros_like(gradient))
            by_holder[holder][party] = gradient
            returned[party] = returned[party] + gradient
    return Exchanged(seen, returned, sent, by_holder, losses, up, down)


def local_gradient(
    model: VerticalModel, exchanged: Exchanged, agent: str, own: dict[str, Params], batch: Batch
) -> dict[str, Params]:
    r"""The gradient of what one agent can compute by itself from an exchange.

    .. math::  \nabla \Bigl( \langle g_p, f_p(\theta_p; x_p) \rangle
               + [p \text{ holds labels}]\, \ell_p(\theta_{\text{head}}; f_p(\theta_p; x_p), h_{-p})
               \Bigr),

    with the gradient :math:`g_p` that others returned and the activations :math:`h_{-p}` that they
    sent. At the parameters of the exchange it is the gradient of the whole loss.
    """
    keys = part_keys(batch.key, model.bottoms, model.heads)

    def objective(own: dict[str, Params]) -> Array:
        total: Any = 0.0
        activation = None
        if "bottom" in own:
            x = batch.examples["x"][agent]
            activation = model.bottoms[agent].apply(own["bottom"], x, keys[agent])
            if set(model.heads) - {agent}:
                total += jnp.sum(exchanged.returned[agent] * activation)
        if "head" in own:
            mine = dict(exchanged.seen[agent])
            if activation is not None:
                mine[agent] = activation
            total += head_loss(model, agent, own["head"], mine, batch)
        return total

    return jax.grad(objective)(own)


def head_loss(
    model: VerticalModel, holder: str, head: Params, activations: dict[str, Array], batch: Batch
) -> Array:
    """The mean loss of one head over the examples of a batch that count."""
    key: Key | None = part_keys(batch.key, model.bottoms, model.heads)["head", holder]
    of_head = Batch(_of_head(model, holder, activations, batch), batch.mask, key)  # type: ignore[arg-type]
    return mean_loss(model.heads[holder].loss, head, of_head)


def head_counted(
    model: VerticalModel, holder: str, activations: dict[str, Array], batch: Batch
) -> Array:
    """The examples of a batch over which a head's mean loss is: bool `[B]`."""
    examples = _of_head(model, holder, activations, batch)
    return counted(model.heads[holder].loss, examples, batch.mask)


def _of_head(
    model: VerticalModel, holder: str, activations: dict[str, Array], batch: Batch
) -> PyTree:
    return {"x": model.combine(activations), "y": batch.examples["y"][holder]}


def _wire_key(key: Key, kind: int, party: int) -> Key:
    return jax.random.fold_in(key, WIRE_STREAM * (1 + kind) + party)
