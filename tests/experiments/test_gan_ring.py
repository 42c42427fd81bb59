"""FedGAN on a ring: the deal, scores by hand, and the files of a run of seconds."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "gan_ring.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.mark.slow
def test_a_smoke_run(script, tmp_path, monkeypatch):
    """Fair weights are asked for; what is trained is the plain mean, by the same program."""
    trained, done = script.trained, {}

    def once(flags, x, owners, which, weighting):
        script.method(flags, script.networks(flags), weighting, flags.learning_rate)
        if which.max() not in done:
            done[which.max()] = trained(flags, x, owners, which, weighting)
        return done[which.max()]

    monkeypatch.setattr(script, "trained", once)
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "ring.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (deal,) = results["deals"]
    assert deal["small_size"] == 20
    assert [row["way"] for row in deal["rows"]] == list(script.WAYS)
    assert np.shape(deal["rows"][0]["coverage"]) == (2, 4)
    assert len(deal["parts"]) == 6
    chosen = np.array(deal["rows"][-1]["generators"])
    assert chosen.shape == (2, 4)
    assert set(chosen.ravel()) <= {0, 1}
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)


def test_the_deal(script):
    """Every client holds two modes of its own, half of its examples each."""
    x, modes, owners = script.ring(600, 100)
    held = [np.bincount(modes[owners == i], minlength=8).tolist() for i in range(4)]
    assert held == [
        [300, 300, 0, 0, 0, 0, 0, 0],
        [0, 0, 300, 300, 0, 0, 0, 0],
        [0, 0, 0, 0, 300, 300, 0, 0],
        [0, 0, 0, 0, 0, 0, 50, 50],
    ]
    apart = np.hypot(*(x - script.CENTRES[modes]).T)
    np.testing.assert_allclose((apart**2).mean(), 2 * script.DEVIATION**2, rtol=0.1)


def test_scores(script):
    """A generator of the large clients' modes alone, and one beside it of the small one's."""
    _, modes, owners = script.ring(600, 100)
    counts = np.zeros((4, 8), int)
    np.add.at(counts, (owners, modes), 1)
    large, small = script.CENTRES[:6], np.repeat(script.CENTRES[6:], 3, 0)
    one = script.scored(script.Trained(large[None, None], np.zeros((1, 4), int)), counts)
    assert (one["large"], one["small"], one["worst"]) == ([1.0], [0.0], [0.0])
    assert (one["modes"], one["quality"]) == ([6], [1.0])
    side = np.array([[0, 0, 0, 1]])
    both = script.scored(script.Trained(np.stack([large, small])[None], side), counts)
    assert (both["large"], both["small"], both["modes"]) == ([1.0], [1.0], [8])


def test_the_nearest_generator_is_chosen_by_squared_distance(script):
    """Of a generator of two points, (0, 0) and (3, 0), whatever the noise."""
    gan = importlib.import_module("fedjax_lite").models.Gan(
        None, lambda params, z: params[np.arange(len(z)) % 2], None, 1
    )
    made = np.array([[0.0, 0.0], [3.0, 0.0]])
    x = np.array([[1.0, 1.0], [3.0, -2.0]])
    found = script.nearness(gan)({"generator": made}, {"x": x}, None)
    np.testing.assert_allclose(found, [2.0, 4.0])
