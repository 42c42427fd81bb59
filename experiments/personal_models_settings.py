"""Models of the clients' own: the flags; what is 0 or empty is the preset's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What each method may do, and what it is scored on."""

    held_out: float = 0.0
    """Share of each client's images that it is scored on and does not train on, in (0, 1)."""
    tune_epochs: int = 0
    """Passes over its own data with which a client tunes the global model."""
    pull: float = 0.0
    """Ditto's pull towards the global model."""
    mixing: float = 0.0
    """APFL's share of the own model in the mixture at first, in (0, 1]; it is adapted."""
    outer_rate: float = 0.0
    """pFedMe's rate of the outer steps."""
    methods: tuple[str, ...] = ()
    """Some of the methods, as the table names them; none given: all."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    dataset: Literal["", "cifar10", "mnist", "fashion_mnist", "digits"] = ""
    """Images that are dealt to the clients."""
    data_dir: Path | None = None
    """Folder that holds the data (else FEDJAX_LITE_DATA, the cache, a download)."""
    train_size: int = 0
    """Images to deal, at random."""
    num_clients: int = 0
    """Clients in the population."""
    alpha: float = 0.0
    """Concentration of the Dirichlet partition; smaller is more skewed."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    cohort_size: int = 0
    """Clients that train in a round."""
    num_rounds: int = 0
    """Rounds of each run."""
    epochs: int = 0
    """Passes of a client over its data in a round."""
    batch_size: int = 0
    """Examples in a local step."""
    learning_rate: float = 0.0
    """Local learning rate, per step, of all methods."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    preset: Literal["short", "whole", "smoke"] = "short"
    """short: part of CIFAR-10, few rounds; whole: all of it; smoke: digits."""
    smoke: bool = False
    """The same as --preset smoke."""
    seeds: tuple[int, ...] = ()
    """Seeds of the deal, the parameters, cohorts and batches."""
    output_dir: Path = Path("outputs/personal_models")
    """Where results.json, curves.png and clients.png go."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """A preset, and what to change of it; what is 0 or empty is the preset's."""
