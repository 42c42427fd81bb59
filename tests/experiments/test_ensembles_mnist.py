"""Deep ensembles on MNIST: networks, orders by hand, and the files of a run of seconds."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("ensembles_mnist")


@pytest.mark.slow
@pytest.mark.realdata
def test_a_smoke_run(script, tmp_path):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    try:
        results = script.main(flags)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [(row["way"], row["size"]) for row in results["rows"]] == [
        ("ensemble", 1), ("ensemble", 2), ("ensemble + AT", 1), ("ensemble + AT", 2)
    ]  # fmt: skip
    for row in results["rows"]:
        assert 0 <= row["error"][0] <= 100
        assert 0 <= row["brier"][0] <= 0.2
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(dataclasses.replace(flags))


def test_the_network_is_the_papers(script):
    params = script.network().init(jax.random.key(0))
    shapes = [layer["kernel"].shape for layer in params["dense"]]
    assert shapes == [(784, 200), (200, 200), (200, 200), (200, 10)]
    assert len(params["norm"]) == 3


def test_orders_are_of_means(script):
    def row(way, size, nll, entropy):
        return {"way": way, "size": size, "error": [2.0, 4.0 - size], "nll": nll, "brier": [0.1],
                "entropy_unfamiliar": entropy}  # fmt: skip

    rows = [row("ensemble", 1, [0.3, 0.5], [0.2]), row("ensemble", 5, [0.2, 0.4], [0.1])]
    rows += [row("ensemble + AT", 1, [0.1, 0.2], [0.2]), row("ensemble + AT", 5, [0.5], [0.4])]
    found = {part["statement"].split(":")[0:2][1].strip() + part["statement"].split(":")[0]:
             part["holds"] for part in script.orders(rows)}  # fmt: skip
    assert found["error of 5 networks below that of oneensemble"]  # means 0.5 and 2.5
    assert found["NLL of 5 networks below that of oneensemble"]  # 0.3 and 0.4
    assert not found["Brier score of 5 networks below that of oneensemble"]  # equal
    assert not found["entropy on other things of one network below that of 5ensemble"]
    assert found["NLL of ensemble + AT below that of ensembleM = 1"]  # 0.15 and 0.4
    assert not found["NLL of ensemble + AT below that of ensembleM = 5"]  # 0.5 and 0.3


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"preset": "long"}, "--preset"),
        ({"ways": ("dropout",)}, "--ways"),
        ({"epochs": -1}, "--epochs"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
    ],
)
def test_what_cannot_be_is_named(script, given, named):
    with pytest.raises(ValueError, match=named):
        script.settled(script.Flags(**given))


def test_sizes_that_are_scored(script):
    assert script.sizes(1) == [1]
    np.testing.assert_array_equal(script.sizes(10), [1, 2, 5, 10])
