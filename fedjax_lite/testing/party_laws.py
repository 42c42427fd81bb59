"""Laws of vertical and split learning; each is a function that raises AssertionError if broken."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.parties.columns import ColumnDataset
from fedjax_lite.testing.algorithm_laws import RATE, run_laws, same
from fedjax_lite.testing.overheard import Overheard
from fedjax_lite.transforms.noise import gaussian_noise
from fedjax_lite.types import Array, FederatedAlgorithm, Params, PyTree, RoundState

KEY = jax.random.key


class PartyCase(NamedTuple):
    """A method of parties on a tiny problem, whose batches are full: no message is of padding."""

    make: Callable[..., FederatedAlgorithm]
    """``(learning_rate, uplink, downlink) -> algorithm``; the rate may be traced, and with rate 0
    nothing is learnt."""
    params: Params
    """What it starts with; at no zero, where gradients would hide."""
    data: Any
    """A `ColumnDataset`, or a `FederatedDataset`."""
    whole: Callable[[Array], Params] | None = None
    """``(learning_rate) ->`` the parameters after a round, of the network in one place; None where
    the method is another one by design, as FedBCD is."""
    beside: tuple[int, int] = (0, 0)
    """Bits up and down in a round that pass no transform: labels, and halves of networks."""
    tells_labels: float = 0.0
    """Which share of what goes up, but for labels, may depend on labels: 1/2 in a U, whose clients
    send gradients, too."""
    read: Callable[[Any], Params] = lambda server: server.params


def check_parties(case: PartyCase, *, laws: Iterable[str] | None = None) -> None:
    """Runs the laws on a method over columns, or on a cut network, of one's own.

    They hold that it learns what the network in one place would learn, that what is billed is what
    goes over the wires, that no message tells what its sender must not tell, and that each draws
    with a key of its own; beside resuming, sweeping and not compiling twice.

    Args:
      case: see `PartyCase`.
      laws: names out of `PARTY_LAWS`; default all.

    Raises:
      AssertionError: naming the law that does not hold.
      ValueError: if a law's name is unknown.

    Example:
      >>> from fedjax_lite import testing
      >>> check_parties(testing.PARTIES["vertical linear"], laws=["resumes_bit_for_bit"])
    """
    run_laws(PARTY_LAWS, case, laws)


@functools.lru_cache(maxsize=4)
def _plain(make: Callable[..., FederatedAlgorithm]) -> Any:
    """One round as a program of the rate, shared by laws."""
    traces: list[int] = []

    def one_round(rate: Array, key: Any, state: RoundState, data: Any) -> Any:
        traces.append(1)
        return make(rate, None, None).round(key, state, data)

    return jax.jit(one_round), traces


def _begun(case: PartyCase, rate: Any = RATE, up: Any = None, down: Any = None) -> Any:
    algo = case.make(rate, up, down)
    return algo, algo.init(KEY(0), case.params, case.data)


def structure_is_stable(case: PartyCase) -> None:
    """State structure, shapes and types are the same before and after a round."""
    algo, state = _begun(case)
    after = jax.eval_shape(algo.round, KEY(0), state, case.data)[0]
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), one)
        for one in (state, after)
    ]
    assert kinds[0] == kinds[1], f"{kinds[0]} became {kinds[1]}"


def equals_the_whole(case: PartyCase) -> None:
    """A round learns what the network in one place learns from the same batches."""
    if case.whole is None:
        return
    _, state = _begun(case)
    after, _ = _plain(case.make)[0](jnp.float32(RATE), KEY(0), state, case.data)
    found, expected = case.read(after.server), case.whole(jnp.float32(RATE))
    same(found, expected, message="of the network in pieces, and in one place")


def something_is_learnt(case: PartyCase) -> None:
    """Every party's parameters move, and stay finite."""
    _, state = _begun(case)
    after, metrics = _plain(case.make)[0](jnp.float32(RATE), KEY(0), state, case.data)
    before = jax.tree_util.tree_leaves_with_path(case.read(state.server))
    for (path, old), new in zip(before, jax.tree.leaves(case.read(after.server)), strict=True):
        assert np.isfinite(new).all(), f"{jax.tree_util.keystr(path)} is not finite"
        assert (np.asarray(old) != np.asarray(new)).any(), (
            f"{jax.tree_util.keystr(path)} never moved"
        )
    assert all(np.isfinite(value).all() for value in metrics.values()), metrics


def never_retraces(case: PartyCase) -> None:
    """One trace serves every round and every value of the learning rate, which has an effect."""
    program, traces = _plain(case.make)
    _, state = _begun(case)
    program(jnp.float32(RATE), KEY(0), state, case.data)
    once = len(traces)
    first, _ = program(jnp.float32(RATE), KEY(1), state, case.data)
    again, _ = program(jnp.float32(RATE), KEY(0), first, case.data)
    other, _ = program(jnp.float32(RATE / 2), KEY(0), first, case.data)
    assert len(traces) == once, "a second trace"
    pairs = zip(jax.tree.leaves(again.server), jax.tree.leaves(other.server), strict=True)
    moved = any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
    assert moved, "the learning rate has no effect: it was compiled in"


def sweeps(case: PartyCase) -> None:
    """A vmap over learning rates equals a call for each."""
    _, state = _begun(case)
    rates = jnp.array([RATE, RATE / 2], jnp.float32)

    def one(rate: Array) -> Params:
        return case.read(case.make(rate, None, None).round(KEY(0), state, case.data)[0].server)

    many = jax.jit(jax.vmap(one))(rates)
    for i, rate in enumerate(rates):
        expected, _ = _plain(case.make)[0](rate, KEY(0), state, case.data)
        same(jax.tree.map(lambda leaf: leaf[i], many), case.read(expected.server))  # noqa: B023


def resumes_bit_for_bit(case: PartyCase) -> None:
    """A state written to bytes and read back in mid-run ends in the same bits."""
    _, state = _begun(case)
    program, _ = _plain(case.make)
    rate = jnp.float32(RATE)
    for _ in range(2):
        state, _ = program(rate, KEY(0), state, case.data)
    leaves, structure = jax.tree.flatten(state)
    stored = [(np.asarray(leaf).tobytes(), leaf.dtype, leaf.shape) for leaf in leaves]
    restored = [jnp.asarray(np.frombuffer(b, d).reshape(s)) for b, d, s in stored]
    straight = program(rate, KEY(0), state, case.data)
    resumed = program(rate, KEY(0), jax.tree.unflatten(structure, restored), case.data)
    same(resumed, straight, exact=True)


def keys_are_used_once(case: PartyCase) -> None:
    """JAX's key-reuse checker finds nothing, with noise on both wires."""
    algo, state = _begun(case, RATE, gaussian_noise(0.1), gaussian_noise(0.1))
    try:
        with jax.debug_key_reuse(True):
            algo.round(KEY(0), state, case.data)
    except jax.errors.KeyReuseError as error:
        raise AssertionError(f"a key is used twice: {error}") from error


@functools.lru_cache(maxsize=8)
def _listened(make: Callable[..., FederatedAlgorithm]) -> tuple[Any, Overheard, Overheard]:
    """A round on whose wires we listen, as a program of the rate, shared by laws."""
    up, down = Overheard(), Overheard()

    def one_round(rate: Array, key: Any, state: RoundState, data: Any) -> Any:
        return make(rate, up.transform, down.transform).round(key, state, data)

    return jax.jit(one_round), up, down


def _heard(case: PartyCase, rate: float, data: Any, *, later: int = 0) -> Any:
    """The metrics of round `later`, whose messages are then all that both ears know."""
    program, *ears = _listened(case.make)
    for ear in ears:
        ear.forget()
    transforms = [ear.transform for ear in ears]
    state = case.make(rate, *transforms).init(KEY(0), case.params, data)
    state = state._replace(round=state.round + later)
    metrics = program(jnp.float32(rate), KEY(0), state, data)[1]
    for ear in ears:
        ear.heard()
    return metrics


def bits_are_those_on_the_wires(case: PartyCase) -> None:
    """What is billed is what was sent: every message both ways, labels, halves of networks."""
    _, *ears = _listened(case.make)
    metrics = _heard(case, RATE, case.data)
    for name, ear, beside in zip(("uplink_bits", "downlink_bits"), ears, case.beside, strict=True):
        billed, sent = float(metrics[name]), ear.bits + beside
        assert ear.bits, f"nothing was heard of {name}: no transform is on this wire"
        assert billed == sent, f"{name} are {billed:g}, on the wire were {sent}"


def messages_draw_by_themselves(case: PartyCase) -> None:
    """No two messages of two rounds, of either direction, are given the same key."""
    _, *ears = _listened(case.make)
    keys: list[bytes] = []
    for later in (0, 1):
        _heard(case, RATE, case.data, later=later)
        keys += [key for ear in ears for key in ear.keys]
    twice = len(keys) - len(set(keys))
    assert not twice, f"{twice} of {len(keys)} messages share a key: noise on them is the same"


def labels_are_not_sent_along(case: PartyCase) -> None:
    """At rate 0 other labels change no message that goes up, but the gradients of a U."""
    _, up, _ = _listened(case.make)
    _heard(case, 0.0, case.data)
    before, sent = Counter(up.messages), len(up.messages)
    _heard(case, 0.0, _relabelled(case.data))
    changed = up.differing(before)
    allowed = round(case.tells_labels * sent)
    assert changed <= allowed, f"{changed} of {sent} messages tell of labels, {allowed} may"


def messages_are_of_ones_own(case: PartyCase) -> None:
    """At rate 0 another party's columns change its messages only, a holder's none."""
    if not isinstance(case.data, ColumnDataset):
        return
    _, up, _ = _listened(case.make)
    _heard(case, 0.0, case.data)
    before, sent = Counter(up.messages), len(up.messages)
    senders = [party for party in case.data.parties if party not in case.data.labels]
    for party in case.data.parties:
        own = jax.tree.map(lambda x: x + 1, case.data.features[party])
        other = ColumnDataset({**case.data.features, party: own}, case.data.labels)
        _heard(case, 0.0, other)
        changed, expected = up.differing(before), sent // len(senders) if party in senders else 0
        assert changed == expected, (
            f"columns of {party} changed {changed} of {sent} messages, not {expected}"
        )


def _relabelled(data: Any) -> Any:
    """The same with other labels: 0 and 1 change places, other numbers are negated."""

    def other(y: Array) -> Array:
        return 1 - y

    if isinstance(data, ColumnDataset):
        labels: PyTree = {
            holder: {**y, "event": other(y["event"])} if isinstance(y, dict) else other(y)
            for holder, y in data.labels.items()
        }
        return ColumnDataset(data.features, labels)
    return dataclasses.replace(data, examples={**data.examples, "y": other(data.examples["y"])})


PARTY_LAWS: dict[str, Callable[[PartyCase], None]] = {
    law.__name__: law
    for law in (
        structure_is_stable,
        equals_the_whole,
        something_is_learnt,
        never_retraces,
        sweeps,
        resumes_bit_for_bit,
        keys_are_used_once,
        bits_are_those_on_the_wires,
        messages_draw_by_themselves,
        labels_are_not_sent_along,
        messages_are_of_ones_own,
    )
}
