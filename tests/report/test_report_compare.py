"""The comparison as a page and as a picture: what is on it, what is left out, what is refused."""

import base64
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import report
from fedjax_lite.report.command import main
from fedjax_lite.report.groups import dataset_of
from fedjax_lite.report.runs import Run

ROOT = Path(__file__).parent.parent.parent


def history(gain=1.0, **extra):
    rows = []
    for r in range(4):
        row = {"round": r, "test_accuracy": 0.2 * r * gain, "test_loss": 2.0 - 0.3 * r * gain}
        bits = {"uplink_bits_total": 8e6 * r, "downlink_bits_total": 8e6 * r} if r else {}
        rows.append({**row, **bits, "seconds": float(r), **{n: v[r] for n, v in extra.items()}})
    return rows


def seeds(method, num=2, gain=1.0, extra=None, **config):
    return [
        Run(f"{method}-{s}", history(gain + 0.1 * s, **(extra or {})),
            config={"method": method, "seed": s, "dataset": "digits", **config})
        for s in range(num)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two seeds of one method, three rounds on digits, drift and clients recorded."""
    folder = tmp_path_factory.mktemp("runs")
    train, test = fl.data.load("digits")
    data = fl.data.partition(train, fl.data.dirichlet(alpha=0.3, num_clients=8, seed=0))
    model = fl.models.linear(num_classes=10, input_shape=(8, 8, 1))
    algo = fl.fedavg(
        model.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=20), sampler=fl.uniform(3),
        aggregator=fl.diagnosed(fl.mean()),
    )  # fmt: skip
    score = fl.evaluator(model, test)
    for seed in range(2):
        key, out = jax.random.key(seed), folder / f"fedavg-seed{seed}"
        state, _ = fl.run(
            algo, key, algo.init(key, model.init(key), data), data, num_rounds=3, every=1,
            evaluate=score, output_dir=out, progress=False, checkpoint_every=3,
            config={"method": "FedAvg", "seed": seed, "dataset": "digits", "num_rounds": 3},
        )  # fmt: skip
        scores = fl.evaluate_clients(model, state.server.params, data)
        counts = fl.data.label_counts(data)
        report.save_clients(
            out, scores, dataset="digits", split="train", round=3, label_counts=counts
        )
    return folder


def test_command_end_to_end(real, tmp_path, capsys):
    page = tmp_path / "deep" / "comparison.html"
    words = [str(real / "*"), "--output", str(page), "--target-accuracy", "0.99"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"2 runs in 1 group: {page}\n"
    assert "left out: target" in said.err
    html = page.read_text()
    assert "2 runs in 1 group." in html
    for title in ("Test accuracy: by round", "Test loss", "Clients", "labels", "Client drift"):
        assert title in html
    assert "--target-accuracy 0.99" in html
    assert f"jax {jax.__version__}" in html
    rows = [report.read_run(real / f"fedavg-seed{s}").rows[-1] for s in range(2)]
    accuracy = [100 * row["test_accuracy"] for row in rows]
    assert f"{sum(accuracy) / 2:.2f}" in html
    total = sum(row["uplink_bits_total"] / 8e3 for row in rows) / 2
    assert f"{total:.1f} kB" in html or f"{total:.0f} kB" in html

    assert main(words) == 2  # nothing is overwritten unasked
    assert capsys.readouterr().err.startswith(f"error: {page} exists; give overwrite=True")
    assert page.read_text() == html
    assert main([*words[:-2], "--overwrite"]) == 0
    assert page.read_text() != html
    assert [path.name for path in page.parent.iterdir()] == ["comparison.html"]


def test_command_in_a_process(real, tmp_path):
    picture = tmp_path / "comparison.png"
    command = [sys.executable, "-m", "fedjax_lite.report"]
    done = subprocess.run(
        [*command, str(real), "--output", str(picture)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "runs: there is no folder '/nowhere'; give a folder that fl.run"),
        (["RUN", "--output", "a.pdf"], "path must end in .html or .png, got 'a.pdf'"),
        (["RUN", "--target-accuracy", "60"], r"(60 % is 0.6), got 60.0"),
        (["RUN", "--metric", "accuracy"], "metric must be a column of the runs"),
        (["RUN", "--group-by", "mu"], "group_by names ['mu'], which no run has set"),
        (["RUN", "--confidence", "95"], "confidence must lie in (0, 1), such as 0.95"),
    ],
)
def test_bad_input_is_one_line(real, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(real) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "60 % is 0.6" in text
    assert "default: 0.95" in text
    assert "what is written: --output FILE" in text


def test_whatever_files_hold_is_escaped():
    evil = "<script>alert('x')</script>"
    runs = [Run(evil, history(), config={"method": evil, "note": "$\\frac{", "seed": 0})]
    runs += seeds("plain", note="<b>&", num=1)
    comparison = report.compare(runs, title=evil, command=evil)
    assert "<script" not in comparison.html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in comparison.html
    assert "&lt;b&gt;&amp;" in comparison.html
    assert "<script" not in comparison._repr_html_()
    for code in re.findall(r"base64,([\w+/=]+)", comparison.html):
        assert b"<script" not in base64.b64decode(code)


def test_labels_are_no_mathematics():
    names = ["$\\frac{$", "_hidden", "100$"]
    comparison = report.compare([run for name in names for run in seeds(name)])
    shown = [text.get_text() for text in comparison.overview.legends[0].get_texts()]
    assert [name.strip().replace("\\$", "$") for name in shown] == names


def test_the_page_needs_nothing_else():
    html = report.compare(seeds("a") + seeds("b", gain=0.5)).html
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>]+)""", html)
    assert links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert "@import" not in html
    assert "@media print" in html
    assert "default-src 'none'" in html


def test_a_run_without_settings_knows_its_data_set_from_its_clients(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "test_accuracy": 0.5}\n')
    scores = {"accuracy": np.array([0.5, 1.0]), "size": np.array([2, 4])}
    report.save_clients(tmp_path, scores, dataset="hospitals")
    assert dataset_of(report.read_run(tmp_path)) == "hospitals"
    named = report.Run("a", history(), config={"dataset": "digits"}, dataset="hospitals")
    assert dataset_of(named) == "digits"


def test_panels_come_with_their_data():
    bare = [Run("bare", [{"round": r, "test_accuracy": r / 3} for r in range(4)])]
    comparison = report.compare(bare)
    assert set(comparison.figures) == {"metric", "target"}
    assert set(comparison.missing) == {"clients", "partition", "privacy", "drift"}
    for remedy in ("save_clients", "label_counts", "central_gaussian", "fl.diagnosed"):
        assert remedy in comparison.html

    cosine = {"drift_cosine_mean": [float("nan"), 0.5, 0.4, 0.3]}
    drift = seeds("drifting", extra=cosine)
    private = seeds("private", extra={"epsilon": [0.0, 1.0, 2.0, 3.0]}, privacy="central DP, z=1")
    clients = {"accuracy": [0.5, 1.0], "size": [3, 5], "label_counts": [[3, 0], [1, 4]]}
    whole = [
        *drift,
        *private,
        Run("c", history(), config={"method": "c"}, clients=_arrays(clients)),
    ]
    comparison = report.compare(whole)
    wanted = {"metric", "loss", "target", "clients", "partition", "privacy", "drift"}
    assert set(comparison.figures) == wanted
    assert comparison.missing == {}
    assert "central DP, z=1" in comparison.html
    axes = comparison.figures["privacy"][0].axes[0]
    assert axes.lines[0].get_xydata()[:, 0].tolist() == [0, 1, 2, 3]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "private"
    assert "drifting (no epsilon, at its end)" in labels
    assert [row["epsilon"] and row["epsilon"].mean for row in comparison.table] == [None, 3.0, None]


def _arrays(figures):
    return {name: np.asarray(value, float) for name, value in figures.items()}


def test_a_run_without_noise_has_an_infinite_epsilon_not_none_at_0():
    nan = float("nan")  # as JSON's null reads back
    spent = [0.0, 0.5, 1.0, 1.5]
    runs = [
        *seeds("dp", extra={"epsilon": spent}),
        *seeds("bare", extra={"epsilon": [0.0] + 3 * [nan]}),
    ]
    comparison = report.compare(runs)
    assert [row["epsilon"].mean for row in comparison.table] == [1.5, float("inf")]
    assert "not a number" not in comparison.html
    (axes,) = comparison.figures["privacy"][0].axes
    labels = [line.get_label() for line in axes.get_lines() if line.get_label()[0] != "_"]
    assert labels == ["dp", "bare (epsilon infinite, at its end)"]
    assert "privacy" in report.compare(runs[2:]).missing


def test_bands_need_two_seeds():
    def bands(runs):
        figure = report.compare(runs).figures["metric"][0]
        return [len(axes.collections) for axes in figure.axes]

    assert bands(seeds("a")) == [1, 1, 1]
    assert bands(seeds("a", num=1)) == [0, 0, 0]


def test_bytes_axis_counts_both_directions():
    comparison = report.compare(seeds("a"))
    axes = comparison.figures["metric"][0].axes[1]
    assert axes.get_xlabel() == "Bytes on the wire, up and down (MB)"
    assert axes.lines[0].get_xydata()[:, 0].tolist() == pytest.approx([0.0, 2.0, 4.0, 6.0])
    row = comparison.table[0]
    assert row["uplink"].mean == 3e6
    # Seeds reach 0.55 at rounds 0.55 / 0.2 and 0.55 / 0.22, two megabytes a round.
    assert comparison.table[0]["num_reached"] == 2
    other = report.compare(seeds("a"), target=0.55).table[0]
    assert other["to_round"].mean == pytest.approx((0.55 / 0.2 + 0.55 / 0.22) / 2)
    assert other["to_bytes"].mean == pytest.approx(2e6 * other["to_round"].mean)


def test_groups_differ_in_style_not_only_in_colour():
    runs = [run for i in range(7) for run in seeds(f"m{i}", num=1)]
    lines = report.compare(runs).figures["metric"][0].axes[0].lines[:7]
    assert len({line.get_color() for line in lines}) == 7
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 7
    assert len({line.get_marker() for line in lines}) == 7


def test_what_makes_runs_incomparable_is_said():
    other = [Run("x", history()[:2], config={"method": "x", "dataset": "mnist", "num_rounds": 3})]
    bad = history()
    bad[-1]["test_accuracy"] = float("nan")
    comparison = report.compare([*seeds("a"), *other, Run("d", bad, config={"method": "d"})])
    notes = "\n".join(comparison.notes)
    assert "different data sets: digits, mnist" in notes
    assert "runs of x have done 1 of 3 rounds" in notes
    assert "1 of 1 runs of d end in a test_accuracy that is not finite" in notes
    assert "one seed only, so no interval: x, d" in notes
    assert "not a number" in comparison.html


def test_one_run_alone_and_what_is_none(tmp_path):
    (alone,) = seeds("a")[:1]
    assert [g.label for g in report.compare(alone).groups] == ["a"]
    with pytest.raises(TypeError, match=r"folders or Runs, got list.*report\.Run\(name, rows"):
        report.compare([history()])  # type: ignore[list-item]
    (tmp_path / "c.html").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        report.compare(alone, path=tmp_path / "c.html", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["c.html"]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="overwrite"):
        report.compare(seeds("a"), path=path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.compare(seeds("a"), path=path, overwrite=True)
    assert path.read_bytes() == b"old"


def test_figures_show_themselves_in_a_notebook():
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    tools = pytest.importorskip("IPython.core.pylabtools")
    shell = types.SimpleNamespace(display_formatter=formatter)
    rows = history()
    for _ in range(2):  # without pyplot, and with what "%matplotlib inline" sets up
        figure = report.plot_curves(rows, dataset="digits")
        shown, _ = formatter.format(figure)
        assert "image/png" in shown
        tools.select_figure_formats(shell, {"png"})
    bare = [Run("bare", [{"round": r, "test_accuracy": r / 3} for r in range(4)])]
    shown, _ = formatter.format(report.compare(bare))
    assert shown["text/html"].startswith("<style>")
    assert shown["text/html"].endswith("</div>\n")


def test_intervals_of_accuracies_stay_between_0_and_1():
    """Accuracies 0.42 and 0.63 have a mean of 0.525 and a half width of 12.7 x 0.105 = 1.33."""
    runs = [
        Run(f"a-{s}", [{"round": r, "test_accuracy": a, "test_loss": a} for r in (1, 2)],
            config={"method": "a", "seed": s}, clients={"accuracy": np.array([a, a])})
        for s, a in enumerate((0.42, 0.63))
    ]  # fmt: skip
    comparison = report.compare(runs)
    assert "52.50 [0.00, 100.00] %" in comparison.html
    assert "± 1" not in comparison.html
    bands = comparison.figures["metric"][0].axes[0].collections
    heights = bands[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0, 1)
    losses = comparison.figures["loss"][0].axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert losses.min() < -0.8  # a loss has no such limits
    for axes in comparison.figures["clients"][0].axes:
        for bars in axes.collections:
            if "LineCollection" in type(bars).__name__:
                ends = np.concatenate([path.vertices[:, 0] for path in bars.get_paths()])
                assert ends.min() >= 0
                assert ends.max() <= 1


def test_two_seeds_are_noted():
    said = "two seeds only, so intervals are very wide"
    (note,) = report.compare(seeds("a") + seeds("b", num=3)).notes
    assert note.startswith(said)
    assert note.endswith(": a")
    assert said in report.compare(seeds("a")).html


@pytest.mark.parametrize("end", ["-s", "_seed", "-seed", "seed", "-run", "-", "_s"])
def test_the_seeds_mark_is_no_part_of_the_name(end):
    runs = [Run(f"fedavg{end}{s}", history(), config={"seed": s}) for s in (0, 1)]
    assert [group.label for group in report.compare(runs).groups] == ["fedavg"]
