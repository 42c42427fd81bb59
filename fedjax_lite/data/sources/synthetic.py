"""synthetic(alpha, beta) of FedProx: clients whose models and inputs differ by dials.

Li et al., "Federated Optimization in Heterogeneous Networks", 2020, arXiv:1812.06127.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fedjax_lite.data.sources.cache import Splits
from fedjax_lite.data.sources.source import Candidate, Source


def synthetic(
    alpha: float,
    beta: float,
    *,
    num_clients: int = 30,
    seed: int = 0,
    num_features: int = 60,
    num_classes: int = 10,
    size_deviation: float = 2.0,
) -> Splits:
    """Draws the synthetic data set of FedProx.

    Client `k` of `N` has `n_k` examples ``y = argmax(x W_k + b_k)`` with::

        n_k = floor(lognormal(4, s)) + 50       u_k ~ N(0, alpha)    B_k ~ N(0, beta)
        W_k, b_k ~ N(u_k, 1)                    v_k ~ N(B_k, 1)      x ~ N(v_k, diag(j^-1.2))

    where N takes a *standard deviation*, as the authors' generator does (their paper's N(0, alpha)
    reads as a variance; there is no difference at 0 and 1). That generator sets no seed; ours
    draws from numpy's legacy generator and Python's `random`, both seeded with `seed`, in the
    generator's order (all n, all u, all B, all v; then per client W, b and x; the shuffle), so
    seed 0 is the draw that the experiments are pinned to: 20,101 training examples, the largest
    client 4,645, the smallest 45. Of each client the first 90 % after a shuffle are for training.

    Args:
      alpha: standard deviation of `u_k`: how much the local models differ.
      beta: standard deviation of `B_k`: how much the local inputs differ.
      num_clients: `N`.
      seed: of the whole draw; global random states are neither used nor changed.
      num_features: 60 in the paper.
      num_classes: 10 in the paper.
      size_deviation: `s`, at most 3: how much sizes differ, 2 there; the data of Li et al. 2020,
        arXiv:1905.10497 (100 clients, 12,697 examples in all), fit 1.

    Returns:
      ``(train, test)``, dicts of ``x`` float32 `[E, num_features]`, ``y`` int32 `[E]` and
      ``client`` int32 `[E]`, client by client.

    Raises:
      ValueError: if a deviation is negative or not finite, `size_deviation` above 3, or a count too
        small.

    Example:
      >>> train, test = synthetic(1.0, 1.0)
      >>> sizes = np.bincount(train["client"]).tolist()
      >>> sum(sizes), max(sizes), min(sizes)
      (20101, 4645, 45)
    """
    for name, deviation in (("alpha", alpha), ("beta", beta)):
        if not 0 <= deviation < float("inf"):
            raise ValueError(f"{name} must be a finite deviation of at least 0, got {deviation}")
    if not 0 <= size_deviation <= 3:  # of 4 one client in a thousand has ten million examples
        raise ValueError(f"size_deviation must lie in [0, 3], got {size_deviation}; 2 in the paper")
    for name, count, least in (
        ("num_clients", num_clients, 1),
        ("num_features", num_features, 1),
        ("num_classes", num_classes, 2),
    ):
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")
    # The legacy generator on purpose: its stream is frozen, and the pinned draw is its.
    draw = np.random.RandomState(seed)
    shuffle = random.Random(seed).shuffle
    sizes = draw.lognormal(4, size_deviation, num_clients).astype(int) + 50
    model_means = draw.normal(0, alpha, num_clients)
    input_means = draw.normal(0, beta, num_clients)
    centers = np.stack([draw.normal(mean, 1, num_features) for mean in input_means])
    # N(v, diag) as multivariate_normal draws it, without its singular value decomposition.
    scales = np.sqrt(np.arange(1, num_features + 1) ** -1.2)
    train, test = [], []
    for client, size in enumerate(sizes):
        weights = draw.normal(model_means[client], 1, (num_features, num_classes))
        biases = draw.normal(model_means[client], 1, num_classes)
        x = draw.standard_normal((size, num_features)) * scales + centers[client]
        y = np.argmax(x @ weights + biases, axis=1)
        rows = list(range(size))
        shuffle(rows)
        cut = int(0.9 * size)
        for part, chosen in ((train, rows[:cut]), (test, rows[cut:])):
            part.append((x[chosen], y[chosen], np.full(len(chosen), client)))
    return _join(train), _join(test)


def _join(parts: list[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    dtypes = {"x": np.float32, "y": np.int32, "client": np.int32}
    return {
        key: np.concatenate(arrays).astype(dtype)
        for (key, dtype), arrays in zip(dtypes.items(), zip(*parts))
    }


def _read(candidate: Candidate, *, alpha: float, beta: float, **options: Any) -> Splits:
    del candidate
    return synthetic(alpha, beta, **options)


SOURCES = (
    Source(
        name="synthetic",
        find=lambda folder: [],
        read=_read,
        description='synthetic(alpha, beta) of FedProx, by "client"; made on the spot',
        remedies=(),
        options={
            "alpha": 1.0,
            "beta": 1.0,
            "num_clients": 30,
            "seed": 0,
            "num_features": 60,
            "num_classes": 10,
            "size_deviation": 2.0,
        },
        cached=False,
        local="generated",
    ),
)
