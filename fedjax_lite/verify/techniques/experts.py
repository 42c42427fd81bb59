"""Mixtures of experts on the quadratics of IFCA: gates, and what they reduce to, by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.clusters.mixture_of_experts import mixture_of_experts
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.models.gated import gated_experts
from fedjax_lite.models.model import Model
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.techniques.clusters import OPTIMA, SIZES
from fedjax_lite.verify.techniques.clusters import by_hand as by_clusters
from fedjax_lite.verify.testbeds import trajectory, whole

SIDE = np.array([0, 0, 1, 1])


def square(outputs: Array, y: Array) -> Array:
    """Half the squared error."""
    return 0.5 * (outputs[:, 0] - y) ** 2


EXPERT = Model(lambda key: 0.0, None, lambda w, e: jnp.broadcast_to(w, (len(e["y"]), 1)))  # type: ignore[arg-type]
ROUTER = Model(lambda key: 0.0, None, lambda r, e: r + e["gate"])  # type: ignore[arg-type]
"""Logits `[K]` of the client's own, on top of what its examples say."""


def found(
    experts: Any, router: Any, num_rounds: int, rate: float, *, steps: int = 1, gate: float = 0.0,
    routing: Any = "soft", router_rate: float = 0.0,
) -> Any:  # fmt: skip
    """Experts and routers, `[R, K + 4 K]`; examples of client `i` prefer expert ``SIDE[i]``."""
    experts = np.asarray(experts, float)
    model = gated_experts(EXPERT, ROUTER, len(experts), routing=routing, loss=square)
    owners = np.repeat(np.arange(4), SIZES)
    prefer = gate * (SIDE[owners][:, None] == np.arange(len(experts)))
    algo = mixture_of_experts(
        model.loss, optax.sgd(rate), router_optimizer=optax.sgd(router_rate), plan=whole(steps),
        sampler=everyone(),
    )  # fmt: skip
    return trajectory(
        algo, num_rounds, data=from_owners({"y": OPTIMA[owners], "gate": prefer}, owners, 4),
        start={"experts": experts, "router": np.asarray(router, float)},
        read=lambda state: jnp.concatenate(
            [state.server.params["experts"], state.clients.leaves["router"].ravel()]
        ),
    )  # fmt: skip


def by_hand(experts: Any, router: Any, num_rounds: int, rate: float, router_rate: float) -> Any:
    """One step a round of soft routing, a numpy loop over clients."""
    x, path = np.array(experts, float), []
    r = np.tile(np.array(router, float), (4, 1))
    for _ in range(num_rounds):
        ends = np.empty((4, len(x)))
        for i, b in enumerate(OPTIMA):
            g = np.exp(r[i]) / np.exp(r[i]).sum()
            error = g @ x - b
            ends[i] = x - rate * error * g
            r[i] = r[i] - router_rate * error * g * (x - g @ x)
        x = SIZES @ ends / SIZES.sum()
        path.append([*x, *r.ravel()])
    return np.array(path)


def checks() -> list[Check]:
    """Gates by softmax and by choice, routers that learn, and the reductions."""
    two, uniform, owners = (-4.9, 5.1), (0.0, 0.0), np.repeat(np.arange(4), SIZES)
    of_one = fedavg(
        lambda w, e, key: 0.5 * (w - e["y"]) ** 2, optax.sgd(0.1), plan=whole(3), sampler=everyone()
    )

    def plain() -> Any:
        data = from_owners({"y": OPTIMA[owners]}, owners, 4)
        return trajectory(of_one, 3, data=data, start=0.5)

    def output(routing: Any) -> Any:
        model = gated_experts(EXPERT, ROUTER, 2, routing=routing, loss=square)
        params = {"experts": jnp.array(two), "router": jnp.log(jnp.array([2.0, 1.0]))}
        return model.predict(params, {"y": jnp.zeros(1), "gate": jnp.zeros((1, 2))})[0, 0]

    def slope() -> Any:
        """Of the top-1 router: that of soft gates, for the output of the choice."""
        model = gated_experts(EXPERT, ROUTER, 2, routing="top-1", loss=square)
        params = {"experts": jnp.array(two), "router": jnp.log(jnp.array([2.0, 1.0]))}
        examples = {"y": jnp.zeros(1), "gate": jnp.zeros((1, 2))}
        grad = jax.grad(lambda p: model.loss(p, examples, None).sum())(params)
        return jnp.concatenate([grad["experts"], grad["router"]])

    mean = -4.9 * 2 / 3 + 5.1 / 3
    tilt = [-4.9 * 2 / 3 * (-4.9 - mean), -4.9 / 3 * (5.1 - mean)]
    top = by_clusters((-1.0, 1.0), 4, 0.3, averaging="gradient")[:, :2]
    return [
        Check("gates 2/3 and 1/3", mean, lambda: output("soft")),
        Check("the top expert alone", -4.9, lambda: output("top-1")),
        Check("gradients of the top expert and its router", [-4.9, 0.0, *tilt], slope),
        Check(
            "routers learn, experts are averaged",
            by_hand((-1.0, 2.0), (0.3, 0.0), 3, 0.2, 0.05),
            lambda: found((-1.0, 2.0), (0.3, 0.0), 3, 0.2, router_rate=0.05),
        ),
        Check(
            "one expert = FedAvg",
            np.zeros(3),
            lambda: found((0.5,), (0.0,), 3, 0.1, steps=3, router_rate=1.0)[:, 0] - plain(),
        ),
        Check(
            "uniform gates at rest, equal experts: FedAvg at half the rate",
            np.zeros((3, 2)),
            lambda: found((0.5, 0.5), uniform, 3, 0.2, steps=3)[:, :2] - plain()[:, None],
        ),
        Check(
            "one expert a client = IFCA by gradients",
            top,
            lambda: found((-1.0, 1.0), uniform, 4, 0.3, gate=1.0, routing="top-1")[:, :2],
        ),
    ]
