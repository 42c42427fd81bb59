"""Flags that the experiments share: groups of settings, and what they build."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import fedjax_lite as fl

Schedule = Literal["constant", "exponential", "cosine", "inverse"]


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data set and how its examples are dealt to clients."""

    dataset: Literal["auto", "cifar10", "cifar100", "mnist", "fashion_mnist", "digits"] = "auto"
    """Data set. auto: CIFAR-10 where it is found or can be downloaded, else the embedded digits."""
    data_dir: Path | None = None
    """Folder that holds the data; else FEDJAX_LITE_DATA, then the cache, then a download."""
    partition: Literal[
        "dirichlet", "iid", "shards", "lognormal", "power_law", "dirichlet_quantity", "writer"
    ] = "dirichlet"
    """How examples are dealt: by Dirichlet shares of each label, at random, by label shards as in
    McMahan's paper, by skewed quantities, by both, or by MNIST's writers."""
    num_clients: int = 100
    """Clients in the population."""
    alpha: float = 0.5
    """Concentration of the Dirichlet partitions; smaller is more skewed."""
    shards_per_client: int = 2
    """Label shards that each client gets, for --partition shards."""
    sigma: float = 1.5
    """Spread of log sizes, for lognormal and dirichlet_quantity; exponent for power_law."""
    min_size: int = 10
    """Fewest examples of any client (Dirichlet and quantity partitions)."""
    held_out: float = 0.0
    """Share of every client's examples that it does not train on: it is scored on them. 0: it is
    scored on its share of the test split, dealt by the labels that it trains on."""

    def split(
        self, data: fl.data.FederatedDataset, test: dict[str, np.ndarray], seed: int
    ) -> tuple[fl.data.FederatedDataset, fl.data.FederatedDataset, str]:
        """What clients train on, what each is scored on, and the name of the latter."""
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out must lie in [0, 1), got {self.held_out}")
        if not self.held_out:
            return data, fl.data.deal_like(test, data, seed=seed), "test"
        return *fl.data.split_clients(data, self.held_out, seed=seed), "held out"

    def partitioner(self, seed: int) -> fl.data.Partitioner:
        """The partition that the flags name."""
        clients: dict[str, Any] = {"num_clients": self.num_clients, "seed": seed}
        sized = {**clients, "min_size": self.min_size}
        if self.partition == "dirichlet":
            return fl.data.dirichlet(alpha=self.alpha, **sized)
        if self.partition == "dirichlet_quantity":
            return fl.data.dirichlet_quantity(alpha=self.alpha, sigma=self.sigma, **sized)
        if self.partition == "lognormal":
            return fl.data.lognormal(sigma=self.sigma, **sized)
        if self.partition == "power_law":
            return fl.data.power_law(exponent=self.sigma, **sized)
        if self.partition == "shards":
            return fl.data.shards(**clients, shards_per_client=self.shards_per_client)
        if self.partition == "writer":
            return fl.data.by_key("writer")
        return fl.data.iid(**clients)


@dataclasses.dataclass(frozen=True)
class ClientFlags:
    """Local training."""

    cohort_size: int = 10
    """Clients that train in a round."""
    epochs: int = 1
    """Passes of a client over its data in a round."""
    batch_size: int = 20
    """Examples in a local step; 0 for all of a client's data at once."""
    client_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """Local optimizer; it starts anew in each round."""
    learning_rate: float = 0.1
    """Local learning rate, per step."""
    client_momentum: float = 0.9
    """Local momentum, in [0, 1), for --client-optimizer momentum."""
    weight_decay: float = 0.0
    """L2 penalty on the weights, added to the gradient of each local step."""
    client_clip: float = 0.0
    """Largest global norm of a local gradient; 0 for no clipping."""
    client_schedule: Schedule = "cosine"
    """How the local learning rate changes over the rounds."""
    client_decay: float = 0.05
    """Factor per round for exponential; share that is left at the end for cosine."""
    dropout_rate: float = 0.0
    """Probability that a sampled client drops out of the round."""

    def plan(self) -> fl.Plan:
        """Batch size and epochs."""
        return fl.Plan(batch_size=self.batch_size or None, epochs=self.epochs)

    def sampler(self) -> fl.Sampler:
        """Uniform cohorts, with drop-outs where asked."""
        sampler = fl.uniform(self.cohort_size)
        return fl.dropout(sampler, self.dropout_rate) if self.dropout_rate else sampler

    def optimizer(self, num_rounds: int) -> Any:
        """The client optimizer as a function of the round."""
        rate = schedule(self.client_schedule, self.learning_rate, self.client_decay, num_rounds)

        def at_round(round: Any) -> optax.GradientTransformation:
            parts = []
            if self.client_clip:
                parts.append(optax.clip_by_global_norm(self.client_clip))
            if self.weight_decay:
                parts.append(optax.add_decayed_weights(self.weight_decay))
            if self.client_optimizer == "adam":
                parts.append(optax.scale_by_adam())
            elif self.client_optimizer == "momentum":
                parts.append(optax.trace(self.client_momentum))
            return optax.chain(*parts, optax.scale(-1.0), optax.scale(rate(round)))

        return at_round


@dataclasses.dataclass(frozen=True)
class ServerFlags:
    """What the server does with the mean update."""

    server_optimizer: Literal["sgd", "momentum", "adagrad", "adam", "yogi"] = "sgd"
    """sgd at rate 1 is FedAvg, momentum FedAvgM; the others as Reddi et al. (2021) have them."""
    server_learning_rate: float = 1.0
    """Server learning rate, per round; 1 takes the mean as it is."""
    server_momentum: float = 0.9
    """Server momentum, in [0, 1), for momentum; first moment decay of adam and yogi."""
    tau: float = 1e-3
    """Adaptivity of adagrad, adam and yogi: added to the root of the second moment."""
    server_schedule: Schedule = "constant"
    """How the server learning rate changes over the rounds."""
    server_decay: float = 0.99
    """Factor per round for exponential; share that is left at the end for cosine."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a client in the mean: its number of examples, or all alike."""

    def optimizer(self, num_rounds: int) -> optax.GradientTransformation:
        """The server optimizer; its schedule counts rounds."""
        rate = schedule(
            self.server_schedule, self.server_learning_rate, self.server_decay, num_rounds
        )
        if self.server_optimizer == "adagrad":
            return fl.server.adagrad(rate, tau=self.tau)
        if self.server_optimizer == "adam":
            return fl.server.adam(rate, b1=self.server_momentum, tau=self.tau)
        if self.server_optimizer == "yogi":
            return fl.server.yogi(rate, b1=self.server_momentum, tau=self.tau)
        momentum = self.server_momentum if self.server_optimizer == "momentum" else None
        return optax.sgd(rate, momentum=momentum)


def schedule(kind: Schedule, rate: float, decay: float, num_rounds: int) -> optax.Schedule:
    """A learning rate as a function of the round."""
    if rate < 0:
        raise ValueError(f"learning rates must not be negative, got {rate}")
    if kind == "exponential":
        return lambda round: rate * decay**round
    if kind == "cosine":
        return optax.cosine_decay_schedule(rate, max(num_rounds, 1), alpha=decay)
    if kind == "inverse":
        return lambda round: rate / (1.0 + round)
    return lambda round: rate


def device_mesh(devices: str) -> Mesh | None:
    """The mesh that --devices names, all or a number; None where there is one device only."""
    count = jax.device_count()
    wanted = count if devices == "all" else int(devices) if devices.isdigit() else 0
    if not 1 <= wanted <= count or (jax.process_count() > 1 and wanted < count):
        raise ValueError(
            f"--devices must be all or a number from 1 to {count}, the devices at hand (several "
            f"processes: all), got {devices!r}"
        )
    return fl.client_mesh(jax.devices()[:wanted]) if count > 1 else None


def strategy(name: str, mesh: Mesh | None = None) -> fl.engine.Strategy:
    """An execution strategy by name: auto, vmapped, sequential, or chunked:L; on each device."""
    if mesh is not None:
        return fl.sharded(mesh, None if name == "auto" else strategy(name))
    if name.startswith("chunked:") and name[8:].isdigit():
        return fl.chunked(int(name[8:]))
    named = {"auto": fl.auto, "vmapped": fl.vmapped, "sequential": fl.sequential}
    if name not in named:
        raise ValueError(f"--strategy must be auto, vmapped, sequential or chunked:L, got {name!r}")
    return named[name]()


def with_labels(examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Only what a classifier trains on: natural client ids stay on the host."""
    return {"x": examples["x"], "y": examples["y"]}
