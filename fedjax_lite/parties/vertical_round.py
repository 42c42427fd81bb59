"""A round over columns as one compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_key, check_slot, shown
from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.checks.optimizer_arguments import step_optimizer
from fedjax_lite.checks.state import check_not_donated
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.batches import Plan, take_batch
from fedjax_lite.engine.round_keys import client_keys, clients_key
from fedjax_lite.parties.columns import ColumnDataset
from fedjax_lite.parties.exchange import (
    agents_of,
    exchange,
    head_counted,
    local_gradient,
    own_params,
)
from fedjax_lite.parties.model import Joint, VerticalModel
from fedjax_lite.parties.wires import add_cost, check_wire, no_cost
from fedjax_lite.round.fresh_state import strongly_typed_copy
from fedjax_lite.round.local import add_loss, no_loss, resolve_optimizer
from fedjax_lite.types import (
    Array,
    Batch,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mean,
    Params,
    PyTree,
    RoundState,
    Transform,
    Wire,
)

PRESENCE = 2**15
"""Folded into a batch's key for who is absent."""


class Together(NamedTuple):
    """What all parties keep between rounds; in truth each its own part."""

    params: Joint
    opt_state: dict[str, PyTree]
    """By party."""


class _Carry(NamedTuple):
    own: dict[str, dict[str, Params]]
    opt_state: dict[str, PyTree]
    losses: dict[str, Mean]
    sums: dict[str, Array]
    """Activations as they were sent, summed over the examples."""
    counts: dict[str, Array]
    up: Wire
    down: Wire


def vertical_algorithm(
    model: VerticalModel,
    optimizer: Any,
    *,
    plan: Plan,
    local_steps: int,
    uplink: Transform | None,
    downlink: Transform | None,
    absence: Any,
) -> FederatedAlgorithm:
    """The algorithm behind `vertical_sgd` and `fedbcd`.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: if an optimizer is missing for somebody, or a transform remembers.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.ones((2, 1))}, {"b": jnp.array([0.0, 1.0])})
      >>> algo = vertical_algorithm(fl.parties.regression("linear", data), optax.sgd(0.1),
      ...                           plan=Plan(batch_size=1), local_steps=1, uplink=None,
      ...                           downlink=None, absence=0.0)
      >>> type(algo.init(jax.random.key(0), None, data).server).__name__
      'Together'
    """
    check_slot(model, "model", VerticalModel)
    check_slot(plan, "plan", Plan)
    check_wire(uplink, "uplink")
    check_wire(downlink, "downlink")
    if model.compares and plan.batch_size is not None:
        raise ValueError(
            "plan must have batch_size=None where the loss compares entities with each other "
            f"(Cox), got batch_size={plan.batch_size}; fl.Plan(batch_size=None)"
        )
    optimizers = _optimizers(optimizer, agents_of(model))
    everybody = isinstance(absence, int | float) and absence == 0

    def init(key: Key, params: Params, data: ColumnDataset) -> RoundState:
        check_key(key)
        _check_data(model, data)
        plan.check_population(1)  # batches are those of a federation of one client
        params = model.init(key) if params is None else params
        _check_joint(model, params)
        params = jax.tree.map(strongly_typed_copy, params)
        trees.check_floating(params, "params")
        shapes = jax.eval_shape(lambda: _activations(model, params, data))
        zeros = {party: jnp.zeros(h.shape[1:], h.dtype) for party, h in shapes.items()}
        params = params._replace(stand_ins=zeros)
        opt_state = {
            agent: make(jnp.int32(0)).init(own_params(model, params, agent))
            for agent, make in optimizers.items()
        }
        opt_state = jax.tree.map(strongly_typed_copy, opt_state)
        return RoundState(
            jnp.int32(0), trees.unaliased(Together(params, opt_state)), (), (), (), ()
        )

    def one_batch(params: Joint, round: Array, carry: _Carry, batch: Batch) -> _Carry:
        present = None if everybody else _drawn(model, absence, batch.key)
        now = _joined(model, params, carry.own)
        found = exchange(model, now, batch, uplink=uplink, downlink=downlink, present=present)

        def local_step(_: Any, kept: Any) -> Any:
            own, opt_state = {}, {}
            for agent, make in optimizers.items():
                gradient = local_gradient(model, found, agent, kept[0][agent], batch)
                own[agent], opt_state[agent] = _stepped(
                    make(round), gradient, kept[1][agent], kept[0][agent]
                )
                if present is not None and agent not in model.heads:
                    mine = (own[agent], opt_state[agent])
                    before = (kept[0][agent], kept[1][agent])
                    own[agent], opt_state[agent] = trees.where(present[agent], mine, before)
            return own, opt_state

        kept = local_step(0, (carry.own, carry.opt_state))
        if local_steps > 1:
            kept = jax.lax.fori_loop(1, local_steps, local_step, kept)
        losses = {}
        for holder, value in found.losses.items():  # each over the examples that have its labels
            with_label = head_counted(model, holder, found.seen[holder], batch)
            of_labelled = batch._replace(mask=with_label)
            losses[holder] = add_loss(carry.losses[holder], value, of_labelled)
        sums, counts = {}, {}
        for party, h in found.sent.items():
            there = batch.mask if present is None else batch.mask & present[party]
            sums[party] = carry.sums[party] + trees.where(there, h, jnp.zeros_like(h)).sum(0)
            counts[party] = carry.counts[party] + there.sum(dtype=jnp.int32)
        up, down = add_cost(carry.up, found.up), add_cost(carry.down, found.down)
        return _Carry(kept[0], kept[1], losses, sums, counts, up, down)

    @jax.jit
    def compiled(
        key: Key, state: RoundState, data: ColumnDataset
    ) -> tuple[RoundState, dict[str, Array]]:
        size = data.num_entities
        rows = FederatedDataset(
            {"x": data.features, "y": data.labels}, jnp.array([0, size], jnp.int32), None, size
        )
        client = jnp.int32(0)
        key_clients = clients_key(key, state.round)
        own = client_keys(key_clients, client)
        amount = jax.random.fold_in(jax.random.fold_in(key_clients, client), 4)
        steps = plan.num_steps(amount, client, jnp.int32(size), state.round)
        params = state.server.params
        zero = {party: jnp.zeros_like(h) for party, h in params.stand_ins.items()}
        carry = _Carry(
            {agent: own_params(model, params, agent) for agent in optimizers},
            state.server.opt_state,
            {holder: no_loss() for holder in model.heads},
            zero,
            {party: jnp.int32(0) for party in zero},
            no_cost(),
            no_cost(),
        )

        def body(step: Array, carry: _Carry) -> _Carry:
            batch = take_batch(plan, rows, own.seed, own.batch, client, step)
            return one_batch(params, state.round, carry, batch)

        carry = jax.lax.fori_loop(0, steps, body, carry)
        params = _joined(model, params, carry.own)
        means = {
            party: jnp.where(
                carry.counts[party] > 0,
                carry.sums[party] / jnp.maximum(carry.counts[party], 1).astype(old.dtype),
                old,
            )
            for party, old in params.stand_ins.items()
        }
        server = Together(params._replace(stand_ins=means), carry.opt_state)
        new = state._replace(round=state.round + 1, server=server)
        return new, _metrics(model, carry, steps, local_steps)

    def round(
        key: Key, state: RoundState, data: ColumnDataset, cohort: Cohort | None = None
    ) -> tuple[RoundState, dict[str, Array]]:
        check_key(key)
        if not isinstance(state, RoundState):
            raise TypeError(
                f"state must be the RoundState that init gave, got {shown(state)}; the order is "
                "algo.round(key, state, data)"
            )
        check_not_donated(state)
        if cohort is not None:
            raise ValueError(
                "cohort must be None, got one: columns need every party; absence=0.1 leaves out "
                "some of them"
            )
        _check_data(model, data)
        with watching(outputs_of(round), state.server, data.examples):
            return compiled(key, state, data)

    return FederatedAlgorithm(init, round)


def _metrics(
    model: VerticalModel, carry: _Carry, steps: Array, local_steps: int
) -> dict[str, Array]:
    means = {holder: loss.total / loss.count for holder, loss in carry.losses.items()}
    several = {f"train_loss_{holder}": mean for holder, mean in means.items()}
    return {
        "train_loss": sum(list(means.values())[1:], start=next(iter(means.values()))),
        **(several if len(several) > 1 else {}),
        "num_parties": jnp.int32(len(model.bottoms)),
        "num_exchanges": steps,
        "num_steps": steps * local_steps,
        "uplink_bits": carry.up.bits,
        "uplink_entropy_bits": carry.up.entropy,
        "downlink_bits": carry.down.bits,
        "downlink_entropy_bits": carry.down.entropy,
    }


def _stepped(
    optimizer: optax.GradientTransformationExtraArgs, gradient: Any, state: Any, own: Any
) -> tuple[Any, Any]:
    updates, state = step_optimizer(
        *(optimizer, gradient, state, own, {}),
        name="optimizer",
        remedy="a party knows neither the loss nor what others hold; take one that goes by the "
        "gradient: optax.sgd(0.1)",
    )
    return optax.apply_updates(own, updates), state


def _joined(model: VerticalModel, params: Joint, own: dict[str, dict[str, Params]]) -> Joint:
    return params._replace(
        bottoms={party: own[party]["bottom"] for party in model.bottoms},
        heads={holder: own[holder]["head"] for holder in model.heads},
    )


def _drawn(model: VerticalModel, absence: Any, key: Key) -> dict[str, Array]:
    """Who sends something in a batch."""
    parties = tuple(model.bottoms)
    key = jax.random.fold_in(key, PRESENCE)
    there = ~jax.random.bernoulli(key, jnp.asarray(absence), (len(parties),))
    return {party: there[i] for i, party in enumerate(parties)}


def _activations(model: VerticalModel, params: Joint, data: ColumnDataset) -> dict[str, Array]:
    return {
        party: part.apply(params.bottoms[party], data.features[party], None)
        for party, part in model.bottoms.items()
    }


def _optimizers(optimizer: Any, agents: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(optimizer, Mapping):
        one = resolve_optimizer(optimizer)
        return dict.fromkeys(agents, one)
    if set(optimizer) != set(agents):
        raise ValueError(
            f"optimizer must be one for all, or one for each of {list(agents)}, got "
            f"{sorted(optimizer)}; holders of labels have one, too"
        )
    return {agent: resolve_optimizer(optimizer[agent]) for agent in agents}


def _check_joint(model: VerticalModel, params: Any) -> None:
    if not isinstance(params, Joint):
        raise TypeError(f"params must be those of the model, got {shown(params)}; model.init(key)")
    for name, mine, theirs in (
        ("bottoms", model.bottoms, params.bottoms),
        ("heads", model.heads, params.heads),
    ):
        if set(mine) != set(theirs):
            raise ValueError(
                f"params.{name} must be of {sorted(mine)}, got {sorted(theirs)}; model.init(key)"
            )


def _check_data(model: VerticalModel, data: Any) -> None:
    if not isinstance(data, ColumnDataset):
        told = "columns are neither streamed nor dealt to devices: " * hasattr(data, "num_clients")
        raise TypeError(
            f"data must be a ColumnDataset, got {shown(data)}; {told}"
            "fl.parties.from_columns(features, labels)"
        )
    for leaf in jax.tree.leaves(data):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if mesh is not None and AxisType.Explicit in getattr(mesh, "axis_types", ()):
            raise ValueError(
                "data must lie on one device, or on a mesh of automatic axes, got explicit axes "
                f"{mesh.axis_names}; jax.device_put(data, jax.devices()[0])"
            )
    for name, wanted, given in (
        ("features", model.bottoms, data.features),
        ("labels", model.heads, data.labels),
    ):
        lacking = sorted(set(wanted) - set(given))
        surplus = sorted(set(given) - set(wanted)) if name == "features" else []
        if lacking or surplus:
            raise ValueError(
                f"data must have the {name} of {sorted(wanted)}, got {sorted(given)}; the model "
                "knows other parties"
            )
