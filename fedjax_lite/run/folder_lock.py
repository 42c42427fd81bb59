"""FolderLock: one writer in a folder at a time, and who it is.

The lock is the kernel's (flock, by filelock), so it ends with the process that holds it, however
that ends. Beside it lies a note for people, which never decides anything: ``.lock`` and
``.lock.holder.json``, both gone after a release. What a killed process leaves of them is taken over
by the next one.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from fedjax_lite.run.files import save_text_atomic

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_held: set[Path] = set()
"""Folders that this process holds, for a message that says so."""


class FolderInUse(OSError):
    """Another run, of this process or of another, writes into the folder."""


class FolderLock:
    """Keeps other writers out of a folder while it is entered.

    On a file system without locks (``flock`` of an old network mount) filelock uses a marker file
    instead and warns; where even that cannot be, `notice` says so, and nothing is kept out.

    Args:
      folder: must exist and be writable.
      what: for the message, before the process that holds it.
      remedy: for the message.
      wait: seconds to wait for another holder.

    Raises:
      FolderInUse: on entering, with who holds it.
      OSError: if the folder cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with FolderLock(Path(folder)):
      ...         try:
      ...             FolderLock(Path(folder)).__enter__()
      ...         except FolderInUse as error:
      ...             print("in use by this very process" in str(error))
      ...     os.listdir(folder)
      True
      []
    """

    def __init__(
        self,
        folder: Path,
        *,
        what: str = "",
        remedy: str = "wait for it to end, or give another folder",
        wait: float = 0.5,
    ) -> None:
        self.folder = folder
        self.notice: str | None = None
        """What to tell the user where nothing could be locked."""
        self._what, self._remedy, self._wait = what, remedy, wait
        self._path, self._note = folder / ".lock", folder / ".lock.holder.json"
        self._lock: Any = None
        self._known: Path | None = None

    def __enter__(self) -> FolderLock:
        import filelock

        known, deadline = self.folder.resolve(), time.monotonic() + self._wait
        while known in _held:
            if time.monotonic() >= deadline:
                raise self._in_use("this very process (within it, or in another thread)")
            time.sleep(0.01)
        lock = filelock.FileLock(self._path, mode=0o644)
        try:
            lock.acquire(timeout=self._wait, poll_interval=0.05)
        except filelock.Timeout as error:
            raise self._in_use(self._holder()) from error
        except NotImplementedError as error:
            self.notice = self._cannot(error)
            return self
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.notice = self._cannot(error)
            return self
        self._lock, self._known = lock, known
        _held.add(known)
        with contextlib.suppress(OSError):  # a note for people; the lock holds without it
            save_text_atomic(self._note, json.dumps(_me()) + "\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is None:
            return
        # While the lock is held: who opened the file in between sees that it is gone, and tries
        # anew (filelock compares). Behind a fork or on Windows it may stay, which harms nobody.
        for path in (self._note, self._path):
            with contextlib.suppress(OSError):
                path.unlink()
        self._lock.release()
        self._lock = None
        if self._known is not None:
            _held.discard(self._known)

    def _in_use(self, holder: str) -> FolderInUse:
        return FolderInUse(f"{self.folder} is in use by {self._what}{holder}; {self._remedy}")

    def _holder(self) -> str:
        """Who holds the lock, from the note, if that is not what a killed process left."""
        deadline = time.monotonic() + 0.5
        while True:
            note = _read(self._note)
            if note is not None and _may_live(note):
                return f"process {note['pid']} on {note['host']}, since {note['since']}"
            if time.monotonic() > deadline:
                return "another process (which has not said who it is)"
            time.sleep(0.05)  # the lock is taken first, and the note is written then

    def _cannot(self, error: BaseException) -> str:
        return (
            f"the file system of {self.folder} has no locks ({error}): nothing keeps a second "
            "writer out, so start only one"
        )


def _me() -> dict[str, Any]:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {
            "pid": int(note["pid"]),
            "host": str(note["host"])[:100],
            "since": str(note["since"])[:40],
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _may_live(note: dict[str, Any]) -> bool:
    """False where the writer of a note is known to be dead; of other hosts nothing is known."""
    if note["host"] != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(note["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
