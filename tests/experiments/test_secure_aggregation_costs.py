"""The secure aggregation script: its smoke run, its tables and its claims, from its numbers."""

import copy
import dataclasses
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "secure_aggregation.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    run = script.RunFlags(smoke=True, output_dir=tmp_path_factory.mktemp("out"))
    flags = script.Flags(run=run)
    return flags, script.main(flags)


def test_smoke_run_writes_both_files(finished):
    flags, results = finished
    folder = flags.run.output_dir
    written = json.loads((folder / "results.json").read_text())
    assert written["claims"] == results["claims"]
    assert written["settings"]["train"]["bits"] == [8, 16]
    assert (folder / "secure_aggregation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(folder.glob("*.tmp*"))


def test_more_bits_come_nearer(finished):
    """Never exactly the float model, but ever nearer to it."""
    rows = finished[1]["accuracy"]
    assert [row["bits"] for row in rows] == [None, 8, 8, 16, 16]
    assert [row.get("exact_zero") for row in rows] == [None, False, True, False, True]
    for row in rows[1:]:
        assert row["model_difference"] > 0
        assert abs(row["accuracy_difference"]) < 0.05
        assert row["half_step"] == pytest.approx(0.5 / (2 ** row["bits"] - 1 - row["exact_zero"]))
    assert rows[1]["model_difference"] > 2 * rows[3]["model_difference"]
    assert rows[2]["model_difference"] > 2 * rows[4]["model_difference"]


def test_bytes_are_those_of_the_messages(finished):
    """4 a word and an id, two keys, a digest, 12 + 66 + 16 + two ids a ciphertext.

    Every message to the server has a proof of 32 bytes; a vector names those it was masked with.
    """
    rows = finished[1]["protocol"]
    assert [(row["clients"], row["neighbours"]) for row in rows] == [(4, 3), (6, 5), (6, 4)]
    for row in rows:
        assert row["mask"] == 4 + 4 * 50 + 4 * row["neighbours"] + 32
        assert row["advertise"] == 4 + 64 + 32 + 32
        assert row["share"] == row["neighbours"] * (12 + 66 + 16 + 8)
        assert row["sent"] == sum(row[p] for p in ("advertise", "share", "mask", "unmask"))


def test_claims_hold_and_can_fail(script, finished):
    results = copy.deepcopy(finished[1])
    assert script.claims(results) == results["claims"]
    assert all(text.startswith("PASS") for text in results["claims"])
    results["accuracy"][3]["model_difference"] = 1.0
    results["accuracy"][4]["accuracy_difference"] = -0.1
    results["protocol"][2]["sent"] = 1e9
    failed = [text for text in script.claims(results) if text.startswith("FAIL")]
    assert len(failed) == 3


def test_bad_flags_are_named(script, finished, tmp_path):
    run = script.RunFlags(smoke=True, output_dir=tmp_path)
    for part, options, match in (
        ("train", {"bits": (31,), "cohort_size": 10}, "wrap"),
        ("cost", {"num_clients": (2,)}, "--cost.num-clients"),
        ("cost", {"drop_fraction": 0.5}, "--cost.drop-fraction"),
        ("cost", {"dimension": 0}, "--cost.dimension"),
    ):
        flags = script.Flags(run=dataclasses.replace(run, smoke=False))
        part_of = dataclasses.replace(getattr(flags, part), **options)
        with pytest.raises(ValueError, match=match):
            script.main(dataclasses.replace(flags, **{part: part_of}))
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=r"--run\.overwrite"):
        script.main(finished[0])
