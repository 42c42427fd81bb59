"""The meta-learning script: its files, its numbers, its refusals."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "meta_learning_rate.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    flags = script.Flags(
        smoke=True,
        mixing=True,
        num_corrupted=4,
        num_clients=10,
        cohort_size=8,
        meta_learning_rate=0.5,
        output_dir=tmp_path_factory.mktemp("out"),
    )
    return flags, script.main(flags)


def test_what_is_written(finished):
    flags, results = finished
    written = json.loads((flags.output_dir / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert (flags.output_dir / "path.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(flags.output_dir.glob("*.tmp*"))
    assert [row["step"] for row in results["path"]] == [0, 1, 2]
    assert len(results["grid_rows"]) == 2
    best = min(row["validation_loss"] for row in results["grid_rows"])
    assert results["grid"]["validation_loss"] == best
    assert len(results["weights"]) == 10


def test_the_search_goes_downhill(finished):
    """A rate of .01 is far too small: three steps of Adam must raise it, and the score with it."""
    _, results = finished
    before, after = results["before"], results["after"]
    assert before["learning_rate"] == pytest.approx(0.01)
    assert after["learning_rate"] > 0.03
    assert after["validation_loss"] < before["validation_loss"]
    assert not np.allclose(results["weights"], 1.0)


def test_nothing_is_overwritten_unasked(script, finished):
    flags, _ = finished
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)


def test_bad_flags_are_named(script, tmp_path):
    cases = (
        ({"mu": 0.0}, "--mu"),
        ({"grid_rates": ()}, "--grid-rates"),
        ({"num_rounds": 0}, "--num-rounds"),
        ({"num_corrupted": 21}, "--num-corrupted"),
    )
    for options, name in cases:
        with pytest.raises(ValueError, match=name):
            script.main(script.Flags(output_dir=tmp_path, **options))
    assert not list(tmp_path.iterdir())
