"""Fair methods on writers: files and numbers of a run of seconds, and verdicts by hand."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "fair_writers.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.mark.slow
def test_a_smoke_run(script, tmp_path, capsys):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    try:
        results = script.main(flags)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "fair.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert results["num_minority"] == 1
    assert [row["method"] for row in results["rows"]] == ["FedAvg", "TERM 1"]
    for row in results["rows"]:
        figures = {name: np.array(values) for name, values in row["figures"].items()}
        assert all(values.shape == (2,) for values in figures.values())  # two deals
        assert (figures["worst"] <= figures["mean"]).all()
        # One student among ten writers of as many images.
        both = 0.9 * figures["employees"] + 0.1 * figures["students"]
        np.testing.assert_allclose(both, figures["mean"], atol=1e-6)
        np.testing.assert_allclose(figures["employees"] - figures["students"], figures["gap"])
    assert results["rows"][0]["against"]["worst"]["mean"] == 0
    assert "TERM 1 " in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)


def of(**figures):
    """Deals out of figures by name."""
    return [dict(zip(figures, values, strict=True)) for values in zip(*figures.values())]


@pytest.mark.parametrize(
    ("worst", "variance", "said"),
    [
        ([0.6, 0.61, 0.62], [0.02, 0.02, 0.02], "fairer than FedAvg: worst up (+10.0 +- 0.0)"),
        ([0.5, 0.51, 0.52], [0.01, 0.01, 0.01], "fairer than FedAvg: worst nowhere surely"),
        (
            [0.9, 0.5, 0.3],
            [0.02, 0.02, 0.02],
            "not surely fairer than FedAvg: worst nowhere surely",
        ),
        ([0.4, 0.41, 0.42], [0.03, 0.03, 0.03], "not surely fairer than FedAvg: worst down"),
    ],
)
def test_verdicts(script, worst, variance, said):
    same = {"mean": [0.8] * 3, "gap": [0.1] * 3}
    plain = of(worst=[0.5, 0.51, 0.52], variance=[0.02] * 3, **same)
    found = script.against(of(worst=worst, variance=variance, **same), plain)
    assert script.verdict({"against": found, "control": "FedAvg"}).startswith(said)


def test_methods_are_judged_against_their_controls(script):
    """FedMGDA+ against the mean of updates of one length, which itself is against FedAvg."""
    names = (
        "FedAvg", "FedAvg, long", "q-FedAvg 1", "q-FedAvg, long 1", "FedMGDA+ 0", "FedMGDA+ 1",
        "FedMGDA+, long 0", "FedMGDA+, long 1",
    )  # fmt: skip
    found = {name: of(worst=[float(i), i + 0.5]) for i, name in enumerate(names)}
    rows = {name: script.judged(name, found) for name in names}
    assert [row["control"] for row in rows.values()] == [
        "FedAvg", "FedAvg", "FedAvg", "FedAvg, long", "FedAvg", "FedMGDA+ 0",
        "FedAvg, long", "FedMGDA+, long 0",
    ]  # fmt: skip
    assert rows["FedMGDA+ 1"]["against"]["worst"]["mean"] == 1
    assert rows["q-FedAvg, long 1"]["against"]["worst"]["mean"] == 2


def test_a_share_that_is_none(script, tmp_path):
    with pytest.raises(ValueError, match=r"minority must lie in \(0, 1\), got 1.5"):
        script.main(script.Flags(minority=1.5, output_dir=tmp_path))
