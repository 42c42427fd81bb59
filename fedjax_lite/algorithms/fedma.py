"""FedMA: one layer a round is matched, averaged and frozen; clients train on what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.matching.hidden_units import (
    Layer,
    check_layers,
    hidden_layers,
    leaves_of,
    reorder,
    with_leaves,
)
from fedjax_lite.aggregation.matching.matched_average import mean_of, order_of
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LocalCarry, LossFn, local_sgd
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Known,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


class MatchedState(NamedTuple):
    """The global network, and how many rounds were done."""

    params: Params
    count: Array

    @property
    def metrics(self) -> dict[str, Array]:
        """Rounds that were done; a cycle is one a layer, outputs included."""
        return {"matched_rounds": self.count.astype(jnp.float32)}


class Matched(NamedTuple):
    """What clients download."""

    params: Params
    known: Known


class Kept(NamedTuple):
    """A client's own network between rounds, and after which of them it is."""

    net: Params
    count: Array


class Working(NamedTuple):
    """Local training of a network of which the first layers rest."""

    local: LocalCarry
    stage: Array


@made
def fedma(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    init: Callable[[Key], Params] | None = None,
    layers: Sequence[Layer] | None = None,
    iterations: int = 3,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated matched averaging: a cycle of rounds, one for each layer.

    .. math::
        W^l \leftarrow \sum_i p_i\, \Pi_i^l W_i^l, \qquad
        \Pi_i^l = \arg\min_\Pi \lVert W^l - \Pi W_i^l \rVert^2, \qquad
        W_i^{l+1} \leftarrow W_i^{l+1} (\Pi_i^l)^{\mathsf T}

    In round `l` of a cycle clients bring their own network in order with the layers matched so far,
    freeze those, and train the rest; the server matches layer `l` (`matched_average`'s iterations,
    Hungarian assignments within the compiled round) and averages it. The last round averages the
    outputs, which have names. Then ``state.server.params`` is a whole network, and the next cycle
    starts from it at every client, the paper's FedMA with communication. In the midst of a cycle
    the server's later layers are still those of the cycle before: look after ``len(layers) + 1``
    rounds.

    A client finds its own order again by matching with the layer that it downloads, by incoming
    weights and biases alone: the server's weights after that layer are older. (The server compares
    units of the last hidden layer by their outgoing weights, too.) One that missed the round before
    starts from the server's network. A network that is not finite makes the server's so, which
    `fedjax_lite.run` reports. Without hidden layers it is `fedavg`, which
    averages networks. Widths stay as they are; `fedjax_lite.matching.pfnm` lets them grow.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: local work of a round.
      sampler: who takes part; the paper has everyone.
      init: ``(key) -> params``: in the first round every client starts from a network of its own,
        as if it had trained alone; None: from the server's.
      layers: default `fedjax_lite.matching.hidden_layers` of the parameters.
      iterations: of matching and averaging.
      weighting: see `fedavg`.
      **slots: `downlink`, `strategy` as in `fedavg`, and an `uplink` of networks; `privacy` is
        refused, and there is no other aggregator.

    Returns:
      A `FederatedAlgorithm`; metrics ``train_loss`` and ``matched_rounds``. Clients keep a network
      between rounds, memory O(N x model); a message is a whole network, of which the server uses
      a layer, and is billed as such.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `privacy` or an aggregator is given, `layers` are not those of the parameters,
        or `init` gives parameters of other shapes.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> model = fl.models.mlp((3,), num_classes=2, input_shape=(4,))
      >>> examples = {"x": jnp.ones((4, 4)), "y": jnp.array([0, 1, 0, 1])}
      >>> data = fl.data.from_arrays(examples, [0, 0, 1, 1])
      >>> algo = fedma(model.loss, optax.sgd(0.1), init=model.init, plan=fl.Plan(batch_size=2),
      ...              sampler=fl.everyone())
      >>> key = jax.random.key(0)
      >>> state = algo.init(key, model.init(key), data)
      >>> for _ in range(2):  # the hidden layer, then the outputs
      ...     state, metrics = algo.round(key, state, data)
      >>> float(metrics["matched_rounds"])
      2.0

    Reference: Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched
    Averaging", 2020, arXiv:2002.06440.
    """
    check_count(iterations, "iterations", minimum=1)
    refuse_privacy(slots, "fedma", "networks are matched with each other, which no bound covers")
    if (given := slots.get("aggregator")) is not None:
        raise ValueError(
            f"aggregator must be left out of fedma, got {shown(given)}: layers are matched and "
            "averaged; for other aggregates use fedavg"
        )
    if init is not None and not callable(init):
        raise TypeError(f"init must be a function (key) -> params, got {shown(init)}; model.init")
    return federated_algorithm(
        _client(local_sgd(loss, client_optimizer, weighting=weighting), init, layers),
        plan=plan,
        sampler=sampler,
        server=layer_server(layers),
        **{**slots, "aggregator": matching(layers, iterations)},
    )


def layers_in(params: Params, layers: Sequence[Layer] | None) -> tuple[Layer, ...]:
    """The layers that were given, or those that are found."""
    found = hidden_layers(params) if layers is None else tuple(layers)
    check_layers(params, found)
    return found


def stage_of_leaves(params: Params, layers: Sequence[Layer]) -> dict[str, int]:
    """In which round of a cycle each parameter is averaged; the outputs in the last.

    Example:
      >>> net = {"w": jnp.zeros((3, 2)), "v": jnp.zeros((2, 4))}
      >>> stage_of_leaves(net, [Layer(2, (("w", -1),), (("v", -2),))])
      {'v': 1, 'w': 0}
    """
    own = {path: i for i, layer in enumerate(layers) for path, _ in layer.out}
    return {path: own.get(path, len(layers)) for path in leaves_of(params)}


def _client(
    inner: ClientUpdate, init: Callable[[Key], Params] | None, layers: Sequence[Layer] | None
) -> ClientUpdate:
    train = step_of(inner)

    def rows(params: Params) -> Kept:
        inner.init(params)
        layers_in(params, layers)
        if init is not None:
            _check_drawn(jax.eval_shape(init, jax.random.key(0)), params)
        return Kept(params, jnp.int32(0))

    def in_order(stage: Array, net: Params, broadcast: Params) -> Params:
        """The client's network with all layers before this stage the server's."""
        chain = layers_in(net, layers)
        when = stage_of_leaves(net, chain)

        def after(which: int) -> Callable[[Params, Params], Params]:
            def go(net: Params, broadcast: Params) -> Params:
                # Not by what reads the layer: the broadcast has that of the cycle before.
                order = order_of(net, broadcast, chain, which, outgoing=False)
                net = reorder(net, chain[which], order)
                ready = {p: v for p, v in leaves_of(broadcast).items() if when[p] <= which}
                return with_leaves(net, ready)

            return go

        branches = [lambda net, broadcast: net, *(after(i) for i in range(len(chain)))]
        return jax.lax.switch(stage, branches, net, broadcast)

    def start(key: Key, row: Kept, broadcast: Matched, info: ClientInfo) -> Working:
        count = broadcast.known.value
        stage = count % (len(layers_in(broadcast.params, layers)) + 1)
        fresh = broadcast.params
        if init is not None:
            key, own = jax.random.split(key)
            draw = init  # in the first round alone: a network is many draws
            fresh = jax.lax.cond(
                count == 0,
                lambda: trees.cast_like(draw(own), fresh),
                lambda: jax.tree.map(jnp.asarray, broadcast.params),
            )
        there = (stage > 0) & (row.count == count)
        net = trees.where(there, in_order(stage, row.net, broadcast.params), fresh)
        return Working(inner.start(key, (), net, info), stage)

    def step(broadcast: Matched, carry: Working, batch: Batch) -> Working:
        local = train(broadcast.params, carry.local, batch)
        when = stage_of_leaves(local.params, layers_in(local.params, layers))
        old = leaves_of(carry.local.params)
        held = {
            path: jnp.where(when[path] < carry.stage, old[path], new)
            for path, new in leaves_of(local.params).items()
        }
        return carry._replace(local=local._replace(params=with_leaves(local.params, held)))

    def finish(broadcast: Matched, carry: Working) -> tuple[Kept, Message, dict[str, Any]]:
        _, message, metrics = inner.finish(broadcast.params, carry.local)
        net = carry.local.params
        row = Kept(net, broadcast.known.value + 1)
        return row, Message(net, message.weight), metrics

    return ClientUpdate(rows, start, step, finish, inner.counts)


def _check_drawn(drawn: PyTree, params: Params) -> None:
    shapes, due = (jax.tree.map(jnp.shape, one) for one in (drawn, params))
    if shapes != due:
        raise ValueError(
            f"init must give parameters shaped as those of the state, got {shown(shapes)} for "
            f"{shown(due)}; give model.init of the model whose parameters the state was made with"
        )


@made
def matching(layers: Sequence[Layer] | None = None, iterations: int = 3) -> Aggregator:
    """The matched average of one layer, another one each round; messages are networks.

    Args:
      layers: see `fedma`.
      iterations: likewise.

    Returns:
      An `Aggregator` whose state counts rounds; of its value only this round's layer is used.

    Example:
      >>> import fedjax_lite as fl
      >>> layers = [Layer(2, (("w", -1),), (("v", -2),))]
      >>> net = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[3.0], [4.0]])}
      >>> both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), net)
      >>> both["w"] = both["w"].at[1].set(jnp.array([[2.5, 1.0]]))
      >>> both["v"] = both["v"].at[1].set(jnp.array([[4.0], [3.0]]))
      >>> fl.aggregation.aggregate_stack(matching(layers), both)["w"].tolist()
      [[1.0, 2.25]]

    Reference: Wang et al., 2020, arXiv:2002.06440.
    """

    def rule(key: Key, state: Array, stack: Stack, cohort: Cohort) -> tuple[Array, Params]:
        total = stack.weights.sum()
        shares = stack.weights / jnp.where(total > 0, total, 1)
        # Whose network is the first centre must not depend on the slots.
        ids = jnp.where(stack.mask, cohort.ids, jnp.iinfo(jnp.int32).max)
        first = jnp.argmin(ids)
        centre = jax.tree.map(lambda leaf: leaf[first], stack.values)
        chain = layers_in(centre, layers)

        def of(which: int) -> Callable[[Params, Params], Params]:
            def go(nets: Params, centre: Params) -> Params:
                def once(_: Array, centre: Params) -> Params:
                    def fit(net: Params) -> Params:
                        order = order_of(net, centre, chain, which)
                        return reorder(net, chain[which], order)

                    return _mean_from(jax.lax.map(fit, nets), shares, first)

                return jax.lax.fori_loop(0, iterations, once, centre)

            return go

        branches = [of(i) for i in range(len(chain))]
        branches.append(lambda nets, centre: _mean_from(nets, shares, first))
        stage = state % (len(chain) + 1)
        value = jax.lax.switch(stage, branches, stack.values, centre)
        return state + stack.mask.any().astype(state.dtype), value

    return stacked(rule, init_state=lambda params: jnp.int32(0))


def _mean_from(nets: Params, shares: Array, first: Array) -> Params:
    """The mean, summed around one of the networks that count."""
    rolled = jax.tree.map(lambda leaf: jnp.concatenate([leaf[first][None], leaf]), nets)
    return mean_of(rolled, jnp.concatenate([jnp.zeros_like(shares[:1]), shares]))


@made
def layer_server(layers: Sequence[Layer] | None = None) -> ServerUpdate:
    """Takes this round's layer out of a matched average.

    Args:
      layers: see `fedma`.

    Example:
      >>> server = layer_server([Layer(2, (("w", -1),), (("v", -2),))])
      >>> state = server.init({"w": jnp.zeros((1, 2)), "v": jnp.zeros((2, 1))}, None)
      >>> average = {"w": jnp.ones((1, 2)), "v": jnp.ones((2, 1))}
      >>> state = server.update(None, state, average, None, {})
      >>> state.params["w"].tolist(), state.params["v"].tolist()
      ([[1.0, 1.0]], [[0.0], [0.0]])
    """

    def init(params: Params, population: Population) -> MatchedState:
        layers_in(params, layers)
        return MatchedState(params, jnp.int32(0))

    def update(
        key: Key, state: MatchedState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> MatchedState:
        chain = layers_in(state.params, layers)
        when, stage = stage_of_leaves(state.params, chain), state.count % (len(chain) + 1)
        old, new = leaves_of(state.params), leaves_of(trees.cast_like(value, state.params))
        taken = {path: jnp.where(when[path] == stage, new[path], old[path]) for path in old}
        return MatchedState(with_leaves(state.params, taken), state.count + 1)

    def broadcast(state: MatchedState) -> Matched:
        return Matched(state.params, Known(state.count))

    return ServerUpdate(init, broadcast, update)
