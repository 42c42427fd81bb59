"""The benchmark of simulated time runs, and does equal work on both sides."""

import importlib
import sys
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.syspath_prepend(str(FOLDER / "benchmarks"))
        yield importlib.import_module("arrivals")
        sys.modules.pop("arrivals", None)


def test_both_sides_do_as_many_steps(script):
    """Traced, not compiled: of all three a round counts the steps of a cohort's clients."""
    flags = script.Flags(num_clients=20, cohort_size=3, examples=20)
    algorithms, data, params = script.contestants(flags)
    key = jax.random.key(0)
    for algo in algorithms.values():
        state = jax.eval_shape(lambda algo=algo: algo.init(key, params, data))
        _, metrics = jax.eval_shape(algo.round, key, state, data)
        assert metrics["num_steps"].shape == ()
        assert algo.slots.plan.batch_size == flags.examples  # one step a client
    assert list(algorithms) == ["synchronous", "clocked", "asynchronous"]


@pytest.mark.sample(1, of="smoke runs of benchmarks")
def test_a_smoke_run(script, capsys):
    found = script.main(script.Flags(smoke=True))
    assert set(found) == {"clock_overhead", "asynchronous_share"}
    assert found["clock_overhead"] > -1
    assert found["asynchronous_share"] > 0
    assert capsys.readouterr().out.count("client steps a second") == 3
