"""Every protocol and every shared state of the library on one page.

A round is wired from small NamedTuples of pure functions:

    sample cohort -> broadcast -> (start, step .. step, finish -> uplink) for every client
                  -> add to an accumulator -> finish the aggregate -> server optimizer -> next state

Key first and consumed, state next, ``(state, output)`` out. Letters for shapes: `N` population,
`C` cohort, `L` lanes (clients that train at the same time), `E` pooled examples, `B` batch,
`S` local steps, `D` flattened parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
"""A typed key, ``jax.random.key(seed)``."""
PyTree: TypeAlias = Any
Params: TypeAlias = Any

# -- what travels ---------------------------------------------------------------------------


class Batch(NamedTuple):
    """One batch of one client: leaves of `examples` are `[B, ...]`."""

    examples: PyTree
    mask: Array
    """bool `[B]`, False on the padding of a short batch."""
    key: Key
    """This batch's own key, for dropout and the like: no method needs a step counter."""


class Cohort(NamedTuple):
    """The clients of one round."""

    ids: Array
    """int32 `[C]`, rows of the population."""
    mask: Array
    """bool `[C]`: who takes part. False for an empty slot and for a client that dropped out: it
    never came, so nothing was sent to it, and nothing is billed."""
    late: Array | None = None
    """bool `[C]`: of those whom `mask` leaves out, the clients that came and whose message was not
    waited for (a deadline, over-selection). They were sent the broadcast, and that is billed; else
    they do not count. None: nobody."""


class ClientInfo(NamedTuple):
    """What a client knows of itself before it starts."""

    id: Array
    """int32 scalar."""
    size: Array
    """int32 scalar, its examples that count (see `ClientUpdate.counts`)."""
    num_steps: Array
    """int32 scalar, its local steps of all phases."""
    round: Array
    """int32 scalar, the round's number, for schedules."""
    stored: Array | None = None
    """int32 scalar, all examples that its batches are drawn from; None: as `size`."""
    phase_steps: tuple[Array, ...] = ()
    """int32 scalars, the steps of each phase, where there are several."""
    found: Any = ()
    """What the client measured in the prologue, a dict of scalars and `Mean`s."""

    @property
    def main_steps(self) -> Array:
        """int32 scalar, the steps of the last phase: of local training where others precede it."""
        return self.phase_steps[-1] if self.phase_steps else self.num_steps


class Message(NamedTuple):
    """What a client sends: by convention ``value = server minus client``, a pseudo-gradient."""

    value: PyTree
    weight: PyTree
    """A broadcastable prefix of `value`, arrays or plain numbers, none of them negative; weight 0
    means that it does not count."""


class Mean(NamedTuple):
    """A metric that is a ratio of sums; Means merge by ``+`` of both fields.

    Example:
      >>> Mean(1.0, 2) + Mean(3.0, 2)
      Mean(total=4.0, count=4)
    """

    total: Array
    count: Array

    def __add__(self, other: Any) -> Mean:  # type: ignore[override]
        """Both sums added; a tuple would be joined."""
        if other is self or isinstance(other, Mean):
            return Mean(self.total + other.total, self.count + other.count)
        return self._refuse("+", other)

    def __radd__(self, other: Any) -> Mean:
        """For ``sum`` of Means, which starts with 0."""
        return self if isinstance(other, int) and other == 0 else self._refuse("+", other)

    def _refuse(self, sign: str, other: Any) -> Any:
        raise TypeError(
            f"a Mean is a pair of sums, which merges with another Mean by +, got {sign} with "
            f"{type(other).__name__}; compute with metric.total and metric.count"
        )

    def __mul__(self, other: Any) -> Any:  # type: ignore[override]
        """Refused: a tuple would be repeated."""
        return self._refuse("*", other)

    __rmul__ = __mul__


# -- slots of a round -----------------------------------------------------------------------


class Phase(NamedTuple):
    """A part of local work with its own plan: each is one loop, so a step costs what it computes.

    A body that rests while the head is trained, losses before training, a Fisher pass after it.
    """

    step: Callable[[PyTree, PyTree, Batch], PyTree]
    """``(broadcast, carry, batch) -> carry``, one step; all phases share the carry."""
    plan: Any = None
    """A `fedjax_lite.Plan`; None: the algorithm's."""
    name: str = ""
    """Of the metric ``<name>_steps``, the steps that the cohort did in it; "": not reported."""
    stream: int | None = None
    """Phases with the same number are shown the same batches, with the same keys; None: each phase
    has batches of its own (the first has number 0)."""
    data: str = ""
    """The split of the client's data that it reads (`fedjax_lite.data.with_splits`), and that its
    plan's epochs pass over; "": what clients train on."""


class ClientUpdate(NamedTuple):
    """Local training: four functions of ONE client. The engine batches, masks and schedules."""

    init: Callable[[Params], PyTree]
    """``(params) -> row``: state that a client keeps between rounds; ``()`` for none."""
    start: Callable[[Key, PyTree, PyTree, ClientInfo], PyTree]
    """``(key, row, broadcast, info) -> carry``."""
    step: Callable[[PyTree, PyTree, Batch], PyTree] | tuple[Phase, ...]
    """``(broadcast, carry, batch) -> carry``, one local step; or several `Phase`s, in order."""
    finish: Callable[[PyTree, PyTree], tuple[PyTree, Message, dict[str, Any]]]
    """``(broadcast, carry) -> (row, message, metrics)``. Metrics are scalars or `Mean`s."""
    counts: Callable[[PyTree], Array] | None = None
    """``(examples) ->`` bool `[B]`: which of its examples count, as its loss says
    (`fedjax_lite.models.with_counts`); the others are masked in every batch and absent from
    ``info.size``. None: all of them."""
    made: Any = None
    """Which factory made it; None: your own."""


class Wire(NamedTuple):
    """What one value costs to send, in bits; float32 scalars."""

    bits: Array
    """The packed size: what an encoder of fixed-width fields writes."""
    entropy: Array
    """What an ideal entropy coder would write, given how often each symbol occurs in the value;
    equal to `bits` where the symbols are raw floats."""


class Transform(NamedTuple):
    """What happens to a value on the wire, per client; its state is part of the client's row."""

    init: Callable[[PyTree], PyTree]
    """``(value) -> state``; ``()`` for none."""
    update: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree]]
    """``(key, state, value) -> (state, value)``: the value as the receiver decodes it."""
    send: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree, Wire]] | None = None
    """``(key, state, value) -> (state, value, wire)``: `update`, and what it cost to send; None:
    the value is sent as it is, all its bits."""
    kinds: tuple[str, ...] = ()
    """What it does, in order: "clip", "noise", "compress", "feedback", "momentum"; `chain` refuses
    orders that make no sense."""
    made: Any = None
    """Which factory made it; None: your own."""


class Aggregator(NamedTuple):
    """An additive monoid: partial results of chunks and of devices merge by ``+``."""

    init_state: Callable[[PyTree], PyTree]
    """``(value) -> state``, kept between rounds; ``()`` for none. `value`: zeros, shaped as what
    one client sends."""
    init: Callable[[Message, int], PyTree]
    """``(message, C) -> acc``: zeros, the identity of ``+``, for one client's message."""
    add: Callable[[PyTree, Message, Array, Array], PyTree]
    """``(acc, messages, slots [L], mask [L]) -> acc``; leaves of messages are `[L, ...]`."""
    finish: Callable[[Key, PyTree, PyTree, Cohort], tuple[PyTree, PyTree]]
    """``(key, state, acc, cohort) -> (state, value)``."""
    at: Callable[[PyTree], Aggregator] | None = None
    """``(state) ->`` this round's aggregator, for rules that need their state while they fold (a
    clipping norm that adapts); its `finish` is given the same state."""
    made: Any = None
    """Which factory made it; None: your own."""


class Known(NamedTuple):
    """A part of the broadcast that clients hold from the start: neither billed nor compressed.

    The base of a low-rank adapter, an anchor, the number of clients: constants of a run, or what
    its user replaces between two runs, without compiling anew.
    """

    value: PyTree


class ServerUpdate(NamedTuple):
    """What the server does with the aggregate."""

    init: Callable[[Params, Any], PyTree]
    """``(params, population) -> server``, of a copy of the caller's parameters and a
    `fedjax_lite.Population`. ``server.params``, where there is such a field, is the global model.
    """
    broadcast: Callable[[PyTree], PyTree]
    """``(server) ->`` what clients download."""
    update: Callable[[Key, PyTree, PyTree, Cohort, dict[str, Any]], PyTree]
    """``(key, server, value, cohort, metrics) -> server``; leaves of metrics are `[C]`."""
    made: Any = None
    """Which factory made it; None: your own."""


class Sampler(NamedTuple):
    """Who takes part. The cohort's length is fixed; its mask says how many really do."""

    init: Callable[[int], PyTree]
    """``(num_clients) -> state``; raises ValueError where the population is too small."""
    sample: Callable[[Key, PyTree, Array], tuple[PyTree, Cohort]]
    """``(key, state, sizes [N]) -> (state, cohort)``."""
    at: Callable[[Any], Sampler] | None = None
    """``(errand) ->`` this round's sampler, for those that decide by what clients are asked to do
    (a clock); see `fedjax_lite.round.errand.Errand`."""
    learn: Callable[[PyTree, Cohort, dict[str, Any]], PyTree] | None = None
    """``(state, cohort, metrics [C]) -> state`` after a round that it drew; None: as is."""
    inclusion: Callable[[Array], Array] | None = None
    """``(sizes [N]) ->`` how often each is expected in a cohort, `[N]`; None: nobody knows."""
    repeats: bool = False
    """Whether one client may be in two slots."""
    made: Any = None
    """Which factory made it; None: your own."""


class Entry(NamedTuple):
    """A privacy mechanism as the ledger of a state knows it: what one round under it costs."""

    kind: int
    """Which mechanism; see `fedjax_lite.round.ledger`."""
    numbers: tuple[Any, ...] = ()
    """How strong it is: up to five numbers, plain or traced."""


class Accountant(NamedTuple):
    """What a private run has spent; functions of the host."""

    spent: Callable[[Any], dict[str, float]]
    """``(rounds) -> {"epsilon": ...}``: figures for the history, in the units of a budget. Of a
    number of rounds under this mechanism alone, to plan with (one made by hand needs to know no
    more); of a state, what all its rounds spent, under whatever mechanisms they were done."""
    max_rounds: int | None
    """The last round that the budget allows; None: no budget was set. `run` stops there."""
    description: str
    """One line: the guarantee, its unit of privacy and its conditions."""
    delta: float | None = None
    """The delta that `spent`'s epsilon belongs to."""
    noise_multiplier: float | None = None
    """The `z` that was stated, or found for a target epsilon; None: there is none, or it is traced
    (in a `sweep`)."""
    every_round: Callable[[int], dict[str, float]] | None = None
    """``(rounds done) ->`` those of `spent`'s figures that take a moment: `run` has them
    in every row of its history; None: none of them."""
    entry: Entry | None = None
    """What a round writes into the state's ledger; None: found by the description."""
    chosen: Entry | None = None
    """What a round with an explicit cohort writes; None: nobody accounts for such a round."""
    clock: Callable[[RoundState], Any] | None = None
    """``(state) ->`` rounds that the mechanism's noise in this state has seen, where rounds share
    noise; None: each has its own."""
    last_round: Callable[[RoundState], int | None] | None = None
    """``(state) ->`` the last value of ``state.round`` that the budget allows, whatever was spent
    so far; raises ValueError where that cannot be composed with this mechanism."""
    check: Callable[[RoundState, Any], None] | None = None
    """``(state, data)``: raises ValueError where the population or what the state keeps is not this
    mechanism's; of an algorithm that `federated_algorithm` made."""
    made: Any = None
    """Which factory made it; None: your own."""


class Mechanism(NamedTuple):
    """A privacy mechanism: what has to be set together, so that it cannot disagree.

    `federated_algorithm` takes it as ``privacy``; then no other sampler and no other aggregator is
    accepted, the server is shown neither metrics nor who took part, and weights do not count.
    """

    sampler: Sampler
    """Who takes part: the sampling that the accountant presumes."""
    aggregator: Aggregator
    """Clips, sums with weight 1, adds noise, divides by a number that does not depend on data."""
    accountant: Accountant
    uplink: Transform | None = None
    """Applied after the caller's own uplink: what the clients do themselves (local noise)."""
    made: Any = None
    """Which factory made it; None: your own."""

    @property
    def noise_multiplier(self) -> float | None:
        """The `z` that was stated, or found for a target epsilon; None where it is traced."""
        return self.accountant.noise_multiplier


# -- the whole ------------------------------------------------------------------------------


class RoundState(NamedTuple):
    """The state of a run, one immutable pytree; a checkpoint is this."""

    round: Array
    """int32 scalar: rounds done so far."""
    server: PyTree
    """The server's state; ``state.server.params`` is the global model. One that nobody trains is
    told by a class with the attribute ``trained = False``: evaluators refuse to score it."""
    clients: PyTree
    """Client rows, leaves `[N, ...]`. Rows that hold a client's own model, or parts of it, are told
    by a class with a method ``own_model(server_model) -> params``, of one row."""
    uplink: PyTree
    """Uplink transform states, leaves `[N, ...]`."""
    aggregator: PyTree
    sampler: PyTree
    privacy: PyTree = ()
    """Under which privacy mechanisms the rounds so far were done: `round.ledger.Ledger`;
    ``()`` where there was none. Rounds that it does not hold were not private."""


class Slots(NamedTuple):
    """The parts that a round is wired from: ``federated_algorithm(**slots._asdict())`` wires it.

    Defaults stand in for what was not given. Slots are compared by identity: they hold arrays.
    """

    client: ClientUpdate
    plan: Any
    """A `Plan`."""
    sampler: Sampler
    """With `privacy` the mechanism's."""
    server: ServerUpdate
    """As it was given: before `downlink` and `privacy` are put around it."""
    aggregator: Aggregator
    """With `privacy` the mechanism's."""
    uplink: Transform | None
    """As it was given; that of `privacy` comes after it. None: nothing before that."""
    downlink: Any = None
    """A `Downlink`, or None."""
    privacy: Mechanism | None = None
    strategy: Any = None
    """A `Strategy`."""
    prologue: Any = None
    """A `Prologue`, or None."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Whether these are the same slots."""
        return self is other


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm: two pure functions that know nothing of the slots.

    What an algorithm of another kind cannot offer is None.
    """

    init: Callable[..., RoundState]
    """``(key, params, data) -> state``."""
    round: Callable[..., tuple[RoundState, dict[str, Array]]]
    """``(key, state, data, cohort=None) -> (state, metrics)``. Everything random is a function of
    the key, ``state.round`` and the client's id, so every round may be given the same key."""
    sample: Callable[..., tuple[PyTree, Cohort]] | None = None
    """``(key, round, sampler state, sizes [N]) -> (sampler state, cohort)``: whom `round` would
    draw with this key, so that a host can fetch their data before the round is run."""
    with_strategy: Callable[..., FederatedAlgorithm] | None = None
    """``(strategy) ->`` the same algorithm, executed otherwise."""
    accountant: Accountant | None = None
    """Of a private algorithm: `run` records what was spent and stops at the budget."""
    models: Callable[..., Params] | None = None
    """``(state, ids=None) ->`` the model that each client would use, leaves `[n, ...]`; ids `[n]`,
    None: all clients."""
    slots: Slots | None = None
    """What the round is wired from, as data; None where there is no such thing."""
    made: Any = None
    """Which factory made it, ``fl.scaffold(...)``; None: your own."""
