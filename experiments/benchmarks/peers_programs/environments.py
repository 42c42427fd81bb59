"""A virtual environment for each peer, made once with pip."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "pfl": (TORCH, "pfl==0.6.0"),
    "flwr": (TORCH, "flwr[simulation]==1.41.0", "ray==2.55.1"),
    "blazefl": (TORCH, "blazefl[contrib,reproducibility]==2.0.3"),
    # Of 2023: it calls jax.tree_map, which jax 0.6 no longer has.
    "fedjax": ("fedjax==0.0.17", "jax==0.5.3", "jaxlib==0.5.3"),
}
"""What is installed in the environment of that name."""
PYTHONS: dict[str, tuple[str, ...]] = {
    # No release of BlazeFL installs on Python 3.11; 3.0 asks for 3.14.
    "blazefl": ("python3.14t", "python3.13t", "python3.14", "python3.13", "python3.12"),
}
"""Interpreters to make an environment with, best first; others are made with the one that runs
`peers.py`. Builds without the interpreter's lock (t) let BlazeFL's threads run side by side."""

INSTALL_SECONDS = 1200
_VERSIONS = """
import importlib.metadata, json, sys
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": sys.version.split()[0], **found}))
"""


class CannotInstall(Exception):
    """A peer's environment could not be made; the message is the reason."""


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/fedjax_lite/peers``, else below ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fedjax_lite" / "peers"


def prepare(name: str, folder: Path) -> Path:
    """Makes the environment unless it is there with the pinned versions.

    Args:
      name: a key of `REQUIREMENTS`.
      folder: holds an environment of each name.

    Returns:
      Its Python.

    Raises:
      CannotInstall: with the last line of what pip or venv said.
    """
    root = folder / name
    python = root / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if python.exists() and has_pins(installed(python), REQUIREMENTS[name]):
        return python
    print(f"{name}: installing {' '.join(REQUIREMENTS[name])} into {root}", flush=True)
    try:
        if not python.exists():
            create(name, root)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotInstall(f"{type(error).__name__}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CannotInstall((lines or done.stderr.splitlines() or ["pip failed"])[-1])
    return python


def create(name: str, root: Path) -> None:
    """An environment with pip alone."""
    if name not in PYTHONS:
        venv.create(root, with_pip=True)
        return
    found = find_python(PYTHONS[name])
    if found is None:
        raise CannotInstall(f"{name} needs one of {', '.join(PYTHONS[name])}, none is found")
    subprocess.run([found, "-m", "venv", str(root)], capture_output=True, check=True)


def find_python(names: tuple[str, ...]) -> str | None:
    """The first of these interpreters that runs, on the PATH or among pyenv's versions.

    Example:
      >>> find_python(("no-such-python",)) is None
      True
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for name in names:
        for path in (name, *sorted(pyenv.glob(f"versions/*/bin/{name}"), reverse=True)):
            # A shim of pyenv is on the PATH and fails where no version is chosen.
            with contextlib.suppress(OSError):
                if not subprocess.run(
                    [path, "-c", ""], capture_output=True, check=False
                ).returncode:
                    return str(path)
    return None


def installed(python: Path) -> dict[str, str]:
    """Versions of all packages of an environment; none where its Python does not run."""
    done = subprocess.run(
        [str(python), "-c", _VERSIONS], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def has_pins(found: dict[str, str], requirements: tuple[str, ...]) -> bool:
    """Whether every pinned version is there; a local part such as ``+cpu`` is ignored.

    Example:
      >>> has_pins({"torch": "2.13.0+cpu"}, ("torch==2.13.0",))
      True
      >>> has_pins({"flwr": "1.40.0"}, ("flwr[simulation]==1.41.0",))
      False
    """
    lower = {name.lower(): version.partition("+")[0] for name, version in found.items()}
    pins = [pin.partition("==") for pin in requirements]
    return all(lower.get(name.partition("[")[0].lower()) == version for name, _, version in pins)
