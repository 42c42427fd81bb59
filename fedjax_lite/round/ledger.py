"""The ledger of a state: under which privacy mechanisms its rounds were done, and how many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, Entry, Mechanism, RoundState

SLOTS = 8
"""Mechanisms that one state can have seen; a round under one more is not accounted for."""
NUMBERS = 5
"""Numbers that say how strong a mechanism is, at most."""
OTHER, POISSON, TREE, MATRIX, LOCAL, DISCRETE = range(1, 7)
NAMES = {
    POISSON: ("Gaussian noise over Poisson cohorts", ("z", "q", "overflow")),
    TREE: ("tree noise", ("z", "rounds", "apart")),
    MATRIX: ("matrix noise", ("z",)),
    LOCAL: ("local Gaussian noise", ("z", "sensitivity", "turns")),
    DISCRETE: ("distributed discrete Gaussian noise", ("norm", "sigma", "clients", "dimension")),
}
TRACED = (
    "state is traced, so that what was spent is not known: ask for it on the host, of a state "
    "that a round has returned"
)


class Ledger(NamedTuple):
    """What a state knows of its past; a slot of 0 rounds is free."""

    words: Array
    """uint32 `[8, 11]`: kind and numbers (float64, in two words each) of the mechanisms seen."""
    rounds: Array
    """int32 `[8]`: rounds done under each."""


class Past(NamedTuple):
    """A ledger as the host reads it."""

    parts: tuple[tuple[Entry, int], ...]
    """Mechanisms and their rounds."""
    unaccounted: int
    """Rounds that no mechanism accounts for."""
    round: int
    """Rounds done in all."""

    def of(self, entry: Entry) -> int:
        """Rounds under one mechanism."""
        return sum(rounds for seen, rounds in self.parts if same(seen, entry))

    def others(self, entry: Entry) -> tuple[tuple[Entry, int], ...]:
        """Rounds under all mechanisms but one."""
        return tuple(part for part in self.parts if not same(part[0], entry))


def empty(like: Any = None) -> Ledger:
    """A ledger without rounds.

    Args:
      like: an array that says on which devices it is to lie; default wherever it is needed.

    Example:
      >>> empty().rounds.tolist()
      [0, 0, 0, 0, 0, 0, 0, 0]
    """
    words, rounds = np.zeros((SLOTS, 1 + 2 * NUMBERS), np.uint32), np.zeros(SLOTS, np.int32)
    fresh = Ledger(jnp.asarray(words), jnp.asarray(rounds))
    if isinstance(like, jax.Array) and not is_traced(like) and like.committed:
        return jax.device_put(fresh, like.sharding)
    return fresh


def record(ledger: Ledger, entry: Entry, *, at: Any = None) -> Ledger:
    """The ledger after one more round under a mechanism.

    A round adds to the mechanism's own slot, else to the first free one, and where all are taken
    to none, so that it counts as not accounted for.

    Args:
      ledger: of the state before the round.
      entry: of the round; its numbers may be traced.
      at: rounds that the mechanism's own noise has seen; where it is not the slot's number, the
        noise belongs to another run, and the round is not accounted for. None: not checked.

    Example:
      >>> ledger = record(record(empty(), Entry(POISSON, (1.0, 0.5, 0.0))), Entry(LOCAL, (2.0,)))
      >>> record(ledger, Entry(POISSON, (1.0, 0.5, 0.0))).rounds.tolist()[:3]
      [2, 1, 0]
    """
    words = _words(entry)
    mine = (ledger.words == words).all(1) & (ledger.rounds > 0)
    free = ledger.rounds == 0
    slot = jnp.where(mine.any(), jnp.argmax(mine), jnp.argmax(free))
    counts = mine.any() | free.any()
    if at is not None:
        counts &= jnp.where(mine, ledger.rounds, 0).sum() == at
    return Ledger(
        jnp.where(counts, ledger.words.at[slot].set(words), ledger.words),
        ledger.rounds.at[slot].add(counts.astype(jnp.int32)),
    )


def read(state: RoundState | Ledger) -> Past:
    """What a state (or its ledger alone) says of its past.

    Raises:
      TypeError: if it is neither, or traced.
      ValueError: if it holds several runs, as the states of a sweep do.

    Example:
      >>> state = RoundState(jnp.int32(3), (), (), (), (), (), record(empty(), Entry(LOCAL)))
      >>> read(state).parts[0][0].kind == LOCAL, read(state).unaccounted
      (True, 2)
    """
    ledger = state.privacy if isinstance(state, RoundState) else state
    round: Any = state.round if isinstance(state, RoundState) else None
    if ledger != () and not isinstance(ledger, Ledger):
        raise TypeError(
            f"rounds must be a number of rounds, or a state, got {type(state).__name__}; give "
            "an int, or the state that init, round or run returned"
        )
    if any(is_traced(leaf) for leaf in (round, *ledger)):
        raise TypeError(TRACED)
    if np.ndim(round) or (ledger and np.ndim(ledger.rounds) != 1):
        raise ValueError(
            "state must be one run's, got several stacked ones; ask for each member: "
            "jax.tree.map(lambda leaf: leaf[i], states)"
        )
    parts = ()
    if ledger:
        words, rounds = np.asarray(ledger.words), np.asarray(ledger.rounds)
        parts = tuple(
            (_entry(row), int(count)) for row, count in zip(words, rounds, strict=True) if count > 0
        )
    counted = sum(rounds for _, rounds in parts)
    done = counted if round is None else int(round)
    return Past(parts, max(done - counted, 0), max(done, counted))


def opened(state: RoundState) -> RoundState:
    """The state with a ledger, an empty one where it had none: its rounds so far count as such.

    Example:
      >>> opened(RoundState(jnp.int32(3), (), (), (), (), ())).privacy.rounds.sum().item()
      0
    """
    if state.privacy == ():
        return state._replace(privacy=empty(state.round))
    return state


def fitted(template: Any, names: Iterable[str]) -> Any:
    """A template with a ledger where a checkpoint holds one, and without where it does not.

    Args:
      template: of a restoration; anything but a `RoundState` comes back as it is.
      names: of the leaves in the checkpoint.

    Example:
      >>> state = RoundState(jnp.int32(0), (), (), (), (), (), empty())
      >>> fitted(state, ["round"]).privacy
      ()
    """
    if not isinstance(template, RoundState):
        return template
    if "privacy.rounds" in names:
        return opened(template)
    return template._replace(privacy=()) if isinstance(template.privacy, Ledger) else template


def accounted(privacy: Mechanism) -> Mechanism:
    """A mechanism that can be found in a ledger, also where its accountant knows nothing of one.

    Such a one is told from others by its description, and cannot be composed with any.
    """
    accountant = privacy.accountant
    if accountant.entry is not None:
        return privacy
    digest = hashlib.sha256(accountant.description.encode()).digest()
    numbers = tuple(float(int.from_bytes(digest[6 * i : 6 * i + 6])) for i in range(NUMBERS))
    entry, inner = Entry(OTHER, numbers), accountant.spent

    def spent(rounds: Any) -> dict[str, float]:
        if is_count(rounds):
            return inner(rounds)
        past = read(rounds)
        check_alone(past, entry)
        return lost(inner) if past.unaccounted else inner(past.of(entry))

    def last_round(state: RoundState) -> int | None:
        check_alone(read(state), entry)
        return accountant.max_rounds

    known = accountant._replace(spent=spent, entry=entry, last_round=last_round)
    return privacy._replace(accountant=known)


def lost(spent: Callable[[int], dict[str, float]]) -> dict[str, float]:
    """The figures of a state with rounds that nobody accounts for: all infinite."""
    return dict.fromkeys(spent(0), float("inf"))


def check_alone(past: Past, entry: Entry) -> None:
    """Raises ValueError where a state has seen another mechanism than this one."""
    for other, _ in past.others(entry):
        raise ValueError(incompatible(other, entry))


def incompatible(other: Entry, entry: Entry) -> str:
    """Why a run does not go on: both mechanisms by name, and the remedy."""
    return (
        f"state has rounds under {name_of(other)}, which cannot be composed with "
        f"{name_of(entry)}: go on with the mechanism that it began with, or begin a new state, "
        "algo.init(key, state.server.params, data), and add its epsilon and delta to those spent"
    )


def name_of(entry: Entry) -> str:
    """A mechanism for a message.

    Example:
      >>> name_of(Entry(POISSON, (1.5, 0.01, 0.0)))
      'Gaussian noise over Poisson cohorts (z=1.5, q=0.01)'
    """
    if entry.kind not in NAMES:
        return "a mechanism of its own (known by its description)"
    name, labels = NAMES[entry.kind]
    shown = [
        f"{label}={'traced' if is_traced(value) else f'{value:.6g}'}"
        for label, value in zip(labels, entry.numbers, strict=False)
        if label != "overflow"
    ]
    return f"{name} ({', '.join(shown)})"


def same(one: Entry, other: Entry) -> bool:
    """Whether two entries mean the same mechanism."""
    return np.array_equal(_words(one), _words(other))


def is_count(rounds: Any) -> bool:
    """Whether this is a number of rounds, or meant as one, rather than a state."""
    return not isinstance(rounds, RoundState | Ledger)


def is_traced(value: Any) -> bool:
    """Whether this is known only when a program runs."""
    return isinstance(value, jax.core.Tracer)


def _words(entry: Entry) -> Any:
    """uint32 `[11]`; float64 is written in two words, since JAX may not have it."""
    numbers = (*entry.numbers, *[0.0] * (NUMBERS - len(entry.numbers)))
    pairs = [_halves(number) for number in numbers]
    if not any(is_traced(number) for number in numbers):
        return np.concatenate([[entry.kind], *pairs]).astype(np.uint32)
    return jnp.concatenate([jnp.asarray(w, jnp.uint32) for w in ([entry.kind], *pairs)])


def _halves(number: Any) -> Any:
    """The upper and the lower word of a float64 of this value, uint32 `[2]`."""
    if not is_traced(number):
        bits = int(np.float64(number).view(np.uint64))
        return np.array([bits >> 32, bits & 0xFFFFFFFF], np.uint32)
    if number.dtype == jnp.float64:
        return jax.lax.bitcast_convert_type(number, jnp.uint32)[..., ::-1]
    bits = jax.lax.bitcast_convert_type(number.astype(jnp.float32), jnp.uint32)
    sign, exponent = bits & jnp.uint32(1 << 31), (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    wider = jnp.where(exponent == 0, 0, jnp.where(exponent == 0xFF, 0x7FF, exponent + 896))
    fraction = jnp.where(exponent == 0, 0, fraction)  # what float32 flushes to zero
    upper = sign | (wider.astype(jnp.uint32) << 20) | (fraction >> 3)
    return jnp.stack([upper, (fraction & 7) << 29])


def _entry(words: np.ndarray) -> Entry:
    halves = words[1:].astype(np.uint64).reshape(NUMBERS, 2)
    numbers = ((halves[:, 0] << np.uint64(32)) | halves[:, 1]).view(np.float64)
    return Entry(int(words[0]), tuple(numbers.tolist()))
