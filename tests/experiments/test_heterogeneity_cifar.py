"""The NIID-Bench script: smoke run, files, table, tuning, compilations."""

import contextlib
import importlib
import io
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.run import rounds

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("heterogeneity_cifar")


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """The smoke preset at one alpha, in this process: folder, rows, printout, compiled runs."""
    folder, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    flags = script.Flags(preset="smoke", output_dir=folder, alphas=(0.5, 5.0), num_rounds=2)
    before = rounds.many_rounds._cache_size()
    with contextlib.redirect_stdout(printed):
        rows = script.main(flags)
    return folder, rows, printed.getvalue(), rounds.many_rounds._cache_size() - before


def test_table_and_files_have_every_method(finished):
    folder, rows, printed, _ = finished
    table = printed[printed.index("final acc.") :].splitlines()[1:]
    wanted = [["centralised", "-"]]
    wanted += [
        [method, alpha]
        for alpha in ("0.5", "5")
        for method in ("fedavg", "fedprox", "scaffold", "fednova")
    ]
    assert [line.split()[:2] for line in table] == wanted
    assert "NOT comparable" in printed  # digits, and far from 50 rounds
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {path.name for path in folder.iterdir()} == {"results.json", "curves.png"}
    saved = json.loads((folder / "results.json").read_text())
    assert saved["rows"] == json.loads(json.dumps(rows))
    assert saved["comparable"] is False
    assert saved["settings"]["seeds"] == [0, 1]


def test_figures_follow_from_the_curves(finished):
    """Mean, spread, best and gap, recomputed in numpy from the saved curves."""
    folder = finished[0]
    rows = json.loads((folder / "results.json").read_text())["rows"]
    central = np.array([rows[0]["curves"][seed] for seed in ("0", "1")])
    for row in rows:
        curves = np.array([row["curves"][seed] for seed in ("0", "1")])
        assert curves.shape == (2, len(row["rounds"]))
        assert row["rounds"] == [0, 2]
        assert row["final_mean"] == pytest.approx(curves[:, -1].mean())
        assert row["final_std"] == pytest.approx(abs(np.diff(curves[:, -1])[0]) / np.sqrt(2))
        assert row["best_mean"] == pytest.approx(curves.max(1).mean())
        assert row["gap"] == pytest.approx((curves - central)[:, -1].mean())
    # All start from the same parameters, so from the same accuracy.
    assert len({row["curves"]["0"][0] for row in rows}) == 1
    assert rows[0]["final_mean"] > 0.5  # two epochs over 600 digits; chance is 0.1


def test_best_candidate_of_the_first_seed_is_taken(finished):
    rows = [row for row in finished[1] if "tuned" in row]
    assert {row["method"] for row in rows} == {"fedprox", "scaffold"}
    for row in rows:
        assert row["tried"][str(row["tuned"])] == max(row["tried"].values())
        assert row["curves"]["0"][-1] == row["tried"][str(row["tuned"])]
    assert set(rows[0]["tried"]) == {"0.01", "1.0"}


def test_each_method_is_compiled_once(finished):
    """Two alphas, two seeds and two mu: five programs, the baseline's included."""
    assert finished[3] == 5


def test_an_earlier_run_is_not_replaced(script, finished):
    folder = finished[0]
    before = (folder / "results.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite") as refused:
        script.main(script.Flags(preset="smoke", output_dir=folder))
    assert str(folder) in str(refused.value)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("flags", [{"mus": (-1.0,)}, {"scaffold_rates": (0.0,)}, {"alphas": (0,)}])
def test_bad_values_are_named(script, flags, tmp_path):
    (name,) = flags
    with pytest.raises(ValueError, match=name.replace("_", "-").rstrip("s")):
        script.main(script.Flags(preset="smoke", output_dir=tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


def test_penalty_is_weight_decay(script):
    """Its gradient adds weight_decay * w, as SGD's weight decay does."""
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}

    def loss(params, examples, key):
        return examples * (params["w"].sum() + params["b"])

    total = script.penalised(loss, 0.1)
    value, grad = jax.value_and_grad(lambda p: total(p, jnp.array([1.0, 5.0]), None).mean())(params)
    assert float(value) == pytest.approx(3 * 2 + 0.05 * (1 + 4 + 9))
    np.testing.assert_allclose(grad["w"], [3 + 0.1, 3 - 0.2], rtol=1e-6)
    np.testing.assert_allclose(grad["b"], 3 + 0.3, rtol=1e-6)


def test_mu_reaches_the_algorithm_through_the_data(script):
    """One step of rate r from x on client i moves by r b_i; a second one feels mu (y - x)."""
    data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0])}, [0, 1])
    algo = script.parametrised(
        lambda mu: fl.fedprox(
            lambda w, e, key: w * e["b"],
            optax.sgd(0.5),
            mu=mu,
            plan=fl.Plan(batch_size=1, steps=2),
            sampler=fl.everyone(),
        )
    )
    key, one_round = jax.random.key(0), jax.jit(algo.round)
    for mu in (0.0, 0.5):
        problem = script.Problem(data, jnp.float32(mu))
        state = algo.init(key, jnp.array(0.0), problem)
        # y1 = -b/2, y2 = y1 - (b + mu y1)/2 = -b + mu b/4; the mean of b is 2.
        expected = -2 + mu * 2 / 4
        assert float(one_round(key, state, problem)[0].server.params) == pytest.approx(expected)


def test_published_stand_beside_their_own_setting_only(script):
    row = {"method": "fednova", "final_mean": 0.5, "final_std": 0.01, "best_mean": 0.6}
    row |= {"gap": -0.1, "num_rounds": 50}
    rows = [row | {"alpha": alpha} for alpha in (0.5, 0.1)]
    lines = script.table(rows, published=True, comparable=True).splitlines()[-2:]
    assert " ".join(lines[0].split()) == "fednova 0.5 50.00 +- 1.00 60.00 -10.00 50 66.8 63.89"
    assert lines[1].split()[-2:] == ["-", "-"]  # LeNet at alpha 0.1 was never published
    other = script.table(rows, published=False, comparable=False).splitlines()[-2:]
    assert other[0].split()[-2:] == ["-", "-"]
    assert "do not compare" in script.table(rows, published=True, comparable=False)


def test_full_preset_is_the_published_setting(script):
    setting = script.PRESETS["niid-bench"]
    assert (setting.num_rounds, setting.epochs, setting.batch_size) == (50, 10, 64)
    assert (setting.train_size, setting.test_size, setting.standardise) == (0, 0, False)
    assert setting.mus == (0.001, 0.01, 0.1, 1.0)
    size = jax.eval_shape(fl.models.lenet().init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(size)) == 62_006


@pytest.mark.sample(1, of="a script on the images of CIFAR")
@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif("FEDJAX_LITE_DATA" not in os.environ, reason="FEDJAX_LITE_DATA is not set")
def test_lenet_path_on_cifar(script, tmp_path, monkeypatch):
    """The short preset on 200 images for 2 rounds: finite, and every method trained."""
    small = script.PRESETS["short"]._replace(train_size=200, test_size=200, num_rounds=2)
    monkeypatch.setitem(script.PRESETS, "short", small)
    flags = script.Flags(
        output_dir=tmp_path, alphas=(0.5,), seeds=(0,), mus=(0.01,), scaffold_rates=(0.1,)
    )
    rows = script.main(flags)
    assert [row["method"] for row in rows] == ["centralised", *script.METHODS]
    for row in rows:
        assert row["rounds"] == [0, 2]
        assert 0 <= row["final_mean"] <= 1
        assert np.isnan(row["final_std"])  # one seed has no spread
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["final_std"] is None
