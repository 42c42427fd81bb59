"""Everything that must pass the laws, each with tiny arguments: one line an entry."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.aggregation import mean
from fedjax_lite.algorithms import fedadagrad, fedadam, fedavg, fedavgm, fedsgd, fedyogi
from fedjax_lite.engine import Plan
from fedjax_lite.sampling import dropout, everyone, poisson, uniform, weighted
from fedjax_lite.server import optimizer_server
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.transforms import chain, clip, identity
from fedjax_lite.types import Aggregator, FederatedAlgorithm, Sampler, Transform

PLAN = Plan(batch_size=2, epochs=2)


def _made(factory, *, client=optax.sgd, plan: Plan = PLAN, **options) -> Make:
    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        return factory(
            loss, client(learning_rate), plan=plan, sampler=sampler, strategy=strategy, **options
        )

    return make


def _fedsgd(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return fedsgd(loss, optax.sgd(learning_rate), sampler=sampler, strategy=strategy)


def _scheduled(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    return fedavg(
        loss,
        lambda round: optax.sgd(learning_rate * 0.9**round),
        plan=PLAN,
        sampler=sampler,
        strategy=strategy,
    )


ALGORITHMS: dict[str, Make] = {
    "fedsgd": _fedsgd,
    "fedavg": _made(fedavg),
    "fedavg full batch": _made(fedavg, plan=Plan(batch_size=None, steps=2)),
    "fedavg uniform": _made(fedavg, weighting="uniform"),
    "fedavg clipped": _made(fedavg, uplink=clip(0.5)),
    "fedavg momentum clients": _made(fedavg, client=partial(optax.sgd, momentum=0.9)),
    "fedavg adam clients": _made(fedavg, client=optax.adam),
    "fedavg variable work": _made(
        fedavg, plan=Plan(batch_size=2, steps=jnp.array([1, 4, 2, 3, 0, 5, 1]))
    ),
    "fedavg stragglers": _made(
        fedavg,
        plan=Plan(batch_size=2, epochs=lambda key, client: jax.random.randint(key, (), 0, 4)),
    ),
    "fedavg schedule": _scheduled,
    "fedavg optax yogi server": _made(fedavg, server_optimizer=optax.yogi(0.1)),
    "fedavgm": _made(fedavgm),
    "fedadagrad": _made(fedadagrad, server_learning_rate=0.1),
    "fedadam": _made(fedadam, server_learning_rate=0.1),
    "fedyogi": _made(fedyogi, server_learning_rate=0.1),
}

AGGREGATORS: dict[str, Aggregator] = {"mean": mean()}

TRANSFORMS: dict[str, Transform] = {
    "identity": identity(),
    "clip": clip(1.0),
    "clip wide": clip(jnp.inf),
    "chain": chain(clip(2.0), identity(), clip(1.0)),
}

SAMPLERS: dict[str, Sampler] = {
    "everyone": everyone(),
    "uniform": uniform(3),
    "weighted": weighted(4),
    "poisson": poisson(0.4),
    "dropout": dropout(uniform(5), 0.3),
}

SERVERS = {"sgd": optimizer_server(optax.sgd(1.0))}
