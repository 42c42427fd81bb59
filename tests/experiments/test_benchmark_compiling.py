"""The benchmark of compiling takes each algorithm apart and compares it with the average."""

import functools
import importlib
import json
import sys

import jax
import pytest
from benchmark_folder import FOLDER, OWN_MODULES


@pytest.fixture
def compiling(monkeypatch):
    """The script as a module, without this process's cache of programs, which it refuses."""
    path, cache = list(sys.path), jax.config.jax_compilation_cache_dir
    sys.path.insert(0, str(FOLDER))
    jax.config.update("jax_compilation_cache_dir", None)
    yield importlib.import_module("compiling")
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


def test_parts_add_up_and_the_costliest_comes_first(compiling, tmp_path, capsys, monkeypatch):
    emptied, seconds = [], iter(range(10**6))
    # Other tests of this process keep their programs, and what is measured begins after `start`.
    monkeypatch.setattr(jax, "clear_caches", lambda: emptied.append("caches"))
    monkeypatch.setattr(compiling, "start", functools.cache(compiling.start))
    monkeypatch.setattr(compiling.time, "process_time", lambda: next(seconds) ** 2)
    output = tmp_path / "compiling.json"
    flags = compiling.Flags(algorithms=("fedsgd",), output=output, smoke=True)
    compiling.main(flags)
    rows = json.loads(output.read_text())["algorithms"]
    # Readings 0, 1, 4, 9 warm up; 16, 25, 36, 49 are the average's; 64, 81, 100, 121 the other's.
    assert rows["fedavg"] == {"trace": 9, "lower": 11, "xla": 13, "all": 33, "times_fedavg": 1}
    assert rows["fedsgd"]["all"] == 17 + 19 + 21
    assert rows["fedsgd"]["times_fedavg"] == 57 / 33
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("fedsgd")
    assert second.startswith("fedavg")
    assert len(emptied) == 3
    with pytest.raises(FileExistsError, match="--overwrite"):
        compiling.main(flags)
    with pytest.raises(ValueError, match=r"algorithms.*fedsdg"):
        compiling.main(compiling.Flags(algorithms=("fedsdg",), output=tmp_path / "b.json"))
