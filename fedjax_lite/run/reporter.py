"""Reporter: the rows of a run, from what its rounds measured, spent and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_lite.evaluate import results_of
from fedjax_lite.round.private_runs import spent_by
from fedjax_lite.run.history import Row
from fedjax_lite.run.rows import evaluation, merge, rows_of_call, with_totals
from fedjax_lite.types import Accountant, PyTree, RoundState


class Reporter:
    """Makes rows; it keeps nothing but the clock.

    Args:
      evaluate: ``(state) -> {name: number}``, or None.
      accountant: of a private algorithm, or None.
      began: `time.perf_counter` at the beginning.
      earlier: seconds of the runs that this one goes on from.

    Example:
      >>> reporter = Reporter(None, None, began=time.perf_counter(), earlier=60.0)
      >>> rows = reporter.rows({"train_loss": [0.5]}, (), done=3, length=1, last={})
      >>> rows[0]["round"], rows[0]["train_loss"], rows[0]["seconds"] >= 60
      (4, 0.5, True)
    """

    def __init__(
        self,
        evaluate: Callable[[RoundState], Mapping[str, Any]] | None,
        accountant: Accountant | None,
        *,
        began: float,
        earlier: float = 0.0,
    ) -> None:
        self._evaluate, self._accountant = evaluate, accountant
        self.evaluates = evaluate is not None
        self._since = began - earlier

    def seconds(self) -> float:
        """Wall-clock from the beginning of the first of the runs until now."""
        return time.perf_counter() - self._since

    def begin(self, state: RoundState, *, fresh: bool) -> tuple[list[Row], set[str]]:
        """The row of the initial state, if the run is `fresh`, and the names that are known of an
        evaluation.
        """
        known = set(results_of(self._evaluate))
        if self._evaluate is None or not fresh:
            return [], known
        first = evaluation(self._evaluate, state)
        spent = {} if self._accountant is None else spent_by(self._accountant, state, 1)[-1]
        row = merge({"round": 0, **spent, "seconds": self.seconds()}, first)
        return [row], known | first.keys()

    def rows(
        self,
        metrics: PyTree,
        state: RoundState,
        *,
        done: int,
        length: int,
        last: Row,
        evaluated: bool = False,
    ) -> list[Row]:
        """The rows of a call.

        Args:
          metrics: arrays `[capacity, ...]`; the first `length` entries count.
          state: after the call.
          done: rounds done before it.
          length: rounds of the call.
          last: the row before them, empty where there is none.
          evaluated: whether the state is evaluated.

        Raises:
          ValueError: if a column would be there twice.
        """
        rows = rows_of_call(metrics, done, length, self.seconds())
        rows = with_totals(rows, last)
        if self._accountant is not None:
            figures = spent_by(self._accountant, state, length)
            rows = [merge(*pair) for pair in zip(rows, figures, strict=True)]
        if self._evaluate is not None and evaluated:
            rows[-1] = merge(rows[-1], evaluation(self._evaluate, state))
        return rows
