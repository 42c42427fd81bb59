"""Conditions of the 2NN, changed one at a time: what each of them changes, and nothing else."""

import importlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("mcmahan_conditions")


@pytest.fixture(scope="module")
def cells(script):
    return importlib.import_module("mcmahan_mnist")


def test_rates_are_the_paper_s_grid(script):
    ratios = np.divide(script.RATES[1:], script.RATES[:-1])
    np.testing.assert_allclose(ratios, 10 ** (1 / 3), rtol=1e-3)
    for rate in script.SLOW.values():  # steps of 10^(1/6)
        power = 6 * math.log10(rate)
        assert abs(power - round(power)) < 0.01


def test_weights_are_drawn_as_the_condition_says(script):
    models = {name: script.two_layers(there) for name, there in script.CONDITIONS.items()}
    drawn = {name: model.init(jax.random.key(0)) for name, model in models.items()}
    sizes = {name: sum(x.size for x in jax.tree.leaves(params)) for name, params in drawn.items()}
    assert set(sizes.values()) == {199_210}
    deviation = lambda name: float(drawn[name]["dense1"]["kernel"].std())  # noqa: E731
    # 157,000 weights, so that a deviation is known to about 0.2 per cent of itself.
    wanted = {
        "he": math.sqrt(2 / 784), "glorot": math.sqrt(2 / 984), "lecun": math.sqrt(1 / 784),
        "torch": math.sqrt(1 / (3 * 784)),
    }  # fmt: skip
    for name, value in wanted.items():
        assert deviation(name) == pytest.approx(value, rel=0.01), name
    # Cut off at two deviations, a normal one keeps 0.8796 of its deviation; jax makes up for it
    # in initialisers that scale, not in this one.
    assert 0.0875 < deviation("tutorial") < 0.1005
    assert deviation("small") == pytest.approx(deviation("tutorial") / 10, rel=0.01)
    assert set(np.asarray(drawn["tutorial"]["dense2"]["bias"]).tolist()) == {float(np.float32(0.1))}
    assert not np.asarray(drawn["small"]["dense2"]["bias"]).any()


@pytest.mark.parametrize(
    ("condition", "mean", "deviation"),
    [("standardised", 0.1307, 0.3081), ("centred", 0.5, 0.5), ("shifted", 0.5, 1.0)],
)
def test_pixels_are_scaled_as_the_condition_says(script, condition, mean, deviation):
    plain, other = (script.two_layers(script.CONDITIONS[n]) for n in ("he", condition))
    params = plain.init(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), "u1")
    by_hand = ((x / 255 - mean) / deviation).astype("f4")
    np.testing.assert_allclose(
        other.predict(params, {"x": x}), plain.predict(params, {"x": by_hand}), rtol=1e-3, atol=1e-4
    )


def test_inverted_images_are_black_on_white(script, monkeypatch):
    seen = []
    row = {"best_learning_rate": 0.1, "curves": {"0.1/0": [0.0]}, "every": 1}
    monkeypatch.setattr(script, "run_cell", lambda cell, *splits, **_: seen.append(splits) or row)
    split = {"x": np.array([0, 10, 255], "u1"), "y": np.arange(3)}
    for condition in ("he", "inverted"):
        script.run_condition("2nn-iid-b10-e1", condition, split, split, script.Flags())
    plain, inverted = seen
    assert [part["x"].tolist() for part in plain] == [[0, 10, 255]] * 2
    assert [part["x"].tolist() for part in inverted] == [[255, 245, 0]] * 2


def test_batches_that_are_fixed_hold_what_the_client_holds(cells):
    owners = np.repeat([0, 1], [4, 2])
    data = fl.data.from_arrays({"x": np.arange(6.0), "y": np.arange(6)}, owners)
    dealt = cells.in_batches(data, 2)
    assert dealt.sizes.tolist() == [2, 1]
    held = [np.asarray(dealt.client(i)["x"]).tolist() for i in range(2)]
    assert held == [[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0]]]
    with pytest.raises(ValueError, match="size must divide"):
        cells.in_batches(data, 4)
    loss = cells.on_batches(lambda params, examples, key: params * examples["x"])
    assert loss(jnp.float32(2), {"x": jnp.array([[0.0, 1.0], [2.0, 4.0]])}, None).tolist() == [1, 6]


def test_the_first_round_at_the_target_is_not_interpolated(script, cells):
    curve = [0.0, 0.96, 0.98, 0.95]
    assert script.first_round(curve, 4, 0.97) == 8
    assert cells.rounds_to(np.array(curve), 4, 0.97) == pytest.approx(6)
    assert script.first_round(curve, 4, 0.99) == math.inf


def test_refusals(script):
    for options, name in (
        ({"cells": ("cnn-iid-b10-e1",)}, "--cells"),
        ({"conditions": ("warm",)}, "--conditions"),
        ({"cells": ("2nn-iid-binf-e1",)}, "fixed batches"),
    ):
        with pytest.raises(ValueError, match=name):
            script.main(script.Flags(**options))
