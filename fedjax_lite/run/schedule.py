"""Where the calls of a run end, and at which of these ends it evaluates and saves."""

from __future__ import annotations

from typing import NamedTuple


class Schedule(NamedTuple):
    """Rounds are counted from the beginning of the state, so that grouping survives a resume.

    Example:
      >>> schedule = Schedule(num_rounds=23, every=10, checkpoint_every=15)
      >>> [schedule.length(done) for done in (0, 7, 20)]
      [10, 3, 3]
      >>> [done for done in (10, 20, 23) if schedule.saves(done, last=0)]
      [20, 23]
    """

    num_rounds: int
    """In all."""
    every: int
    """Rounds a call, which ends at a multiple of it."""
    checkpoint_every: int

    def length(self, done: int) -> int:
        """Rounds of the call that begins after `done`."""
        return min(self.every - done % self.every, self.num_rounds - done)

    def evaluates(self, done: int) -> bool:
        """Whether the end of a call is one that is evaluated."""
        return done % self.every == 0 or done == self.num_rounds

    def saves(self, done: int, last: int) -> bool:
        """Whether to save after `done`, where `last` was saved; -1 where nothing was."""
        passed = done // self.checkpoint_every > max(last, 0) // self.checkpoint_every
        return passed or done == self.num_rounds

    def first_saved(self, done: int) -> int:
        """The last round by which a run that begins after `done` has saved its first checkpoint."""
        ends = -(-self.checkpoint_every // self.every)
        return self.every * max(ends, done // self.every + 1)
