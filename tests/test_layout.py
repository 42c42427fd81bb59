"""The architecture on sight: dependencies point one way, files and imports stay small."""

import ast
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

LAYERS = {
    "version": 0,
    "types": 0,
    "checks": 0,
    "label_checks": 1,
    "label_words": 0,
    "kinds": 0,
    "made": 1,
    "tried": 0,
    "checked": 0,
    "mistakes": 1,
    "optimizer_arguments": 1,
    "optimizer_rounds": 2,
    "first_look": 1,
    "counting": 1,
    "divergence": 2,
    "run_arguments": 2,
    "run_folder": 2,
    "run_rows": 2,
    "trees": 1,
    "distributed": 1,
    "folder_lock": 1,
    "aggregation": 2,
    "checkpoint": 2,
    "cohort_checks": 2,
    "compilation": 2,
    "data": 2,
    "downlink": 2,
    "drift": 2,
    "engine": 2,
    "evaluate": 2,
    "history": 2,
    "interrupt": 2,
    "local": 2,
    "round_metrics": 2,
    "metrics": 2,
    "models": 2,
    "progress": 2,
    "private_slots": 2,
    "private_runs": 2,
    "ledger": 1,
    "proximal": 2,
    "report": 2,
    "sampling": 2,
    "server": 2,
    "slot_options": 3,
    "settings": 2,
    "transforms": 2,
    "rounds": 2,
    "stream": 3,
    "fastest_strategy": 3,
    "compose": 3,
    "loop": 3,
    "meta": 3,
    "sweep": 3,
    "attacks": 3,
    "privacy": 3,
    "crypto": 2,
    "algorithms": 4,
    "anatomy": 5,
    "launch": 5,
    "testing": 5,
    "verify": 5,
    "__init__": 6,
}


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path):
    mine = LAYERS[part(path)]
    for name in imports(path):
        theirs = name.split(".")[1]
        if mine == LAYERS["__init__"] and theirs not in LAYERS:
            continue
        assert LAYERS[theirs] <= mine, f"{path.name} (layer {mine}) imports {name}"
        if path.name != "__init__.py" and mine == LAYERS["algorithms"]:
            assert theirs != "testing"


def test_parts_have_no_cycles():
    graph = {
        name: {n.split(".")[1] for p in FILES if part(p) == name for n in imports(p)} - {name}
        for name in LAYERS
        if name != "__init__"
    }
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f"a cycle among {sorted(set(graph) - done)}"
        done |= ready


def test_files_are_small():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) <= 400, max(lengths, key=lambda path: lengths[path])
    real = [n for path, n in lengths.items() if path.name != "__init__.py"]
    assert statistics.median(real) <= 200


FOLDERS = (
    "aggregation",
    "algorithms",
    "attacks",
    "crypto",
    "data",
    "engine",
    "metrics",
    "models",
    "privacy",
    "report",
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
    """Importing must not initialise a backend: multi-host programs configure it first."""
    code = (
        "import fedjax_lite; from jax._src import xla_bridge; "
        "print(bool(getattr(xla_bridge, '_backends', {})))"
    )
    assert run_python(code).strip() == "False"
