"""Adversarial debiasing on three numbers: an encoder, a predictor and an adversary, by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fair.debiasing import debiasing
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.models.adversarial import PARTS, adversarial
from fedjax_lite.models.model import Model
from fedjax_lite.models.reversal import ramped_strength
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import trajectory, whole

START = {"encoder": 1.0, "predictor": 0.5, "adversary": 0.25}
X = np.array([2.0, 2.0, -1.0])
OWNERS = np.array([0, 0, 1])


def half(target: float) -> Model:
    """A number `h`, whose loss is ``(h z - target)^2 / 2``."""

    def predict(h: Array, e: Any) -> Array:
        return jnp.stack([h * e["x"], jnp.zeros_like(e["x"])], axis=-1)

    return Model(
        lambda key: jnp.zeros(()), lambda h, e, key: 0.5 * (h * e["x"] - target) ** 2, predict
    )


SCALE = Model(lambda key: jnp.ones(()), lambda w, e, key: w, lambda w, e: w * e["x"])  # type: ignore[arg-type]
THREE = adversarial(SCALE, half(3.0), half(1.0))


def data() -> Any:
    """Client 0 holds two examples, client 1 one."""
    return from_owners({"x": X, "group": np.array([0, 0, 1], np.int32)}, OWNERS, 2)


def found(strength: Any, num_rounds: int = 3, steps: int = 2, **options: Any) -> np.ndarray:
    """Encoder, predictor and adversary after each round, `[R, 3]`."""
    algo = debiasing(
        THREE, optax.sgd(0.1), strength=strength, plan=whole(steps), sampler=everyone(), **options
    )
    return trajectory(
        algo, num_rounds, data=data(), start=START,
        read=lambda s: jnp.stack([s.server.params[part] for part in ("encoder", "predictor")]
                                 + [adversaries(s)]),
    )  # fmt: skip


def adversaries(state: Any) -> Array:
    """The server's adversary, or the mean of the clients' own."""
    shared = state.server.params["adversary"]
    return state.clients.leaves["adversary"].mean() if shared is None else shared


def by_hand(
    strength: Any, num_rounds: int = 3, steps: int = 2, own: bool = False, rate: float = 0.1
) -> np.ndarray:
    """The same, a numpy loop; `own`: adversaries stay with the clients."""
    w, h, a = START.values()
    kept, path = np.full(2, a), []
    for r in range(num_rounds):
        lam = strength(r) if callable(strength) else strength
        ends = []
        for i in range(2):
            x, v = X[i == OWNERS], np.array([w, h, kept[i] if own else a])
            for _ in range(steps):
                task, guess = v[1] * v[0] * x - 3, v[2] * v[0] * x - 1
                slope = [
                    (task * v[1] * x - lam * guess * v[2] * x).mean(),
                    (task * v[0] * x).mean(),
                    (guess * v[0] * x).mean(),
                ]
                v = v - [0.1, 0.1, rate] * np.array(slope)
            ends.append(v)
        w, h, a = np.array([2, 1]) @ np.array(ends) / 3
        kept = np.array(ends)[:, 2]
        path.append([w, h, kept.mean() if own else a])
    return np.array(path)


def gradients(strength: float) -> Array:
    """Of encoder and adversary at one example, x = 2."""
    params = {part: jnp.asarray(START[part]) for part in PARTS}
    examples = {"x": jnp.array([2.0]), "group": jnp.array([0])}
    grad = jax.grad(lambda p: THREE.loss(p, examples, None, strength).sum())(params)
    return jnp.stack([grad["encoder"], grad["adversary"]])


def checks() -> list[Check]:
    """Signs of the three gradients, rounds, schedules, both sides, no strength."""

    def task(params: Any, e: Any, key: Any) -> Array:
        return 0.5 * (params["predictor"] * params["encoder"] * e["x"] - 3) ** 2

    def plain() -> np.ndarray:
        algo = fedavg(task, optax.sgd(0.1), plan=whole(2), sampler=everyone())
        start = {part: START[part] for part in ("encoder", "predictor")}
        return trajectory(
            algo, 3, data=data(), start=start,
            read=lambda s: jnp.stack([s.server.params["encoder"], s.server.params["predictor"]]),
        )  # fmt: skip

    rising = ramped_strength(2.0, 3)

    def rises(r: int) -> float:
        return 2.0 * (2 / (1 + np.exp(-10 * r / 3)) - 1)

    return [
        Check("the encoder climbs the adversary's loss", [-1.5, -1.0], lambda: gradients(2.0)),
        Check("strength 0: the task alone", [-2.0, -1.0], lambda: gradients(0.0)),
        Check("three rounds", by_hand(0.5), lambda: found(0.5)),
        Check("a strength that rises", by_hand(rises), lambda: found(rising)),
        Check(
            "adversaries of the clients' own",
            by_hand(0.5, own=True),
            lambda: found(0.5, adversary="client"),
        ),
        Check(
            "an adversary of another rate",
            by_hand(0.5, rate=0.02),
            lambda: found(0.5, adversary_optimizer=optax.sgd(0.02)),
        ),
        Check("strength 0 = FedAvg", np.zeros((3, 2)), lambda: found(0.0)[:, :2] - plain()),
    ]
