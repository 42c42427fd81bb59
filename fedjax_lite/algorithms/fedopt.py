"""FedAvgM, FedAdagrad, FedAdam, FedYogi: FedAvg with a server optimizer, as the papers have it."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.checks.arguments import check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.round import server
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.slot_options import FedAvgOptions
from fedjax_lite.types import FederatedAlgorithm


@made
def fedavgm(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: server.Rate = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    **slots: Unpack[FedAvgOptions],
) -> FederatedAlgorithm:
    r"""FedAvg with server momentum.

    .. math::  v \leftarrow \beta v + d, \qquad x \leftarrow x - \eta_g v

    for the mean pseudo-gradient ``d``; with `nesterov`, ``x <- x - eta_g (beta v + d)``.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: as in `fedavg`.
      server_learning_rate: `eta_g`, or a schedule over rounds.
      momentum: `beta`.
      nesterov: the look-ahead form.
      **slots: `plan`, `sampler` and the other arguments of `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Raises:
      ValueError: if the rate or the momentum is negative.

    Example:
      >>> import fedjax_lite as fl
      >>> algo = fedavgm(lambda w, e, key: w * e["x"], optax.sgd(0.1),
      ...                plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))

    Reference: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", 2019, arXiv:1909.06335.
    """
    if not callable(server_learning_rate):
        check_non_negative(server_learning_rate, "server_learning_rate")
    check_non_negative(momentum, "momentum")
    optimizer = optax.sgd(server_learning_rate, momentum=momentum, nesterov=nesterov)
    return fedavg(loss, client_optimizer, server_optimizer=optimizer, **slots)


@made
def fedadagrad(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: server.Rate,
    b1: float = 0.0,
    tau: float = 1e-3,
    **slots: Unpack[FedAvgOptions],
) -> FederatedAlgorithm:
    """FedAdagrad, the paper's version: see `fedjax_lite.round.server.adagrad`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: as in `fedavg`.
      server_learning_rate: a rate or a schedule over rounds.
      b1: first moment decay.
      tau: adaptivity; ``v_0 = tau**2``.
      **slots: `plan`, `sampler` and the other arguments of `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Example:
      >>> import fedjax_lite as fl
      >>> algo = fedadagrad(lambda w, e, key: w * e["x"], optax.sgd(0.1), server_learning_rate=0.1,
      ...                   plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    optimizer = server.adagrad(server_learning_rate, b1=b1, tau=tau)
    return fedavg(loss, client_optimizer, server_optimizer=optimizer, **slots)


@made
def fedadam(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: server.Rate,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **slots: Unpack[FedAvgOptions],
) -> FederatedAlgorithm:
    """FedAdam, the paper's version, without bias correction: see `fedjax_lite.round.server.adam`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: as in `fedavg`.
      server_learning_rate: a rate or a schedule over rounds.
      b1: first moment decay.
      b2: second moment decay.
      tau: adaptivity; ``v_0 = tau**2``.
      **slots: `plan`, `sampler` and the other arguments of `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Example:
      >>> import fedjax_lite as fl
      >>> algo = fedadam(lambda w, e, key: w * e["x"], optax.sgd(0.1), server_learning_rate=0.1,
      ...                plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    optimizer = server.adam(server_learning_rate, b1=b1, b2=b2, tau=tau)
    return fedavg(loss, client_optimizer, server_optimizer=optimizer, **slots)


@made
def fedyogi(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    server_learning_rate: server.Rate,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **slots: Unpack[FedAvgOptions],
) -> FederatedAlgorithm:
    """FedYogi, the paper's version: see `fedjax_lite.round.server.yogi`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: as in `fedavg`.
      server_learning_rate: a rate or a schedule over rounds.
      b1: first moment decay.
      b2: second moment decay.
      tau: adaptivity; ``v_0 = tau**2``.
      **slots: `plan`, `sampler` and the other arguments of `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Example:
      >>> import fedjax_lite as fl
      >>> algo = fedyogi(lambda w, e, key: w * e["x"], optax.sgd(0.1), server_learning_rate=0.01,
      ...                plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    optimizer = server.yogi(server_learning_rate, b1=b1, b2=b2, tau=tau)
    return fedavg(loss, client_optimizer, server_optimizer=optimizer, **slots)
