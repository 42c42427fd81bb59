"""What is on the wire: activations and gradients as their receivers get them, to be attacked."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_key, shown
from fedjax_lite.parties.columns import ColumnDataset
from fedjax_lite.parties.cut import CutModel
from fedjax_lite.parties.exchange import exchange
from fedjax_lite.parties.model import VerticalModel
from fedjax_lite.parties.split_step import split_gradients
from fedjax_lite.parties.wires import check_wire
from fedjax_lite.types import Batch, Key, Params, PyTree, Transform


class Tapped(NamedTuple):
    """What was overheard: of a cut network arrays, of columns arrays by party."""

    activations: Any
    """`[n, ...]`, as the server, or the holder of the labels, received them."""
    gradients: Any
    """`[n, ...]`, as the client, or the party without labels, received them back; of several
    holders of labels their sum."""
    upward: Any = None
    """`[n, ...]`, of a U the gradient at the server's activations, which goes up to the server and
    tells it of labels that stay with the client; else None."""
    by_holder: Any = None
    """Of columns the gradients as each holder returned them: by holder, then by party."""


def wiretap(
    model: CutModel | VerticalModel,
    params: Params,
    examples: PyTree,
    *,
    key: Key,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
) -> Tapped:
    """The activations and gradients of one exchange, for `fedjax_lite.attacks.leakage`.

    Args:
      model: a cut network, or one over columns.
      params: of the whole: ``state.server.params``.
      examples: ``{"x": ..., "y": ...}`` of a client, or a `ColumnDataset`: one batch.
      key: of noise on the wire, and dropout.
      uplink: as the algorithm has it.
      downlink: as the algorithm has it.

    Returns:
      `Tapped`; gradients are of the mean loss of the batch.

    Raises:
      TypeError: if the model is neither, or the examples are of the other kind.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.ones((2, 1)), "b": jnp.ones((2, 2))},
      ...                                {"a": jnp.array([0, 1])})
      >>> model = fl.parties.regression("logistic", data)
      >>> found = wiretap(model, model.init(jax.random.key(0)), data, key=jax.random.key(1))
      >>> found.gradients["b"].tolist()  # (sigmoid(0) - y) / 2: the sign is the label
      [0.25, -0.25]
    """
    check_key(key)
    check_wire(uplink, "uplink")
    check_wire(downlink, "downlink")
    if isinstance(model, VerticalModel):
        if not isinstance(examples, ColumnDataset):
            raise TypeError(
                "examples must be a ColumnDataset for a model over columns, got "
                f"{shown(examples)}; give data, or data.take(rows)"
            )
        rows: Any = {"x": examples.features, "y": examples.labels}
        batch = Batch(rows, jnp.ones(examples.num_entities, bool), key)
        found = jax.jit(
            lambda params, batch: exchange(
                model, params, batch, uplink=uplink, downlink=downlink, present=None
            )
        )(params, batch)
        others = {
            party: gradient
            for party, gradient in found.returned.items()
            if set(model.heads) - {party}
        }
        sent = {party: found.sent[party] for party in others}
        return Tapped(sent, others, by_holder=found.by_holder)
    if not isinstance(model, CutModel):
        raise TypeError(
            f"model must be a CutModel or a VerticalModel, got {shown(model)}; "
            "fl.parties.cut_layers(...)"
        )
    if isinstance(examples, ColumnDataset) or not {"x", "y"} <= set(examples):
        raise TypeError(
            f'examples must be {{"x": ..., "y": ...}} for a cut network, got {shown(examples)}; '
            "give data.client(0)"
        )
    rows = jax.tree.map(jnp.asarray, {"x": examples["x"], "y": examples["y"]})
    batch = Batch(rows, jnp.ones(rows["y"].shape[0], bool), key)

    @jax.jit
    def tapped(params: Params, batch: Batch) -> Tapped:
        client, server = model.halves(params)
        one = split_gradients(model, client, server, batch, uplink=uplink, downlink=downlink)
        return Tapped(one.smashed, one.returned, one.upward)

    return tapped(params, batch)
