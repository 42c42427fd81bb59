"""Figures over seeds, and which runs belong together."""

import json
import math

import numpy as np
import pytest

from fedjax_lite import report
from fedjax_lite.report.groups import differences, seed_of
from fedjax_lite.report.runs import Run
from fedjax_lite.report.statistics import axis, points, wire
from fedjax_lite.report.summary import choose_metric, choose_target, summarize


def run(name="run", values=(0.1, 0.5), **config):
    rows = [{"round": i, "test_accuracy": v, "seconds": 2.0 * i} for i, v in enumerate(values)]
    return Run(name, rows, config=config)


def student_quantile(probability, degrees):
    """By bisection of a numerical integral of the density: no scipy."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(log_scale) / math.sqrt(degrees * math.pi)

    def below(x):
        grid = np.linspace(0.0, x, 20001)
        density = scale * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
        return 0.5 + float(((density[1:] + density[:-1]) / 2 * np.diff(grid)).sum())

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return low


@pytest.mark.parametrize(("num", "confidence"), [(2, 0.9), (3, 0.95), (5, 0.95), (10, 0.99)])
def test_interval_is_students(num, confidence):
    values = np.random.default_rng(num).normal(3.0, 2.0, num)
    mean, half, counted = report.t_interval(values, confidence=confidence)
    variance = ((values - values.sum() / num) ** 2).sum() / (num - 1)
    quantile = student_quantile((1 + confidence) / 2, num - 1)
    assert mean == pytest.approx(values.sum() / num, rel=1e-12)
    assert half == pytest.approx(quantile * math.sqrt(variance / num), rel=1e-4)
    assert counted == num


def test_interval_of_two_in_closed_form():
    """With one degree of freedom Student's is Cauchy's: the quantile is a tangent."""
    _, half, _ = report.t_interval([1.0, 2.0])
    assert half == pytest.approx(math.tan(math.pi * (0.975 - 0.5)) * 0.5, rel=1e-9)


def test_one_seed_has_no_interval():
    mean, half, num = report.t_interval([0.25])
    assert (mean, num) == (0.25, 1)
    assert math.isnan(half)
    with pytest.raises(ValueError, match="at least one"):
        report.t_interval([])
    with pytest.raises(ValueError, match=r"confidence.*95"):
        report.t_interval([1.0, 2.0], confidence=95)


def test_target_on_the_monotone_curve():
    rounds, accuracy = [0, 10, 20, 30, 40], [0.1, 0.6, 0.2, 0.7, 0.9]
    assert report.to_target(rounds, accuracy, target=0.35) == pytest.approx(5.0)
    # Between 0.6 (best so far, not 0.2) at 20 and 0.7 at 30.
    assert report.to_target(rounds, accuracy, target=0.65) == pytest.approx(25.0)
    assert report.to_target(rounds, accuracy, target=0.6) == 10.0
    assert report.to_target(rounds, accuracy, target=0.1) == 0.0
    assert report.to_target([5, 6], [0.5, 0.6], target=0.2) == 5.0
    assert math.isnan(report.to_target(rounds, accuracy, target=0.91))
    assert math.isnan(report.to_target([1, 2], [math.nan, math.nan], target=0.1))


def test_target_of_a_loss_falls_and_gaps_are_bridged():
    loss = [2.0, math.nan, 1.0, 1.5, 0.5]
    assert report.to_target(range(5), loss, target=1.5, largest=False) == pytest.approx(1.0)
    assert report.to_target(range(5), loss, target=0.75, largest=False) == pytest.approx(3.5)
    with pytest.raises(ValueError, match=r"both be \[P\]"):
        report.to_target([1, 2], [1.0], target=1.0)


def test_bytes_add_up_whether_or_not_totals_are_there():
    rows = [{"round": 0}] + [{"round": r, "uplink_bits": 80, "downlink_bits": 8} for r in (1, 2, 3)]
    totals = [
        dict(row, uplink_bits_total=80.0 * row["round"]) if row["round"] else row for row in rows
    ]
    for table in (rows, totals):
        assert wire(Run("a", table), "uplink") == {0: 0, 1: 10, 2: 20, 3: 30}
        assert axis(Run("a", table), "bytes") == {0: 0, 1: 11, 2: 22, 3: 33}
    assert wire(run(), "uplink") is None
    assert points(run(), "test_accuracy", "bytes") is None


def test_curves_meet_on_common_rounds():
    runs = [run("a", [0.0, 0.2, 0.4, 0.9]), run("b", [0.2, 0.4, 0.8])]
    found = report.curve(runs, "test_accuracy", x="seconds")
    assert found is not None
    assert found.x.tolist() == [0.0, 2.0, 4.0]
    assert found.mean.tolist() == pytest.approx([0.1, 0.3, 0.6])
    expected = math.tan(math.pi * 0.475) * np.array([0.1, 0.1, 0.2])  # two seeds: half a range
    assert found.half.tolist() == pytest.approx(expected)
    assert report.curve(runs, "test_loss") is None
    assert np.isnan(report.curve(runs[:1], "test_accuracy").half).all()


def test_groups_by_all_but_the_seed_and_what_changes_nothing():
    runs = [
        run(f"{mu}-{seed}", mu=mu, seed=seed, output_dir=f"o{mu}{seed}", client={"epochs": 5})
        for mu in (0.0, 1.0)
        for seed in (2, 0, 1)
    ]
    groups, notes = report.group_runs(runs)
    assert [group.label for group in groups] == ["mu=0", "mu=1"]
    assert [[seed_of(r) for r in group.runs] for group in groups] == [[0, 1, 2], [0, 1, 2]]
    assert differences(groups) == {"mu": [0.0, 1.0]}
    assert groups[0].settings == {"mu": 0.0, "client.epochs": 5}
    assert notes == []


def test_methods_give_the_names_and_keys_tell_seeds_apart():
    runs = [
        Run(f"{m}{k}", [{"round": 0}], config={"method": m, "rate": i}, key=(0, k))
        for i, m in enumerate(("FedAvg", "SCAFFOLD"))
        for k in (3, 1)
    ]
    groups, notes = report.group_runs(runs)
    assert [(g.label, len(g.runs)) for g in groups] == [("FedAvg", 2), ("SCAFFOLD", 2)]
    assert notes == []


def test_the_same_seed_does_not_count_twice():
    runs = [run("short", [0.1], seed=0, mu=1), run("long", [0.1, 0.2], seed=0, mu=1)]
    groups, notes = report.group_runs(runs)
    assert [r.name for r in groups[0].runs] == ["long"]
    assert len(notes) == 1
    assert "short is left out" in notes[0]
    assert "group by folder" in notes[0]
    groups, notes = report.group_runs(runs, group_by="folder")
    assert [group.label for group in groups] == ["short", "long"]


def test_a_constant_seed_of_the_data_does_not_drop_runs():
    runs = [run(f"r{s}", data={"seed": 0, "alpha": 0.5}, seed=s) for s in (2, 0, 1)]
    (group,), notes = report.group_runs(runs)
    assert [r.name for r in group.runs] == ["r0", "r1", "r2"]
    assert notes == []
    # The seed of the config is the partition's, and each run has a key of its own.
    runs = [Run(f"k{k}", [{"round": 0}], config={"seed": 0}, key=(0, k)) for k in (0, 1)]
    (group,), notes = report.group_runs(runs)
    assert (len(group.runs), notes) == (2, [])


@pytest.mark.parametrize(("part", "name"), [("partition", "key"), ("attack", "strategy")])
def test_a_parts_own_setting_parts_groups(part, name):
    runs = [run(f"{v}{s}", seed=s, **{part: {name: v}}) for v in ("a", "b") for s in (0, 1)]
    groups, notes = report.group_runs(runs)
    assert [(g.label, len(g.runs)) for g in groups] == [
        (f"{part}.{name}=a", 2),
        (f"{part}.{name}=b", 2),
    ]
    assert notes == []
    # Those of the run itself change no result.
    runs = [run(f"{v}", seed=i, run={name: v}) for i, v in enumerate("ab")]
    assert len(report.group_runs(runs)[0]) == 1


def test_runs_on_different_data_are_not_averaged():
    runs = [
        Run(f"{d}{s}", [{"round": 0}], config={"method": "x", "seed": s}, dataset=d)
        for d in ("mnist", "digits")
        for s in (0, 1)
    ]
    groups, notes = report.group_runs(runs)
    assert [g.label for g in groups] == ["mnist", "digits"]
    assert [len(g.runs) for g in groups] == [2, 2]
    assert notes == []
    # A run that does not say stays with those of its settings.
    one = Run("crashed", [{"round": 0}], config={"method": "x", "seed": 2})
    assert [len(g.runs) for g in report.group_runs([*runs[:2], one])[0]] == [3]


def test_groups_as_asked_for():
    runs = [run(f"{s}{e}", strategy=s, epochs=e, seed=0) for s in ("a", "b") for e in (1, 5)]
    groups, notes = report.group_runs(runs, group_by=["strategy"])
    assert [(g.label, len(g.runs)) for g in groups] == [("strategy=a", 2), ("strategy=b", 2)]
    assert "differ in more than the seed (epochs)" in notes[0]
    groups, _ = report.group_runs(runs, group_by=lambda r: f"E{r.config['epochs']}")
    assert [group.label for group in groups] == ["E1", "E5"]
    with pytest.raises(ValueError, match=r"\['mu'\].*strategy"):
        report.group_runs(runs, group_by="mu")
    with pytest.raises(ValueError, match="at least one run"):
        report.group_runs([])


def test_long_settings_are_named_by_folders():
    runs = [run(f"adam-seed{s}", text="x" * 60, seed=s) for s in (0, 1)]
    runs += [run(f"sgd-seed{s}", text="y" * 60, seed=s) for s in (0, 1)]
    assert [g.label for g in report.group_runs(runs)[0]] == ["adam", "sgd"]


def test_summary_of_seeds_that_did_not_all_get_there():
    groups, _ = report.group_runs([run("a", [0.0, 0.8], seed=0), run("b", [0.0, 0.4], seed=1)])
    metric = choose_metric(groups, None)
    assert choose_target(groups, metric) == 0.4
    row = summarize(groups, metric, target=0.6, confidence=0.95)[0]
    assert (row["num_reached"], row["num_seeds"], row["to_round"]) == (1, 2, None)
    row = summarize(groups, metric, target=0.4, confidence=0.95)[0]
    assert row["to_round"].mean == pytest.approx((0.5 + 1.0) / 2)
    assert row["to_seconds"].mean == pytest.approx((1.0 + 2.0) / 2)
    assert row["final"].mean == pytest.approx(0.6)
    with pytest.raises(ValueError, match="test_accuracy"):
        choose_metric(groups, "accuracy")


def write(folder, lines, config=None):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"config": config, "key": [0, 1]}))
    return folder


@pytest.mark.parametrize(
    ("column", "largest"),
    [
        ("test_accuracy", True),
        ("test_loss", False),
        ("error_rate", False),
        ("test_error", False),
        ("perplexity", False),
        ("test_auc", True),
        ("drift_cosine_mean", True),
    ],
)
def test_whether_more_is_better(column, largest):
    rows = [{"round": i, column: v} for i, v in enumerate((0.5, 0.25, 0.75))]
    groups, _ = report.group_runs([Run("a", rows)])
    metric = choose_metric(groups, column)
    assert metric.largest is largest
    (row,) = summarize(groups, metric, target=0.7 if largest else 0.3, confidence=0.95)
    assert row["best"].mean == (0.75 if largest else 0.25)


def test_a_run_that_diverged_to_infinity_has_no_interval():
    runs = [
        Run(f"{s}", [{"round": 0, "test_loss": v}], config={"seed": s})
        for s, v in enumerate((2.0, math.inf))
    ]
    (row,) = report.compare(runs).table
    assert row["final"].mean == math.inf
    assert math.isnan(row["final"].half)


def test_finding_runs(tmp_path):
    for name in ("x/b", "x/a", "x/a/centralised", "y"):
        write(tmp_path / name, [{"round": 0}])
    names = [path.relative_to(tmp_path).as_posix() for path in report.find_runs([tmp_path])]
    assert names == ["x/a", "x/b", "y"]  # a baseline inside a run belongs to it
    twice = [tmp_path / "y", tmp_path / "y" / "metrics.jsonl", str(tmp_path / "*")]
    assert [path.name for path in report.find_runs(twice)] == ["y", "a", "b"]
    assert report.find_runs([tmp_path / "x/a/centralised"])[0].name == "centralised"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"paths: '.*empty' holds no run.*output_dir"):
        report.find_runs([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere'; give"):
        report.find_runs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="no folder matches"):
        report.find_runs([str(tmp_path / "z*")])


def test_reading_a_run_that_is_still_going_on(tmp_path):
    folder = write(tmp_path / "run", [{"round": 0, "test_loss": None}], {"seed": 3})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "test_l')
    found = report.read_run(folder)
    assert [row["round"] for row in found.rows] == [0]
    assert (found.config["seed"], found.key, found.notes) == (3, (0, 1), ())
    (folder / "metrics.jsonl").write_text('{"rou')
    with pytest.raises(ValueError, match="no complete row yet"):
        report.read_run(folder)
    (folder / "metrics.jsonl").write_text('{"rou\n{"round": 1}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl is damaged"):
        report.read_run(folder)


def test_damaged_extras_are_noted_not_fatal(tmp_path):
    folder = write(tmp_path / "run", [{"round": 0, "test_accuracy": 0.5}])
    assert "no config.json" in report.read_run(folder).notes[0]
    (folder / "config.json").write_text("{")
    figures = {"accuracy": [0.5, None], "size": [1, "many"], "label_counts": [[1], [2]]}
    (folder / "clients.json").write_text(json.dumps({"per_client": figures}))
    found = report.read_run(folder)
    assert np.isnan(found.clients["accuracy"]).tolist() == [False, True]
    assert set(found.clients) == {"accuracy", "label_counts"}
    assert len(found.notes) == 2
    assert "config.json could not be read" in found.notes[0]


def test_clients_read_back(tmp_path):
    folder = write(tmp_path / "run", [{"round": 0, "test_accuracy": 0.5}])
    scores = {"accuracy": np.array([0.25, np.nan]), "size": np.array([4, 0]), "loss": [1.0, np.nan]}
    counts = [[3, 1], [0, 0]]
    for split, name in (("train", "train_accuracy"), ("held out", "held_out_accuracy"), (None, "")):
        report.save_clients(
            folder, scores, dataset="digits", split=split, round=3, label_counts=counts
        )
        assert report.read_run(folder).split == split
        saved = json.loads((folder / "clients.json").read_text())
        assert [key for key in saved if key.endswith("accuracy")] == [name or "accuracy"]
        assert saved[name or "accuracy"]["num_clients"] == 1
    for bad in ("", "a\nb"):
        with pytest.raises(ValueError, match="split must say"):
            report.save_clients(folder, scores, dataset="digits", split=bad)
    with pytest.raises(TypeError, match="split must be a string"):
        report.save_clients(folder, scores, dataset="digits", split=3)
    found = report.read_run(folder).clients
    np.testing.assert_array_equal(found["accuracy"], scores["accuracy"])
    assert found["label_counts"].tolist() == [[3, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"\['size'\] is missing"):
        report.save_clients(folder, {"accuracy": [1.0]}, dataset="digits")
    with pytest.raises(ValueError, match="same N clients"):
        report.save_clients(folder, scores, dataset="digits", label_counts=[[1]])
    with pytest.raises(FileNotFoundError, match="folder of a run"):
        report.save_clients(folder / "none", scores, dataset="digits")
