"""The script of accuracy against epsilon: smoke run, files, figures, noise, refusals."""

import contextlib
import importlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

import fedjax_lite.privacy as dp
from fedjax_lite.run import rounds

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "dp_fedavg.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The smoke run: flags, rows, printout, compiled programs."""
    flags = script.Flags(smoke=True, output_dir=tmp_path_factory.mktemp("out"))
    printed, before = io.StringIO(), rounds.many_rounds._cache_size()
    with contextlib.redirect_stdout(printed):
        rows = script.main(flags)
    return flags, rows, printed.getvalue(), rounds.many_rounds._cache_size() - before


def test_rows_files_and_table(finished):
    flags, rows, printed, compiled = finished
    assert [row["epsilon"] for row in rows] == [2.0, math.inf]
    assert compiled == 1  # the noise is an argument
    assert {path.name for path in flags.output_dir.iterdir()} == {"results.json", "accuracy.png"}
    assert (flags.output_dir / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((flags.output_dir / "results.json").read_text())
    assert saved["rows"][0]["accuracies"] == rows[0]["accuracies"]
    assert "NOT PRIVATE" in printed
    assert "of the simulated clients" in printed
    for row in rows:
        assert [len(curve) for curve in row["curves"]] == [3, 3]
        assert row["accuracy"] == pytest.approx(np.mean(row["accuracies"]))
    # Both start from the same parameters; the noise tells them apart afterwards.
    assert rows[0]["curves"][0][0] == rows[1]["curves"][0][0]
    assert rows[0]["curves"] != rows[1]["curves"]


def test_noise_is_what_epsilon_needs(finished):
    row, silent = finished[1]
    spent = dp.epsilon(
        noise_multiplier=row["noise_multiplier"],
        sampling_rate=20 / 40,
        num_rounds=6,
        delta=1e-5,
        method="rdp",
    )
    assert spent == pytest.approx(2.0, rel=1e-3)
    assert row["epsilon_spent"] <= 2.0
    assert row["noise_multiplier_simulated"] == row["noise_multiplier"]
    assert silent["noise_multiplier"] == 0.0
    assert silent["epsilon_spent"] == math.inf


def test_noise_of_an_imagined_deployment(script, tmp_path):
    """Cohorts of 200 out of 1e5: the simulated 20 get a tenth of that noise on the sum."""
    flags = script.Flags(
        epsilons=(2.0,),
        num_seeds=1,
        method="rdp",
        num_rounds=1,
        noise_cohort_size=200,
        noise_num_clients=100_000,
        delta=1e-6,  # below one over the clients
        output_dir=tmp_path,
    )
    (row,) = script.curve("digits", script.chosen("digits", flags), flags)
    assert row["noise_multiplier_simulated"] == pytest.approx(row["noise_multiplier"] / 10)
    assert row["sampling_rate"] == pytest.approx(0.002)
    assert row["guarantee"] == "of an imagined deployment"
    assert row["num_clients_accounted"] == 100_000
    assert math.isnan(row["half_width"])


def test_half_width_is_students(script):
    """t(.975, 2) = 4.302653; std of 1, 2, 3 is 1."""
    assert script.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_pooling(script):
    x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    expected = [[np.round((0 + 1 + 4 + 5) / 4), np.round((2 + 3 + 6 + 7) / 4)]]
    np.testing.assert_array_equal(script.pooled(x, 2)[0, :1, :, 0], expected)


def test_nothing_is_overwritten_unasked(script, finished):
    flags = finished[0]
    before = {path: path.read_bytes() for path in flags.output_dir.iterdir()}
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)
    assert {path: path.read_bytes() for path in flags.output_dir.iterdir()} == before


def test_bad_flags_are_named(script, tmp_path):
    for options, name in (
        ({"epsilons": (0.0,)}, "--epsilons"),
        ({"num_seeds": 0}, "--num-seeds"),
        ({"server_momentum": 1.0}, "--server-momentum"),
    ):
        with pytest.raises(ValueError, match=name):
            script.main(script.Flags(output_dir=tmp_path, **options))
    assert not list(tmp_path.iterdir())
