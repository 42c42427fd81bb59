"""Simulated time in reports: to an accuracy, over it, and where some runs have no clock."""

import numpy as np
import pytest

from fedjax_lite import report
from fedjax_lite.report.runs import Run
from fedjax_lite.report.statistics import points

ACCURACY = [0.0, 0.4, 0.6, 0.8]


def run_of(method, seed, pace, megabytes=1.0, clock=True):
    """Four evaluations; a round lasts `pace` simulated seconds and sends so many bytes a way."""
    rows = []
    for r, accuracy in enumerate(ACCURACY):
        row = {"round": r, "test_accuracy": accuracy, "seconds": 0.1 * r}
        if r:
            row |= {f"{way}link_bits_total": 8e6 * megabytes * r for way in ("up", "down")}
            row |= {"simulated_seconds": pace * r} if clock else {}
        rows.append(row)
    return Run(f"{method}-{seed}", rows, config={"method": method, "seed": seed})


@pytest.fixture(scope="module")
def runs():
    fast = [run_of("FedBuff", seed, pace, 2.0) for seed, pace in enumerate((90.0, 110.0))]
    return fast + [run_of("FedAvg", seed, 1000.0) for seed in (0, 1)]


def test_seconds_and_megabytes_to_an_accuracy(runs):
    """0.5 lies half way between rounds 1 and 2; time starts with round 0."""
    comparison = report.compare(runs, target=0.5)
    table = {row["label"]: row for row in comparison.table}
    fast, slow = table["FedBuff"], table["FedAvg"]
    assert fast["to_simulated_seconds"].mean == pytest.approx(150.0)
    assert fast["to_simulated_seconds"].half == pytest.approx(12.7062 * 15, rel=1e-4)  # t, 1 d.f.
    assert slow["to_simulated_seconds"].mean == pytest.approx(1500.0)
    assert (fast["to_bytes"].mean, slow["to_bytes"].mean) == pytest.approx((6e6, 3e6))
    assert slow["simulated_seconds"].mean == 3000
    html = comparison.html
    for words in ("Simulated time to 0.5", "Simulated time in all", "25.0 min", "6.0 MB"):
        assert words in html, words
    assert "not this machine" in html
    early = report.compare(runs, target=0.2)  # before the first round that a clock has seen ends
    assert early.table[1]["to_simulated_seconds"].mean == pytest.approx(500)
    over, values = points(runs[0], "test_accuracy", "simulated_seconds")
    assert over.tolist() == [0, 90, 180, 270]
    assert values.tolist() == ACCURACY


def test_figures_over_simulated_time(runs):
    comparison = report.compare(runs, target=0.5)
    (figure,) = comparison.figures["metric"]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert len(labels) == 4
    assert labels[-1].startswith("Simulated time (")
    (figure,) = comparison.figures["target"]
    assert figure.axes[-1].get_xlabel().startswith("Simulated time (")
    assert any(axes.get_title() == "To test accuracy 0.5" for axes in comparison.overview.axes)


def test_runs_without_a_clock(runs):
    """Alone they show no column of it; beside others they have no figure in it."""
    plain = [run_of("plain", seed, 1.0, clock=False) for seed in (0, 1)]
    alone = report.compare(plain, target=0.5)
    assert "Simulated" not in alone.html
    assert "to_simulated_seconds" not in alone.table[0]
    mixed = report.compare([*runs, *plain], target=0.5)
    row = next(row for row in mixed.table if row["label"] == "plain")
    assert row["to_simulated_seconds"] is None
    assert row["to_bytes"].mean == pytest.approx(3e6)
    axes = mixed.figures["metric"][0].axes[-1]
    assert [line.get_label() for line in axes.get_lines() if line.get_label()[0] != "_"] == [
        "FedBuff",
        "FedAvg",
    ]


def test_curves_of_one_run_over_time(runs):
    rows = runs[2].rows
    figure = report.plot_curves(rows, dataset="digits", x="simulated_seconds")
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [1000, 2000, 3000])
    assert axes.get_xlabel() == "Simulated time (s)"
    figure = report.plot_curves(rows, dataset="digits")
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_xdata(), [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"x must be a column beside those drawn.*got 'minutes'"):
        report.plot_curves(rows, dataset="digits", x="minutes")
