"""The order of a party's phases: each once, in turn, and none after an abort."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedjax_lite.crypto.secagg.messages import SecAggAbort


class Turns:
    """What a party does next.

    Args:
      who: the party, for errors.
      phases: names in order.
      done: how many of them are behind it.
      why: it gave up; "": it did not.

    Example:
      >>> turns = Turns("server", ("roster", "forward"))
      >>> with turns.take("roster"):
      ...     pass
      >>> turns.due
      'forward'
    """

    def __init__(self, who: str, phases: tuple[str, ...], *, done: int = 0, why: str = "") -> None:
        self._who, self._phases, self._done, self._why = who, phases, done, why

    @property
    def state(self) -> tuple[int, str]:
        """How many phases are done, and why it gave up."""
        return self._done, self._why

    @property
    def due(self) -> str | None:
        """The next phase; None after the last."""
        return self._phases[self._done] if self._done < len(self._phases) else None

    @contextmanager
    def take(self, phase: str) -> Iterator[None]:
        """Does a phase; whatever it raises ends the round for this party.

        Raises:
          SecAggAbort: if the party gave up before, or another phase is due: a message came twice
            or out of order. The latter does not end the round.
        """
        if self._why:
            raise SecAggAbort(f"{self._who}: gave up this round before: {self._why}")
        if phase != self.due:
            due = "done" if self.due is None else f"to {self.due}"
            raise SecAggAbort(
                f"{self._who} is {due}, not to {phase}; a round runs once and in order, and every "
                "round needs new clients and a new server"
            )
        self._done += 1
        try:
            yield
        except BaseException as error:
            self._why = str(error) or type(error).__name__
            raise
