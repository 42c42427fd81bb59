"""Samplers, attacks, privacy mechanisms, strategies, servers that must pass the laws; tiny."""

from __future__ import annotations

import numpy as np
import optax

from fedjax_lite.aggregation.mean import mean
from fedjax_lite.arrivals import clocked, edge_clocked, exponential, in_flight, latency
from fedjax_lite.attacks import (
    alie,
    byzantine,
    gaussian,
    ipm,
    mimic,
    min_max,
    min_sum,
    model_replacement,
    sign_flip,
)
from fedjax_lite.engine import (
    auto,
    chunked,
    client_mesh,
    differentiable,
    sequential,
    sharded,
    vmapped,
)
from fedjax_lite.engine.program import Strategy
from fedjax_lite.privacy import (
    adaptive_clipping,
    adaptive_sum,
    central_gaussian,
    distributed_discrete_gaussian,
    gaussian_sum,
    local_gaussian,
    matrix_noise,
    matrix_sum,
    once_an_epoch,
    poisson_cohorts,
    secure_gaussian,
    secure_gaussian_sum,
    tree_noise,
    tree_sum,
)
from fedjax_lite.round.sampling import dropout, everyone, poisson, uniform, weighted
from fedjax_lite.round.server import adagrad, adam, optimizer_server, yogi
from fedjax_lite.selection import (
    active,
    at_least_once,
    available,
    counted,
    cyclic,
    importance,
    lost_midway,
    multinomial,
    oort,
    stratified,
)
from fedjax_lite.types import Aggregator, Mechanism, Sampler, ServerUpdate

HOSTILE = (1, 3)


def attacks() -> dict[str, Aggregator]:
    """Two of five clients attack the mean."""
    return {
        name: byzantine(attack, clients=HOSTILE, inner=mean())
        for name, attack in {
            "alie": alie(),
            "gaussian": gaussian(1.0),
            "ipm": ipm(),
            "mimic": mimic(),
            "mimic client 0": mimic(0),
            "min-max": min_max(),
            "min-sum": min_sum(),
            "model replacement": model_replacement(5.0),
            "sign flip": sign_flip(),
        }.items()
    }


def mechanisms() -> dict[str, Mechanism]:
    """On the laws' seven clients, with noise."""
    cohorts = {"num_clients": 7, "cohort_size": 3, "num_rounds": 2, "delta": 1e-5}
    drawn = {"num_clients": 7, "sampling_rate": 0.5, "delta": 1e-5}
    return {
        "central": central_gaussian(clip=1.0, noise_multiplier=1.0, **drawn),
        "adaptive": adaptive_clipping(noise_multiplier=0.5, count_noise_multiplier=1.0, **drawn),
        "tree": tree_noise(clip=1.0, noise_multiplier=1.0, **cohorts),
        "matrix": matrix_noise(clip=1.0, noise_multiplier=1.0, bands=2, **cohorts),
        "local": local_gaussian(clip=1.0, noise_multiplier=2.0, **cohorts),
        "discrete": distributed_discrete_gaussian(
            clip=1.0, cohort_size=5, dimension=5, delta=1e-5, noise_multiplier=1.0, num_rounds=2
        ),
        "secure": secure_gaussian(
            clip=1.0, cohort_size=5, delta=1e-5, noise_multiplier=1.0, num_rounds=2
        ),
    }


def private_sums() -> dict[str, Aggregator]:
    """Of the mechanisms, without noise: with it the aggregate of nobody is noise, by design."""
    return {
        "gaussian sum": gaussian_sum(clip=1.0, noise_multiplier=0.0, denominator=3.0),
        "adaptive sum": adaptive_sum(
            noise_multiplier=0.0, count_noise_multiplier=0.0, denominator=3.0, initial_clip=1.0
        ),
        "tree sum": tree_sum(clip=1.0, noise_multiplier=0.0, denominator=3.0, num_rounds=8),
        "matrix sum": matrix_sum(
            clip=1.0, noise_multiplier=0.0, denominator=3.0, num_rounds=8, coefficients=[1.0, 0.5]
        ),
        "secure gaussian sum": secure_gaussian_sum(
            clip=1.0, noise_multiplier=0.0, cohort_size=8, denominator=3.0
        ),
    }


def strategies() -> dict[str, Strategy]:
    """Every way to execute a cohort."""
    return {
        "vmapped": vmapped(),
        "chunked": chunked(2),
        "sequential": sequential(),
        "differentiable": differentiable(100),
        "auto": auto(),
        "sharded": sharded(client_mesh()),
    }


def servers() -> dict[str, ServerUpdate]:
    """The server optimizers of this library, and one of optax."""
    return {
        "sgd": optimizer_server(optax.sgd(1.0, momentum=0.9)),
        "adagrad": optimizer_server(adagrad(0.1)),
        "adam": optimizer_server(adam(0.1)),
        "yogi": optimizer_server(yogi(0.1)),
    }


def samplers() -> dict[str, Sampler]:
    """On the laws' seven clients."""
    return {
        "everyone": everyone(),
        "uniform": uniform(3),
        "weighted": weighted(4),
        "poisson": poisson(0.4),
        "dropout": dropout(uniform(5), 0.3),
        "once an epoch": once_an_epoch(7, 3),
        "in flight": in_flight(4, buffer=3, latency=latency(overhead=exponential(1.0))),
        "clocked": clocked(uniform(5), latency(overhead=exponential(1.0)), keep=3, deadline=2.0),
        "edge clocked": edge_clocked(
            uniform(5),
            latency(overhead=exponential(1.0)),
            edges=[0, 1, 0, 1, 0, 1, 1],
            edge_rounds=2,
            cloud=latency(overhead=exponential(2.0)),
            deadline=3.0,
        ),
        "poisson cohorts": poisson_cohorts(7, 0.4).sampler,
        "cyclic": cyclic(3),
        "cyclic reshuffled": cyclic(3, reshuffle=True),
        "multinomial": multinomial(4),
        "importance": importance(3, [1.0, 2.0, 3.0, 1.0, 9.0, 1.0, 2.0]),
        "importance by data": importance(3),
        "stratified": stratified([0, 1, 0, 1, 0, 1, 1], 2),
        "available": available(3, np.full(7, 0.6)),
        "at least once": at_least_once(3, every=3),
        "active": active(3),
        "oort": oort(3, seconds=np.arange(1.0, 8.0), patience=3.0),
        "counted": counted(multinomial(3)),
        "lost midway": lost_midway(uniform(5), 0.3),
    }
