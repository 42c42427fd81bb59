"""What the round benchmark trains: populations of random data, models, and their arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import optax

import fedjax_lite as fl


@dataclasses.dataclass(frozen=True)
class Workload:
    """One federated setting. Pixels and labels are random: speed does not depend on them."""

    summary: str
    model: Callable[[], fl.models.Model]
    image_shape: tuple[int, int, int]
    layer_macs: tuple[int, ...]
    """Multiply-adds of each layer in the forward pass of one example, first layer first."""
    num_clients: int
    num_examples: int
    deal: Callable[[int], fl.data.Partitioner]
    """``(num_clients) -> partitioner``, seeded."""
    cohort_size: int
    num_rounds: int
    """Rounds in one compiled scan, chosen so that one call takes 0.2 to 3 s, a few for the CNN."""
    strategies: tuple[str, ...]
    batch_size: int = 10
    learning_rate: float = 0.1
    weighting: Literal["examples", "uniform"] = "examples"

    @property
    def flop_per_example(self) -> int:
        """Floating-point operations of training on one example once."""
        return training_flop(self.layer_macs)

    def plan(self) -> fl.Plan:
        """One epoch in batches."""
        return fl.Plan(batch_size=self.batch_size, epochs=1)

    def population(self, seed: int = 0) -> fl.data.FederatedDataset:
        """Random uint8 images and labels, dealt to the clients."""
        rng = np.random.default_rng(seed)
        shape = (self.num_examples, *self.image_shape)
        examples = {
            "x": rng.integers(0, 256, shape, dtype=np.uint8),
            "y": rng.integers(0, 10, self.num_examples, dtype=np.int32),
        }
        return fl.data.partition(examples, self.deal(self.num_clients))

    def algorithm(
        self, strategy: fl.engine.Strategy, *, sampler: fl.Sampler | None = None
    ) -> fl.FederatedAlgorithm:
        """FedAvg with plain SGD; the sampler is `uniform(cohort_size)` unless given."""
        return fl.fedavg(
            self.model().loss,
            optax.sgd(self.learning_rate),
            plan=self.plan(),
            sampler=self.sampler() if sampler is None else sampler,
            weighting=self.weighting,
            strategy=strategy,
        )

    def sampler(self) -> fl.Sampler:
        """Uniform cohorts."""
        return fl.uniform(self.cohort_size)

    def smoke(self) -> Workload:
        """The same setting with 20 clients of 12 examples in the mean, for seconds."""
        return dataclasses.replace(
            self,
            num_clients=20,
            num_examples=240,
            cohort_size=min(self.cohort_size, 5),
            num_rounds=2,
        )


def training_flop(layer_macs: Sequence[int]) -> int:
    """Operations of one example's forward and backward pass.

        2 * (3 * sum_l macs_l - macs_1)

    A multiply-add is two operations; the backward pass costs the forward one twice, once for the
    weights and once for the inputs, of which the first layer's are not needed. Elementwise work
    is ignored.

    Args:
      layer_macs: multiply-adds of each layer, first layer first.

    Returns:
      Floating-point operations.

    Example:
      >>> training_flop((784 * 200, 200 * 200, 200 * 10))  # 2NN: 0.879 MFLOP
      879200
    """
    return 2 * (3 * sum(layer_macs) - layer_macs[0])


def dense_macs(widths: Sequence[int]) -> tuple[int, ...]:
    """Multiply-adds of a chain of dense layers, ``inputs * outputs`` each.

    Example:
      >>> dense_macs((784, 10))
      (7840,)
    """
    return tuple(a * b for a, b in itertools.pairwise(widths))


def conv_macs(output: tuple[int, int], kernel: tuple[int, int, int, int]) -> int:
    """Multiply-adds of a convolution: output positions times the kernel's size.

    Example:
      >>> conv_macs((30, 30), (3, 3, 3, 32))
      777600
    """
    return math.prod(output) * math.prod(kernel)


def _two_nn() -> fl.models.Model:
    return fl.models.mlp((200, 200))


def _pfl_cnn() -> fl.models.Model:
    # Random pixels have mean 1/2 and standard deviation 0.29.
    return fl.models.pfl_cnn(mean=(0.5,) * 3, std=(0.29,) * 3)


def _flute_lr() -> fl.models.Model:
    return fl.models.linear(sigmoid_outputs=True)


TWO_NN_MACS = dense_macs((784, 200, 200, 10))
PFL_CNN_MACS = (
    conv_macs((30, 30), (3, 3, 3, 32)),
    conv_macs((28, 28), (3, 3, 32, 64)),
    *dense_macs((14 * 14 * 64, 128, 10)),
)
EVEN = ("vmapped", "sequential", "chunked:2", "chunked:5", "auto")
SKEWED = ("vmapped", "sequential", "chunked:2", "chunked:5", "chunked:10", "auto")

WORKLOADS = {
    "2nn": Workload(
        summary="McMahan's 2NN, 100 clients x 600 MNIST-shaped examples, cohort 10, B 10, E 1",
        model=_two_nn,
        image_shape=(28, 28, 1),
        layer_macs=TWO_NN_MACS,
        num_clients=100,
        num_examples=60_000,
        deal=lambda n: fl.data.iid(num_clients=n, seed=0),
        cohort_size=10,
        num_rounds=5,
        strategies=EVEN,
    ),
    "pfl-cnn": Workload(
        summary="pfl-research's CIFAR CNN with dropout, 1000 clients x 50, cohort 50, B 10, E 1",
        model=_pfl_cnn,
        image_shape=(32, 32, 3),
        layer_macs=PFL_CNN_MACS,
        num_clients=1000,
        num_examples=50_000,
        deal=lambda n: fl.data.iid(num_clients=n, seed=0),
        cohort_size=50,
        num_rounds=2,  # a scan of one round would be no loop in the compiled program
        strategies=EVEN,
        weighting="uniform",
    ),
    # FLUTE names a power law and 69,035 samples; exponent and least size are ours.
    "logreg": Workload(
        summary="FLUTE's LR_MNIST, 1000 power-law clients, 69,035 examples, cohort 10, B 10, E 1",
        model=_flute_lr,
        image_shape=(28, 28, 1),
        layer_macs=dense_macs((784, 10)),
        num_clients=1000,
        num_examples=69_035,
        deal=lambda n: fl.data.power_law(exponent=2.5, num_clients=n, seed=0),
        cohort_size=10,
        num_rounds=100,
        strategies=EVEN,
        learning_rate=0.03,
    ),
    "lognormal": Workload(
        summary="2NN, 1000 clients of log-normal(1.5) sizes, mean 60, cohort 100, B 10, E 1",
        model=_two_nn,
        image_shape=(28, 28, 1),
        layer_macs=TWO_NN_MACS,
        num_clients=1000,
        num_examples=60_000,
        deal=lambda n: fl.data.lognormal(sigma=1.5, num_clients=n, seed=0, min_size=1),
        cohort_size=100,
        num_rounds=3,
        strategies=SKEWED,
    ),
}
