"""The architecture on sight: dependencies point one way, files and imports stay small."""

import ast
import collections
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_lite

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedjax_lite"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    {"types", "version"},
    {"checks", "trees"},
    {"crypto", "data", "hosts", "metrics", "transforms"},
    {"aggregation", "engine", "models", "objectives"},
    {"round"},
    {"evaluate", "privacy", "selection"},
    {"algorithms", "arrivals", "attacks", "parties", "run"},
    {"deploy", "describe", "report", "stream", "testing"},
    {"verify"},
    {"__init__"},
)
"""A folder imports from floors below its own, and from nothing beside it."""
LOOSE = {"__init__", "trees", "types", "version"}
"""The only files at the top."""


def imports(path: Path) -> set[str]:
    """Names of this package's modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update([node.module, *names] if node.module == "fedjax_lite" else [node.module])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("fedjax_lite.")}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    (found,) = (i for i, floor in enumerate(FLOORS) if name in floor)
    return found


def test_nothing_is_loose_at_the_top():
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set().union(*FLOORS) == LOOSE | folders


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_down(path):
    mine = part(path)
    for name in imports(path):
        theirs = name.split(".")[1]
        if mine not in (theirs, "__init__"):
            assert floor(theirs) < floor(mine), f"{path.relative_to(PACKAGE)} imports {name}"


def test_shelves_of_a_folder_have_no_circles():
    """Nor has a folder with its own shelves, where a shelf is counted as one thing."""
    for folder in sorted(PACKAGE.glob("*/")):
        shelves = {path.parent.name for path in folder.glob("*/__init__.py")}
        graph: dict[str, set[str]] = {}
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).parts
            if inside == ("__init__.py",):
                continue
            mine = inside[0].removesuffix(".py")
            theirs = {
                name.split(".")[2]
                for name in imports(path)
                if name.startswith(f"fedjax_lite.{folder.name}.")
            }
            graph.setdefault(mine, set()).update(theirs - {mine})
        done: set[str] = set()
        while len(done) < len(graph):
            ready = {name for name, needs in graph.items() if name not in done and needs <= done}
            assert ready, f"a circle in {folder.name}: {sorted(set(graph) - done)}, {shelves=}"
            done |= ready


def test_tests_mirror_the_package():
    tests = ROOT / "tests"
    here = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")}
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")}
    assert here - folders == {"colab", "experiments", "fuzz", "laws"}


def test_files_are_small():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) <= 400, max(lengths, key=lambda path: lengths[path])
    real = [n for path, n in lengths.items() if path.name != "__init__.py"]
    assert statistics.median(real) <= 200


def test_files_of_tests_are_small():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert not {path: n for path, n in lengths.items() if n > 400}


def test_no_two_files_of_tests_share_a_name():
    """Pytest imports them by it, and would collect the first one only."""
    names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, times in names.items() if times > 1]


FOLDERS = (
    "aggregation",
    "algorithms",
    "arrivals",
    "attacks",
    "crypto",
    "data",
    "engine",
    "metrics",
    "models",
    "parties",
    "privacy",
    "report",
    "selection",
    "server",
    "transforms",
)


def test_every_public_function_has_an_example():
    """A docstring with a runnable example, for all that the package exports."""
    lacking = []
    modules = [fedjax_lite, *(getattr(fedjax_lite, name) for name in FOLDERS)]
    for module, name in itertools.chain.from_iterable(
        ((m, n) for n in getattr(m, "__all__", [])) for m in modules
    ):
        value = getattr(module, name)
        is_function = callable(value) and not isinstance(value, type)
        if is_function and ">>>" not in (value.__doc__ or ""):
            lacking.append(f"{module.__name__}.{name}")
    assert not lacking


FORBIDDEN = (
    "chex",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "orbax",
    "sklearn",
    "rich",
    "tyro",
    "dp_accounting",
    "jax_privacy",
    "cryptography",
    "tenseal",
    "flwr",
    "nvflare",
)


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_import_is_light():
    """Nothing heavy comes with the import (beyond what jax, optax and flax bring themselves)."""
    code = (
        "import jax, optax, flax, sys; before = set(sys.modules); import fedjax_lite; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    new = ast.literal_eval(run_python(code))
    assert not set(new) & set(FORBIDDEN), new


def test_import_starts_no_device():
    """No module makes an array or compiles: multi-host programs configure their backend first, and
    a module that is loaded inside of a traced function would keep tracers."""
    names = ("registry", "registered_slots", "registered_parties")
    registries = {f"fedjax_lite.testing.{name}" for name in names}
    code = (
        "import fedjax_lite, importlib, pkgutil; from jax._src import xla_bridge\n"
        "for module in pkgutil.walk_packages(fedjax_lite.__path__, 'fedjax_lite.'):\n"
        f"    if module.name not in {registries} and 'main' not in module.name:\n"
        "        importlib.import_module(module.name)\n"
        "    if xla_bridge._backends: print(module.name)"
    )
    assert run_python(code) == ""
