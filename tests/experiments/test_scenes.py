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


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("sizes_or_noise", [True, True]),
        # None: on average over examples it may go either way
        pytest.param("majority_rule", [True, None, True, True], marks=pytest.mark.slow),
        pytest.param("one_liar", [True, True, True], marks=pytest.mark.slow),
        pytest.param("rare_events", [None, None], marks=pytest.mark.slow),
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
    found = {name: values[None] for name, values in rows(small, worst).items()}
    found = scenes("majority_rule").verdict(found)
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


def test_gains_are_of_pairs(scenes):
    """Differences 1, 2 and 3: mean 2, error 1 / sqrt 3; and 1, 9: 5 +- 4, not two errors."""
    gain = scenes("shared.scene").gain
    sure, open_ = gain([2, 4, 6], [1, 2, 3]), gain([3, 9], [2, 0])
    np.testing.assert_allclose([*sure, *open_], [2, 3**-0.5, 5, 4])
    assert (sure.sure, open_.sure, gain([1], [0]).sure, gain([0], [0]).sure) == (1, 0, 1, 0)
    assert (sure.told(digits=1), gain([1.5], [0]).told(100, 0)) == ("+2.0 +- 0.6", "+150")


@pytest.mark.parametrize(
    ("unseen", "held"), [(0.85, [1, 1, 1, 1, 1, 1]), (0.6, [1, 1, 1, 1, 1, 0])]
)
def test_the_scanners_verdict_follows_its_figures(scenes, unseen, held):
    """Columns: scanner 1, scanner 2, both, one for all, a third."""
    scene = scenes("two_scanners")
    bad, good = [0.9, 0.7, 0.8, 0.9, 0.7], [0.9, 0.86, 0.88, 0.9, 0.7]
    found = {norm: np.array([bad if i < 2 else good]) for i, norm in enumerate(scene.NORMS)}
    found["instance"] = np.array([[*good[:4], unseen]])
    assert [part.holds for part in scene.verdict(found)] == [bool(one) for one in held]
    found["group"] = found["none"]
    assert not scene.verdict(found)[3].holds


@pytest.mark.slow
def test_a_smoke_run_of_the_scanners(scenes, tmp_path):
    scene = scenes("two_scanners")
    try:
        record = scene.main(scene.Flags(smoke=True, output_dir=tmp_path))
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert set(record["means"]) == set(scene.NORMS)
    assert all(len(row) == len(scene.COLUMNS) for row in record["means"].values())


def test_ranks_of_rare_events_by_brute_force(scenes):
    scene = scenes("rare_events")
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(60, 2)), (rng.random(60) < 0.2).astype(int)
    score = logits[:, 1] - logits[:, 0]
    pairs = score[y == 1][:, None] > score[y == 0][None]
    told = score > 0
    expected = [told[y == 1].mean(), (told & (y == 1)).sum() / told.sum(), pairs.mean()]
    np.testing.assert_allclose(scene.scores(logits, y), expected)
