"""MNIST by a power law: the deal by FedProx's steps, the loss with its sigmoid, a smoke run."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 3000))


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("power_law_mnist")


def as_fedprox_writes_it(labels, seed):
    """Owners by lists that grow, as in generate_niid.py, from the same log-normal numbers."""
    rows = [np.flatnonzero(labels == digit).tolist() for digit in range(10)]
    props = np.random.default_rng(seed).lognormal(0, 2.0, (10, 100, 2))
    props = np.array([[[len(v) - 1000]] for v in rows]) * props / props.sum((1, 2), keepdims=True)
    owned, idx = [[] for _ in range(1000)], [0] * 10
    for user in range(1000):
        for j in range(2):
            digit = (user + j) % 10
            owned[user] += rows[digit][idx[digit] : idx[digit] + 5]
            idx[digit] += 5
    for user in range(1000):
        for j in range(2):
            digit = (user + j) % 10
            amount = int(props[digit, user // 10, j])
            if idx[digit] + amount < len(rows[digit]):
                owned[user] += rows[digit][idx[digit] : idx[digit] + amount]
                idx[digit] += amount
    return owned


def test_the_deal_is_fedprox_s(script):
    owner, owned = script.power_law(LABELS, seed=4), as_fedprox_writes_it(LABELS, seed=4)
    for client in range(1000):
        assert sorted(owned[client]) == np.flatnonzero(owner == client).tolist()
    assert (owner == -1).sum() == len(LABELS) - sum(map(len, owned))


def test_a_tenth_of_each_client_is_held_out(script):
    owner = np.repeat([0, 1, -1], [10, 25, 7])
    test = script.held_out(owner, seed=0)
    assert test[:10].sum() == 1  # 10 - int(9.0)
    assert test[10:35].sum() == 3  # 25 - int(22.5)
    assert not test[35:].any()
    assert (script.held_out(owner, seed=1) != test).any()


def test_too_few_images_are_refused(script):
    with pytest.raises(ValueError, match="1000 images of each digit"):
        script.power_law(LABELS[:5000], seed=0)


def test_the_cross_entropy_takes_what_the_sigmoid_gives(script):
    rng = np.random.default_rng(0)
    mean, deviation = rng.uniform(90, 150, 784), rng.uniform(60, 90, 784)
    examples = {"x": rng.integers(0, 256, (3, 28, 28, 1), "u1"), "y": np.array([1, 9, 0])}
    model = script.regression("sigmoid", mean, deviation)
    params = model.init(jax.random.key(0))
    x = (examples["x"].reshape(3, 784).astype("f8") - mean) / (deviation + 0.001)
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    outputs = 1 / (1 + np.exp(-(x @ kernel + bias)))
    expected = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(3), examples["y"]]
    np.testing.assert_allclose(model.loss(params, examples, None), expected, rtol=1e-4)


def test_a_smoke_run_keeps_what_it_has(script, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (len(LABELS), 28, 28, 1), dtype=np.uint8)
    images[np.arange(len(LABELS)), 2 * LABELS + 3] += 180
    parts = [{"x": images[a:b], "y": LABELS[a:b]} for a, b in ((0, 25000), (25000, 30000))]
    monkeypatch.setattr(script.fl.data, "load", lambda name, data_dir: parts)
    flags = script.Flags(models=("sigmoid",), smoke=True, output_dir=tmp_path)
    (row,) = script.main(flags)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["rows"] == [row]
    assert row["mean"] == saved["runs"][0]["curve"][-1]
    assert row["published"] == 81
    dealt = script.power_law(LABELS, 0)
    assert saved["runs"][0]["num_train"] + saved["runs"][0]["num_test"] == (dealt >= 0).sum()
    before = (tmp_path / "results.json").read_bytes()
    assert script.main(flags) == [row]
    assert (tmp_path / "results.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="2 rounds"):
        script.main(script.Flags(output_dir=tmp_path))
