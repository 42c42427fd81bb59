"""Robust rules against attacks: the flags of the heat map."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

RULES = ("mean", "median", "trimmed mean", "krum", "multi-krum", "rfa", "cclip")
ATTACKS = ("none", "sign flip", "label flip", "ipm", "alie", "mimic", "min-max")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """Rules and attacks, the axes of the heat map."""

    rules: tuple[str, ...] = RULES
    """Aggregation rules, the rows of the heat map."""
    attacks: tuple[str, ...] = ATTACKS
    """Attacks, the columns of the heat map."""
    bucket_sizes: tuple[int, ...] = (1, 2)
    """Clients in a bucket, for bucketing before the rule; 1: the rule itself."""
    clip_radius: float = 10.0
    """Radius of centered clipping, in units of gradients."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    num_clients: int = 25
    """Clients (workers) in all."""
    num_byzantine: int = 5
    """Clients among them that are hostile."""
    iid: bool = False
    """Deal the data at random instead of by labels."""
    data_dir: Path | None = None
    """Folder that holds MNIST (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    model: Literal["mlp", "cnn"] | None = None
    """Network: a small perceptron, or the paper's convolutional network."""
    num_rounds: int = 0
    """Rounds of one local step each; 0: the preset's."""
    learning_rate: float = 0.01
    """Learning rate before division by 1 - momentum."""
    momentum: float = 0.9
    """Momentum of the workers, in [0, 1)."""
    batch_size: int = 32
    """Examples in a step of a client."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    preset: Literal["small", "published", "smoke"] = "small"
    """small: part of MNIST and a small network; published: the paper's; smoke: digits, seconds."""
    smoke: bool = False
    """The same as --preset smoke."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of data, network and batches."""
    output_dir: Path = Path("outputs/byzantine")
    """Where results.json and heat_map.png go."""
    overwrite: bool = False
    """Replace an earlier run's results in --output-dir."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """The setting; what is not given is the preset's."""
