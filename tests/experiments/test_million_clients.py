"""The script of a million clients, with two thousand."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from fedjax_lite.data.stores.npy_store import NpyStore

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "million_clients.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("million")
    flags = script.Flags(smoke=True, data_dir=folder / "data", output_dir=folder / "out")
    return flags, script.main(flags)


def test_it_learns_and_reports(script, finished):
    flags, results = finished
    accuracy = results["test_accuracy"]
    assert accuracy[-1] > accuracy[0] + 0.05
    assert 0 <= results["waited_share"] <= 1
    saved = json.loads((flags.output_dir / "results.json").read_text())["results"]
    assert saved["num_examples"] == results["num_examples"]
    assert (flags.output_dir / "curves.png").stat().st_size > 1000


def test_the_population_is_what_the_flags_say(script, finished):
    flags, _ = finished
    small = script.smaller(flags)
    planted = script.Planted(small)
    store, sizes = NpyStore(flags.data_dir), planted.sizes()
    np.testing.assert_array_equal(store.sizes, sizes)
    logs = np.log(sizes[sizes > 5])
    assert 10 < sizes.mean() < 40
    assert logs.std() > 0.5
    # Written in chunks: client 1234 is what its chunk makes.
    (_, chunk), *_ = planted.chunks()
    begin = sizes[:1234].sum()
    out = {"x": np.zeros((sizes[1234], 32), np.float16), "y": np.zeros(sizes[1234], np.uint8)}
    store.read(np.array([1234]), out)
    for name, leaf in out.items():
        np.testing.assert_array_equal(leaf, chunk[name][begin : begin + sizes[1234]])
    assert set(np.unique(chunk["y"])) == set(range(10))


def test_nothing_is_overwritten_unasked(script, finished, tmp_path):
    flags, _ = finished
    with pytest.raises(FileExistsError, match="--overwrite"):
        script.main(flags)
    other = dataclasses.replace(flags, output_dir=tmp_path, num_features=8)
    with pytest.raises(FileExistsError, match="made with other flags"):
        script.main(other)
    for wrong in ({"num_rounds": 1}, {"cohort_size": 0}, {"mean_size": 0.5}):
        with pytest.raises(ValueError, match=r"--\w+"):
            script.check(dataclasses.replace(flags, **wrong))


@pytest.mark.slow
def test_scaffold_on_disk(script, finished, tmp_path):
    flags, _ = finished
    flags = dataclasses.replace(
        flags, algorithm="scaffold", state="disk", output_dir=tmp_path, model="2nn"
    )
    results = script.main(flags)
    assert 200 < results["clients_touched"] <= 6 * 50
    assert (tmp_path / "rows" / "clients" / "rows.bin").exists()
