"""Leaves of the model that nobody trains: heads, adapters, biases are tuned, the rest is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.leaf_masks import mask_of
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.downlink import Downlinked
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
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
    RoundState,
    Sampler,
    ServerUpdate,
)


@made
def frozen_leaves(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_frozen: Callable[[Params], PyTree],
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg on some leaves of the model; the others are constants that every client holds.

    .. math::
        y_i = \text{local SGD on } z \mapsto f_i(z, c) \text{ from } x, \qquad
        x \leftarrow \textstyle\sum_i p_i\, y_i, \qquad c \text{ stays}

    For tuning a head, bottleneck adapters (`fedjax_lite.models.bottleneck`), biases or anything
    else of a pre-trained model. Gradients, optimizers, messages, privacy and the count of bits see
    the trained leaves only; the frozen ones are `Known` to clients from the start. They are an
    argument of the compiled round: `with_frozen` puts others in, and nothing is compiled anew.

    Args:
      loss: ``(params, examples, key) -> [B]``, of the whole model.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      is_frozen: ``(params) -> bools``, a prefix of the parameters, e.g.
        ``lambda params: {"body": True, "head": False}``.
      plan: local work.
      sampler: who takes part.
      server_optimizer: default ``optax.sgd(1.0)``.
      weighting: see `fedavg`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy`, as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`; the whole model is ``state.server.params``, so evaluators take the
      state.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: from `init`, if all leaves are frozen.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0])}, [0, 1])
      >>> algo = frozen_leaves(
      ...     lambda w, e, key: 0.5 * (w["body"] + w["head"] - e["b"]) ** 2, optax.sgd(1.0),
      ...     is_frozen=lambda params: {"body": True, "head": False},
      ...     plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(5.0), "head": jnp.array(0.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params["body"]), float(state.server.params["head"])
      (5.0, -3.0)
      >>> float(metrics["uplink_bits"]), float(metrics["downlink_bits"])  # one number, two clients
      (64.0, 64.0)

    Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019,
    arXiv:1902.00751.
    """
    if not callable(is_frozen):
        raise TypeError(
            f"is_frozen must be a function (params) -> bools, got {shown(is_frozen)}; give for "
            "example lambda params: {'body': True, 'head': False}"
        )
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        half_client(loss, client_optimizer, is_frozen, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=half_server(server, is_frozen),
        **slots,
    )


class Halves(NamedTuple):
    """What clients download of a model of which a part is trained."""

    trained: Params
    """The whole tree with None in place of other leaves; so are the others."""
    held: Known
    """Leaves that clients hold from the start."""
    moved: Params = None
    """Leaves that clients do not train, but the server changes: they travel."""

    @property
    def frozen(self) -> Params:
        """What a client does not train."""
        return self.held.value if self.moved is None else trees.whole(self.moved, self.held.value)


class HalfState(NamedTuple):
    """A server that trains a part of the model."""

    inner: PyTree
    """The state of a server of the trained leaves alone."""
    held: Params
    """The frozen leaves, None in place of the trained ones."""

    @property
    def params(self) -> Params:
        """The whole model."""
        return trees.whole(self.inner.params, self.held)


def halves_by(is_frozen: Callable[[Params], PyTree], params: Params) -> tuple[Params, Params]:
    """The frozen leaves and the others.

    Raises:
      TypeError: if `is_frozen` does not return a prefix of bools.

    Example:
      >>> halves_by(lambda params: {"b": True, "h": False}, {"b": 1.0, "h": 2.0})
      ({'b': 1.0, 'h': None}, {'b': None, 'h': 2.0})
    """
    return trees.halves(mask_of(is_frozen, params, "is_frozen"), params)


def half_client(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    is_frozen: Callable[[Params], PyTree],
    *,
    weighting: Weighting,
) -> ClientUpdate:
    """`local_sgd` on the leaves that are not frozen; it downloads `Halves`."""

    def client(frozen: Params) -> ClientUpdate:
        def of_half(trained: Params, examples: PyTree, key: Key) -> Array:
            return loss(trees.whole(trained, frozen), examples, key)

        return local_sgd(keep_counts(of_half, loss), client_optimizer, weighting=weighting)

    counts = local_sgd(loss, client_optimizer, weighting=weighting).counts  # checks them all early

    def init(params: Params) -> PyTree:
        frozen, trained = halves_by(is_frozen, params)
        return client(frozen).init(trained)

    def start(key: Key, row: PyTree, broadcast: Halves, info: ClientInfo) -> PyTree:
        return client(broadcast.frozen).start(key, row, broadcast.trained, info)

    def step(broadcast: Halves, carry: PyTree, batch: Batch) -> PyTree:
        return step_of(client(broadcast.frozen))(broadcast.trained, carry, batch)

    def finish(broadcast: Halves, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        return client(broadcast.frozen).finish(broadcast.trained, carry)

    return ClientUpdate(init, start, step, finish, counts)


@made
def half_server(server: ServerUpdate, is_frozen: Callable[[Params], PyTree]) -> ServerUpdate:
    """A server of the trained leaves alone, which knows the others; it broadcasts `Halves`.

    Args:
      server: e.g. ``optimizer_server(optax.sgd(1.0))``.
      is_frozen: see `frozen_leaves`.
    """

    def init(params: Params, population: Population) -> HalfState:
        frozen, trained = halves_by(is_frozen, params)
        if not jax.tree.leaves(trained):
            raise ValueError(
                "is_frozen (of fedbabu is_head) must leave some leaves to train, got all of "
                f"{len(jax.tree.leaves(params))} frozen; give True for some of them only"
            )
        return HalfState(server.init(trained, population), frozen)

    def broadcast(state: HalfState) -> Halves:
        return Halves(server.broadcast(state.inner), Known(state.held))

    def update(
        key: Key, state: HalfState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> HalfState:
        return state._replace(inner=server.update(key, state.inner, value, cohort, metrics))

    return signed(ServerUpdate(init, broadcast, update), server.made)


def with_frozen(state: RoundState, params: Params) -> RoundState:
    """The state with other frozen leaves, such as a newer base; what was trained stays.

    Args:
      state: of `frozen_leaves` or `fedlora`.
      params: parameters of the whole model (None or anything of the right shape in place of the
        trained leaves), of the same shapes and dtypes, so that nothing is compiled anew.

    Raises:
      TypeError: if the state has no frozen leaves.
      ValueError: if structure, shapes or dtypes differ.

    Example:
      >>> from fedjax_lite.round.server import ServerState
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> server = HalfState(ServerState({"b": None, "h": one}, ()), {"b": one, "h": None})
      >>> state = RoundState(None, server, (), (), (), ())
      >>> new = with_frozen(state, {"b": zero, "h": zero}).server.params
      >>> new["b"].tolist(), new["h"].tolist()
      ([0.0], [1.0])
    """
    outer = getattr(state, "server", None)
    server = outer.inner if isinstance(outer, Downlinked) else outer
    if not isinstance(server, HalfState):
        raise TypeError(
            f"state must come from frozen_leaves or fedlora, got {shown(state)}; of others replace "
            "the server's state itself, state._replace(server=...)"
        )
    mine = jax.tree.structure(server.params, is_leaf=_is_none)
    theirs = jax.tree.structure(params, is_leaf=_is_none)
    if mine != theirs:
        raise ValueError(
            f"params must have the structure of the model, {mine}, got {shown(params)}: "
            f"{theirs}; model.init(key), or what it was trained to"
        )

    def one(old: Any, new: Any) -> Any:
        if old is None:
            return None
        new = jnp.asarray(new)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise ValueError(
                f"params must have the shapes and dtypes of the frozen leaves, got {new.dtype}"
                f"{list(new.shape)} for {old.dtype}{list(old.shape)}"
            )
        return jnp.array(new, dtype=old.dtype)  # a copy, as the state may be donated

    held = jax.tree.map(one, server.held, params, is_leaf=_is_none)
    server = server._replace(held=held)
    return state._replace(
        server=outer._replace(inner=server) if isinstance(outer, Downlinked) else server
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None
