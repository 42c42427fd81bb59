"""The scenes: verdicts of the cheap ones in their smoke size, what they write, and refusals."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def scenes():
    """Imports a scene by name; scenes find each other and the shared plumbing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.syspath_prepend(str(FOLDER / "scenes"))
        yield importlib.import_module
    for path in FOLDER.glob("scenes/*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("sizes_or_noise", [True, True]),
        # None: on average over examples it may go either way
        pytest.param("majority_rule", [True, None, True, True], marks=pytest.mark.slow),
        pytest.param("one_liar", [True, True, True], marks=pytest.mark.slow),
    ],
)
def test_verdicts_in_smoke_size(scenes, tmp_path, capsys, name, held):
    scene = scenes(name)
    record = scene.main(scene.Flags(smoke=True, output_dir=tmp_path))
    found = [part["holds"] for part in record["parts"]]
    assert len(found) == len(held)
    assert all(one == wanted for one, wanted in zip(found, held) if wanted is not None)
    assert record["verdict"] == ("holds" if all(found) else "does not hold")
    assert json.loads((tmp_path / "results.json").read_text())["means"] == record["means"]
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    told = capsys.readouterr().out
    assert scene.CLAIM in told
    assert f"Verdict: {record['verdict']}." in told


def rows(small, worst):
    """Means of the majority's table: alone .8 everywhere, shared better for the large ones."""
    alone = np.array([0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    shared = np.array([0.9, 0.9, small, small, 0.85, small])
    return {"alone": alone, "FedAvg": shared, "AFL": np.append(shared[:5], worst)}


@pytest.mark.parametrize(
    ("small", "worst", "held"),
    [(0.6, 0.7, [1, 1, 1, 1]), (0.85, 0.9, [1, 1, 0, 1]), (0.6, 0.5, [1, 1, 1, 0])],
)
def test_the_majoritys_verdict_follows_its_figures(scenes, small, worst, held):
    found = scenes("majority_rule").verdict(rows(small, worst))
    assert [part.holds for part in found] == [bool(one) for one in held]


def test_a_table_by_hand_and_refusals(scenes, tmp_path, capsys):
    shared = scenes("shared.scene")
    values = {"one": np.array([[1.0, 0.5], [3.0, 0.5]]), "other": np.zeros((2, 2))}
    found = shared.Found(("a", "b"), values, [shared.Part("so it is", False)], "of nothing")
    flags = shared.SceneFlags(output_dir=tmp_path / "out")
    record = shared.tell("made_up", "that it is so", lambda flags: found, flags)
    told = capsys.readouterr().out
    assert "2.000 +- 1.000" in told
    assert "does not hold  so it is" in told
    assert (record["verdict"], record["means"]["one"]) == ("does not hold", [2.0, 0.5])
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        shared.tell("made_up", "that it is so", lambda flags: found, flags)
    with pytest.raises(ValueError, match="--num-seeds must be at least 1, got 0"):
        shared.tell("made_up", "", lambda flags: found, shared.SceneFlags(num_seeds=0))


def test_ranks_of_rare_events_by_brute_force(scenes):
    scene = scenes("rare_events")
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(60, 2)), (rng.random(60) < 0.2).astype(int)
    score = logits[:, 1] - logits[:, 0]
    pairs = score[y == 1][:, None] > score[y == 0][None]
    told = score > 0
    expected = [told[y == 1].mean(), (told & (y == 1)).sum() / told.sum(), pairs.mean()]
    np.testing.assert_allclose(scene.scores(logits, y), expected)
