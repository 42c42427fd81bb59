"""A run under a privacy mechanism: what its rounds write down, and where the budget ends it."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.data.population.dataset import CohortDataset
from fedjax_lite.round.ledger import Ledger, accounted, is_traced, name_of, opened, read, record
from fedjax_lite.types import Accountant, Cohort, Mechanism, PyTree, RoundState

CHOSEN = "an explicit cohort is not the mechanism's own sampling: "
CERTAIN = "the round is accounted for without amplification by sampling"
UNKNOWN = (
    "nobody accounts for this round, so that epsilon does not hold: it is infinite from here on"
)
NOT_ACCOUNTED = (
    "{count} of the state's {round} rounds are accounted for by no mechanism, so that epsilon is "
    "infinite; for a guarantee from here on begin a new state, algo.init(key, "
    "state.server.params, data), if what those rounds saw need not be protected"
)
FRESH = (
    "take sampler and aggregator from a new state, new = algo.init(key, state.server.params, "
    "data): state._replace(aggregator=new.aggregator, sampler=new.sampler); what was spent stays "
    "in state.privacy"
)


def recorded(privacy: Mechanism | None, state: RoundState, data: Any, cohort: Any) -> PyTree:
    """The ledger after a round of `state`; inside the compiled round.

    Args:
      privacy: the mechanism; a round without one leaves the ledger as it is.
      state: before the round.
      data: of the round; a `CohortDataset` serves the cohort that the mechanism drew.
      cohort: an explicit one, or None.
    """
    if privacy is None or not isinstance(state.privacy, Ledger):
        return state.privacy
    accountant = privacy.accountant
    if cohort is not None and not isinstance(data, CohortDataset):
        chosen = accountant.chosen
        return state.privacy if chosen is None else record(state.privacy, chosen)
    assert accountant.entry is not None
    at = None if accountant.clock is None else accountant.clock(state)
    return record(state.privacy, accountant.entry, at=at)


def prepared(privacy: Mechanism) -> Mechanism:
    """A mechanism whose accountant knows its entry in a ledger, and what its states look like.

    Example:
      >>> from fedjax_lite.aggregation.mean import mean
      >>> from fedjax_lite.round.sampling import everyone
      >>> spends = Accountant(lambda rounds: {"epsilon": 0.5 * rounds}, None, "made up")
      >>> once = prepared(Mechanism(everyone(), mean(), spends))
      >>> prepared(once) is once
      True
    """
    if privacy.accountant.check is not None:
        return privacy
    known = accounted(privacy)

    def check(state: RoundState, data: Any) -> None:
        check_parts(known, state, data)

    return known._replace(accountant=known.accountant._replace(check=check))


def check_private(
    privacy: Mechanism, state: RoundState, data: Any, cohort: Cohort | None
) -> RoundState:
    """Checks a private round before it is traced, and gives its state a ledger.

    Raises:
      ValueError: if the population is not the declared one, the state has spent the budget or has
        seen what does not compose with this mechanism, or its parts are of another one. What a
        traced state has spent is not known.

    Warns:
      UserWarning: where an explicit cohort takes the place of the mechanism's own.
    """
    accountant = privacy.accountant
    if cohort is not None and not isinstance(data, CohortDataset):
        costs = UNKNOWN if accountant.chosen is None else CERTAIN
        warnings.warn(CHOSEN + costs, stacklevel=4)
    if any(map(is_traced, jax.tree.leaves((state.round, state.privacy)))):
        check_parts(privacy, state, data)
        return state
    end = end_of(accountant, state)
    check_parts(privacy, state, data)
    check_clock(accountant, state)
    if end is not None and int(state.round) >= end:
        raise ValueError(
            f"state has done {int(state.round)} rounds, and the privacy budget ends after "
            f"{max(end, 0)}: another round would exceed it; stop here, or make the mechanism with "
            "a larger num_rounds or epsilon"
        )
    return opened(state)


def check_parts(privacy: Mechanism, state: RoundState, data: Any) -> None:
    """Raises ValueError where population, sampler or aggregator are those of another mechanism.

    Args:
      privacy: the mechanism.
      state: its shapes are looked at, so that it may be traced.
      data: the population; a stream keeps the sampler's state itself.
    """
    pairs = {}
    if isinstance(num_clients := getattr(data, "num_clients", None), int):
        made = privacy.sampler.init(num_clients)  # refuses another population than declared
        if not isinstance(data, CohortDataset):
            pairs["sampler"] = (state.sampler, made)
    params = getattr(state.server, "params", None)
    if params is not None:
        made = jax.eval_shape(privacy.aggregator.init_state, params)
        pairs["aggregator"] = (state.aggregator, made)
    for name, (has, needs) in pairs.items():
        if _shapes(has) != _shapes(needs):
            raise ValueError(
                f"state.{name} is not what privacy={_name(privacy.accountant)} keeps there: "
                f"another algorithm made it{_makers(state)}; {FRESH}"
            )


def check_clock(accountant: Accountant, state: RoundState) -> None:
    """Raises ValueError where the noise that a state holds is not of this mechanism's rounds."""
    clock, entry = accountant.clock, accountant.entry
    if clock is None or entry is None or any(map(is_traced, entry.numbers)):
        return
    if entry.numbers[0] == 0:  # without noise there is none of another's, and no guarantee
        return
    seen, done = int(clock(state)), read(state).of(entry)
    if seen != done:
        raise ValueError(
            f"state.aggregator holds noise of other rounds than those of privacy="
            f"{_name(accountant)}, which has done {done} in this state; {FRESH}"
        )


def end_of(accountant: Accountant, state: RoundState) -> int | None:
    """The last round that the budget allows; None: there is none."""
    if accountant.last_round is None:  # made by hand, of an algorithm made by hand
        return accountant.max_rounds
    return accountant.last_round(state)


def with_ledger(accountant: Accountant | None, state: RoundState) -> RoundState:
    """The state as rounds under this accountant keep it, for a run to begin or restore with."""
    return state if accountant is None or accountant.entry is None else opened(state)


def begin(
    accountant: Accountant, state: RoundState, data: Any, num_rounds: int, notices: list[str]
) -> int:
    """How many rounds a run may do in all, `num_rounds` at most.

    Args:
      accountant: of the algorithm.
      state: that the run goes on with.
      data: the population.
      num_rounds: asked for.
      notices: what there is to say is added.

    Raises:
      ValueError: if more than the budget is spent, or that cannot be composed.
    """
    notices.append(accountant.description)
    past = read(state)
    if past.unaccounted and accountant.entry is not None:
        text = NOT_ACCOUNTED.format(count=past.unaccounted, round=past.round)
        warnings.warn(text, stacklevel=3)
    end = end_of(accountant, state)
    if accountant.check is not None:
        accountant.check(state, data)
    check_clock(accountant, state)
    if end is None or end >= num_rounds:
        return num_rounds
    if past.round > end:
        raise ValueError(
            f"state has done {past.round} rounds, but the privacy budget ends after {max(end, 0)}: "
            "more than that epsilon is spent"
        )
    notices.append(f"the privacy budget ends after round {end}: stopping there")
    return end


def spent_by(accountant: Accountant, state: RoundState, count: int) -> list[dict[str, float]]:
    """What was spent after each of the last `count` rounds of a state.

    The last has all figures; those before it have what takes no time, where the state has seen
    this mechanism alone.
    """
    if accountant.last_round is None:
        last, alone = accountant.spent(int(state.round)), True
    else:
        last, alone = accountant.spent(state), _alone(accountant, state)
    quick = accountant.every_round
    if quick is None or not alone:
        return [{}] * (count - 1) + [last]
    first = int(state.round) - count + 1
    return [quick(first + i) for i in range(count - 1)] + [last]


def _alone(accountant: Accountant, state: RoundState) -> bool:
    """Whether all rounds of a state were done under one mechanism, this one."""
    past, entry = read(state), accountant.entry
    if entry is None or any(map(is_traced, entry.numbers)):
        return False
    return not past.unaccounted and not past.others(entry)


def _name(accountant: Accountant) -> str:
    return "none" if accountant.entry is None else name_of(accountant.entry)


def _makers(state: RoundState) -> str:
    """Which mechanisms a state has seen, for a message; nothing where that is not known."""
    if any(map(is_traced, jax.tree.leaves((state.round, state.privacy)))):
        return ""
    names = [name_of(entry) for entry, _ in read(state).parts]
    return f", the state has rounds under {', '.join(names)}" if names else ""


def _shapes(tree: PyTree) -> tuple:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]
