"""Training that diverged: in which round, why most likely, and what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.mistakes import label_range
from fedjax_lite.types import RoundState

_REMEDY = (
    "most likely learning_rate is too large: lower it (a tenth is a good next try), clip updates "
    "(uplink=fl.clip(1.0)), or let the server's optimizer start more slowly"
)


class RunDiverged(FloatingPointError):
    """The global model is no longer finite; raised by `run`.

    Attributes:
      state: the state after the call in which it happened.
      history: its rows, also on disk where `output_dir` was given.
    """

    def __init__(self, message: str, state: RoundState, history: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.state, self.history = state, history


def check_finite(
    rows: list[dict[str, Any]],
    num_new: int,
    already: int | None,
    state: RoundState,
    data: Any,
    *,
    stop: bool,
) -> int | None:
    """Looks at the losses of a call; only where one is not finite it looks at the model, too.

    Args:
      rows: the history so far.
      num_new: how many of them, the last, the call has added.
      already: the round of which it was warned before, or None.
      state: after the call.
      data: of the run, for what can be seen in them.
      stop: raise where the model cannot recover, instead of warning.

    Returns:
      The first round whose training loss is NaN or infinite, or None.

    Raises:
      RunDiverged: if the global model is not finite and `stop` is set.

    Example:
      >>> rows = [{"round": 1, "train_loss": 0.5}]
      >>> state = RoundState(jnp.int32(1), {"w": jnp.ones(2)}, (), (), (), ())
      >>> check_finite(rows, 1, None, state, None, stop=True) is None
      True
    """
    new = rows[len(rows) - num_new :]
    row = None if already is not None else _first_bad(new)
    if row is None:
        return already
    if stop and not _is_finite(state):
        message = (
            f"{diverged(row, data)}. The global model holds NaN or infinity, which no later round "
            f"mends: stopped after round {rows[-1]['round']} (stop_if_diverged=False goes on)"
        )
        raise RunDiverged(message, state, rows)
    return warn_if_not_finite(new, None, data=data)


def warn_if_not_finite(
    rows: list[dict[str, Any]], already: int | None, *, data: Any = None
) -> int | None:
    """Warns of the first round whose training loss is NaN or infinite, and returns its number.

    Args:
      rows: rounds of one call.
      already: the round of which it was warned before, or None.
      data: of the run, for what can be seen in them.

    Example:
      >>> warn_if_not_finite([{"round": 1, "train_loss": 0.5}], None) is None
      True
    """
    row = None if already is not None else _first_bad(rows)
    if row is None:
        return already
    seen = _seen_in(data) if row["round"] <= 1 else ""
    text = diverged(row)
    if seen:  # a model that is finite after the first round: the data are as likely the cause
        text = (
            f"train_loss is {row['train_loss']} in round {row['round']}: the loss is not finite "
            f"for some examples ({seen}), or {_REMEDY}"
        )
    warnings.warn(f"{text}. The run goes on.", RuntimeWarning, stacklevel=3)
    return int(row["round"])


def warn_of_members(members: list[dict[str, Any]], rounds: list[int], *, num_members: int) -> None:
    """Warns of the members of a sweep that are not finite, by name; at most five are spelt out.

    Args:
      members: their settings.
      rounds: by when it was seen, for each.
      num_members: of the sweep.

    Example:
      >>> warn_of_members([], [], num_members=4)
    """
    if not members:
        return
    named = [f"{member} (by round {at})" for member, at in zip(members, rounds, strict=True)][:5]
    if len(members) > len(named):
        named.append(f"{len(members) - len(named)} more (all of them: the result's `diverged`)")
    others = "no others" if len(members) == num_members else "the others went on as ever"
    warnings.warn(
        f"{len(members)} of {num_members} members of the sweep diverged, their model or loss is "
        f"not finite: {', '.join(named)}; {others}. Training diverged, {_REMEDY}.",
        RuntimeWarning,
        stacklevel=3,
    )


def loss_is_finite(row: Mapping[str, Any]) -> bool:
    """Whether a row's training loss is finite, or nobody trained so that it need not be.

    Example:
      >>> loss_is_finite({"round": 1, "train_loss": math.nan}), loss_is_finite({"round": 1})
      (False, True)
    """
    return _first_bad([dict(row)]) is None


def diverged(row: Mapping[str, Any], data: Any = None) -> str:
    """What happened in a round whose loss is not finite, and the most likely remedy.

    Example:
      >>> diverged({"round": 7, "train_loss": math.inf})[:58]
      'train_loss is inf in round 7: training diverged, most like'
    """
    seen = _seen_in(data) if row["round"] <= 1 else ""
    return (
        f"train_loss is {row.get('train_loss')} in round {row['round']}: training diverged, "
        f"{_REMEDY}{f'; the data of a first round count, too: {seen}' if seen else ''}"
    )


def _first_bad(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    for row in rows:
        loss = row.get("train_loss")
        # The mean loss of nobody, or of no step, is NaN by design.
        someone = row.get("num_clients") != 0 and row.get("num_steps") != 0
        if someone and isinstance(loss, float) and not math.isfinite(loss):
            return row
    return None


def _is_finite(state: RoundState) -> bool:
    """Whether the global model holds neither NaN nor infinity; waits for the device."""
    leaves = jax.tree.leaves(getattr(state.server, "params", state.server))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in floats)


def _seen_in(data: Any) -> str:
    """In the first round the data are as likely the cause: what can be seen in them."""
    examples = getattr(data, "examples", None)
    if not isinstance(examples, Mapping):
        return ""
    seen = []
    found = label_range(examples.get("y"))
    if found is not None:
        seen.append(
            f"examples['y'] holds labels {found[0]}..{found[1]}, so the model needs at least "
            f"{found[1] + 1} outputs"
        )
    x: Any = examples.get("x")
    if isinstance(x, jax.Array | np.ndarray) and getattr(x, "is_fully_addressable", True):
        seen.append(f"examples['x'] is {x.dtype} in {float(x.min()):g}..{float(x.max()):g}")
    return ", ".join(seen)
