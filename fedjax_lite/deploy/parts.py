"""The parts of an algorithm that both sides of a wire need: wiring, templates, told sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import Made
from fedjax_lite.data.population.population import Found
from fedjax_lite.engine.program import Table
from fedjax_lite.engine.prologue import Prefaced, preface_shape
from fedjax_lite.round.downlink import put_back
from fedjax_lite.round.fresh_state import fresh_state
from fedjax_lite.round.wiring import Wired, read_phases, wired
from fedjax_lite.types import (
    Array,
    FederatedAlgorithm,
    Known,
    Params,
    PyTree,
    RoundState,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToldSizes:
    """A population of which nothing is at hand but the sizes that its clients told.

    Attributes:
      sizes: int32 `[N]`: of each client, all its examples; samplers draw by them.
      splits: sizes of other data of the same clients, by name.
      counted: int32 `[N]`: its examples that count; None: all. Servers weigh by them.
    """

    sizes: Array
    splits: dict[str, ToldSizes] = dataclasses.field(default_factory=dict)
    counted: Array | None = None

    @property
    def num_clients(self) -> int:
        """`N`."""
        return self.sizes.shape[0]

    @property
    def num_rows(self) -> int:
        """Rows of the table of client state: one, to know their shapes by. Clients keep theirs."""
        return 1

    def find(self, ids: Array, slots: Array) -> Found:
        """Sizes of some clients."""
        return Found(slots, slots, self.sizes[ids])


def deployed(algo: FederatedAlgorithm) -> Wired:
    """The wiring of an algorithm that can run on machines of its clients' own.

    Raises:
      TypeError: if it is no algorithm, not one of synchronous rounds wired from slots, or one whose
        `init` is another than that of its slots.
    """
    if not isinstance(algo, FederatedAlgorithm):
        raise TypeError(f"algo must be a FederatedAlgorithm, got {shown(algo)}; fl.fedavg(...)")
    if algo.slots is None or not _is_synchronous(algo):
        raise TypeError(
            f"algo must have rounds in which a cohort is drawn and waited for, got {algo.made}; "
            "take a synchronous algorithm such as fl.fedavg or fl.scaffold"
        )
    if _innermost(algo).fields["init"] is not algo.init:
        raise TypeError(
            f"algo must begin as its slots do, got {algo.made} with an init around theirs, which "
            "no machine would call; change what it makes instead: served = hub.init(hub.told(...)),"
            " served._replace(state=...)"
        )
    return wired(*algo.slots)


def splits_of(wires: Wired) -> list[str]:
    """Names of the other data that clients must have, a prologue's among them."""
    return sorted({phase.data for phase in read_phases(wires) if phase.data})


def _is_synchronous(algo: FederatedAlgorithm) -> bool:
    """Whether its round is the one that its slots wire, and nobody's around it."""
    made = algo.made
    if made is None or "round" in made.replaced(algo):
        return False
    return _innermost(algo).name == "federated_algorithm"


def _innermost(algo: FederatedAlgorithm) -> Made:
    """The call that an algorithm came of first."""
    made = algo.made
    assert made is not None
    while made.before is not None:
        made = made.before
    return made


def first_state(wires: Wired, key: Any, params: Params, told: ToldSizes) -> RoundState:
    """The state before the first round, with one client row, to know its shapes by."""
    with in_population(told.num_clients):
        return fresh_state(wires, key, params, told)


def template_row(state: RoundState) -> Table:
    """A fresh client's row, leaves `[1, ...]`, of the state of `first_state`."""
    return Table(state.clients, state.uplink)


def template_broadcast(wires: Wired, state: RoundState, key: Any, told: ToldSizes) -> PyTree:
    """What a client downloads before it trains, in structure: with a prologue's aggregate beside.

    Args:
      wires: of the algorithm.
      state: of `first_state`.
      key: any.
      told: the population's sizes.
    """
    broadcast = wires.server.broadcast(state.server)
    if wires.prologue is None:
        return broadcast
    return Prefaced(broadcast, trees.zeros(_preface(wires, state, key, told, broadcast)[0]))


def found_shape(wires: Wired, state: RoundState, key: Any, told: ToldSizes) -> PyTree:
    """Shapes of what one client measures in the prologue; ``()`` where there is none."""
    if wires.prologue is None:
        return ()
    return _preface(wires, state, key, told, wires.server.broadcast(state.server))[1]


def _preface(wires: Wired, state: RoundState, key: Any, told: ToldSizes, sent: PyTree) -> Any:
    assert wires.prologue is not None
    with in_population(told.num_clients):
        drawn = jax.eval_shape(
            lambda key: wires.sampler.sample(key, state.sampler, told.sizes)[1], key
        )
        return preface_shape(wires.prologue, sent, drawn)


def known_leaves(broadcast: PyTree) -> list[Array]:
    """The leaves of a broadcast that clients hold from the start, and are sent only once.

    Example:
      >>> from jax import numpy as jnp
      >>> known_leaves({"w": jnp.zeros(2), "base": Known(jnp.ones(1))})[0].tolist()
      [1.0]
    """
    nodes = jax.tree.leaves(broadcast, is_leaf=lambda node: isinstance(node, Known))
    return jax.tree.leaves([node for node in nodes if isinstance(node, Known)])


def joined(template: PyTree, sent: list[Array], known: list[Array]) -> PyTree:
    """A broadcast from what travelled in this round and what its reader holds.

    Example:
      >>> from jax import numpy as jnp
      >>> joined({"w": 0, "base": Known(0)}, [jnp.ones(1)], [jnp.zeros(1)])["w"].tolist()
      [1.0]
    """
    rest = iter(known)
    held = jax.tree.map(
        lambda node: jax.tree.map(lambda _: next(rest), node) if isinstance(node, Known) else node,
        template,
        is_leaf=lambda node: isinstance(node, Known),
    )
    return put_back(held, sent)
