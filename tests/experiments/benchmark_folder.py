"""Where the benchmarks lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"
OWN_MODULES = (
    "peers",
    "measure",
    "workloads",
    "peers_programs",
    "worker_protocol",
    "plain_network",
    "populations",
)
