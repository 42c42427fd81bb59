"""Federated averaging with privacy: the flags."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The guarantee, and the deployment that the noise is for."""

    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, math.inf)
    """Privacy budgets of the whole run; inf: clipping without noise."""
    delta: float = 1e-5
    """Probability that the privacy bound may fail."""
    method: Literal["pld", "rdp"] = "pld"
    """Accountant that calibrates the noise."""
    noise_cohort_size: int = 0
    """Noise as for cohorts of this size (an imagined deployment); 0: as for those simulated."""
    noise_num_clients: int = 1_000_000
    """Clients in the population of that deployment."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    datasets: tuple[Literal["mnist", "cifar10"], ...] = ("mnist", "cifar10")
    """Data sets to run, one after the other."""
    num_clients: int = 0
    """Clients that CIFAR-10 is dealt to; MNIST has its writers; 0: the default."""
    alpha: float = 1.0
    """Concentration of CIFAR-10's Dirichlet partition; smaller is more skewed."""
    data_dir: Path | None = None
    """Folder that holds the data (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    num_rounds: int = 0
    """Rounds of each run; 0: the data set's default."""
    expected_cohort_size: int = 0
    """Clients in a round, in expectation; 0: the data set's default."""
    clip: float = 0.0
    """Largest norm of a client's update; 0: the data set's default."""
    learning_rate: float = 0.0
    """Local learning rate; 0: the data set's default."""
    epochs: int = 0
    """Local epochs in a round; 0: the data set's default."""
    server_momentum: float = 0.9
    """Momentum of the server, in [0, 1); its rate is scaled by one minus it."""
    hidden: int = -1
    """Units of the hidden layer; 0: softmax regression; -1: the data set's default."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    num_seeds: int = 5
    """Runs for each epsilon, each with its own parameters, cohorts, batches and noise."""
    output_dir: Path = Path("outputs/dp_fedavg")
    """Where results.json and accuracy.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds: digits, few rounds, two seeds, calibrated by RDP."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """The guarantee, the clients and their training; 0 means the data set's own default."""
