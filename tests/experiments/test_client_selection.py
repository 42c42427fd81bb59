"""Choosing clients on MNIST: all methods on a few small images in MNIST's files."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "client_selection.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


def images(count, seed):
    """Images whose class is a bright row."""
    labels = np.arange(count) % 10
    found = np.random.default_rng(seed).integers(0, 60, (count, 28, 28, 1)).astype(np.uint8)
    found[np.arange(count), 2 * labels + 3] += 180
    return {"x": found, "y": labels.astype(np.int32)}


def test_all_methods_and_what_is_written(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.fl.data, "load", lambda *_, **__: (images(300, 0), images(100, 1)))
    flags = script.Flags(smoke=True, output_dir=tmp_path, num_rounds=3, batch_size=8)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = script.main(flags)
    assert [row["method"] for row in summary] == list(script.METHODS)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "client_selection.png"}
    assert (tmp_path / "client_selection.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for row in rows:
        times = np.array(row["times"])
        # A cohort of two in three rounds; optimal sampling sends about so many.
        assert times.sum() == 6 or row["method"] == "optimal"
        assert row["never"] == (times == 0).mean()
        assert len(row["curve"]) == len(row["rounds"])
    assert printed.getvalue().count("\n") == 1 + len(script.METHODS)


def test_what_cannot_be_is_named(script):
    with pytest.raises(ValueError, match="candidates must be at least the cohort, got 2"):
        script.main(script.Flags(candidates=2, cohort_size=3))
    with pytest.raises(ValueError, match=r"--target must lie in \(0, 1\), got 1.5"):
        script.main(script.Flags(target=1.5))
