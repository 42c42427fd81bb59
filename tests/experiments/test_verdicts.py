"""Verdicts on published figures: the rule by hand, and the pages say what the data give."""

import importlib
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def verdicts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        yield importlib.import_module("tables.verdicts")


@pytest.fixture(scope="module")
def documents(verdicts):
    return importlib.import_module("tables.pages").read(ROOT / "experiments" / "results")


@pytest.mark.parametrize(
    ("value", "spread", "ours", "options", "kind"),
    [
        # One number inside of 97.8 +- 0.1, at its edge, and outside of it.
        (97.8, 0.25, [97.75], {}, "reproduced"),
        (97.75, 0.25, [97.5], {}, "reproduced"),
        (97.75, 0.25, [97.25], {}, "not reproduced"),
        # 1, 2, 3: mean 2, sample deviation 1, so [1, 3]; it meets [3, 5] and not [3.5, 4.5].
        (4.0, 1.0, [1.0, 2.0, 3.0], {}, "reproduced"),
        (4.0, 0.5, [1.0, 2.0, 3.0], {}, "not reproduced"),
        # Better is not reproduced, whichever way better is.
        (87, 0.5, [32.0], {"fewer": True}, "not reproduced"),
        (60.0, 0.5, [70.0], {}, "not reproduced"),
        # Seeds that never arrive, and one of several.
        (87, 0.5, [None], {"fewer": True}, "not reproduced"),
        (87, 0.5, [87.0, None], {"fewer": True}, "not reproduced"),
        (87, 0.5, [87.0, math.inf], {"fewer": True}, "not reproduced"),
        # Folds 1, 3, 2, 2: deviation 0.816, standard error 0.408; the mean is 2.
        (2.5, 0.1, [1.0, 3.0, 2.0, 2.0], {"folds": True}, "reproduced"),
        (2.55, 0.1, [1.0, 3.0, 2.0, 2.0], {"folds": True}, "not reproduced"),
        (2.55, 0.1, [1.0, 3.0, 2.0, 2.0], {}, "reproduced"),
        # No run, and a run of a smaller setting, however near.
        (87, 0.5, [], {"cost": "a day"}, "not run"),
        (87, 0.5, [87.0], {"cut": ["a smaller model"], "cost": "a day"}, "not run"),
    ],
)
def test_the_rule(verdicts, value, spread, ours, options, kind):
    assert verdicts.judge(value, spread, ours, **options).kind == kind


def test_what_is_not_reproduced_has_a_gap_and_a_cause(verdicts):
    say = lambda *a, **k: str(verdicts.judge(*a, **k))  # noqa: E731
    assert say(87, 0.5, [32.0], fewer=True) == ("not reproduced: better by 55; cause unknown")
    assert say(34, 0.5, [36.5], fewer=True, cause="no decay") == (
        "not reproduced: worse by 2.5; no decay"
    )
    assert say(60.0, 0.5, [70.0, 72.0]) == "not reproduced: better by 11; cause unknown"
    assert say(87, 0.5, [None]) == "not reproduced: not reached; cause unknown"
    assert say(87, 0.5, [], cost="a day") == "not run: a day"
    with pytest.raises(ValueError, match="cost must be given"):
        verdicts.judge(87, 0.5, [])


def test_steps_into_a_document(verdicts):
    document = {
        "cells": {"a": {"best": 0.5, "rounds": {"0.5": [1.0, None], "1": [3.0]}}},
        "rows": [
            {"rule": "krum", "s": 1, "accuracy": 10.0},
            {"rule": "krum", "s": 2, "accuracy": 20.0},
            {"rule": "krum", "s": 2, "accuracy": 30.0},
        ],
    }  # fmt: skip
    find = verdicts.find
    assert find(document, ["cells", "a", "rounds", "@best"]) == [1.0, None]
    assert find(document, ["rows", {"rule": "krum", "s": 2}, "accuracy"]) == [20.0, 30.0]
    assert find(document, ["rows", {"rule": "median"}, "accuracy"]) == []
    assert find(document, ["nowhere", "a"]) == []
    assert find({"x": [5, 6]}, ["x", 1]) == [6]
    assert find({"curves": {"0": [1, 2], "1": [3, 4]}}, ["curves", "*", -1]) == [2, 4]


def test_a_run_of_the_published_setting_is_judged(verdicts, documents):
    """FedAvg at alpha 100, published 90.8 by a plot, so within a point."""
    what = "FedAvg, Fashion-MNIST, Dirichlet(100), accuracy, %"
    (row,) = [row for row in verdicts.rows() if row["what"] == what]
    setting = importlib.import_module("tables.published").published()["fashion"]["setting"]
    run = {"alpha": 100.0, "method": "fedavg", "effective_rate": 0.1, "accuracy": 0.9}
    kinds = [
        verdicts._judged(row, {"fashion_dirichlet": {"settings": used, "rows": [run]}}).verdict.kind
        for used in (setting, setting | {"num_rounds": 300}, {})
    ]
    assert kinds == ["reproduced", "not run", "not run"]


def test_a_cause_is_made_of_ours_with_one_thing_changed(verdicts):
    change = {"words": "the rate: at 1 ours is", "ours": ["f", "rows", {"rate": 1}, "v"]}
    row = {"ablations": [change], "digits": 1}
    near, far = ({"f": {"rows": [{"rate": 1, "v": v}]}} for v in ([1.0, 3.0], [8.0, 8.0]))
    # 2 +- 1.4 meets 3 +- 0.1, 8 +- 0 does not.
    assert verdicts._ablated(row, 3.0, 0.1, [9.0], near) == "the rate: at 1 ours is 2.0 ± 1.4"
    told = verdicts._ablated(row, 3.0, 0.1, [9.0], far)
    assert told == "cause unknown; the rate: at 1 ours is 8.0 ± 0.0"
    assert verdicts._ablated(row, 3.0, 0.1, [9.0], {}) == ""


def test_the_first_change_that_meets_the_figure_is_the_cause(verdicts):
    changes = [
        {"words": f"at {rate}", "ours": ["f", "rows", {"rate": rate}, "v"]} for rate in "abc"
    ]
    runs = {"a": [8.0], "b": [3.0], "c": [3.05]}
    documents = {"f": {"rows": [{"rate": rate, "v": v} for rate, v in runs.items()]}}
    row = {"ablations": changes, "digits": 2}
    assert verdicts._ablated(row, 3.0, 0.1, [9.0], documents) == "at b 3.00"
    # From 5: a is 3 off, b 2, c 1.95: over a tenth of a difference of 19.4, not of one of 19.6.
    told = "cause unknown; at a 8.00; at b 3.00; at c 3.05"
    assert verdicts._ablated(row, 5.0, 0.1, [24.4], documents) == told
    assert verdicts._ablated(row, 5.0, 0.1, [None], documents) == told
    assert verdicts._ablated(row, 5.0, 0.1, [24.6], documents) == "nearly all of it by at c 3.05"
    # 5 lies between 8 of a and 3 of b, which are of one series; c alone is of another.
    for change, series in zip(changes, ("rate", "rate", "size"), strict=True):
        change["series"] = series
    told = verdicts._ablated(row, 5.0, 0.1, [24.4], documents)
    assert told == "rate: between two; at b 3.00; at a 8.00"
    assert verdicts._ablated(row, 2.0, 0.1, [9.0], documents).startswith(
        "cause unknown; rate: at a"
    )
    assert verdicts._ablated(row, 3.0, 0.1, [9.0], documents) == "rate: at b 3.00"


def test_chance_is_student_s_distribution(verdicts):
    """With 1 and 2 degrees of freedom its tails have closed forms."""
    causes = importlib.import_module("tables.causes")
    for off in (0.3, 1.0, 4.0):
        one, two = off / math.sqrt(3 / 2), off / math.sqrt(4 / 3)
        assert causes.beyond(off, 2) == pytest.approx(1 - 2 / math.pi * math.atan(one))
        assert causes.beyond(off, 3) == pytest.approx(1 - two / math.sqrt(2 + two**2))
    assert causes.missed_by_chance(3) == pytest.approx(1 - 1 / math.sqrt(2 * 4 / 3 + 1))
    # 1, 2, 3: mean 2, deviation 1. At 1 in 20: t / sqrt(2 + t^2) = 0.95, so t = 4.303.
    edge = 2 + 4.3026 * math.sqrt(4 / 3)
    assert causes.one_run(edge - 0.01, [1.0, 2.0, 3.0]).startswith("theirs is one run")
    assert causes.one_run(edge + 0.01, [1.0, 2.0, 3.0]).startswith("cause unknown; theirs")
    assert causes.one_run(4.0, [1.0]) == causes.one_run(4.0, [1.0, 1.0]) == ""


def test_what_was_cut_can_be_told_from_the_published_setting(verdicts):
    """A row that says what was cut is of a group that says what was published."""
    published = importlib.import_module("tables.published").published()
    for row in verdicts.rows():
        assert "cut" not in row or published[row["group"]]["setting"], row["what"]


def test_axes_are_multiplied_out(verdicts):
    entry = {
        "what": "{name} at {rate}", "rate": "{rate}", "path": ["{key}", {"a": "{rate}"}],
        "axes": {"rate": [0.1, 0.2], "rule": [{"key": "k", "name": "Krum"}]},
    }  # fmt: skip
    assert list(verdicts._spelled(entry)) == [
        {"what": "Krum at 0.1", "rate": 0.1, "path": ["k", {"a": 0.1}]},
        {"what": "Krum at 0.2", "rate": 0.2, "path": ["k", {"a": 0.2}]},
    ]


def test_rows_are_complete_and_none_twice(verdicts, documents):
    found = verdicts.judged(documents)
    assert len({row.what for row in found}) == len(found)
    assert {row.verdict.kind for row in found} <= {"reproduced", "not reproduced", "not run"}
    for row in found:
        assert (row.verdict.why == "") == (row.verdict.kind == "reproduced"), row.what
        # What is judged has a number; what has none was not run.
        assert (row.here == "-") <= (row.verdict.kind == "not run"), row.what
    brief = verdicts._written()["brief"]
    assert {*brief, *verdicts._written()["causes"]} <= {row.what for row in found}
    assert len(brief) <= 6


def test_what_is_remembered_is_judged_and_not_counted(verdicts, documents):
    found = verdicts.judged(documents)
    remembered = [row for row in found if not row.read]
    assert remembered
    assert all(row.paper.endswith("[unverified]") for row in remembered)
    read = [row for row in found if row.read]
    assert verdicts.tally(found).startswith(verdicts.tally(read))
    assert "Not counted" not in verdicts.tally(read)


def test_less_may_be_better_for_one_figure_of_a_group(verdicts):
    what = "q-FFL's synthetic devices, q=1, 2,000 rounds: {}"
    rows = {row["what"]: row for row in verdicts.rows()}

    def judged(figure, **values):
        run = {"q": 1.0, "round": 2000, "split": "test", **values}
        documents = {"qffl_synthetic": {"rows": [run]}}
        return str(verdicts._judged(rows[what.format(figure)], documents).verdict)

    assert judged("worst tenth, %", worst=[5.0]).startswith("not reproduced: worse by 10;")
    said = judged("variance, points squared", variance=[553.1])
    assert said.startswith("not reproduced: better by 200;")


def test_without_results_nothing_is_reproduced(verdicts):
    found = verdicts.judged({})
    assert {row.verdict.kind for row in found} == {"not run"}
    assert any("mcmahan_mnist.json has no such row" in row.verdict.why for row in found)


def test_the_mnist_row_is_the_rule_on_the_file(verdicts, documents):
    """87 published; the three seeds of the best rate, by hand."""
    cell = documents["mcmahan_mnist"]["cells"]["2nn-iid-b10-e1"]
    seeds = cell["rounds_by_learning_rate"][f"{cell['best_learning_rate']:g}"]
    mean = sum(seeds) / 3
    deviation = math.sqrt(sum((seed - mean) ** 2 for seed in seeds) / 2)
    assert mean + deviation < 86.5
    (row,) = [
        row for row in verdicts.judged(documents) if row.what.startswith("2NN, IID, B=10, E=1")
    ]
    assert row.here == f"{mean:.0f} ± {deviation:.0f} (3 seeds)"
    assert row.verdict.why.startswith(f"better by {87 - mean:.0f}; ")


def test_single_runs_are_causes_by_the_numbers_in_the_file(verdicts, documents):
    """Three seeds of a CNN on shards: two degrees of freedom, whose tail has a closed form."""
    what = (
        "shaoxiongji's replication, MNIST, CNN, two label shards a client, 10 rounds: accuracy, %"
    )
    (row,) = [row for row in verdicts.judged(documents) if row.what == what]
    runs = documents["replications_mnist"]["rows"]
    (seeds,) = [
        [100 * share for share in run["accuracy"]]
        for run in runs
        if (run["cell"], run["rounds"]) == ("shaoxiongji cnn shards", 10)
    ]
    assert len(seeds) == 3
    mean = sum(seeds) / 3
    deviation = math.sqrt(sum((seed - mean) ** 2 for seed in seeds) / 2)
    t = abs(77.72 - mean) / (deviation * math.sqrt(4 / 3))
    one_in = 1 / (1 - t / math.sqrt(2 + t**2))
    assert f"of runs like these 3 one in {one_in:.1f} would be as far off" in row.verdict.why


def test_no_counted_row_is_without_a_cause(verdicts, documents):
    """Rows that were run and are not reproduced say more than that the cause is unknown."""
    for row in verdicts.judged(documents):
        if row.verdict.kind == "not reproduced" and row.read:
            assert not row.verdict.why.endswith("cause unknown"), row.what


def test_pages_say_what_the_data_give(verdicts, documents):
    """The README's numbers, counted anew in the guide's table."""
    guide = (ROOT / "colab" / "guide" / "results.md").read_text()
    table = guide.split("## What is reproduced")[1].split("\n## ")[0]
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    kinds, apart = [], []
    for line in cells:
        remembered = line[0].endswith("[unverified]")
        (apart if remembered else kinds).append(re.split(": |$", line[4])[0])
    readme = (ROOT / "README.md").read_text()
    said = re.search(
        r"\*\*(\d+) of (\d+) published figures are reproduced; (\d+) were run and are not, "
        r"(\d+) were not run\. Not counted: (\d+) [^*]*?of which (\d+) are met\.\*\*", readme
    )  # fmt: skip
    assert said is not None
    counts = [kinds.count(kind) for kind in ("reproduced", "not reproduced", "not run")]
    met = apart.count("reproduced")
    assert [int(n) for n in said.groups()] == [counts[0], len(kinds), *counts[1:], len(apart), met]
    assert len(cells) == len(verdicts.rows()) == sum(counts) + len(apart)
    shown = readme.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    assert len([line for line in shown.splitlines() if line.startswith("| ")]) <= 1 + 6
    assert len(readme.splitlines()) <= 200
