"""Reports on what experiments write: curves become runs, all else is refused by what it is."""

import json
import math
from pathlib import Path

import pytest

from fedjax_lite import report
from fedjax_lite.report.command import main
from fedjax_lite.report.groups import group_runs
from fedjax_lite.report.results import read_results
from fedjax_lite.report.runs import Run, find_runs
from fedjax_lite.report.statistics import curve

RESULTS = Path(__file__).parent.parent.parent / "experiments" / "results"


def written(folder, document, name="results.json"):
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def label_and_seed(run):
    return run.config.get("name"), run.config["seed"]


@pytest.mark.parametrize(
    ("row", "settings", "seeds", "rows"),
    [
        ({"rounds": [0, 4], "curves": {"0": [0.1, 0.2], "7": [0.1, 0.4]}}, {}, [0, 7],
         [{"round": 0, "test_accuracy": 0.1}, {"round": 4, "test_accuracy": 0.4}]),
        # every 4 of 6 rounds, and the last; a 0 stands for a model that was not scored
        ({"every": 4, "num_rounds": 6, "curves": [[0.0, 0.2, 0.3]]}, {"seeds": [5]}, [5],
         [{"round": 4, "test_accuracy": 0.2}, {"round": 6, "test_accuracy": 0.3}]),
        ({"rounds": [3], "curve": [0.5], "seed": 2}, {}, [2],
         [{"round": 3, "test_accuracy": 0.5}]),
        ({"curve": {"round": [2], "test_accuracy": [0.5], "local": [0.25]}}, {"seed": 9}, [9],
         [{"round": 2, "test_accuracy": 0.5, "local": 0.25}]),
        # no accuracy: a loss, or per cent
        ({"rounds": [1, 2], "curve": [2.5, None]}, {}, [0],
         [{"round": 1, "curve": 2.5}, {"round": 2, "curve": math.nan}]),
        ({"train_loss_curve": [2.0, None]}, {"num_rounds": 2}, [0],
         [{"round": 1, "train_loss": 2.0}, {"round": 2, "train_loss": math.nan}]),
        ({"rounds": [1], "accuracies": [0.5], "megabytes": [3.0]}, {}, [0],
         [{"round": 1, "test_accuracy": 0.5, "uplink_bits_total": 24e6}]),
        ({"every": 5, "curves": {"0.1/0": [0.5], "0.2/3": [0.75]}, "best_learning_rate": 0.2,
          "epsilon_spent": 2.5}, {}, [3], [{"round": 0, "test_accuracy": 0.75, "epsilon": 2.5}]),
    ],
)  # fmt: skip
def test_every_form_of_curve_is_read(tmp_path, row, settings, seeds, rows):
    path = written(tmp_path, {"settings": settings, "rows": [{"method": "a", **row}]})
    runs = read_results(path)
    assert [run.config["seed"] for run in runs] == seeds
    assert repr(list(runs[-1].rows)) == repr(rows)  # NaN is not equal to itself


def test_rows_are_told_apart_by_as_little_as_does_it(tmp_path):
    rows = [
        {"method": method, "alpha": alpha, "mu": float(method == "fedprox"), "gap": 0.1,
         "rounds": [1], "curves": {"0": [0.5], "1": [0.6]}}
        for method in ("fedavg", "fedprox") for alpha in (0.1, None)
    ]  # fmt: skip
    document = {"settings": {"num_clients": 5}, "rows": [*rows, {"method": "table only"}]}
    runs = read_results(written(tmp_path, document))
    assert runs[0].notes[0].endswith("1 rows without a curve are left out")
    assert label_and_seed(runs[3]) == ("fedavg (alpha none)", 1)
    groups, _ = group_runs(runs)
    assert [g.label for g in groups][2:] == ["fedprox (alpha 0.1)", "fedprox (alpha none)"]
    assert [len(g.runs) for g in groups] == [2] * 4
    assert groups[0].settings["num_clients"] == 5
    assert "gap" not in groups[0].settings


def test_committed_results_are_drawn_with_bands_or_refused(tmp_path, capsys):
    page = tmp_path / "x.html"
    assert main([str(RESULTS / "heterogeneity_cifar.json"), "--output", str(page)]) == 0
    said = capsys.readouterr()
    document = json.loads((RESULTS / "heterogeneity_cifar.json").read_text())
    num = sum(len(row["curves"]) for row in document["rows"])
    assert f"{num} runs in {len(document['rows'])} groups" in said.out
    text = page.read_text()
    row = next(r for r in document["rows"] if (r["method"], r["alpha"]) == ("fedavg", 0.5))
    assert f"{100 * row['final_mean']:.2f}" in text
    assert "fedavg (alpha 0.5)" in text
    assert "<td>alpha</td>" in text
    assert "<td>name</td>" not in text  # labels are the heads, not another setting
    num = len(json.loads((RESULTS / "byzantine.json").read_text())["rows"])
    for name, words in {
        "byzantine": f"a table of {num} final figures (rule, bucket_size, attack, seed, accuracy)",
        "round": "a benchmark's timings, by workload (2nn, ",
    }.items():
        assert main([str(RESULTS / f"{name}.json"), "--output", str(tmp_path / "no.html")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert f"{name}.json holds no curves over rounds: it is {words}" in said
        assert "experiments/tables puts" in said


def test_of_several_learning_rates_the_best_is_shown():
    runs = read_results(RESULTS / "fashion_dirichlet.json")
    summary = json.loads((RESULTS / "fashion_dirichlet.json").read_text())["summary"]
    rates = {(r.config["method"], r.config["alpha"], r.config["effective_rate"]) for r in runs}
    assert rates == {(s["method"], s["alpha"], s["effective_rate"]) for s in summary}
    assert len(runs) == sum(s["num_seeds"] for s in summary)
    assert "rows are shown, those that its summary chose" in runs[0].notes[0]


def test_files_are_found_where_there_are_no_runs(tmp_path):
    path = written(tmp_path, {"rows": []})
    assert find_runs([tmp_path]) == [path] == find_runs([path])
    other = tmp_path / "other"
    other.mkdir()
    written(other, {}, "byzantine.json")
    with pytest.raises(FileNotFoundError, match=r"results\.json.*\(it holds byzantine\.json\)"):
        find_runs([other])
    (tmp_path / "saved.jsonl").write_text('{"round": 1, "test_accuracy": 0.5}\n')
    (run,) = read_results(tmp_path / "saved.jsonl")
    assert (run.name, len(run.rows)) == ("saved", 1)


@pytest.mark.parametrize(
    ("document", "name", "words"),
    [
        ([1], "a.json", "a JSON list"),
        ({"config": {}}, "config.json", "belongs to a run; give the folder"),
        ({"a": 1}, "a.json", "a JSON object with a;"),
        ({"rows": [{"method": "a", "curves": {"0": [0.5]}}]}, "a.json", "final figures"),
    ],
)
def test_what_holds_no_curves_is_named(tmp_path, document, name, words):
    with pytest.raises(ValueError, match=words):
        read_results(written(tmp_path, document, name))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_results(broken)


def test_runs_that_differ_in_what_changes_no_number_are_one_group():
    """Evaluated every 2 or 3 rounds, laid out otherwise: the curve is on the rounds of both."""
    runs = []
    for seed, every, strategy in ((0, 2, "auto"), (1, 3, "chunked:4")):
        rows = [{"round": r, "test_accuracy": 0.1 * r + 0.2 * seed} for r in range(0, 7, every)]
        run = {"seed": seed, "every": every, "strategy": strategy, "checkpoint_every": every}
        runs.append(Run(f"{seed}", rows, config={"mu": 1, "run": run}))
        runs.append(Run(f"top {seed}", rows, config={"mu": 2, **run, "output_dir": f"{seed}"}))
    comparison = report.compare(runs)
    assert [len(group.runs) for group in comparison.groups] == [2, 2]
    assert comparison.table[0]["final"].mean == pytest.approx(0.7)
    line = curve(comparison.groups[0].runs, "test_accuracy")
    assert line is not None
    assert line.x.tolist() == [0, 6]
    assert any("evaluated in different rounds" in note for note in comparison.notes)
    # A part's own setting of that name still counts.
    apart = [Run("a", runs[0].rows, config={"decay": {"every": n}}) for n in (1, 2)]
    assert len(group_runs(apart)[0]) == 2
