"""The benchmark of simulated time runs, and does equal work on both sides."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.syspath_prepend(str(FOLDER / "benchmarks"))
        yield importlib.import_module("arrivals")
        sys.modules.pop("arrivals", None)


def test_a_smoke_run(script, capsys):
    found = script.main(script.Flags(smoke=True))
    assert set(found) == {"clock_overhead", "asynchronous_share"}
    assert found["clock_overhead"] > -1
    assert found["asynchronous_share"] > 0
    assert capsys.readouterr().out.count("client steps a second") == 3
