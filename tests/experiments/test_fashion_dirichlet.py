"""Server momentum on Fashion-MNIST: the sweep, choices, and a smoke run on small idx files."""

import contextlib
import dataclasses
import importlib
import io
import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "fashion_dirichlet.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, fashion_folder, tmp_path_factory):
    flags = script.Flags(
        data=script.DataFlags(data_dir=fashion_folder, num_clients=10, alphas=(0.01,)),
        training=script.TrainingFlags(batch_size=10, effective_rates=(0.1,)),
        run=script.RunFlags(smoke=True, output_dir=tmp_path_factory.mktemp("out")),
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = script.main(flags)
    return flags, summary, printed.getvalue()


def test_summary_files_and_table(finished):
    flags, summary, printed = finished
    assert [(r["alpha"], r["method"]) for r in summary] == [
        (0.01, m) for m in ("fedavg", "fedavgm")
    ]
    out = flags.run.output_dir
    assert {path.name for path in out.iterdir()} == {"results.json", "accuracy.png"}
    assert (out / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((out / "results.json").read_text())
    assert saved["summary"] == summary
    assert len(saved["rows"]) == 2 * 2  # methods, seeds
    for row in summary:
        mine = [
            r["accuracy"]
            for r in saved["rows"]
            if (r["alpha"], r["method"]) == (row["alpha"], row["method"])
        ]
        assert row["mean"] == pytest.approx(np.mean(mine))
        assert row["std"] == pytest.approx(np.std(mine, ddof=1))
    assert max(row["mean"] for row in summary) > 0.3  # a bright row is easy, chance is .1
    assert "76.5 /" in printed  # the published one


def test_what_is_done_is_kept(script, finished):
    flags, summary, _ = finished
    before = (flags.run.output_dir / "results.json").read_bytes()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert script.main(flags) == summary
    assert printed.getvalue().count("kept from") == 2
    assert (flags.run.output_dir / "results.json").read_bytes() == before
    other = dataclasses.replace(flags, training=dataclasses.replace(flags.training, num_rounds=7))
    with pytest.raises(ValueError, match="num_rounds differ"):
        script.main(other)


def test_seeds_of_an_earlier_run_are_among_the_settings(script, finished, tmp_path, monkeypatch):
    flags, _, _ = finished
    saved = json.loads((flags.run.output_dir / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(saved))

    def run_cell(train, test, *, alpha, seed, setting):
        rows = [r for r in saved["rows"] if (r["alpha"], r["seed"]) == (alpha, 0)]
        return [{**row, "seed": seed} for row in rows]

    monkeypatch.setattr(script, "run_cell", run_cell)
    more = dataclasses.replace(
        flags,
        training=dataclasses.replace(flags.training, seeds=(7,)),
        run=dataclasses.replace(flags.run, output_dir=tmp_path),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        summary = script.main(more)
    assert {row["num_seeds"] for row in summary} == {3}
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["seeds"] == [0, 1, 7]


def test_momentum_zero_is_fedavg_and_the_rate_is_effective(script):
    """At momentum m the local rate is (1 - m) times the effective one."""
    fl = script.fl
    data = fl.data.from_arrays({"b": np.array([1.0, 3.0], np.float32)}, [0, 1])
    model = fl.models.Model(
        init=lambda key: np.float32(0),
        loss=lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        predict=lambda w, e: e["b"],
    )
    setting = script.Setting(batch_size=1, cohort_size=2)
    key = jax.random.key(0)

    @jax.jit
    def ends(momentum):
        algo = script.algorithm(model, setting, momentum=momentum, effective_rate=0.4)
        state = algo.init(key, jax.numpy.float32(0), data)
        return algo.round(key, state, data)[0].server.params

    # One step each from 0: mean pseudo-gradient -0.4 * mean(b) = -0.8.
    assert float(ends(0.0)) == pytest.approx(0.8)
    # Nesterov's first step is (1 + m) times that of the local rate 0.4 (1 - m).
    assert float(ends(0.5)) == pytest.approx(1.5 * 0.2 * 2)


def test_rates_are_chosen_by_the_mean_over_seeds(script):
    def rows(rate, values):
        return [
            {"alpha": 1.0, "method": m, "seed": s, "effective_rate": rate, "accuracy": v}
            for s, v in enumerate(values)
            for m in script.METHODS
        ]

    (first, second) = script.summarise(rows(0.1, (0.9, 0.1)) + rows(0.3, (0.6, 0.7)))
    assert (first["effective_rate"], first["mean"]) == (0.3, pytest.approx(0.65))
    assert first["std"] == pytest.approx(math.sqrt(0.005))  # (0.05^2 + 0.05^2) / 1
    assert (first["published"], second["published"]) == (0.902, 0.914)
    (alone, _) = script.summarise(rows(0.1, (0.9,)))
    assert math.isnan(alone["std"])


def test_the_last_tenth_counts(script):
    assert script.last_tenth([0, 50, 90, 95, 100], [0.0, 0.5, 0.6, 0.7, 0.9]) == pytest.approx(0.8)
    assert script.last_tenth([0, 5], [0.1, 0.4]) == 0.4


def test_bad_flags_are_refused(script):
    for data, training, message in (
        ({"alphas": (0.0,)}, {}, "--alphas"),
        ({}, {"momentum": 1.0}, "--momentum"),
        ({}, {"effective_rates": (-1.0,)}, "--effective-rates"),
    ):
        flags = script.Flags(
            data=script.DataFlags(**data), training=script.TrainingFlags(**training)
        )
        with pytest.raises(ValueError, match=message):
            script.choose(flags)


def test_presets(script):
    whole = script.PRESETS["published"]
    assert (whole.cohort_size, whole.batch_size, whole.momentum) == (5, 64, 0.97)
    # Flower's 0.003 at momentum 0.97 is among the effective rates.
    assert any(math.isclose(rate, 0.003 / 0.03) for rate in whole.effective_rates)
    chosen = script.choose(script.Flags())
    assert chosen == script.PRESETS["short"]
    assert (
        optax.tree.size(
            script.fl.models.mlp((64,), input_shape=(28, 28, 1)).init(jax.random.key(0))
        )
        == 785 * 64 + 65 * 10
    )


@pytest.mark.realdata
def test_the_package_of_debian_is_found(script):
    try:
        train, test = script.load(None, script.Setting())
    except script.fl.data.DatasetNotFoundError as error:
        pytest.skip(f"Fashion-MNIST is not at hand: {str(error)[:200]}")
    assert (train["x"].shape, test["x"].shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert np.bincount(test["y"]).tolist() == [1000] * 10
