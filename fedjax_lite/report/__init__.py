"""Pictures of a run, comparisons of many runs as one page, and what a method has to beat.

Matplotlib's object interface only, so nothing global changes and no display is needed; figures
show themselves in a notebook.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.report.baselines import Beside, baselines
    from fedjax_lite.report.clients import plot_client_accuracies, plot_partition
    from fedjax_lite.report.clusters import plot_clusters
    from fedjax_lite.report.comparison import Comparison, compare
    from fedjax_lite.report.curves import plot_curves, plot_sweep
    from fedjax_lite.report.groups import Group, group_runs
    from fedjax_lite.report.record import save_clients
    from fedjax_lite.report.reliability import plot_reliability
    from fedjax_lite.report.runs import Run, find_runs, read_run
    from fedjax_lite.report.sample_grids import sample_grids
    from fedjax_lite.report.side_by_side import plot_side_by_side
    from fedjax_lite.report.statistics import Curve, Interval, curve, t_interval, to_target
    from fedjax_lite.report.style import BLUE, GREEN, GREY, ORANGE

__all__ = [
    "BLUE",
    "Beside",
    "Comparison",
    "Curve",
    "GREEN",
    "GREY",
    "Group",
    "Interval",
    "ORANGE",
    "Run",
    "baselines",
    "compare",
    "curve",
    "find_runs",
    "group_runs",
    "plot_client_accuracies",
    "plot_clusters",
    "plot_curves",
    "plot_partition",
    "plot_reliability",
    "plot_side_by_side",
    "plot_sweep",
    "read_run",
    "sample_grids",
    "save_clients",
    "t_interval",
    "to_target",
]

load_when_asked(__name__)
