"""Shakespeare by role: the cells of the published table, the presets and the flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from shared.flags import Schedule
from shared.smoke import chosen_preset
from tables.published import figures


class Cell(NamedTuple):
    """One cell of the table: local work."""

    epochs: int
    batch_size: int | None


CELLS = {
    "fedsgd": Cell(1, None),
    "e1-b50": Cell(1, 50),
    "e5-binf": Cell(5, None),
    "e1-b10": Cell(1, 10),
    "e5-b50": Cell(5, 50),
    "e5-b10": Cell(5, 10),
}
"""Table 2 of the paper, C = 0.1; one epoch of one batch is FedSGD."""
PUBLISHED = figures("shakespeare")
"""Rounds to 54 %, by cell and deal."""
DEALS = ("iid", "role")


class Setting(NamedTuple):
    """What a preset fixes; by default the paper's setting."""

    num_roles: int = 0
    min_windows: int = 1
    max_windows: int = 0
    sequence_length: int = 80
    hidden_size: int = 256
    num_layers: int = 2
    fraction: float = 0.1
    target: float = 0.54
    cells: tuple[str, ...] = tuple(CELLS)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.8, 1.47, 2.7)
    fedsgd_rates: tuple[float, ...] = (1.47, 2.7, 5.0)
    max_rounds: int = 1200
    fedsgd_max_rounds: int = 8000
    max_test_windows: int = 0


PRESETS = {
    "paper": Setting(),
    "short": Setting(
        num_roles=100, min_windows=12, max_windows=60, hidden_size=64, num_layers=1, target=0.3,
        cells=("e1-b10", "e5-b10", "fedsgd"), seeds=(0,), rates=(4.0, 6.0, 2.0),
        fedsgd_rates=(4.0, 6.0), max_rounds=100, fedsgd_max_rounds=600, max_test_windows=600,
    ),
    "smoke": Setting(
        num_roles=10, max_windows=6, sequence_length=20, hidden_size=8, num_layers=1,
        fraction=0.3, target=0.1, cells=("e1-b10", "fedsgd"), seeds=(0,), rates=(2.0,),
        fedsgd_rates=(2.0,), max_rounds=4, fedsgd_max_rounds=4, max_test_windows=50,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Roles and windows; what is 0 is the preset's."""

    data_dir: Path | None = None
    """Folder of shakespeare_roles.json.gz (else FEDJAX_LITE_DATA, then the cache)."""
    num_roles: int = 0
    """Clients: roles drawn from those that have enough windows."""
    min_windows: int = 0
    """Fewest training windows of a role that may be drawn."""
    max_windows: int = 0
    """Most training windows of a role that may be drawn; the largest client sets FedSGD's cost."""
    sequence_length: int = 0
    """Characters a window, and the length of backpropagation through time."""


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The LSTM; what is 0 is the preset's."""

    hidden_size: int = 0
    """Units of a layer."""
    num_layers: int = 0
    """Stacked layers of the LSTM."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and learning rates; what is 0 or empty is the preset's."""

    target: float = 0.0
    """Test accuracy whose rounds are counted, in (0, 1)."""
    rates: tuple[float, ...] = ()
    """Local learning rates to choose from, for each cell of FedAvg."""
    fedsgd_rates: tuple[float, ...] = ()
    """Learning rates to choose from, for FedSGD."""
    schedule: Schedule = "constant"
    """Learning rate over the rounds; the paper's is constant."""
    decay: float = 0.998
    """Factor a round for `exponential`; share that is left at --max-rounds for `cosine`."""
    max_rounds: int = 0
    """Rounds after which a run of FedAvg is given up."""
    fedsgd_max_rounds: int = 0
    """Rounds after which a run of FedSGD is given up."""
    seeds: tuple[int, ...] = ()
    """Seeds of parameters, cohorts and batches; the median counts."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Which cells to run, and where results go."""

    preset: Literal["short", "paper", "smoke"] = "short"
    """short: minutes on two CPU cores; paper: the published setting; smoke: seconds."""
    cells: tuple[str, ...] = ()
    """Cells of the table: fedsgd, e1-b50, e5-binf, e1-b10, e5-b50, e5-b10; none: the preset's."""
    output_dir: Path = Path("outputs/shakespeare")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Run cells again that results.json already has; else they are kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """A preset, and what to change of it."""

    data: tyro.conf.OmitArgPrefixes[DataFlags] = dataclasses.field(default_factory=DataFlags)
    model: tyro.conf.OmitArgPrefixes[ModelFlags] = dataclasses.field(default_factory=ModelFlags)
    training: tyro.conf.OmitArgPrefixes[TrainingFlags] = dataclasses.field(
        default_factory=TrainingFlags
    )
    run: tyro.conf.OmitArgPrefixes[RunFlags] = dataclasses.field(default_factory=RunFlags)


def choose(flags: Flags) -> Setting:
    """The preset with what the flags change; raises where that cannot be run."""
    setting = PRESETS[chosen_preset(flags.run)]
    groups = (flags.data, flags.model, flags.training, flags.run)
    given = {k: v for group in groups for k, v in vars(group).items() if k in Setting._fields and v}
    setting = setting._replace(**given)
    unknown = [name for name in setting.cells if name not in CELLS]
    if unknown:
        raise ValueError(f"--cells must be among {', '.join(CELLS)}, got {unknown}")
    if not 0 < setting.target < 1:
        raise ValueError(f"--target must lie in (0, 1), got {setting.target}")
    if min(setting.rates + setting.fedsgd_rates) <= 0:
        raise ValueError("--rates and --fedsgd-rates must be positive")
    return setting
