"""Processes of a federation on this machine, Flower's above all: all on 127.0.0.1."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
MARK = "FEDJAX_LITE_TEST_OF_FLOWER"
DEADLINE = 240
PROJECT = """
[project]
name = "federation"
version = "1.0.0"
description = "a test"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedjax_lite"
[tool.flwr.app.components]
serverapp = "federation:server"
clientapp = "federation:client"
[tool.flwr.app.config]
num-rounds = 1
folder = ""
"""
"""Of a Flower app in `federation.py`."""
NO_PICKLE = """
import os, pickle, sys, traceback

def watched(plain):
    def refused(*args, **kwargs):
        if sys._getframe(1).f_globals["__name__"].startswith("multiprocessing."):
            return plain(*args, **kwargs)  # of a process to its own children
        with open(os.environ["PICKLED"], "a") as file:
            traceback.print_stack(file=file)
        raise RuntimeError("somebody pickles")
    return refused

for name in ("dump", "dumps", "load", "loads"):
    setattr(pickle, name, watched(getattr(pickle, name)))
"""
"""Python runs this first in each process: who pickles fails, and is written down."""


def free_port():
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def wait(until, what, seconds=DEADLINE):
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return found


class Processes:
    """Starts Flower's processes, and ends them and all that they started."""

    def __init__(self, folder, tls=None):
        self.folder, self.tls, self.mark = folder, tls, uuid.uuid4().hex
        for name in ("site", "rounds"):
            (folder / name).mkdir()
        (folder / "site" / "sitecustomize.py").write_text(NO_PICKLE)
        self.port = free_port()
        self.started = {}
        self.listening, self.connected = set(), set()

    def environment(self, name):
        home = self.folder / f"home-{name}"  # every machine has its own
        home.mkdir(exist_ok=True)
        return {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "JAX_PLATFORMS": "cpu",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(ROOT)]),
            "PICKLED": str(self.folder / "pickled"),
            "ROUNDS": str(self.folder / "rounds"),
            MARK: self.mark,
        }

    def start(self, name, *command):
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                env=self.environment(name),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started[name] = process
        return process

    def superlink(self):
        secure = [f"--ssl-{key}={path}" for key, path in (self.tls or {}).items()]
        self.start(
            "superlink",
            "flower-superlink",
            *(secure or ["--insecure"]),
            *("--host", HOST, "--port", str(self.port)),
            "--disable-runtime-dependency-installation",
        )
        wait(lambda: self.running("superlink") and accepts(self.port), "the SuperLink listens")

    def supernode(self, name, config):
        """Starts one, and returns the port on which it hears its own processes."""
        secure = ["--root-certificates", self.tls["ca-certfile"]] if self.tls else ["--insecure"]
        port = free_port()
        self.start(
            name,
            "flower-supernode",
            *secure,
            *("--superlink", f"{HOST}:{self.port}", "--host", HOST, "--port", str(port)),
            *("--node-config", words(config)),
        )
        return port

    def run(self, app, config):
        """Hands an app to the SuperLink, as its user does."""
        environment = self.environment("user")
        root = f'root-certificates = "{self.tls["ca-certfile"]}"' if self.tls else "insecure = true"
        lines = ("[superlink]", 'default = "loop"', "[superlink.loop]", root)
        settings = "\n".join((*lines, f'address = "{HOST}:{self.port}"'))
        Path(environment["FLWR_HOME"], "config.toml").write_text(settings)
        done = subprocess.run(
            [BIN / "flwr", "run", app, "loop", "--run-config", words(config)],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def logs(self):
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def pickled(self):
        """Who pickled, and where; "" if nobody did."""
        file = self.folder / "pickled"
        return file.read_text() if file.exists() else ""

    def all(self):
        """Every process that was started, by whomever: they inherit the mark."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in environ.read_bytes():
                    found.append(int(environ.parent.name))
        return found

    def kill(self, command):
        """Kills what runs a command, and returns how many did."""
        found = []
        for pid in self.all():
            with contextlib.suppress(OSError):
                if command in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    found.append(pid)
        return len(found)

    def end(self):
        for process in self.started.values():
            if process.poll() is None:
                process.terminate()
        with contextlib.suppress(AssertionError):
            wait(lambda: not self.all(), "processes end", 3)
        for pid in self.all():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started.values():
            process.wait(30)
        wait(lambda: not self.all(), "killed processes are gone", 30)

    def running(self, name):
        assert self.started[name].poll() is None, f"{name} has ended"
        return True

    def wait(self, until, what):
        """Waits, and sees meanwhile who listens where and is connected to what."""

        def looked():
            self.look()
            time.sleep(0.4)
            return until()

        return wait(looked, what)

    def look(self):
        inodes = set()
        for pid in self.all():
            with contextlib.suppress(OSError):
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        inodes.add(os.readlink(fd))
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if f"socket:[{fields[9]}]" in inodes:
                    local, remote = address(fields[1]), address(fields[2])
                    if fields[3] == "0A" or (table[:3] == "udp" and fields[3] == "07"):
                        self.listening.add(local)
                    else:
                        self.connected.add(remote)


def address(words):
    """`0100007F:1F90` is ("127.0.0.1", 8080); words are in the host's order."""
    host, port = words.split(":")
    raw = b"".join(
        int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8)
    )
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


def words(config):
    """A configuration on Flower's command lines."""
    return " ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in config.items())


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
