"""Training that diverged: in which round, why most likely, and what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.labels import seen_in
from fedjax_lite.evaluate.finite import clients_not_finite, looked_at, server_is_finite
from fedjax_lite.round.own_models import keeps_own
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


class Watch:
    """Looks at the model after every call of rounds, and at the losses of its rows.

    The model itself is looked at, whatever the metrics are called: the server's and, where clients
    keep models of their own, those; one compiled reduction a call, on the device. It is lost where
    it holds NaN or infinity, or where the loss is not finite and the model has grown so large that
    squares overflow. A loss that is not finite beside a model that is (one client's data, a message
    that `clip` drops) is warned of, again each time that it has happened twice as often.

    Args:
      data: of the run, for what can be seen in them.
      stop: raise where the model is lost, instead of warning.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = [{"round": 1, "train_loss": 0.5}]
      >>> state = RoundState(jnp.int32(1), {"w": jnp.ones(2)}, (), (), (), ())
      >>> Watch(None, stop=True).look(rows, 1, state)
    """

    def __init__(self, data: Any, *, stop: bool) -> None:
        self._data, self._stop = data, stop
        self._bad = {"loss": 0, "model": 0}
        self._warn_at = {"loss": 1, "model": 1}

    def begin(self, state: RoundState) -> None:
        """Looks at the state that a run starts from.

        Raises:
          RunDiverged: if its model is not finite already, and `stop` is set.
        """
        if self._stop and not looked_at(state).finite:
            raise RunDiverged(
                f"{_whose(state)} holds NaN or infinity before round {int(state.round) + 1}: the "
                "run would start from a model that is lost; look at the parameters given to "
                "algo.init, or resume from an earlier checkpoint (stop_if_diverged=False goes on)",
                state,
                [],
            )

    def look(self, rows: list[dict[str, Any]], num_new: int, state: RoundState) -> None:
        """Looks at what a call has done.

        Args:
          rows: the history so far.
          num_new: how many of them, the last, the call has added.
          state: after the call.

        Raises:
          RunDiverged: if the model is lost and `stop` is set.

        Warns:
          RuntimeWarning: if it is lost and `stop` is not set, or a training loss is not finite.
        """
        new = rows[len(rows) - num_new :]
        model = looked_at(state)
        row = _first_bad(new)
        if model.finite and not (row is not None and model.huge):
            if row is not None:
                self._warn_of_loss(new, row)
            return
        if row is not None:
            what = diverged(row, self._data)
        else:
            found = _first_not_finite(new)
            seen = f"the model is not finite after round {new[-1]['round']}"
            if found is not None:
                seen = f"{found[1]} is {found[0][found[1]]} in round {found[0]['round']}"
            elif num_new > 1:
                seen += f" (it was after round {new[0]['round'] - 1})"
            what = f"{seen}: training diverged, {_REMEDY}"
        holds = "holds NaN or infinity, which no later round mends"
        if model.finite:
            holds = "is finite, but so large that squares of it are not"
        lost = f"{what}. {_whose(state)} {holds}"
        if self._stop:
            raise RunDiverged(
                f"{lost}: stopped after round {rows[-1]['round']} (stop_if_diverged=False goes on)",
                state,
                rows,
            )
        already = self._bad["model"]
        if self._again("model", num_new):
            if already:
                lost = f"the model is still lost, after {already + num_new} rounds"
            warnings.warn(f"{lost}. The run goes on.", RuntimeWarning, stacklevel=3)

    def _warn_of_loss(self, new: list[dict[str, Any]], row: dict[str, Any]) -> None:
        before = self._bad["loss"]
        count = sum(not loss_is_finite(each) for each in new)
        if not self._again("loss", count):
            return
        if not before:
            warn_if_not_finite(new, None, data=self._data)
            return
        warnings.warn(
            f"train_loss was not finite in {before + count} rounds by now, of this call in round "
            f"{row['round']} first: the model is finite, but it does not learn from what gives no "
            f"loss; {_REMEDY}. The run goes on.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _again(self, what: str, count: int) -> bool:
        """Whether it is time to warn: at the first, and each time the number has doubled."""
        self._bad[what] += count
        due = self._bad[what] >= self._warn_at[what]
        if due:
            self._warn_at[what] = 2 * self._bad[what]
        return due


def _whose(state: RoundState) -> str:
    """Whose model is lost: the server's, or that of how many clients."""
    if not keeps_own(state) or not server_is_finite(state):
        return "The global model"
    ids = clients_not_finite(state)
    return f"The own model of {len(ids)} clients (first: client {ids[0] if ids else '?'})"


def _first_not_finite(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str] | None:
    """The first row with a metric that is not finite and was before, and the metric's name."""
    for before, row in zip([{}, *rows], rows):
        for name, value in row.items():
            was = before.get(name, 0.0)
            if name in ("seconds", "round") or not isinstance(value, float):
                continue
            if not math.isfinite(value) and isinstance(was, int | float) and math.isfinite(was):
                return row, name
    return None


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


def _seen_in(data: Any) -> str:
    """In the first round the data are as likely the cause: what can be seen in them."""
    examples = getattr(data, "examples", None)
    if not isinstance(examples, Mapping):
        return ""
    seen = []
    found = seen_in(examples.get("y"))
    if found is not None:
        seen.append(
            f"examples['y'] holds labels {found[0]}..{found[1]}, so the model needs at least "
            f"{found[1] + 1} outputs"
        )
    x: Any = examples.get("x")
    if isinstance(x, jax.Array | np.ndarray) and getattr(x, "is_fully_addressable", True):
        seen.append(f"examples['x'] is {x.dtype} in {float(x.min()):g}..{float(x.max()):g}")
    return ", ".join(seen)
