"""Tables of speed: several runs, of which none is left out."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def render():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
        yield importlib.import_module("tables.render")


def test_speed_is_the_range_over_all_runs_never_the_better_one(render):
    def spread(value):
        return {"median": value, "min": value, "max": value}

    def run(date, ratio, bound):
        row = {"versions": {"pfl": "0.6"}, "variant": "2x1", "cold_seconds": 1.0}
        row |= {"system": "pfl", "ms_per_round": spread(9.0), "ratio": spread(ratio)}
        absent = {"system": "fedjax", "error": "CannotInstall: no such package"}
        name = "logreg: times faster than pfl"
        return {
            "date": date, "cpu": "Some CPU", "versions": {},
            "workloads": {"logreg": {"rows": [row, absent]}},
            "targets": [{"name": name, "measured": ratio, "bound": bound, "passed": None}],
        }  # fmt: skip

    # The aim is that of the last run, and every run is held against it.
    days = ("2026-01-01", 25.0, 6), ("2026-01-02", 8.7, 20)
    runs = {f"peers_{day}": run(day, ratio, bound) for day, ratio, bound in days}
    section = render.section("peers", runs)
    (brief,) = section.brief
    assert brief.here == "pfl 0.6: 8.70 to 25.0 (falls short of our aim, 20)"
    assert "| pfl 0.6 (2x1) | 2026-01-02, Some CPU | 9.00 (9.00 to 9.00) | 8.70 |" in section.text
    assert "than pfl 8.70 to 25.0, aimed at 20." in section.text
    assert "not measured: CannotInstall: no such package" in section.text
    assert all(f"`experiments/results/{name}.json`" in section.text for name in runs)
    one = render.section("peers", {"peers_2026-01-01": runs["peers_2026-01-01"]})
    assert one.brief[0].here == "pfl 0.6: 25.0"


def test_steps_of_two_days_are_a_range(render):
    def run(times_bare):
        parts = {"bare": 1.0, "round": times_bare}
        rows = {part: {"median": 7.0, "times_bare": times} for part, times in parts.items()}
        return {"machine": {"date": "2026-01-01", "cpu": "Some CPU"}, "workloads": {"2nn": rows}}

    runs = {"step_2026-01-01": run(1.08), "step_2026-01-02": run(1.23)}
    (brief,) = render.section("steps", runs).brief
    assert brief.here == "1.08 to 1.23"


def test_a_million_clients_stand_beside_the_machines_floor(render):
    def run(seconds):
        floor = {"bytes_seconds": 0.01, "flop_seconds": 0.004, "seconds": 0.01}
        took = {"median": seconds, "min": seconds, "max": seconds}
        row = {"seconds": took, "floor": floor, "times_floor": seconds / 0.01}
        row["start_seconds"] = {name: 0.7 for name in took}
        return {
            "machine": {"date": "2026-01-01", "cpu": "Some CPU"},
            "num_clients": 1_000_000, "cohort_size": 1000, "bandwidth": 7.1e9, "flops": 9e10,
            "methods": {"scaffold": row},
        }  # fmt: skip

    runs = {"populations_2026-01-01": run(0.2), "populations_2026-01-02": run(0.15)}
    section = render.section("populations", runs)
    (brief,) = section.brief
    assert brief.what == "a round of 1000 of 1,000,000 clients, all cores"
    here = "SCAFFOLD, logistic regression: 150 to 200 ms, 15.0 to 20.0 times the floor"
    assert brief.here == here
    assert "| 10.0 | 4.00 | 20.0 | 700 |" in section.text
    assert "7.1 GB/s, 90 GFLOP/s." in section.text
