"""SplitFed 1: every client trains with a copy of the server's half; both halves are averaged."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import weight_by
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.parties.cut import CutModel
from fedjax_lite.parties.split_step import optimizer_of, split_gradients
from fedjax_lite.parties.wires import add_cost, no_cost
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    add_loss,
    client_step,
    no_loss,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.types import (
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Known,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
    Transform,
    Wire,
)


class Sent(NamedTuple):
    """What a client downloads, and what stays at the server."""

    client: Params
    server: Known


class _Carry(NamedTuple):
    client: Params
    server: Params
    client_state: PyTree
    server_state: PyTree
    loss: Mean
    up: Wire
    down: Wire
    info: ClientInfo


def parallel_split(
    cut: CutModel,
    optimizer: ClientOptimizer,
    server_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler,
    uplink: Transform | None,
    downlink: Transform | None,
    strategy: Strategy | None,
) -> FederatedAlgorithm:
    """The algorithm behind ``splitfed(version=1)``; see there."""
    of_client = optimizer_of(optimizer, "optimizer")
    of_server = optimizer_of(server_optimizer, "server_optimizer")
    weight = weight_by("examples")
    descent = optimizer_server(optax.sgd(1.0))

    def start(key: Key, row: PyTree, broadcast: Sent, info: ClientInfo) -> _Carry:
        client, server = broadcast.client, broadcast.server.value
        states = of_client(info.round).init(client), of_server(info.round).init(server)
        return _Carry(client, server, *states, no_loss(), no_cost(), no_cost(), info)

    def step(broadcast: Sent, carry: _Carry, batch: Batch) -> _Carry:
        found = split_gradients(
            cut, carry.client, carry.server, batch, uplink=uplink, downlink=downlink
        )
        client, client_state = moved(
            *(of_client(carry.info.round), found.client, carry.client_state, carry.client),
            anchor=broadcast.client,
        )
        server, server_state = moved(
            *(of_server(carry.info.round), found.server, carry.server_state, carry.server),
            anchor=broadcast.server.value,
        )
        return _Carry(
            *(client, server, client_state, server_state, add_loss(carry.loss, found.loss, batch)),
            *(add_cost(carry.up, found.up), add_cost(carry.down, found.down), carry.info),
        )

    def finish(broadcast: Sent, carry: _Carry) -> tuple[PyTree, Message, dict[str, Any]]:
        before = cut.whole(broadcast.client, broadcast.server.value)
        update = trees.subtract(before, cut.whole(carry.client, carry.server))
        return (
            (),
            Message(update, weight(carry.info)),
            {
                "train_loss": carry.loss,
                **crossed(carry.up, carry.down),
            },
        )

    def own_half(key: Key, state: PyTree, value: Params) -> tuple[PyTree, Params, Wire]:
        bits = jnp.float32(trees.num_bits(cut.halves(value)[0]))
        return state, value, Wire(bits, bits)

    def broadcast(server: Any) -> Sent:
        client, rest = cut.halves(server.params)
        return Sent(client, Known(rest))

    client = ClientUpdate(lambda params: (), start, step, finish, counts_of(cut.model.loss))
    return billed(
        federated_algorithm(
            client,
            plan=plan,
            sampler=sampler,
            server=descent._replace(broadcast=broadcast),
            # Only the client's half travels; the server has the other.
            uplink=Transform(lambda value: (), lambda key, state, value: (state, value), own_half),
            strategy=strategy,
        )
    )


def moved(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: PyTree,
    state: PyTree,
    own: PyTree,
    *,
    anchor: PyTree,
) -> tuple[PyTree, PyTree]:
    """Half of a network after a step of its optimizer.

    Args:
      optimizer: of this half.
      gradient: at `own`.
      state: of the optimizer.
      own: the half as it is now.
      anchor: the half as it was handed over, towards which `fedjax_lite.proximal` pulls.

    Example:
      >>> tx = optax.with_extra_args_support(optax.sgd(0.5))
      >>> w = {"a": jnp.ones(()), "b": None}
      >>> float(moved(tx, w, tx.init(w), w, anchor=w)[0]["a"])
      0.5
    """
    updates, state = client_step(optimizer, gradient, state, own, {}, anchor=anchor)
    return optax.apply_updates(own, updates), state


def crossed(up: Wire, down: Wire) -> dict[str, Any]:
    """What crossed the cut, as metrics.

    Example:
      >>> sorted(crossed(no_cost(), no_cost()))[0]
      'activation_bits'
    """
    return {
        "activation_bits": up.bits,
        "activation_entropy_bits": up.entropy,
        "gradient_bits": down.bits,
        "gradient_entropy_bits": down.entropy,
    }


def billed(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, whose traffic counts what crossed the cut beside the halves of the network."""

    def round(
        key: Key, state: Any, data: Any = None, cohort: Cohort | None = None
    ) -> tuple[Any, dict[str, Any]]:
        state, metrics = algorithm.round(key, state, data, cohort)
        for kind in ("bits", "entropy_bits"):
            for direction, what in (("uplink", "activation"), ("downlink", "gradient")):
                name = f"{direction}_{kind}"
                metrics = {**metrics, name: metrics[name] + metrics[f"{what}_{kind}"]}
        return state, metrics

    inner: Any = algorithm.with_strategy
    return algorithm._replace(round=round, with_strategy=lambda strategy: billed(inner(strategy)))
