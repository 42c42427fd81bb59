"""Replications of FedAvg on MNIST: deals, networks and losses by hand, and a smoke run."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
CELLS = ("shaoxiongji mlp shards", "AshwinRJ mlp pooled")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("replications_mnist")


@pytest.fixture(scope="module")
def networks(script):
    return importlib.import_module("replications_mnist_models")


@pytest.fixture(scope="module")
def finished(script, mnist_folder, tmp_path_factory):
    flags = script.Flags(
        cells=CELLS, data_dir=mnist_folder, smoke=True, output_dir=tmp_path_factory.mktemp("out")
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        rows = script.main(flags)
    return flags, rows, printed.getvalue()


def test_rows_follow_from_the_runs_and_are_kept(script, finished):
    flags, rows, printed = finished
    path = flags.output_dir / "results.json"
    saved = json.loads(path.read_text())
    assert saved["rows"] == rows
    assert [row["cell"] for row in rows] == list(CELLS)
    for row in rows:
        mine = [run["accuracy"][0] for run in saved["runs"] if run["cell"] == row["cell"]]
        assert row["accuracy"] == mine
        assert row["mean"] == pytest.approx(np.mean(mine))
        assert row["std"] == pytest.approx(np.std(mine, ddof=1))
        assert row["published"] is None  # one round is no figure of theirs
    # A perceptron that saw 1,000 images (100 steps) knows the rows better than by chance.
    assert rows[0]["mean"] > 0.2
    assert "seeds [0, 1]" in printed
    before = path.read_bytes()
    with contextlib.redirect_stdout(io.StringIO()):
        assert script.main(flags) == rows
        with pytest.raises(FileExistsError, match="other settings"):
            script.main(script.Flags(data_dir=flags.data_dir, output_dir=flags.output_dir))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("kept", "second"), [(1.0, 300), (0.8, 180)])
def test_a_client_has_two_shards_the_second_cut(script, kept, second):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6000))
    order = script.order_of(labels, "shards", kept, seed=3).reshape(100, -1)
    assert order.shape[1] == 300 + second
    assert len(np.unique(order)) == order.size
    # 6,000 images of a label are 20 shards, so that a shard has one label.
    assert (np.ptp(labels[order[:, :300]], axis=1) == 0).all()
    assert (np.ptp(labels[order[:, 300:]], axis=1) == 0).all()
    # Which shards meet is by chance: few clients get two of one label (expected 19 of 199).
    assert 1 <= (labels[order[:, 0]] == labels[order[:, 300]]).sum() <= 25


def test_images_dealt_at_random_are_everybody_s(script):
    order = script.order_of(np.zeros(1000), "iid", 1.0, seed=0)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))
    assert script.order_of(np.zeros(1000), "pooled", 1.0, seed=0).tolist() == list(range(1000))


def test_every_published_figure_has_its_cell(script):
    named = {
        f"{name} {rounds}"
        for name, cell in script.CELLS.items()
        for rounds in script.SOURCES[cell.source].rounds
    }
    assert named == set(script.PUBLISHED)


def test_the_loss_without_a_logarithm(networks):
    """Minus the probability, by hand on logits that the network gives."""
    model = networks.perceptron(3, minus_probability=True)
    params = jax.jit(model.init)(jax.random.key(0))
    examples = {
        "x": np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), "u1"),
        "y": np.array([0, 3, 9, 3], np.uint8),
    }
    logits = np.asarray(jax.jit(model.predict)(params, examples), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -shares[np.arange(4), examples["y"]]
    found, plain = (
        jax.jit(one.loss)(params, examples, None) for one in (model, networks.perceptron(3))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(plain, -np.log(-expected), rtol=1e-4)


def test_whole_channels_are_dropped(networks):
    """Biases of the second convolution only: an image's channel is there, doubled, or is not."""
    model = networks.small_cnn()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    zeros["conv2"]["bias"] = np.arange(1.0, 21.0, dtype="f4")
    # The dense layer reads the first of 16 places of each channel, the head its units' sum.
    kernel = np.zeros((4, 4, 20, 50), "f4")
    kernel[0, 0, :, :] = 1 / 50
    zeros["dense"]["kernel"] = kernel.reshape(320, 50)
    zeros["head"]["kernel"] = np.tile(np.eye(1, 10, dtype="f4"), (50, 1))
    x = np.zeros((64, 28, 28, 1), "u1")
    whole = jax.jit(model.predict)(zeros, {"x": x, "y": np.zeros(64, int)})[:, 0]
    np.testing.assert_allclose(whole, 210, rtol=1e-5)  # 1 + ... + 20
    # Without the channel masks a training loss would not differ between images by whole numbers:
    # loss = log(exp(z) + 9) with z = 2 u / 50 * 2 s, u units kept and s the sum of kept channels.
    z = np.asarray(jax.jit(model.loss)(zeros, {"x": x, "y": np.ones(64, int)}, jax.random.key(1)))
    assert z.std() > 10
    assert 150 < z.mean() < 270  # dropout keeps the mean, 210
