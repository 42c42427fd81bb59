"""Models of the clients' own: steps by hand, and where they end on quadratics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.personal.apfl import apfl
from fedjax_lite.algorithms.personal.ditto import ditto
from fedjax_lite.algorithms.personal.fedper import fedper
from fedjax_lite.algorithms.personal.fedrep import fedrep
from fedjax_lite.algorithms.personal.pfedme import pfedme
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.round.own_models import models_of
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    ROUNDS,
    UNIFORM,
    A,
    B,
    averaging,
    fixed,
    quadratic,
    shrink,
    trajectory,
    whole,
)

C = np.array([2.0, 4.0])
PULL = 15.0


def on_q2(factory: Any, steps: int = 1, *, rate: float = ETA, **options: Any) -> Any:
    """A method on Q2 with everyone."""
    options = {"plan": whole(steps), "sampler": everyone(), **options}
    return factory(quadratic, optax.sgd(rate), **options)


def product(params: dict[str, Array], examples: dict[str, Array], key: Any) -> Array:
    """``(body head - c)^2 / 2``."""
    return 0.5 * (params["body"] * params["head"] - examples["c"]) ** 2


def halves(factory: Any, **options: Any) -> np.ndarray:
    """The clients' heads and the server's body after a round from head 0 and body 1."""
    options = {"plan": whole(1), "sampler": everyone(), "weighting": "uniform", **options}
    algo = factory(product, optax.sgd(0.1), **options)
    found = trajectory(
        algo,
        1,
        data=from_owners({"c": C}, np.arange(2), 2),
        start={"body": 1.0, "head": 0.0},
        read=lambda state: jnp.append(models_of(state)["head"], state.server.params["body"]),
    )
    return found[0]


def proximal(w: np.ndarray) -> np.ndarray:
    """PFedMe's exact points on Q2."""
    return (A * B + PULL * w) / (A + PULL)


def checks() -> list[Check]:
    """Known steps of Ditto, APFL, pFedMe, FedRep and FedPer, and their fixed points."""
    exact: dict[str, Any] = {"rate": 1 / (4 + PULL), "inner_steps": 80, "pull": PULL}
    w = np.zeros(2)
    for _ in range(5):
        w = w - 0.005 * PULL * (w - proximal(w))
    end = fixed(shrink(3))
    halfway = 1 - (1 - 0.05 * PULL * A / (A + PULL)) ** 5
    heads = 0.1 * C  # one step from head 0 under body 1; then bodies 1 - .1 h (h - c)
    return [
        Check(
            "Ditto, pull=1: own models after three steps",
            [-0.1355, 0.925],
            lambda: trajectory(on_q2(ditto, 3, pull=1.0), 1, read=models_of)[0],
        ),
        Check(
            "Ditto, pull=1: own models in the end",
            (A * B + end) / (A + 1),
            lambda: trajectory(on_q2(ditto, 3, pull=1.0), 2 * ROUNDS, read=models_of)[-1],
        ),
        Check(
            "Ditto: the global model = FedAvg",
            averaging(3),
            lambda: trajectory(on_q2(ditto, 5, pull=1.0), 3),
            1e-14,
        ),
        Check(
            "APFL, mixing .5: own part after a step",
            ETA * 0.5 * A * B,
            lambda: trajectory(on_q2(apfl), 1, read=lambda state: state.clients.own)[0],
        ),
        Check(
            "APFL, unscaled: own part after a step",
            ETA * A * B,
            lambda: trajectory(
                on_q2(apfl, variant="unscaled"), 1, read=lambda state: state.clients.own
            )[0],
        ),
        Check(
            "pFedMe: round 1, exact points",
            UNIFORM @ w,
            lambda: trajectory(on_q2(pfedme, 5, learning_rate=0.005, **exact), 1)[0],
        ),
        Check(
            "pFedMe: fixed point",
            fixed(halfway, UNIFORM),
            lambda: trajectory(on_q2(pfedme, 5, learning_rate=0.05, **exact), ROUNDS)[-1],
        ),
        Check(
            "FedRep: heads, then the body",
            [*heads, (1 - 0.1 * heads * (heads - C)).mean()],
            lambda: halves(fedrep),
        ),
        Check("FedPer: both at once", [*heads, 1.0], lambda: halves(fedper)),
    ]
