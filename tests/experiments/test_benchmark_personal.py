"""The benchmark of personal methods runs to its end, and gives all as many steps."""

import importlib
import json
import sys

import jax
import pytest
from benchmark_folder import FOLDER, OWN_MODULES

from fedjax_lite.engine.phases import phases_of


@pytest.fixture(scope="module")
def personal():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("personal")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in (*OWN_MODULES, "personal"):
            del sys.modules[name]


def test_all_methods_have_as_many_steps(personal):
    made = personal.algorithms(personal.WORKLOADS["2nn"].smoke())
    steps = {
        name: sum(
            int(phase.plan.num_steps(None, jax.numpy.int32(0), jax.numpy.int32(12)))
            for phase in phases_of(algo.slots.client, algo.slots.plan)
        )
        for name, (algo, _) in made.items()
    }
    assert steps == dict.fromkeys(personal.METHODS, 2)  # twelve examples are two batches of ten


@pytest.mark.sample(1, of="smoke runs of benchmarks")
def test_all_methods_are_timed(personal, tmp_path, capsys):
    output = tmp_path / "personal.json"
    personal.main(personal.Flags(output=output, smoke=True))
    rows = json.loads(output.read_text())["workloads"]["2nn"]
    assert tuple(row["method"] for row in rows) == personal.METHODS
    assert rows[0]["ratio"]["median"] == 1
    assert {row["method"]: row["bar"] for row in rows[1:]} == personal.BARS
    assert all(row["seconds"]["median"] > 0 for row in rows)
    assert capsys.readouterr().out.count("compiled") == len(rows)
    with pytest.raises(FileExistsError, match="--overwrite"):
        personal.main(personal.Flags(output=output, smoke=True))
