"""The comparison with other simulators as modules."""

import importlib
import sys

import pytest
from benchmark_folder import FOLDER, OWN_MODULES


@pytest.fixture(scope="module")
def peers():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER / "peers_programs")]
    yield importlib.import_module("peers")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


@pytest.fixture
def parts(peers):
    """The modules that the script is made of, by name."""
    names = ("compare", "environments", "exports", "jax_models", "workers")
    found = {name: importlib.import_module(f"peers_programs.{name}") for name in names}
    # Programs in environments of their own find these two beside them.
    return found | {
        name: importlib.import_module(name) for name in ("plain_network", "worker_protocol")
    }
