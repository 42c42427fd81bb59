"""FedAvgM, FedAdagrad, FedAdam, FedYogi: the papers' server optimizers, without bias correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.round import server
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import averaging, quadratic, trajectory, whole

FEED = np.array([1.0, -0.5, 0.25])


def fed(factory: Callable[..., Any], **options: Any) -> np.ndarray:
    """Models after mean updates 1, -0.5, 0.25: one client, gradient -1, the rate is the update."""
    feed = jnp.asarray(FEED)
    algo = factory(
        lambda w, e, key: -w * e["one"],
        lambda round: optax.sgd(feed[round]),
        plan=whole(1),
        sampler=everyone(),
        **options,
    )
    data = from_owners({"one": np.ones(1)}, np.zeros(1, int), 1)
    return trajectory(algo, len(FEED), data=data)


def momentum(nesterov: bool) -> list[float]:
    """``v <- beta v + d; x <- x + v`` (or ``beta v + d``)."""
    x, v, models = 0.0, 0.0, []
    for d in FEED:
        v = 0.9 * v + d
        x += 0.9 * v + d if nesterov else v
        models.append(x)
    return models


def adaptive(
    second: Callable, *, eta: float = 0.1, b1: float = 0.9, tau: float = 1e-3, v0: float = 1e-6
) -> list[float]:
    """``m <- b1 m + (1 - b1) d; x <- x + eta m / (sqrt v + tau)``, as the paper writes it."""
    x, m, v, models = 0.0, 0.0, v0, []
    for d in FEED:
        m, v = b1 * m + (1 - b1) * d, second(v, d * d)
        x += eta * m / (np.sqrt(v) + tau)
        models.append(x)
    return models


def checks() -> list[Check]:
    """The table of the paper's rules, and what reduces to what."""
    rules: dict[str, Callable] = {
        "adagrad": lambda v, s: v + s,
        "adam": lambda v, s: 0.99 * v + 0.01 * s,
        "yogi": lambda v, s: v - 0.01 * s * np.sign(v - s),
    }
    small = {"b1": 0.9, "initial_accumulator": 0.0}
    like_adagrad = adaptive(rules["adagrad"], v0=0.0)
    plain = {"plan": whole(), "sampler": everyone(), "momentum": 0.0}
    return [
        Check("sgd(1) = plain averaging", np.cumsum(FEED), lambda: fed(fedavg)),
        Check("FedAvgM", momentum(False), lambda: fed(fedavgm)),
        Check("FedAvgM, Nesterov", momentum(True), lambda: fed(fedavgm, nesterov=True)),
        Check(
            "FedAdagrad",
            adaptive(rules["adagrad"], b1=0.0),
            lambda: fed(fedadagrad, server_learning_rate=0.1),
        ),
        Check("FedAdam", adaptive(rules["adam"]), lambda: fed(fedadam, server_learning_rate=0.1)),
        Check("FedYogi", adaptive(rules["yogi"]), lambda: fed(fedyogi, server_learning_rate=0.1)),
        Check(
            "FedAdam from v=0",
            adaptive(rules["adam"], v0=0.0),
            lambda: fed(fedavg, server_optimizer=server.adam(0.1, initial_accumulator=0.0)),
        ),
        Check(
            "FedYogi while v < d^2 = FedAdagrad",
            like_adagrad,
            lambda: fed(fedavg, server_optimizer=server.yogi(0.01, tau=1e-4, **small)),
        ),
        Check(
            "FedAvgM with beta=0 = FedAvg on Q2",
            averaging(3),
            lambda: trajectory(fedavgm(quadratic, optax.sgd(0.05), **plain), 3),
        ),
    ]
