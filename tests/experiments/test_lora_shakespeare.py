"""Adapters on Shakespeare: a smoke run on two tiny plays of our own, and what it must say."""

import gzip
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "lora_shakespeare.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two plays of five roles that each repeat a line of their own, in the loader's format."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shakespeare").mkdir()
    speeches = [
        [play, f"R{role}", f"{'abcde'[role]} to be or not {play} "]
        for play in ("first", "second")
        for role in range(5)
        for _ in range(5)
    ]
    path = folder / "shakespeare" / "shakespeare_roles.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"speeches": speeches}).encode()))
    return folder


@pytest.fixture(scope="module")
def finished(script, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    flags = script.Flags(smoke=True, data_dir=folder, output_dir=out, cut_ranks=(0, 1, 8))
    return flags, script.main(flags)


def test_what_is_written(finished):
    flags, rows = finished
    out = flags.output_dir
    assert {p.name for p in out.iterdir()} == {"results.json", "accuracy_by_megabytes.png"}
    assert (out / "accuracy_by_megabytes.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads((out / "results.json").read_text())
    assert written["rows"] == json.loads(json.dumps(rows))
    assert written["settings"]["preset"] == "smoke"


def test_bytes_are_those_of_what_is_trained(script, finished):
    """Two rounds, two clients: 32 bits a number that is trained, from the shapes of the model."""
    _, rows = finished
    setting = script.PRESETS["smoke"]
    params = jax.eval_shape(script.transformer(setting).init, jax.random.key(0))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    width, vocabulary = setting.width, 90
    kernels = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width), (width, vocabulary)]
    trained = {
        "full": size(params),
        "lora-1": sum(m + n for m, n in kernels),
        "ffa-1": sum(n for _, n in kernels),
        "bottleneck-2": 2 * (2 * 2 * width + width + 2),
        "head": (width + 1) * vocabulary,
    }
    for row in rows:
        number = trained[row["method"]]
        assert row["trained"] == number
        assert row["megabytes"][-1] == pytest.approx(2 * 2 * number * 4e-6, rel=1e-6)
        assert row["bytes_share"] == pytest.approx(number / trained["full"], rel=1e-6)
        assert row["rounds"] == [1, 2]
    assert [row["method"] for row in rows] == list(setting.methods)
    assert next(row for row in rows if row["method"] == "full")["gain_kept"] in (1.0, None)


def test_changes_are_cut_to_low_rank(script, finished):
    """Of kernels `[8, n]` rank 8 is all of it, and so full training's accuracy; rank 0 nothing."""
    flags, rows = finished
    cuts = json.loads((flags.output_dir / "results.json").read_text())["cut"]
    full = next(row for row in rows if row["method"] == "full")
    assert [row["rank"] for row in cuts] == [0, 1, 8]
    assert cuts[0]["share"] == 0
    assert 0 < cuts[1]["share"] < 1
    assert cuts[2]["share"] == pytest.approx(1)
    assert cuts[2]["gain"] == pytest.approx(full["after"] - full["before"], abs=0.02)
    # By hand: singular values 3 and 1 along the axes; cut to the first, and scored by what is left.
    parts = importlib.import_module("shared.low_rank_change").low_rank_parts
    trained = {"up": {"kernel": np.diag([3.0, 1.0]), "bias": np.ones(2)}}
    base = {"up": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}}
    score = lambda w: {"test_accuracy": w["up"]["kernel"].sum() + w["up"]["bias"].sum()}  # noqa: E731
    expected = [{"rank": 1, "share": pytest.approx(0.9), "accuracy": pytest.approx(5)}]
    assert parts(base, trained, score, [1]) == expected


def test_a_method_starts_from_the_pretrained_model(script, folder):
    setting = script.PRESETS["smoke"]
    plays = script.load(folder, setting)
    base = script.transformer(setting).init(jax.random.key(0))
    batch = {k: v[:2] for k, v in plays.test.items()}
    expected = script.transformer(setting).predict(base, batch)
    for name in (*setting.methods, "ffa-1", "head"):
        chosen = script.method(name, base, setting, 0)
        np.testing.assert_allclose(
            chosen.model.predict(chosen.params, batch), expected, atol=1e-6, err_msg=name
        )


def test_roles_are_of_the_other_plays(script, folder):
    plays = script.load(folder, script.PRESETS["smoke"])
    decode = importlib.import_module("fedjax_lite.data.sources.shakespeare").decode
    assert "first" in decode(np.asarray(plays.before.examples["x"]).ravel())
    assert "second" not in decode(np.asarray(plays.before.examples["x"]).ravel())
    assert "first" not in decode(np.asarray(plays.train.examples["x"]).ravel())


def test_bad_flags_are_named(script, folder, finished):
    flags, _ = finished
    for options, match in (
        ({"methods": ("lora",)}, "--methods must be"),
        ({"rate_factors": ()}, "--rate-factors must be"),
        ({"num_rounds": -1}, "--num-rounds must be"),
    ):
        with pytest.raises(ValueError, match=match):
            script.choose(script.Flags(smoke=True, **options))
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)
    with pytest.raises(ValueError, match="--num-roles must be at most 5"):
        script.load(folder, script.PRESETS["smoke"]._replace(num_roles=6))
