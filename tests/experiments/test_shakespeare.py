"""Shakespeare by role: deals, ratios, refusals, and a smoke run on a tiny play of our own."""

import contextlib
import dataclasses
import gzip
import importlib
import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "shakespeare.py"
ROLES = 12


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A play of twelve roles that each repeat a line of their own, in the format of the loader."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shakespeare").mkdir()
    lines = [f"{'abcdefghijkl'[role]} to be or not " for role in range(ROLES)]
    speeches = [["play", f"R{role:02d}", lines[role]] for role in range(ROLES) for _ in range(5)]
    path = folder / "shakespeare" / "shakespeare_roles.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"speeches": speeches}).encode()))
    return folder


def flags_of(script, folder, out):
    settings = importlib.import_module("shakespeare_settings")
    return script.Flags(
        data=settings.DataFlags(data_dir=folder),
        run=settings.RunFlags(smoke=True, cells=("e1-b10",), output_dir=out),
    )


@pytest.fixture(scope="module")
def finished(script, folder, tmp_path_factory):
    flags = flags_of(script, folder, tmp_path_factory.mktemp("out"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        rows = script.main(flags)
    return flags, rows, printed.getvalue()


def test_rows_files_and_table(finished):
    flags, rows, printed = finished
    cells = [(row["cell"], row["deal"]) for row in rows]
    assert cells == [("e1-b10", "iid"), ("e1-b10", "role")]
    out = flags.run.output_dir
    assert {path.name for path in out.iterdir()} == {"results.json", "curves.png"}
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.loads((out / "results.json").read_text())
    assert [row["curves"] for row in saved["rows"]] == [row["curves"] for row in rows]
    assert saved["settings"]["preset"] == "smoke"
    assert "164 (23.8 x)" in printed  # 3906 / 164
    assert "target 10%" in printed
    for row in rows:
        scores = list(row["test_by_role"]["accuracies"].values())
        assert len(scores) == 10  # the preset's roles
        assert row["test_by_role"]["mean"] == pytest.approx(np.mean(scores), abs=1e-4)
        assert row["rounds"] == np.median(row["rounds_by_rate"]["2"])


def test_cells_are_kept_unless_overwritten(script, finished, folder, tmp_path):
    flags, rows, _ = finished
    before = (flags.run.output_dir / "results.json").read_bytes()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        again = script.main(flags)
    assert printed.getvalue().count("kept from") == 2
    assert again == rows
    assert (flags.run.output_dir / "results.json").read_bytes() == before
    other = dataclasses.replace(flags, model=dataclasses.replace(flags.model, hidden_size=4))
    with pytest.raises(ValueError, match="hidden_size differ"):
        script.main(other)


def test_both_deals_hold_the_same_windows_of_the_same_roles(script, folder):
    setting = script.choose(flags_of(script, folder, Path()))
    deals = script.load(folder, setting)
    assert len(deals.roles) == len(set(deals.roles)) == 10
    iid, by_role = deals.train["iid"], deals.train["role"]
    assert iid.num_clients == by_role.num_clients == deals.test.num_clients == 10
    np.testing.assert_array_equal(iid.examples["x"], by_role.examples["x"])
    # A role's windows hold its own letter and no other's; an IID client's are of many.
    for client, role in enumerate(deals.roles):
        text = importlib.import_module("fedjax_lite.data.sources.shakespeare").decode(
            np.asarray(by_role.client(client)["x"]).ravel()
        )
        letter = "abcdefghijkl"[int(role[-2:])]
        assert set(text) & set("acdfghijkl") <= {letter}
    assert int(np.ptp(np.asarray(iid.sizes))) <= 1


def test_too_many_roles_and_bad_flags_are_refused(script, folder):
    settings = importlib.import_module("shakespeare_settings")
    flags = flags_of(script, folder, Path())
    setting = script.choose(flags)._replace(num_roles=13)
    with pytest.raises(ValueError, match="--num-roles must be at most 12"):
        script.load(folder, setting)
    for training, run, message in (
        ({"target": 1.5}, {}, "--target"),
        ({"rates": (0.0,)}, {}, "--rates"),
        ({}, {"cells": ("e2-b7",)}, "--cells must be among fedsgd"),
    ):
        bad = script.Flags(
            training=settings.TrainingFlags(**training), run=settings.RunFlags(**run)
        )
        with pytest.raises(ValueError, match=message):
            script.choose(bad)


def test_presets_are_what_the_flags_leave(script):
    settings = importlib.import_module("shakespeare_settings")
    paper = script.choose(script.Flags(run=settings.RunFlags(preset="paper")))
    assert (paper.hidden_size, paper.num_layers, paper.target) == (256, 2, 0.54)
    assert paper.cells == tuple(script.CELLS)
    changed = script.choose(script.Flags(training=settings.TrainingFlags(target=0.2)))
    assert changed == settings.PRESETS["short"]._replace(target=0.2)


def test_fedsgd_is_one_gradient_of_the_cohort_at_the_rate_of_the_schedule(script):
    fl = script.fl
    data = fl.data.from_arrays({"b": np.array([1.0, 2.0, 6.0], np.float32)}, [0, 1, 1])
    model = fl.models.Model(
        init=lambda key: np.float32(0),
        loss=lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        predict=lambda w, e: e["b"],
    )
    decay = script.schedule("exponential", 1.0, 0.5, 10)
    algo = script.build(model, script.CELLS["fedsgd"], 0.5, cohort_size=2, decay=decay)
    key = jax.random.key(0)
    state = algo.init(key, jnp.float32(0), data)
    step = jax.jit(algo.round)
    # The mean of all three examples is 3: half of the way, then a quarter of what is left.
    for expected in (1.5, 1.875):
        state, _ = step(key, state, data)
        assert float(state.server.params) == pytest.approx(expected)


def test_a_quick_first_seed_does_not_cut_off_its_own_rate(script):
    inf = math.inf
    # Rounds that each rate's three seeds need, in the order in which they are run.
    needs = {4.0: [100.0, 300.0, 200.0], 6.0: [150.0, 400.0, 120.0], 2.0: [900.0, 10.0, 20.0]}
    crossings = {}
    for rate, seeds in needs.items():
        for need in seeds:
            bound = script.cutoff(crossings, num_seeds=3, limit=1000)
            crossings.setdefault(rate, []).append(need if need <= bound else inf)
    # The first rate has its whole budget; the others are given up after its slowest seed.
    assert crossings == {4.0: [100, 300, 200], 6.0: [150, inf, 120], 2.0: [inf, 10, 20]}
    assert script.cutoff({4.0: [5.0, inf, 7.0]}, num_seeds=3, limit=40) == 40


def test_ratios_need_fedsgd_of_the_same_deal(script):
    rows = [
        {"cell": "fedsgd", "deal": "iid", "published": 2488, "rounds": 100.0},
        {"cell": "e1-b10", "deal": "iid", "published": 460, "rounds": 25.0},
        {"cell": "e1-b10", "deal": "role", "published": 164, "rounds": 20.0},
        {"cell": "e5-b10", "deal": "iid", "published": 192, "rounds": math.inf},
    ]
    found = script.ratios(rows)
    assert found["e1-b10", "iid"] == (2488 / 460, 4.0)
    assert found["e1-b10", "role"][0] == 3906 / 164
    assert math.isnan(found["e1-b10", "role"][1])
    assert math.isnan(found["e5-b10", "iid"][1])


def test_evaluations_are_denser_where_a_round_does_more(script):
    cells = {name: script.evaluation_interval(cell, 1000) for name, cell in script.CELLS.items()}
    assert cells["fedsgd"] == 10
    assert cells["e1-b10"] == 2  # 10 / (50 / 10)
    assert cells["e5-b10"] == 1
    assert script.evaluation_interval(script.CELLS["fedsgd"], 4) == 4


def test_help_groups_the_flags(script):
    text = tyro.extras.get_parser(script.Flags, description=script.__doc__).format_help()
    for group in ("data options", "model options", "training options", "run options"):
        assert group in text
