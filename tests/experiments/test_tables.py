"""The results pages: up to date, complete without some files, and honest about what falls short."""

import collections
import importlib
import json
import math
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "experiments"
RESULTS = SCRIPTS / "results"


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("tables.pages")


@pytest.fixture(scope="module")
def words(tables):
    return importlib.import_module("tables.words")


@pytest.fixture(scope="module")
def render(tables):
    return importlib.import_module("tables.render")


@pytest.fixture(scope="module")
def published(tables):
    return importlib.import_module("tables.published").published()


@pytest.fixture(scope="module")
def documents(tables):
    return tables.read(RESULTS)


WORLDS = ("alike", "day_and_night", "heavy_tails")


def pages(tables, tmp_path):
    readme, guide = tmp_path / "README.md", tmp_path / "guide" / "results.md"
    readme.write_text(f"# Title\n\n{tables.BEGIN}\nstale section\n{tables.END}\n\nrest\n")
    return tables.Flags(readme=readme, guide=guide)


def test_the_committed_pages_are_up_to_date(tables):
    tables.main(tables.Flags(check=True))


def test_writes_both_pages_and_nothing_outside_the_markers(tables, tmp_path):
    flags = pages(tables, tmp_path)
    figures = sorted((flags.guide.parent / "assets" / f"time_{name}.svg") for name in WORLDS)
    assert sorted(tables.main(flags)) == sorted([flags.readme, flags.guide, *figures])
    text = flags.readme.read_text()
    assert text.startswith(f"# Title\n\n{tables.BEGIN}\n")
    assert text.endswith(f"\n{tables.END}\n\nrest\n")
    assert "stale section" not in text
    assert tables.main(flags) == []  # the second time nothing changes


def test_check_fails_on_a_stale_page_and_writes_nothing(tables, tmp_path):
    flags = pages(tables, tmp_path)
    before = flags.readme.read_text()
    check = tables.Flags(check=True, readme=flags.readme, guide=flags.guide)
    with pytest.raises(ValueError, match=r"not up to date: .*README\.md.*experiments/tables"):
        tables.main(check)
    assert flags.readme.read_text() == before
    assert not flags.guide.exists()


def test_markers_must_be_there_once(tables):
    for page in ("", tables.BEGIN, f"{tables.END} {tables.BEGIN}", 2 * (tables.BEGIN + tables.END)):
        with pytest.raises(ValueError, match="the README must hold"):
            tables.replaced(page, "new")


class Asked(collections.UserDict):
    """Documents that remember which were read."""

    names = frozenset()

    def __getitem__(self, name):
        self.names |= {name}
        return super().__getitem__(name)


def test_a_missing_file_leaves_its_rows_out(tables, render, documents):
    """Of each section that reads the file; the others are what they were."""
    assert tables.sections({}) == []
    read = {key: Asked(documents) for key in render.SECTIONS}
    made = {key: render.section(key, asked) for key, asked in read.items()}
    for name in documents:
        others = {k: v for k, v in documents.items() if k != name}
        fewer = made | {key: render.section(key, others) for key in made if name in read[key].names}
        text = tables.guide_page([one for one in fewer.values() if one is not None])
        assert f"results/{name}.json`" not in text


def test_every_file_of_results_is_shown(tables, documents):
    text = tables.guide_page(tables.sections(documents))
    for name in documents:
        if name != "fedavg_cifar":  # one run's rows; its last is quoted
            assert f"`experiments/results/{name}.json`" in text


def test_tables_have_as_many_cells_in_each_row(tables, documents):
    text = tables.guide_page(tables.sections(documents))
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(cells) <= 1, block


def test_a_file_that_is_no_json_is_named(tables, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        tables.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tables.read(tmp_path / "nowhere")


def test_mnist_shows_the_median_of_the_seeds(documents, render):
    cell = documents["mcmahan_mnist"]["cells"]["2nn-iid-b10-e1"]
    best = f"{cell['best_learning_rate']:g}"
    median = statistics.median(cell["rounds_by_learning_rate"][best])
    section = render.section("mnist", documents)
    assert f"| 87 | **{median:.0f}**, median of 3 seeds" in section.text
    assert section.brief[0].here == f"**{median:.0f}**"
    # 1474 / 87 is more than what we gain, and the row says so.
    gain = documents["mcmahan_mnist"]["cells"]["2nn-iid-binf-e1"]["ours"] / cell["ours"]
    assert gain < 1474 / 87
    assert f"| 16.9 | {gain:.1f} | falls short |" in section.text


def test_a_target_never_reached_falls_short(documents, render):
    changed = json.loads(json.dumps(documents["mcmahan_mnist"]))
    cell = changed["cells"]["2nn-iid-b10-e1"]
    cell["ours"] = None
    cell["rounds_by_learning_rate"]["0.2"] = [None, None, 40.0]
    section = render.section("mnist", {"mcmahan_mnist": changed})
    text = section.text
    assert section.brief[0].here == "not reached: falls short"
    assert (
        "| 87 | **not reached**, median of 3 seeds (not reached, not reached, 40), rate 0.2 |"
        in text
    )
    assert "falls short: not reached" in text
    cell["ours"] = 90.0
    section = render.section("mnist", {"mcmahan_mnist": changed})
    assert section.brief[0].here == "**90**; falls short"


def test_a_best_rate_at_the_edge_is_said(documents, render):
    changed = json.loads(json.dumps(documents["mcmahan_mnist"]))
    changed["cells"] = {  # a rate between others
        name: cell
        for name, cell in changed["cells"].items()
        if len(cell["rounds_by_learning_rate"]) > 2
    }
    for cell in changed["cells"].values():
        cell["best_learning_rate"] = float(list(cell["rounds_by_learning_rate"])[1])
    assert "edge" not in render.section("mnist", {"mcmahan_mnist": changed}).text
    changed["cells"]["2nn-iid-b10-e1"]["best_learning_rate"] = 0.2
    text = render.section("mnist", {"mcmahan_mnist": changed}).text
    assert "may lie beyond: 2nn-iid-b10-e1 (largest)." in text


def test_the_command_of_a_brief_row_makes_its_numbers(documents, render):
    section = render.section("cifar", documents)
    (brief,) = [b for b in section.brief if "NIID" in b.what]
    used = documents["heterogeneity_cifar_48"]["settings"]
    assert f"--num-rounds {used['num_rounds']} --seeds 0 " in brief.command
    assert brief.command in section.text


def test_fedprox_rows_have_seed_0_and_all_cohorts(documents, render):
    section = render.section("fedprox", documents)
    found = {(r["method"], r["stragglers"]): r for r in documents["fedprox_synthetic"]["rows"]}
    for row in found.values():
        mean = statistics.fmean(row["train_loss_by_seed"])
        deviation = statistics.stdev(row["train_loss_by_seed"])
        assert f"{row['train_loss']:.4f}; all cohorts {mean:.3f} ± {deviation:.3f}" in section.text
    gain = 100 * (
        statistics.fmean(found["fedprox mu", 0.9]["test_accuracy_by_seed"])
        - statistics.fmean(found["fedavg", 0.9]["test_accuracy_by_seed"])
    )
    assert (
        f"| +22 points [text] | +{gain:.1f} points | falls short by {22 - gain:.1f}" in section.text
    )


def test_a_failed_claim_on_quadratics_is_not_hidden(documents, render):
    changed = json.loads(json.dumps(documents["scaffold_quadratics"]))
    changed["claims"][0] = "FAIL  fedavg, full: something"
    section = render.section("quadratics", {"scaffold_quadratics": changed})
    assert "- fail: fedavg, full: something" in section.text


def test_private_rows_are_the_means_of_their_seeds(documents, render):
    text = render.section("private", documents).text
    for row in documents["dp_fedavg"]["rows"]:
        mean = 100 * statistics.fmean(row["accuracies"])
        assert f"| {mean:.1f} ± " in text


def test_hostile_cells_stand_beside_the_published_ones(tables, documents, render):
    section = render.section("byzantine", documents)
    row = next(
        r
        for r in documents["byzantine"]["rows"]
        if (r["rule"], r["bucket_size"], r["attack"]) == ("rfa", 2, "ipm")
    )
    assert f"{row['accuracy']:.1f} [96.2]" in section.text
    assert "fall short" in section.text
    assert [b.here.split("; ")[-1] for b in section.brief] == [
        "falls short",
        "falls short with buckets",
        "falls short",
    ]


def test_every_rule_far_below_the_mean_is_named(render):
    means = {
        ("mean", 1, "none"): 94.0, ("mean", 1, "ipm"): 93.0, ("mean", 1, "min-max"): 19.0,
        ("median", 1, "ipm"): 20.0, ("median", 1, "min-max"): 7.0, ("median", 1, "none"): 60.0,
        ("krum", 2, "ipm"): 72.9, ("rfa", 1, "ipm"): 73.1,
    }  # fmt: skip
    document = {
        "versions": {},
        "settings": {
            "model": "mlp", "attacks": ["none", "ipm", "min-max"], "num_byzantine": 5,
            "num_clients": 25, "iid": False, "num_rounds": 1, "momentum": 0.9, "seeds": [0, 1],
            "train_size": 100,
        },
        "rows": [
            {"rule": rule, "bucket_size": size, "attack": attack, "accuracy": value + off}
            for (rule, size, attack), value in means.items()
            for off in (-1.0, 1.0)
        ],
    }  # fmt: skip
    lines = render.section("byzantine", {"byzantine": document}).text.splitlines()
    (remark,) = [line for line in lines if "below" in line]
    assert (
        remark
        == "- More than 20 points below the plain mean: median under ipm; krum with s=2 under ipm."
    )
    # Of the published 32.1, 41.6 and 11.3 only the median's is missed, by 12.1.
    assert "- 1 of the 3 published cells fall short. Furthest: median, s=1, ipm by 12.1." in lines
    assert "| median | 1 | 60.0 | 20.0 [32.1] | 7.0 |" in lines


def shakespeare_row(cell, deal, published, rounds):
    return {
        "cell": cell, "deal": deal, "published": published, "rounds": rounds, "best_rate": 4.0,
        "rounds_by_rate": {"4": [rounds]}, "seconds": 1.0,
        "test_by_role": {"mean": 0.3, "worst": 0.2},
    }  # fmt: skip


def test_shakespeare_compares_ratios(render):
    document = {
        "versions": {},
        "settings": {
            "preset": "short", "target": 0.3, "num_layers": 1, "hidden_size": 64, "num_roles": 100,
        },
        "rows": [
            shakespeare_row("fedsgd", "role", 3906, 300.0),
            shakespeare_row("e1-b10", "role", 164, 60.0),
            shakespeare_row("fedsgd", "iid", 2488, None),
            shakespeare_row("e1-b10", "iid", 460, 70.0),
        ],
    }  # fmt: skip
    section = render.section("shakespeare", {"shakespeare": document})
    # 3906 / 164 = 23.8 published, 300 / 60 = 5 here.
    assert "5.0 times fewer rounds than FedSGD, published 23.8: falls short;" in section.text
    assert "falls short: not reached" in section.text
    assert "Rates tried: FedSGD 4; FedAvg 4. Best at the edge of these: fedsgd by" in section.text
    assert len(section.brief) == 1  # without FedSGD's rounds there is no ratio
    assert (section.brief[0].published, section.brief[0].here) == (
        "23.8",
        "5.0, falls short (smaller LSTM, to 30 %)",
    )


def test_a_preset_that_flags_cut_is_not_the_published_setting(words, published):
    for group in (published["fashion"], published["shakespeare"]):
        wanted = group["setting"]
        assert words.as_published(group, wanted)
        for name in wanted:
            assert not words.as_published(group, {**wanted, name: 7})


def test_the_published_settings_are_the_presets(published):
    for script, group in (
        ("fashion_dirichlet", "fashion"),
        ("shakespeare_settings", "shakespeare"),
        ("personal_fashion", "personal_fashion"),
    ):
        wanted = dict(published[group]["setting"])
        setting = importlib.import_module(script).PRESETS[wanted.pop("preset")]._asdict()
        assert {name: setting[name] for name in wanted} == wanted


def test_published_figures_say_where_they_are_from(tables, render, documents, published):
    files = {name for names in render.SECTIONS.values() for name in names}
    for name, group in published.items():
        assert group["paper"], name
        assert f"[{group['mark']}]" in tables.HEAD
        assert group["better"] in ("more", "fewer"), name
        assert group["unit"] if "within" not in group or "unit" in group else group["within"]
        pattern = group["result"].split(":")[0].replace("*", ".*")
        assert any(re.fullmatch(pattern, file) for file in files), name
        assert group["figures"]


def test_unknown_groups_are_refused(tables):
    with pytest.raises(ValueError, match=r"group must be one of .*got 'no'"):
        importlib.import_module("tables.published").figures("no")


def test_fashion_shows_means_over_seeds_and_the_gain(render):
    values = {"fedavg": (0.70, 0.74), "fedavgm": (0.75, 0.77)}
    document = {
        "versions": {},
        "settings": {
            "preset": "short", "model": "mlp", "num_rounds": 300, "num_clients": 100,
            "cohort_size": 5, "momentum": 0.97, "effective_rates": [0.1],
        },
        "rows": [
            {"alpha": 0.01, "method": m, "effective_rate": 0.1, "seed": s, "accuracy": v}
            for m, pair in values.items()
            for s, v in enumerate(pair)
        ],
        "summary": [
            {
                "alpha": 0.01, "method": m, "effective_rate": 0.1, "published": known,
                "mean": statistics.fmean(values[m]), "std": statistics.stdev(values[m]),
            }
            for m, known in (("fedavg", 0.765), ("fedavgm", 0.847))
        ],
    }  # fmt: skip
    section = render.section("fashion", {"fashion_dirichlet": document})
    assert "| 76.5 % | 72.0 ± 2.8 % (2 seeds) | falls short by 4.5 points" in section.text
    (brief,) = section.brief
    assert brief.published == "76.5 / 84.7"
    assert brief.here == "72.0 ± 2.8 / 76.0 ± 1.4 (mlp, 300 rounds); the gain falls short"


def test_numbers_and_words(words, render):
    assert words.number(43.15, 1) == "43.2"  # 43.1 as a binary fraction
    assert words.number(-0.25, 1) == "-0.3"
    assert (words.number(None), words.number(math.inf)) == ("-", "-")
    assert words.spread([1.0, 3.0]) == f"2.0 ± {math.sqrt(2):.1f} (2 seeds)"
    assert words.spread([0.25], factor=100) == "25.0 (1 seed)"
    assert words.compared(10, 12, unit="points") == "better than published, by 2.0 points"
    assert words.compared(10, 12, unit="rounds", fewer=True) == "falls short by 2 rounds"
    assert words.compared(10, 10.04, unit="points") == "as published"
    assert words.compared(10, math.inf, unit="rounds", fewer=True) == "falls short: not reached"
    assert render.row("x|y", 1) == "| x\\|y | 1 |"
    assert render.header("a", "b") == "\n| a | b |\n|---|---|"
    assert words.compared(10, 7, unit="times") == "falls short"


def test_blocks_stand_apart_and_two_blanks_continue_a_line(render):
    page = "# a\n\n\n| x |\n|---|\n- one\n  more\n- two\n\n\nend\n"
    assert render._tidy(page) == "# a\n\n| x |\n|---|\n\n- one more\n- two\n\nend"
    with pytest.raises(ValueError, match="as many cells"):
        render._tidy("| x |\n|---|\n| 1 | 2 |\n")
    assert render._tidy("| x |\n|---|\n" + render.row("1|2"))  # an escaped bar is no cell


def test_figures_follow_the_data(tables, tmp_path):
    """A figure is drawn anew where a number of its data changed, and only there."""
    figures = importlib.import_module("tables.figures")
    curve = {"seconds": [1.0, 2.0], "accuracy": [0.5, 0.9]}
    rows = [
        {"world": world, "server": "FedAvg", "curve": curve} for world in ("alike", "day and night")
    ]
    documents = {"time_to_accuracy": {"rows": rows, "settings": {"target": 0.9}}}
    made = figures.time_figures(documents)
    assert sorted(made) == ["time_alike.svg", "time_day_and_night.svg"]
    assert len(figures.stale_figures(tmp_path, made)) == 2
    for name, (_, text) in made.items():
        assert "simulated seconds" in text
        (tmp_path / name).write_text(text)
    assert figures.stale_figures(tmp_path, figures.time_figures(documents)) == []
    rows[1] = {**rows[1], "curve": {**curve, "accuracy": [0.5, 0.91]}}
    stale = figures.stale_figures(tmp_path, figures.time_figures(documents))
    assert [path.name for path in stale] == ["time_day_and_night.svg"]
    assert figures.time_figures({}) == {}
