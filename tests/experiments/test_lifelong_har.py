"""Activities in stages: who trains on what, how it is scored, and a smoke run on packed windows."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("lifelong_har")


@pytest.fixture(scope="module")
def windows(script):
    """Two people, each activity four times; the last of them is scored."""
    y = np.tile(np.repeat(np.arange(6), 4), 2).astype(np.int32)
    x = np.random.default_rng(0).normal(size=(len(y), 3))
    test = np.tile([False, False, False, True], 12)
    subject = np.repeat([0, 1], 24).astype(np.int32)
    return script.Windows(x, y, subject, test, np.where(test, -1, 0))


def test_every_activity_has_one_stage(script):
    for order, stages in script.ORDERS.items():
        assert sorted(a for stage in stages for a in stage) == list(range(6))
        for number, stage in enumerate(stages):
            assert script.stage_of(order)[list(stage)].tolist() == [number] * len(stage)
        assert script.allowed_in(order).sum(0).tolist() == [1] * 6


def test_stages_hold_their_activities_or_all_so_far(script, windows):
    kind = {"order": "pairs", "num_rounds": 5}
    pool = windows.block >= 0
    new = script.stream_of(windows, pool, all_seen=False, **kind)
    all_seen = script.stream_of(windows, pool, all_seen=True, **kind)
    for number, stage in enumerate(script.ORDERS["pairs"]):
        so_far = [a for one in script.ORDERS["pairs"][: number + 1] for a in one]
        for stream, wanted in ((new, stage), (all_seen, so_far)):
            for round in (5 * number, 5 * number + 4):
                data = stream.at_round(round)
                own = data.client(1)
                assert own["y"].tolist() == [a for a in range(6) for _ in range(3) if a in wanted]
                scale = windows.x[pool].mean(0), windows.x[pool].std(0)
                rows = pool & (windows.subject == 1) & np.isin(windows.y, wanted)
                x = (windows.x[rows] - scale[0]) / scale[1]
                np.testing.assert_allclose(own["x"], x, rtol=1e-5, atol=1e-6)
    fewer = script.stream_of(windows, pool & (np.arange(48) % 4 < 2), all_seen=False, **kind)
    assert fewer.order.shape == new.order.shape == all_seen.order.shape  # one program
    assert fewer.max_client_size == new.max_client_size == all_seen.max_client_size


def test_accuracy_is_the_mean_over_people_of_scored_windows(script, windows):
    right = np.random.default_rng(1).random((2, 2, 48)) < 0.5  # halves: two stages
    found = script.matrix(right, windows, windows.test, "halves")
    for after in range(2):
        for score in range(2):
            for task, stage in enumerate(script.ORDERS["halves"]):
                people = []
                for person in (0, 1):
                    rows = windows.test & (windows.subject == person) & np.isin(windows.y, stage)
                    people.append(right[after, score, rows].mean())
                assert found[score, after, task] == pytest.approx(np.mean(people))


def test_told_the_stage_other_activities_are_out_of_the_question(script):
    methods = importlib.import_module("lifelong_har_methods")
    logits = jnp.arange(12.0).reshape(2, 6)
    allowed = script.allowed_in("pairs")
    only = methods.within(logits, jnp.array([0, 1]), allowed)
    assert only.argmax(1).tolist() == [1, 4]
    assert (np.asarray(only) == np.asarray(logits)).tolist() == allowed[:2].tolist()


def test_the_aim_is_half_the_forgetting_and_two_points_of_the_new(script):
    def block(forgetting, new):
        rest = {"average": [0.0], "learning": [0.0], "backward": [0.0]}
        named = (("fine-tuning", 0.2, 0.9), ("three-way", forgetting, new))
        return [{"method": m, "among": {"forgetting": [f], "new": [n], **rest}}
                for m, f, n in named]  # fmt: skip

    for forgetting, new, met in ((0.1, 0.885, True), (0.11, 0.9, False), (0.0, 0.87, False)):
        found = script.aim(block(forgetting, new), "among")
        assert (found["met"], found["of"]) == (met, 0.2)
        assert found["new"] == pytest.approx(new - 0.9)
    assert script.aim(block(0.1, 0.9)[:1], "among") is None


@pytest.fixture(scope="module")
def finished(script, har_folder, tmp_path_factory):
    flags = script.Flags(data_dir=har_folder, smoke=True, output_dir=tmp_path_factory.mktemp("out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            rows = script.main(flags)
        yield flags, rows, printed.getvalue()


def test_rows_table_and_picture(script, finished):
    flags, rows, printed = finished
    assert (flags.output_dir / "stages.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((flags.output_dir / "results.json").read_text())["blocks"]
    assert [row for block in saved for row in block["rows"]] == rows
    assert [row["method"] for row in rows] == ["fine-tuning", "three-way"]
    for row in rows:
        for score in script.SCORES:
            (first, last), (lost, new) = np.array(row[score]["matrices"][0])
            assert row[score]["average"] == [pytest.approx((lost + new) / 2, abs=1e-4)]
            assert row[score]["forgetting"] == [pytest.approx(first - lost, abs=1e-4)]
            assert row[score]["backward"] == [pytest.approx(lost - first, abs=1e-4)]
            assert row[score]["new"] == [pytest.approx(new, abs=1e-4)]
            assert 0 <= last <= 1
    assert "halves, told: within activities" in printed
    assert "the aim is" in printed


def test_what_cannot_be_run_is_refused(script):
    flags = script.Flags(smoke=True)
    for name, given, message in (
        ("orders", ("thirds",), "--orders must be some of"),
        ("scenarios", (), "--scenarios must be some of"),
        ("seeds", (), "--seeds must be one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            script.main(script.dataclasses.replace(flags, **{name: given}))
