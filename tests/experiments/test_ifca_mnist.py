"""IFCA's table: descent by inner products is local SGD, test clients choose, rows are kept."""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
FOLDER = Path(os.environ.get("FEDJAX_LITE_DATA", "/nonexistent")) / "mnist"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="mnist/ is not in FEDJAX_LITE_DATA")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("ifca_mnist")


def test_descent_by_inner_products_is_local_sgd(script):
    """Four clients of six images whose clusters differ: as `fl.ifca` with epochs of one batch."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 28, 28, 1)).astype(np.uint8)
    x[12:] = 255 - x[12:]
    data = fl.data.from_arrays({"x": x, "y": rng.integers(0, 10, 24)}, np.repeat(np.arange(4), 6))
    model = fl.models.mlp((5,), num_classes=10, input_shape=(28, 28, 1), init="torch")
    sgd, plan = optax.sgd(script.RATE), fl.Plan(6, epochs=script.NUM_STEPS)
    slots = {"plan": plan, "sampler": fl.everyone(), "weighting": "uniform"}
    one = jax.jit(model.init)(KEY)
    start = jax.jit(lambda: fl.several_models(model.init, KEY, script.NUM_ANGLES))()
    pairs = [
        (fl.ifca(model.loss, sgd, num_clusters=script.NUM_ANGLES, **slots),
         script.several(model, 6), start),
        (fl.fedavg(model.loss, sgd, **slots), script.one_for_all(6), one),
    ]  # fmt: skip
    for plain, fast, params in pairs:
        ends = []
        for algo in (plain, fast):
            state, told = jax.jit(algo.init)(KEY, params, data), {}
            for _ in range(2):
                state, told = algo.round(KEY, state, data)
            ends.append((state.server.params, told["train_loss"]))
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), ends[0][0], params)
        assert max(jax.tree.leaves(moved)) > 0.01
        for mine, theirs in zip(*map(jax.tree.leaves, ends), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)


def test_test_clients_take_the_model_that_fits(script):
    """Two models that always say 3 and 5: clients of two images choose by the sum of losses."""
    say = [np.zeros(10), np.zeros(10)]
    say[0][3], say[1][5] = 4.0, 2.0
    models = {
        "dense1": {"kernel": jnp.zeros((2, 784, 1)), "bias": jnp.zeros((2, 1))},
        "head": {"kernel": jnp.zeros((2, 1, 10)), "bias": jnp.asarray(np.stack(say))},
    }
    # Of 3, 5 the first model's losses are .1 and 4.1, the second's 2.8 and .8: the second, one of
    # two right; of 3, 3 the first, both right; the last client has one image, a 7: none.
    y = np.array([3, 5, 3, 3, 7])
    test = {"x": np.zeros((1, 5, 28, 28, 1), np.uint8), "y": y[None]}
    assert script.of_test_clients(models, test, 2) == pytest.approx(3 / 5)


def test_images_are_turned_and_dealt_for_each_angle(script):
    x = np.zeros((8, 28, 28, 1), np.uint8)
    x[:, 0, 0, 0] = np.arange(1, 9)  # a corner, so that the angle shows
    data = script.dealt({"x": x, "y": np.arange(8)}, script.Setting(8, 4, 1), seed=0)
    assert data.num_clients == 8
    assert np.asarray(data.sizes).tolist() == [4] * 8
    corners = [(0, 0), (27, 0), (27, 27), (0, 27)]  # counter-clockwise, as numpy and torch turn
    for k, (row, column) in enumerate(corners):
        mine = np.asarray(data.examples["x"])[8 * k : 8 * k + 8]
        assert sorted(mine[:, row, column, 0].tolist()) == list(range(1, 9))
        labels = np.asarray(data.examples["y"])[8 * k : 8 * k + 8]
        assert (mine[:, row, column, 0] == labels + 1).all()


@needs_data
def test_a_smoke_run_and_what_is_there_is_kept(script, tmp_path, capsys):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    rows = script.main(flags)
    assert [row["method"] for row in rows] == list(script.METHODS)
    assert all(0.05 < row["accuracy"] < 1 for row in rows)
    assert [row["num_rounds"] for row in rows] == [2, 2, script.ALONE]
    saved = (tmp_path / "results.json").read_bytes()
    assert json.loads(saved)["rows"] == rows
    assert script.main(flags) == rows
    assert (tmp_path / "results.json").read_bytes() == saved
    more = dataclasses.replace(flags, num_rounds=4, methods=("IFCA",))
    assert [row["num_rounds"] for row in script.main(more)] == [2, 2, script.ALONE, 4]
    assert "8 clients of 25 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": ("ifca",)}, "--methods must be among"),
        ({"num_clients": 6}, "--num-clients must be a multiple of the 4 angles"),
        ({"num_clients": 4800, "images": 51}, "--images must be at least 1 and at most"),
    ],
)
def test_refuses(script, changes, match):
    with pytest.raises(ValueError, match=match):
        script.main(script.Flags(**changes))
