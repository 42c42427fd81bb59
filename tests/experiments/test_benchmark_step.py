"""The benchmark of a step runs to its end, and its parts do the same arithmetic."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
from benchmark_folder import FOLDER, OWN_MODULES


@pytest.fixture(scope="module")
def step():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("step")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


def test_all_parts_train_and_are_reported(step, tmp_path, capsys):
    output = tmp_path / "step.json"
    step.main(step.Flags(workloads=("logreg",), output=output, smoke=True))
    found = json.loads(output.read_text())["workloads"]["logreg"]
    assert tuple(found) == step.PARTS
    assert found["bare"]["times_bare"] == 1
    assert all(row["median"] > 0 for row in found.values())
    assert capsys.readouterr().out.count("us a step") == len(step.PARTS)
    with pytest.raises(FileExistsError, match="--overwrite"):
        step.main(step.Flags(workloads=("logreg",), output=output, smoke=True))


def test_shuffled_batches_and_the_clients_own_step_end_in_the_same_model(step):
    """Of one client: the same batches in the same order, with masks and sums or without."""
    calls = step.programs(step.WORKLOADS["logreg"], num_steps=3, num_clients=1)
    plain, masked = (jax.device_get(calls[name]()) for name in ("shuffle", "client step"))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
