"""Packages load what they offer when it is asked for, and look as if all of it were there."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import fedjax_lite as fl
from fedjax_lite.checks.calls import UNCHECKED
from fedjax_lite.checks.later import Package, origins

PACKAGES = sorted(
    module.name
    for module in [*pkgutil.walk_packages(fl.__path__, "fedjax_lite."), fl.__spec__]
    if isinstance(importlib.import_module(module.name), Package)
)


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """The library's modules, below its name, that a new Python has: after the import, and later."""
    told = "print(sorted(sys.modules))"
    used = "fl.fedavg, fl.Plan, fl.uniform, fl.run, fl.models.mlp"
    code = "\n".join(["import sys", "import fedjax_lite as fl", told, used, told])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = [{n for n in ast.literal_eval(line) if n.startswith("fedjax_lite.")}
           for line in found.stdout.splitlines()]  # fmt: skip
    return [{name.removeprefix("fedjax_lite.") for name in names} for names in own]


def test_the_import_alone_loads_no_folder_but_checks(loaded):
    assert {name.split(".")[0] for name in loaded[0]} == {"checks", "version"}


def test_a_method_brings_what_it_uses_and_nothing_else(loaded):
    found = loaded[1]
    used = {
        "algorithms.fedavg",
        "engine.batches",
        "round.sampling",
        "run.loop",
        "models.dense_nets",
    }
    assert used <= found
    methods = {name for name in found if name.startswith("algorithms.")}
    assert methods == {"algorithms.fedavg"}
    others = {"attacks", "crypto", "describe", "privacy", "report", "stream", "testing", "verify"}
    assert not others & {name.split(".")[0] for name in found}


def test_there_are_packages():
    assert {"fedjax_lite", "fedjax_lite.crypto", "fedjax_lite.privacy.audit"} <= set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_offered_is_what_is_imported_for_readers(name):
    """`__all__` and the imports for type checkers are the same names; all of them are there."""
    package = importlib.import_module(name)
    assert set(package.__all__) == set(origins(name))
    assert set(package.__all__) <= set(dir(package))
    for offered in package.__all__:
        value = getattr(package, offered)
        assert not inspect.isfunction(value) or hasattr(value, UNCHECKED), offered


def test_names_and_modules_of_one_name():
    """The module `run.loop` puts its package into `fedjax_lite` as ``run``; the function stays."""
    code = (
        "import fedjax_lite.run.loop, fedjax_lite.algorithms.fedavg, fedjax_lite as fl\n"
        "from fedjax_lite import run, trees\n"
        "from fedjax_lite.algorithms import *\n"
        "assert run is fl.run and callable(run) and fedavg is fl.fedavg is fl.algorithms.fedavg\n"
        "assert trees.zeros and fl.hosts.cores.usable_cores and fl.server.yogi\n"
        "fl.mean = 3\n"
        "assert fl.mean == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="'fedjax_lite' has no attribute 'fedavgg'") as caught:
        fl.fedavgg
    assert caught.value.name == "fedavgg"
    assert caught.value.obj is fl
    assert not hasattr(fl, "_fedavg")
    with pytest.raises(ImportError, match="fedavgg"):
        exec("from fedjax_lite import fedavgg")
