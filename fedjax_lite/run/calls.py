"""Calls: the rounds of a run, call by call, and what is done between two of them."""

from __future__ import annotations

from typing import NamedTuple

from fedjax_lite.run.divergence import Watch
from fedjax_lite.run.history import Row
from fedjax_lite.run.interrupt import Interrupt
from fedjax_lite.run.progress import Progress
from fedjax_lite.run.record import Record
from fedjax_lite.run.reporter import Reporter
from fedjax_lite.run.rounds import Rounds
from fedjax_lite.run.schedule import Schedule
from fedjax_lite.types import RoundState


class Calls(NamedTuple):
    """Each field does one thing between two calls; none of them knows another."""

    rounds: Rounds
    schedule: Schedule
    reporter: Reporter
    record: Record
    watch: Watch
    bar: Progress
    interrupt: Interrupt

    def do(self, state: RoundState, begun: list[Row]) -> RoundState:
        """Rounds until all are done or a signal asks for the end; the last state is saved.

        Args:
          state: the run's own, which the first call destroys.
          begun: the row of the initial state, where there is one.

        Raises:
          RuntimeError: if a round does not count itself.
          RunDiverged: see `Watch`.
        """
        done = int(state.round)
        if begun:
            self.record.add(begun)
            self.bar.update(0, begun[0], evaluated=True)
        while done < self.schedule.num_rounds and not self.interrupt.agreed():
            length = self.schedule.length(done)
            state, metrics = self.rounds.advance(state, length)
            done += length
            check_counted(state, done)
            evaluated = self.schedule.evaluates(done)
            rows = self.reporter.rows(
                metrics,
                state,
                done=done - length,
                length=length,
                last=self.record.rows[-1] if self.record.rows else {},
                evaluated=evaluated,
            )
            self.record.add(rows)
            self.watch.look(self.record.rows, length, state)
            self.bar.update(done, rows[-1], evaluated=evaluated or not self.reporter.evaluates)
            if self.schedule.saves(done, self.record.saved) or self.interrupt.agreed():
                self.record.save(state, done)
        if self.record.saved < done:  # no round was left, or a late signal
            self.record.save(state, done)
        return state


def check_counted(state: RoundState, done: int) -> None:
    """Raises RuntimeError where the rounds of an algorithm do not count themselves.

    Example:
      >>> check_counted(RoundState(0, (), (), (), (), ()), 1)
      Traceback (most recent call last):
      ...
      RuntimeError: algo.round must add 1 to state.round: after round 1 state.round is 0
    """
    if int(state.round) != done:
        raise RuntimeError(
            f"algo.round must add 1 to state.round: after round {done} "
            f"state.round is {int(state.round)}"
        )
