"""A worker process of one system: started, asked, frozen while others are measured, ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fedjax_lite as fl

PROGRAMS = Path(__file__).resolve().parent
START_SECONDS = 300.0
ANSWER_SECONDS = 1800.0


class WorkerFailed(Exception):
    """A worker ended or kept silent; the message has the end of its log."""


class Worker:
    """A process of one of the programs beside this file.

    Args:
      program: file name.
      folder: of `exports.write`.
      variant: handed to the program.
      python: interpreter of the peer's environment; None: this one, with this fedjax_lite.
      num_threads: cores that it may use.
      log: what the program prints goes here.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        variant: str,
        python: Path | None,
        num_threads: int,
        log: Path,
    ) -> None:
        self.log = log
        began = time.perf_counter()
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [str(python or sys.executable), str(PROGRAMS / program), str(folder), variant],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; a group to end it by
                env=environment(folder, variant, own=python is None, num_threads=num_threads),
            )
        if hasattr(os, "sched_setaffinity"):  # before the interpreter is up: threads inherit it
            cores = sorted(os.sched_getaffinity(0))[:num_threads]
            os.sched_setaffinity(self._process.pid, cores)
        self._began = began
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.cold_seconds: float | None = None
        try:
            self.versions: dict[str, str] = self._answer(START_SECONDS)["versions"]
        except BaseException:
            self.close()
            raise

    def rounds(self, number: int) -> float:
        """Does that many further rounds; their seconds by the worker's own clock."""
        seconds = self._ask({"rounds": number})["seconds"]
        if self.cold_seconds is None:  # from the start of the process, by our clock
            self.cold_seconds = time.perf_counter() - self._began
        return seconds

    def weights(self, path: Path) -> None:
        """Has the server's model written to an ``.npz`` file."""
        self._ask({"weights": str(path)})

    def freeze(self) -> None:
        """Stops the process and its children: also threads that only poll would disturb others."""
        self._signal("SIGSTOP")

    def thaw(self) -> None:
        """Undoes `freeze`."""
        self._signal("SIGCONT")

    def close(self) -> None:
        """Ends the process and its children."""
        self.thaw()
        started = descendants(self._process.pid)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        for pid in started:  # an id is used again only after thousands of others
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also children of a dead worker
        self._process.kill()
        self._process.wait()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerFailed(self._tail("ended")) from error
        return self._answer(ANSWER_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            # Looked at before the queue, so that a last answer is not lost.
            ended = self._process.poll() is not None
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=1.0)
                if line is not None:
                    return json.loads(line)
                ended = True
            # A child may keep the pipe open for longer than the worker lives.
            if ended:
                raise WorkerFailed(self._tail("ended"))
            if time.monotonic() > deadline:
                raise WorkerFailed(self._tail(f"gave no answer for {seconds:.0f} s"))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            for pid in [self._process.pid, *descendants(self._process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, name))

    def _tail(self, what: str) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the worker {what}; " + " | ".join(line.strip() for line in lines[-3:])


def environment(folder: Path, variant: str, *, own: bool, num_threads: int) -> dict[str, str]:
    """Environment variables of a worker: as many threads as cores, no caches, no telemetry."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR", "RAY_ADDRESS")
    }
    if own:
        found["PYTHONPATH"] = str(Path(fl.__file__).resolve().parents[1])
    named = re.search(r"\d+$", variant)  # "2", or "threads-2x1": two workers with a thread each
    threads = named.group() if named else str(num_threads)
    return found | {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TQDM_DISABLE": "1",
        "PEERS_TASK": str(folder),
        "PEERS_CLIENT_THREADS": threads,
    }


def descendants(pid: int) -> list[int]:
    """All children of a process, theirs and so on; none where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of a process may hold spaces and brackets: what follows the last one counts.
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, unvisited = [], [pid]
    while unvisited:
        found += (new := children.get(unvisited.pop(), []))
        unvisited += new
    return found
