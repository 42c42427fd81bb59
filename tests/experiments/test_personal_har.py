"""Personal models of activity: the split in time by hand, and a smoke run on packed windows."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import fedjax_lite as fl

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
PEOPLE, EACH = 30, 12


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("personal_har")


@pytest.fixture(scope="module")
def finished(script, har_folder, tmp_path_factory):
    flags = script.Flags(data_dir=har_folder, smoke=True, output_dir=tmp_path_factory.mktemp("out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            rows = script.main(flags)
        yield flags, rows, printed.getvalue(), script.load(har_folder)


def test_blocks_follow_each_other_and_the_test_is_last(finished):
    _, _, _, windows = finished
    # Of the twelve windows of an activity three are held out and the one before is left out.
    one = slice(EACH, 2 * EACH)
    assert windows.test[one].tolist() == [False] * 9 + [True] * 3
    assert windows.block[one].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, -1, -1, -1, -1]
    pool, scored = windows.fold(1)
    assert np.flatnonzero(scored[one]).tolist() == [3, 4, 5]
    assert np.flatnonzero(pool[one]).tolist() == [0, 1, 7]  # a window apart
    assert windows.x.shape == (PEOPLE * 6 * EACH, 54)


def test_draws_are_of_the_pool_and_standardised(script, finished):
    _, _, _, windows = finished
    pool = windows.block >= 0
    rows = script.draw(windows, pool, 20, 3)
    assert np.bincount(windows.subject[rows]).tolist() == [20] * PEOPLE
    assert len(set(rows)) == len(rows)
    assert pool[rows].all()
    parts = script.parts_of(windows, pool, windows.test, 20, 3)
    assert parts.train.sizes.tolist() == [20] * PEOPLE
    assert parts.scored.sizes.tolist() == [18] * PEOPLE
    drawn = np.concatenate([np.asarray(parts.train.client(p)["x"]) for p in range(PEOPLE)])
    np.testing.assert_allclose(drawn.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(drawn.std(0), 1, atol=1e-3)


def test_rows_table_and_picture(script, finished):
    flags, rows, printed, _ = finished
    assert (flags.output_dir / "people.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((flags.output_dir / "results.json").read_text())["rows"] == rows
    by = {row["method"]: row for row in rows}
    assert list(by) == ["pooled", "local only", "FedAvg", "Ditto"]
    for row in rows:
        accuracy = np.array(row["accuracy"])
        assert row["means"] == [pytest.approx(accuracy.mean(), abs=1e-5)]
        assert row["worsts"] == [pytest.approx(np.sort(accuracy)[:3].mean(), abs=1e-5)]
        assert row["mean"] == [row["means"][0], None]  # of one seed
        change = accuracy - np.array(by["pooled"]["accuracy"])
        mean, half, share = row["over_pooled"]
        assert (mean, share) == (pytest.approx(change.mean()), (change > 0).mean())
        assert half == pytest.approx(fl.report.t_interval(change).half)
    assert "softmax, 20 windows a person" in printed


def test_what_is_done_is_kept(script, finished):
    flags, rows, _, _ = finished
    with contextlib.redirect_stdout(io.StringIO()):
        assert script.main(flags) == rows
        with pytest.raises(FileExistsError, match=r"--steps\)"):
            script.main(script.dataclasses.replace(flags, steps=2))
        with pytest.raises(ValueError, match="--methods must be among"):
            script.main(script.dataclasses.replace(flags, methods=("ditto",)))
