"""q-FFL's synthetic devices: figures by numpy, splits, files of a run of seconds."""

import importlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "qffl_synthetic.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


def test_figures_are_those_of_numpy(script):
    rng = np.random.default_rng(0)
    client = np.concatenate([np.repeat(np.arange(20), rng.integers(3, 9, 20)), [-1] * 7])
    right = rng.random(len(client)) < 0.6
    found = script.of_devices(jnp.asarray(right), jnp.asarray(client), 20)
    shares = 100 * np.array([right[client == k].mean() for k in range(20)])
    worst = np.sort(shares)
    expected = {
        "average": 100 * right[client >= 0].mean(),
        "devices": shares.mean(),
        "worst": worst[:2].mean(),
        "best": worst[-2:].mean(),
        "variance": np.var(shares),
    }
    assert set(found) == set(expected) == set(script.FIGURES)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_every_device_is_split_eight_to_one_to_one(script):
    flags = script.Flags(num_clients=12)
    parts = script.split(flags, 3)
    sizes = np.array([np.bincount(part["client"], minlength=12) for part in parts])
    whole = sizes.sum(0)
    np.testing.assert_array_equal(sizes[0], (0.8 * whole).astype(int))
    np.testing.assert_array_equal(sizes[0] + sizes[1], (0.9 * whole).astype(int))
    rows = np.concatenate([part["x"] for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows)  # no example twice
    runs = script.load(flags, 2)
    for seed in range(2):
        train, *held_out = script.split(flags, seed)
        offsets = np.asarray(runs.train.offsets[seed])
        np.testing.assert_array_equal(np.diff(offsets), np.bincount(train["client"]))
        np.testing.assert_array_equal(runs.train.examples["x"][seed][: offsets[-1]], train["x"])
        for part, own in zip(runs.held_out.values(), held_out, strict=True):
            here = np.asarray(part["client"][seed]) >= 0
            np.testing.assert_array_equal(part["y"][seed][here], own["y"])


def test_seeds_of_one_draw_share_their_examples(script):
    def drawn(seed, **flags):
        parts = script.split(script.Flags(num_clients=10, **flags), seed)
        x = np.concatenate([part["x"] for part in parts])
        return x[np.lexsort(x.T)], parts[0]["x"]

    (one, train), (other, others_train) = drawn(1, one_draw=True), drawn(2, one_draw=True)
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(train, others_train)
    assert drawn(1)[0].shape != one.shape


@pytest.mark.slow
def test_a_smoke_run(script, tmp_path, capsys):
    flags = script.Flags(smoke=True, num_clients=20, num_rounds=10, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    rows = {(r["q"], r["round"], r["split"]): r for r in results["rows"]}
    assert len(rows) == 8  # two q, after a tenth and all of the rounds, two splits
    for row in rows.values():
        figures = {name: np.array(row[name]) for name in script.FIGURES}
        assert all(values.shape == (2,) for values in figures.values())
        assert (figures["worst"] <= figures["devices"]).all()
        assert (figures["devices"] <= figures["best"]).all()
    learnt = np.mean(rows[0.0, 10, "test"]["average"]) - np.mean(rows[0.0, 1, "test"]["average"])
    assert learnt > 0
    assert "published, 20,000 rounds" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)
