"""Starts a script as several processes of this machine that train together.

    python -m fedjax_lite.hosts.launch --num-processes 2 experiments/fedavg_cifar.py --smoke
    python -m fedjax_lite.hosts.launch --num-processes 2 --cores 1 script.py      # one core each

The script calls ``fedjax_lite.hosts.distributed.initialize()`` first; what it needs for that (a
coordinator on loopback, a free port) is put into its environment. Process 0 writes to the terminal;
what the others write is shown when they fail, or with --verbose, line by line. When one process
dies the others are stopped. SIGINT and SIGTERM go to all processes once; a second one kills them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

_TAIL = 40
_PREPARE = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if sys.argv[1]:
    os.sched_setaffinity(0, list(map(int, sys.argv[1].split(","))))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What a process does before it becomes the script: it asks to die with its launcher
(PR_SET_PDEATHSIG is 1), and pins itself. Both outlast the exec; a fork of this process, which
JAX may have filled with threads, is not needed for it."""
_FORCED_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\S+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the processes and returns the exit code.

    Args:
      arguments: default ``sys.argv[1:]``.

    Returns:
      0 where all processes end with 0; 128 plus the signal's number after SIGINT or SIGTERM, or
      where a signal killed a process; else the code of the process that failed first.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     script = pathlib.Path(folder, "script.py")
      ...     _ = script.write_text("import os; assert os.environ['JAX_NUM_PROCESSES'] == '2'")
      ...     main(["--num-processes", "2", str(script)])
      0
    """
    flags = _parse(sys.argv[1:] if arguments is None else arguments)
    group = ProcessGroup(verbose=flags.verbose, grace_seconds=flags.grace_seconds)
    address = f"127.0.0.1:{free_port()}"
    cores = split_cores(flags.num_processes, flags.cores)
    command = [sys.executable, os.path.expanduser(flags.script), *flags.args]
    with group:
        for index in range(flags.num_processes):
            first = index * flags.devices_per_process
            local_ids = range(first, first + flags.devices_per_process)
            environment = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_COORDINATOR_BIND_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(flags.num_processes),
                "JAX_PROCESS_ID": str(index),
                "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, local_ids)),
                "JAX_NUM_CPU_DEVICES": str(flags.devices_per_process),
                "FEDJAX_LITE_HEARTBEAT_SECONDS": str(flags.heartbeat_seconds),
                **group.buffering(),
                # Forced devices of this shell are not meant for each process.
                "XLA_FLAGS": _FORCED_DEVICES.sub("", os.environ.get("XLA_FLAGS", "")),
            }
            if cores is not None:
                # XLA's thread pools are as large as the process has cores, or as NPROC says.
                environment["NPROC"] = str(len(cores[index]))
            group.start(command, environment, None if cores is None else cores[index])
        return group.wait()


class ProcessGroup:
    """Processes that live and die together."""

    def __init__(self, *, verbose: bool = False, grace_seconds: float = 5.0) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self._tails: list[collections.deque[str]] = []
        self._readers: dict[int, threading.Thread] = {}
        self._writing = threading.Lock()
        # A terminal is process 0's own (its progress bars need one, and Python writes to one line
        # by line). Into a file or a pipe several processes would write parts of lines: what is
        # shown goes through this process.
        self._direct = not verbose or os.isatty(1)
        self._verbose, self._grace = verbose, grace_seconds
        self._signal = 0
        self._old: dict[int, object] = {}

    def __enter__(self) -> ProcessGroup:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for number, old in self._old.items():
            signal.signal(number, old)  # pyright: ignore[reportArgumentType]
        for reader in self._readers.values():
            reader.join(timeout=5)

    def buffering(self) -> dict[str, str]:
        """The environment that makes the next process write its lines whole and at once.

        Python writes to a terminal line by line, and unbuffered in pieces: a line of another
        process could fall between them.
        """
        terminal = not self.processes and self._direct and os.isatty(1)
        return {"PYTHONUNBUFFERED": "" if terminal else "1"}

    def start(
        self, command: list[str], environment: dict[str, str], cores: list[int] | None
    ) -> None:
        """Starts one more process; a first that owns the output inherits it, others get a pipe."""
        first = not self.processes
        output = None if first and self._direct else subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-c", _PREPARE, ",".join(map(str, cores or [])), *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if first else subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: a terminal's Ctrl-C would reach it besides what is forwarded.
            start_new_session=True,
        )
        self.processes.append(process)
        self._tails.append(collections.deque(maxlen=_TAIL))

    def wait(self) -> int:
        """Waits until all have ended, or one has failed and the others were stopped."""
        for index, process in enumerate(self.processes):
            if process.stdout is not None:
                reader = threading.Thread(
                    target=self._read, args=(index, process.stdout), daemon=True
                )
                reader.start()
                self._readers[index] = reader
        failed = None
        while failed is None:
            codes = [process.poll() for process in self.processes]
            if all(code == 0 for code in codes):
                return 0
            bad = [(code, index) for index, code in enumerate(codes) if code]
            # Of those that ended within one look, a killed one is the cause; an error or an abort
            # may be what the others make of it.
            bad.sort(key=lambda one: one[0] > 0 or one[0] == -signal.SIGABRT)
            failed = bad[0][1] if bad else None
            time.sleep(0.02)
        self._end(failed)
        code = self.processes[failed].returncode
        if self._signal:
            return 128 + self._signal
        return code if code > 0 else 128 - code

    def _end(self, failed: int) -> None:
        """Stops the others within the grace, and says what happened."""
        began = time.monotonic()
        quiet = bool(self._signal)  # they were all asked to stop, and do so in their own time
        if not quiet:
            _say(f"process {failed} {_how(self.processes[failed].returncode)}; stopping the others")
            self._send(signal.SIGTERM)
        while time.monotonic() - began < self._grace:
            if all(process.poll() is not None for process in self.processes):
                break
            time.sleep(0.05)
        self._kill()
        if quiet:
            return
        if failed and not self._verbose:
            self._readers[failed].join(timeout=2)
            for line in self._tails[failed]:
                print(f"[{failed}] {line}", file=sys.stderr)
        _say(
            f"process {failed} {_how(self.processes[failed].returncode)}; all others were stopped "
            f"after {time.monotonic() - began:.1f} s. To go on from the last checkpoint: the same "
            "command with --resume and its --output-dir"
        )

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            self._kill()
            return
        self._signal = number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    process.kill()
                process.wait()

    def _read(self, index: int, pipe: IO[str]) -> None:
        for line in pipe:
            self._tails[index].append(line.rstrip("\n"))
            if self._verbose:
                line = f"[{index}] {line}" if index else line
                # Whoever reads may be gone (| head); a pipe that is not emptied blocks the process.
                with self._writing, contextlib.suppress(OSError):
                    sys.stdout.write(line if line.endswith("\n") else f"{line}\n")
                    sys.stdout.flush()


def free_port() -> int:
    """A port of loopback that nobody listens on.

    Example:
      >>> 1024 < free_port() < 65536
      True
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def split_cores(num_processes: int, cores_each: int) -> list[list[int]] | None:
    """The cores of each process, from those that this one may use.

    Args:
      num_processes: how many processes.
      cores_each: cores a process; 0 for no pinning.

    Returns:
      Core numbers of each process, or None without pinning.

    Raises:
      SystemExit: if there are not so many cores, or this system cannot pin.

    Example:
      >>> split_cores(2, 0) is None
      True
    """
    if not cores_each:
        return None
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("error: --cores needs Linux: this system cannot pin processes to cores")
    mine = sorted(os.sched_getaffinity(0))
    if num_processes * cores_each > len(mine):
        raise SystemExit(
            f"error: {num_processes} processes of --cores {cores_each} need "
            f"{num_processes * cores_each} cores, but this process may use {len(mine)}"
        )
    return [mine[i * cores_each : (i + 1) * cores_each] for i in range(num_processes)]


def _how(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fedjax_lite.hosts.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--num-processes", type=_positive, default=2, help="processes to start; default 2"
    )
    parser.add_argument(
        "--devices-per-process",
        type=_positive,
        default=1,
        help="CPU devices that a process makes, or accelerators that it owns; default 1",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=0,
        help="pin each process to so many cores of its own; default 0: no pinning",
    )
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=5.0,
        help="seconds after a process has failed until the others are killed; default 5",
    )
    parser.add_argument(
        "--heartbeat-seconds",
        type=_positive,
        default=30,
        help="seconds without a sign of life after which a process is given up; default 30",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="show the output of all processes, not only of the first; default off",
    )
    parser.add_argument("script", help="the Python file to run")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its own arguments")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
