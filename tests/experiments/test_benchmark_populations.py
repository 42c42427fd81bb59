"""The benchmark of a million clients: its floor by hand, and a run to the end."""

import importlib
import json
import sys

import numpy as np
import pytest
from benchmark_folder import FOLDER, OWN_MODULES


@pytest.fixture(scope="module")
def populations():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("populations")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


def test_the_floor_is_the_slower_of_memory_and_arithmetic(populations):
    sizes = np.array([1, 10, 11, 38])  # 1, 1, 2 and 4 batches of 10
    work = populations.work_of(sizes, 2, stateful=True)
    assert (work.examples, work.steps, work.rows) == (30.0, 4.0, 2)
    # 4 steps that read twice and write once 100 numbers; 2 rows read and written; 33 B an example.
    moved = 4 * 3 * 400 + 2 * 2 * 400 + 30 * 33
    for bandwidth, flops, seconds in ((moved, 3e9, 1.0), (1e9, 3000.0, 3.0)):
        found = populations.floor_of(work, 100, 300, bandwidth=bandwidth, flops=flops)
        assert (found["bytes"], found["flop"]) == (moved, 9000)
        assert found["seconds"] == pytest.approx(seconds)
    assert populations.work_of(sizes, 2, stateful=False).rows == 0


def test_a_round_of_each_kind_is_timed_beside_its_floor(populations, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(populations.fl, "use_cores", lambda: 1)  # this process has its devices
    monkeypatch.setattr(populations, "COPIED_BYTES", 1 << 16)
    monkeypatch.setattr(populations, "product_flops", lambda: 1e9)
    output = tmp_path / "populations.json"
    flags = {"methods": ("scaffold",), "output": output, "smoke": True}
    populations.main(populations.Flags(**flags))
    found = json.loads(output.read_text())
    row = found["methods"]["scaffold"]
    assert (found["num_clients"], row["num_params"], row["rows"]) == (2000, 33 * 10, 20)
    assert row["times_floor"] == row["seconds"]["median"] / row["floor"]["seconds"]
    assert len(row["seconds"]["all"]) == len(row["start_seconds"]["all"]) == 2
    assert "x the larger" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        populations.main(populations.Flags(**flags))
    with pytest.raises(ValueError, match=r"--cohort-size must lie in .1, 2000., got 0"):
        populations.main(populations.Flags(**flags, overwrite=True, cohort_size=0))


def test_what_a_call_costs_before_its_rounds_is_in_none_of_them(populations, monkeypatch):
    clock = [0.0]

    def run(algo, key, state, data, *, num_rounds, every, progress):
        clock[0] += 0.5 + 0.01 * every  # half a second, and ten milliseconds a round
        return state, []

    monkeypatch.setattr(populations.fl, "run", run)
    monkeypatch.setattr(populations.time, "perf_counter", lambda: clock[0])
    flags = populations.Flags(smoke=True, num_clients=20, cohort_size=2, repeats=3)
    data, _ = populations.population(flags)
    rounds, starts, num_params = populations.seconds_a_round("fedavg", data, flags)
    np.testing.assert_allclose(rounds, [0.01] * 3)
    np.testing.assert_allclose(starts, [0.5] * 3)
    assert num_params == 33 * 10


def test_bandwidth_and_products_are_measured(populations, monkeypatch):
    monkeypatch.setattr(populations, "COPIED_BYTES", 1 << 16)
    assert populations.memory_bandwidth(2, num_calls=1) > 0
    assert populations.product_flops(32, num_calls=1) > 0
