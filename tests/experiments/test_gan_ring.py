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
def test_a_smoke_run(script, tmp_path):
    flags = script.Flags(smoke=True, output_dir=tmp_path)
    results = script.main(flags)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (tmp_path / "ring.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["way"] for row in results["rows"]] == list(script.WAYS)
    assert np.shape(results["rows"][0]["coverage"]) == (2, 8)
    assert len(results["parts"]) == 4
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)


def test_the_deal(script):
    """Six large clients share six modes, two each; each small one has a mode of its own."""
    x, modes, owners = script.ring(script.Flags())
    held = [set(modes[owners == i].tolist()) for i in range(8)]
    assert held == [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 0}, {6}, {7}]
    assert np.bincount(owners).tolist() == [600] * 6 + [200] * 2
    assert np.bincount(modes)[:6].tolist() == [600] * 6
    np.testing.assert_allclose(np.hypot(*(x - script.CENTRES[modes]).T).max(), 0.4, atol=0.1)


def test_scores(script):
    """A generator of the large clients' modes alone, and one beside it of the small ones'."""
    _, modes, owners = script.ring(script.Flags())
    counts = np.zeros((8, 8), int)
    np.add.at(counts, (owners, modes), 1)
    large, small = script.CENTRES[:6], np.repeat(script.CENTRES[6:], 3, 0)
    one = script.scored(script.Trained(large[None, None], np.zeros(8, int)), counts)
    assert (one["large"], one["small"], one["worst"]) == ([1.0], [0.0], [0.0])
    assert (one["modes"], one["quality"]) == ([6], [1.0])
    side = np.repeat([0, 1], [6, 2])
    both = script.scored(script.Trained(np.stack([large, small])[None], side), counts)
    assert (both["large"], both["small"], both["modes"]) == ([1.0], [1.0], [8])
