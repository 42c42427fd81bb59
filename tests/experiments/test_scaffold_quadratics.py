"""The quadratics script: its table, its files, and the claim, from its numbers."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "scaffold_quadratics.py"
METHODS = ("fedavg", "scaffold", "feddyn", "mime")
SCALES = (0.1, 1.0, 100.0)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The default problem at three spreads."""
    flags = script.Flags(scales=SCALES, num_rounds=200, output_dir=tmp_path_factory.mktemp("out"))
    return flags, script.main(flags)


def by_run(rows):
    return {(row["method"], row["cohort"]): row for row in rows}


def test_every_row_and_both_files(script, finished):
    flags, rows = finished
    table = by_run(rows)
    assert len(rows) == len(table) == 2 * len(METHODS)
    assert set(table) == {(name, cohort) for name in METHODS for cohort in ("full", "partial")}
    for row in rows:
        assert list(row["error_by_scale"]) == ["0.1", "1", "100"]
        assert np.isfinite(list(row["error_by_scale"].values())).all()
    written = json.loads((flags.output_dir / "results.json").read_text())
    assert written["rows"] == rows
    assert written["claims"] == script.claims(rows)
    assert written["settings"]["scales"] == list(SCALES)
    assert (flags.output_dir / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(flags.output_dir.glob("*.tmp*"))
    assert not jax.config.jax_enable_x64, "float64 stays inside"


@pytest.mark.parametrize("cohort", ["full", "partial"])
def test_fedavg_grows_with_heterogeneity_and_scaffold_does_not(finished, cohort):
    """The claim itself, in numbers that have nothing to do with the script's own verdicts."""
    table = by_run(finished[1])
    average, corrected = table["fedavg", cohort], table["scaffold", cohort]
    errors = [average["error_by_scale"][s] for s in ("0.1", "1", "100")]
    assert errors[0] > 1e-5
    np.testing.assert_allclose(np.divide(errors, SCALES), errors[0] / SCALES[0], rtol=1e-6)
    assert max(corrected["error_by_scale"].values()) < 1e-11
    rounds = list(corrected["rounds_by_scale"].values())
    assert max(rounds) <= 1.5 * min(rounds)
    assert set(average["rounds_by_scale"].values()) == {None}


def test_fedavg_ends_where_the_formula_says(script, finished):
    """Uniform weights: ``x* = sum s_i b_i / sum s_i`` with ``s_i = 1 - (1 - eta a_i)^K``."""
    flags, rows = finished
    rng = np.random.default_rng(0)
    a, d = rng.uniform(1.0, 4.0, flags.num_clients), rng.normal(size=flags.num_clients)
    d -= (a * d).sum() / a.sum()
    moved = 1 - (1 - flags.learning_rate * a) ** flags.steps
    for scale, error in by_run(rows)["fedavg", "full"]["error_by_scale"].items():
        expected = abs(float(scale) * (moved * d).sum() / moved.sum())
        assert error == pytest.approx(expected, rel=1e-9)


def test_claims_hold_and_can_fail(script, finished):
    rows = json.loads(json.dumps(finished[1]))
    assert len(script.claims(rows)) == 7  # of Mime with a partial cohort nothing is claimed
    assert all(text.startswith("PASS") for text in script.claims(rows))
    broken = by_run(rows)
    broken["scaffold", "full"]["rounds_by_scale"]["100"] *= 3
    broken["feddyn", "full"]["rounds_by_scale"]["1"] = None
    broken["fedavg", "full"]["error_by_scale"]["100"] /= 2
    failed = [text for text in script.claims(rows) if text.startswith("FAIL")]
    assert [text.split()[1] for text in failed] == ["fedavg,", "scaffold,", "feddyn,"]


def test_rounds_count_from_where_the_error_stays_small(script):
    errors = np.array([1.0, 1e-7, 1e-5, 1e-7, 1e-8])
    assert script.rounds_to(errors, 1.0) == 4
    assert script.rounds_to(errors, 100.0) == 2
    assert script.rounds_to(errors[:3], 1.0) is None
    assert script.rounds_to(np.full(2, np.nan), 1.0) is None


def test_nothing_is_overwritten_unasked(script, finished):
    flags, _ = finished
    before = {path: path.read_bytes() for path in flags.output_dir.iterdir()}
    with pytest.raises(FileExistsError, match="--overwrite") as refused:
        script.main(script.Flags(output_dir=flags.output_dir))
    assert str(flags.output_dir) in str(refused.value)
    assert {path: path.read_bytes() for path in flags.output_dir.iterdir()} == before


def test_bad_flags_are_named(script, tmp_path):
    for options, name in (({"scales": (0.0,)}, "--scales"), ({"num_rounds": 0}, "--num-rounds")):
        with pytest.raises(ValueError, match=name):
            script.main(script.Flags(output_dir=tmp_path, **options))
    assert not list(tmp_path.iterdir())
