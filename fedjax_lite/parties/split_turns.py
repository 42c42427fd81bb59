"""Clients in turn: one server's half, trained by client after client in one compiled scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_key, check_params, shown
from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.checks.state import check_not_donated
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.counted import count_work
from fedjax_lite.engine.one_pass import work_list
from fedjax_lite.engine.program import client_batch
from fedjax_lite.engine.round_keys import client_keys, round_keys
from fedjax_lite.parties.cut import CutModel
from fedjax_lite.parties.split_parallel import crossed, moved
from fedjax_lite.parties.split_step import optimizer_of, split_gradients
from fedjax_lite.parties.wires import add_cost, no_cost
from fedjax_lite.round.cohort_checks import check_cohort
from fedjax_lite.round.fresh_state import strongly_typed_copy
from fedjax_lite.round.local import ClientOptimizer, add_loss, no_loss
from fedjax_lite.types import (
    Array,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mean,
    Params,
    Phase,
    PyTree,
    RoundState,
    Sampler,
    Transform,
    Wire,
)


class SplitState(NamedTuple):
    """The whole network, and the optimizer of the server's half."""

    params: Params
    opt_state: PyTree


class _Turns(NamedTuple):
    client: Params
    """As the next client receives it; where it is not handed on, as all of them do."""
    total: Params
    """The clients' halves, weighed by their examples and summed."""
    weight: Array
    server: Params
    server_state: PyTree
    loss: Mean
    up: Wire
    down: Wire
    counted: Array
    steps: Array


def split_in_turn(
    cut: CutModel,
    optimizer: ClientOptimizer,
    server_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler,
    uplink: Transform | None,
    downlink: Transform | None,
    handed_on: bool,
) -> FederatedAlgorithm:
    """The algorithm behind `split_learning` and ``splitfed(version=2)``; see there.

    ``handed_on``: the clients' half goes from client to client; else each begins from the same, and
    they are averaged.

    Raises:
      ValueError: if the sampler learns from rounds or has a clock.
    """
    of_client = optimizer_of(optimizer, "optimizer")
    of_server = optimizer_of(server_optimizer, "server_optimizer")
    if sampler.at is not None or sampler.learn is not None or sampler.repeats:
        raise ValueError(
            "sampler must draw clients without a clock, without learning from their metrics and "
            "each once, where they take turns; fl.uniform(10)"
        )
    phase = Phase(lambda *_: None, plan, "", 0)
    counts = counts_of(cut.model.loss)

    def init(key: Key, params: Params, data: FederatedDataset) -> RoundState:
        check_key(key)
        check_params(params)
        _check_population(data)
        trees.check_floating(params, "params")
        plan.check_population(data.num_clients)
        params = jax.tree.map(strongly_typed_copy, params)
        opt_state = of_server(jnp.int32(0)).init(cut.halves(params)[1])
        server = SplitState(params, jax.tree.map(strongly_typed_copy, opt_state))
        return RoundState(
            jnp.int32(0), trees.unaliased(server), (), (), (), sampler.init(data.num_clients)
        )

    def next_state(
        key: Key, state: RoundState, data: FederatedDataset, cohort: Cohort | None
    ) -> tuple[RoundState, dict[str, Array]]:
        keys = round_keys(key, state.round)
        sampler_state = state.sampler
        if cohort is None:
            sampler_state, cohort = sampler.sample(keys.sample, state.sampler, data.sizes)
        known = (cohort.ids >= 0) & (cohort.ids < data.num_clients)
        late = None if cohort.late is None else cohort.late & known & ~cohort.mask
        cohort = Cohort(cohort.ids.astype(jnp.int32), cohort.mask & known, late)
        work = work_list((phase,), keys.training.clients, cohort, data, state.round)
        work = count_work(counts, data, work)
        client, server = cut.halves(state.server.params)

        def turn(turns: _Turns, slot: Array) -> tuple[_Turns, None]:
            one = jax.tree.map(lambda leaf: leaf[slot], work)
            own = client_keys(keys.training.clients, one.ids)
            begun = of_client(state.round).init(turns.client)

            def step(number: Array, at: Any) -> Any:
                mine, mine_state, theirs, theirs_state, loss, up, down = at
                batch = client_batch(phase, counts, data, own.seed, own.batch, one.members, number)
                found = split_gradients(cut, mine, theirs, batch, uplink=uplink, downlink=downlink)
                mine, mine_state = moved(
                    *(of_client(state.round), found.client, mine_state, mine), anchor=turns.client
                )
                theirs, theirs_state = moved(
                    *(of_server(state.round), found.server, theirs_state, theirs), anchor=server
                )
                return (
                    *(mine, mine_state, theirs, theirs_state, add_loss(loss, found.loss, batch)),
                    *(add_cost(up, found.up), add_cost(down, found.down)),
                )

            at = (turns.client, begun, turns.server, turns.server_state)
            at = (*at, turns.loss, turns.up, turns.down)
            mine, _, theirs, theirs_state, loss, up, down = jax.lax.fori_loop(
                0, one.num_steps, step, at
            )
            weight = jnp.where(one.num_steps > 0, one.sizes, 0).astype(jnp.float32)
            total = jax.tree.map(lambda t, m: t + (weight * m).astype(t.dtype), turns.total, mine)
            return _Turns(
                *(mine if handed_on else turns.client, total, turns.weight + weight),
                *(theirs, theirs_state, loss, up, down),
                *(turns.counted + (one.num_steps > 0), turns.steps + one.num_steps),
            ), None

        slots = jax.random.permutation(keys.server, cohort.ids.shape[0])
        nothing = jnp.int32(0)
        turns = _Turns(
            *(client, trees.wide_zeros(client), jnp.float32(0), server, state.server.opt_state),
            *(no_loss(), no_cost(), no_cost(), nothing, nothing),
        )
        turns, _ = jax.lax.scan(turn, turns, slots)
        mine = turns.client
        if not handed_on:
            divisor = jnp.maximum(turns.weight, 1)
            mean = jax.tree.map(lambda t: t / divisor.astype(t.dtype), turns.total)
            mine = trees.where(turns.weight > 0, trees.cast_like(mean, client), client)
        params = cut.whole(mine, turns.server)
        new = state._replace(
            round=state.round + 1,
            server=SplitState(params, turns.server_state),
            sampler=sampler_state,
        )
        asked = cohort.mask.sum() + (0 if late is None else late.sum())
        return new, _metrics(turns, trees.num_bits(client), asked)

    compiled = jax.jit(next_state)

    def round(
        key: Key, state: RoundState, data: FederatedDataset, cohort: Cohort | None = None
    ) -> tuple[RoundState, dict[str, Array]]:
        check_key(key)
        _check_population(data)
        if not isinstance(state, RoundState):
            raise TypeError(
                f"state must be the RoundState that init gave, got {shown(state)}; the order is "
                "algo.round(key, state, data)"
            )
        check_not_donated(state)
        if cohort is not None:
            check_cohort(cohort, data, (jnp.zeros(1),))  # whose turn it is, comes once
        with watching(outputs_of(round), state.server, data.examples):
            return compiled(key, state, data, cohort)

    return FederatedAlgorithm(init, round)


def _metrics(turns: _Turns, half: int, asked: Array) -> dict[str, Array]:
    # Every client that was asked downloads its half, a late one too, and those that trained send
    # it back or on.
    up = jnp.float32(half) * turns.counted
    down = jnp.float32(half) * asked
    return {
        "train_loss": turns.loss.total / turns.loss.count,
        **crossed(turns.up, turns.down),
        "num_clients": turns.counted,
        "num_steps": turns.steps,
        "uplink_bits": turns.up.bits + up,
        "uplink_entropy_bits": turns.up.entropy + up,
        "downlink_bits": turns.down.bits + down,
        "downlink_entropy_bits": turns.down.entropy + down,
    }


def _check_population(data: Any) -> None:
    if isinstance(data, FederatedDataset):
        return
    remedy = "fl.data.partition(train, fl.data.iid(num_clients=10, seed=0))"
    if hasattr(data, "num_clients"):  # streamed, or split over devices
        remedy = (
            "clients in turn are one scan over a population in one memory; splitfed(version=1) "
            "streams, and goes over devices"
        )
    raise TypeError(f"data must be a FederatedDataset, got {shown(data)}; {remedy}")
