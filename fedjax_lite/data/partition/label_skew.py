"""Label skew: clients see different classes. Dirichlet in its two forms, shards, `k` classes.

Two partitions are called "Dirichlet(alpha)" in the literature and they differ:

* `dirichlet` draws, for each class, how it is spread over the clients; sizes vary with the draw.
* `dirichlet_mixture` draws, for each client, how its data is spread over the classes; sizes are
  equal, or as asked for in `dirichlet_quantity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_one
from fedjax_lite.checks.made import made
from fedjax_lite.data.partition.apportion import (
    deal,
    even_sizes,
    largest_remainder,
    log_dirichlet,
    owners_from_table,
    repair,
    shares_of,
)
from fedjax_lite.data.partition.checks import (
    check_alpha,
    check_capacity,
    check_count,
    check_seed,
    class_index,
)
from fedjax_lite.data.partition.partition import Partitioner
from fedjax_lite.data.partition.quantity_skew import check_sizes, lognormal_sizes


@made
def dirichlet(
    *,
    alpha: float,
    num_clients: int,
    seed: int = 0,
    min_size: int = 0,
    balanced: bool = False,
    label: str = "y",
) -> Partitioner:
    """Spreads each class over the clients by a Dirichlet draw; sizes vary.

    For every class `k` with ``n_k`` examples

        p_k ~ Dir_N(alpha, ..., alpha),   client i gets n_ki of them,   n_ki ~ p_ki n_k

    rounded by largest remainder. ``E[p_ki] = 1/N``, ``Var[p_ki] = (1/N)(1 - 1/N) / (alpha N + 1)``.
    As alpha grows every client has ``n_k / N`` of every class; as it falls to 0 every class goes
    to one client. This is "Dir(0.5), 100 clients" of NIID-Bench and of most code since.

    Code of that line also balances and asks for 10 examples a client:
    ``dirichlet(..., balanced=True, min_size=10)``. It draws all over until sizes fit, which need
    not end; here too small clients are filled once from the largest.

    Args:
      alpha: concentration, > 0.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      min_size: the least examples a client has; 0 lets clients be empty, as the draw may.
      balanced: classes are dealt in order and a client that has ``E / N`` examples or more gets
        none of the next, the shares of the others being renormalised.
      label: the key of the integer labels `[E]`.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if alpha is not finite and > 0, a count is out of range, or (when it is used)
        labels are missing or negative, or ``num_clients * min_size > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> train = {"y": np.repeat(np.arange(10), 100)}
      >>> owned = owners(train, dirichlet(alpha=0.3, num_clients=20, seed=0, min_size=5))
      >>> bool(np.bincount(owned, minlength=20).min() >= 5)
      True

    Reference: Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", 2021,
    arXiv:2102.02079; first in Yurochkin et al., "Bayesian Nonparametric Federated Learning of
    Neural Networks", 2019, arXiv:1905.12022.
    """
    check_alpha("alpha", alpha)
    check_count("num_clients", num_clients)
    check_count("min_size", min_size, minimum=0)
    check_seed(seed)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        classes, index = class_index(examples, label)
        check_capacity(len(index), num_clients, min_size)
        rng = np.random.default_rng(seed)
        logs = log_dirichlet(rng, alpha, (len(classes), num_clients))
        table = np.zeros((num_clients, len(classes)), np.int64)
        sizes = np.zeros(num_clients, np.int64)
        for k, count in enumerate(np.bincount(index)):
            # Before the last example is dealt somebody is below the mean, so `free` is not empty.
            free = np.flatnonzero(sizes * num_clients < len(index)) if balanced else slice(None)
            table[free, k] = largest_remainder(rng, shares_of(logs[k, free]), int(count))
            sizes += table[:, k]
        owner = owners_from_table(rng, table, index)
        return repair(rng, owner, num_clients, min_size)

    options = f", min_size={min_size}" if min_size else ""
    options += ", balanced=True" if balanced else ""
    name = f"dirichlet(alpha={alpha:g}, num_clients={num_clients}, seed={seed}{options})"
    return Partitioner(assign, num_clients, name)


@made
def dirichlet_mixture(
    *,
    alpha: float,
    num_clients: int,
    seed: int = 0,
    symmetric: bool = False,
    label: str = "y",
) -> Partitioner:
    """Gives each client its own class mixture by a Dirichlet draw; sizes equal to within one.

    For every client `i`, with `p` the shares of the `K` classes in the pooled examples,

        q_i ~ Dir(alpha p)                 (symmetric=False, as published)
        q_i ~ Dir_K(alpha, ..., alpha)     (symmetric=True, common in later code)

    and the client's labels are drawn without replacement with weights ``q_ik r_k / p_k``, where
    `r` are the class shares of what is left when its turn comes (at first ``r = p``; a class that
    is used up drops out). ``E[q_ik] = p_k`` and
    ``Var[q_ik] = p_k (1 - p_k) / (alpha + 1)``; symmetric, ``p_k = 1/K`` and the denominator is
    ``alpha K + 1``: on `K` equal classes its alpha means `K` times the published one.
    Clients are served in random order, and as all examples are dealt the last ones take what is
    left: they follow their ``q_i`` less closely. Without the factor ``r_k / p_k``, as in code
    that draws from ``q_i`` until a class is empty, the drift of all draws, of order ``sqrt(E)``,
    falls on the last few clients of ``E / N`` examples, and large alpha would not give IID.

    Args:
      alpha: concentration, > 0.
      num_clients: the population's size `N`, at most `E`.
      seed: the same seed gives the same partition.
      symmetric: which of the two draws.
      label: the key of the integer labels `[E]`.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if alpha is not finite and > 0, a count is out of range, or (when it is used)
        labels are missing or negative, or ``num_clients > E``.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> train = {"y": np.repeat(np.arange(10), 10)}
      >>> np.bincount(owners(train, dirichlet_mixture(alpha=1.0, num_clients=4, seed=0))).tolist()
      [25, 25, 25, 25]

    Reference: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", 2019, arXiv:1909.06335.
    """
    check_alpha("alpha", alpha)
    check_count("num_clients", num_clients)
    check_seed(seed)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        _, index = class_index(examples, label)
        check_capacity(len(index), num_clients, 1)
        sizes = even_sizes(len(index), num_clients)
        return _mix(np.random.default_rng(seed), alpha, index, sizes, symmetric)

    kind = ", symmetric=True" if symmetric else ""
    name = f"dirichlet_mixture(alpha={alpha:g}, num_clients={num_clients}, seed={seed}{kind})"
    return Partitioner(assign, num_clients, name)


@made
def dirichlet_quantity(
    *,
    alpha: float,
    num_clients: int,
    seed: int = 0,
    sigma: float | None = None,
    sizes: Any = None,
    min_size: int = 0,
    symmetric: bool = False,
    label: str = "y",
) -> Partitioner:
    """Label and quantity skew together: `dirichlet_mixture` with uneven sizes.

        n_i as lognormal(sigma) draws them, or as given;   q_i ~ Dir(alpha p)

    Args:
      alpha: concentration of the label mixtures, > 0.
      num_clients: the population's size `N`.
      seed: the same seed gives the same partition.
      sigma: standard deviation of the log sizes, >= 0; exactly one of `sigma`, `sizes`.
      sizes: int `[N]` with sum `E`, examples per client.
      min_size: the least examples a client has; with `sizes` given it is only checked.
      symmetric: as in `dirichlet_mixture`.
      label: the key of the integer labels `[E]`.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if not exactly one of `sigma` and `sizes` is given, an argument is out of range,
        or (when it is used) the sizes do not sum to `E` or labels do not suit.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> train = {"y": np.repeat(np.arange(10), 10)}
      >>> skew = dirichlet_quantity(alpha=1.0, num_clients=3, sizes=[80, 15, 5])
      >>> np.bincount(owners(train, skew)).tolist()
      [80, 15, 5]

    Reference: label mixtures as in Hsu et al., 2019, arXiv:1909.06335.
    """
    check_alpha("alpha", alpha)
    check_count("num_clients", num_clients)
    check_count("min_size", min_size, minimum=0)
    check_seed(seed)
    check_one(sigma=sigma, sizes=sizes)
    given = None if sizes is None else check_sizes(sizes, num_clients, min_size)
    draw = None if sigma is None else lognormal_sizes(sigma)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        _, index = class_index(examples, label)
        rng = np.random.default_rng(seed)
        if draw is not None:
            client_sizes = draw(rng, len(index), num_clients, min_size)
        else:
            assert given is not None
            client_sizes = given
        if client_sizes.sum() != len(index):
            raise ValueError(
                f"sizes must sum to the {len(index)} examples there are, "
                f"got {client_sizes.sum()}; every example is dealt once"
            )
        return _mix(rng, alpha, index, client_sizes, symmetric)

    skew = "sizes given" if sigma is None else f"sigma={sigma:g}"
    name = f"dirichlet_quantity(alpha={alpha:g}, {skew}, num_clients={num_clients}, seed={seed})"
    return Partitioner(assign, num_clients, name)


def _mix(
    rng: np.random.Generator, alpha: float, index: np.ndarray, sizes: np.ndarray, symmetric: bool
) -> np.ndarray:
    """Deals classes to clients by their own mixtures; `sizes` `[N]` sum to `E`."""
    stock = available = np.bincount(index)
    concentration = alpha if symmetric else alpha * stock / len(index)
    logs = log_dirichlet(rng, concentration, (len(sizes), len(available)))
    table = np.zeros(logs.shape, np.int64)
    for i in rng.permutation(len(sizes)):
        left = np.log(np.maximum(available, 1) / stock)  # `deal` skips what is used up
        table[i] = deal(rng, int(sizes[i]), logs[i] + left, available)
        available = available - table[i]
    return owners_from_table(rng, table, index)
