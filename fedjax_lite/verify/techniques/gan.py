"""FedGAN with a generator of one point and a quadratic judge, against gradients by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fedgan import discriminator_losses, fedgan
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.evaluate.generation.frechet import frechet_distance
from fedjax_lite.models.gan import Gan
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array, Params
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import whole

X = np.array([[0.5, 1.5, 2.0, 0.0], [-1.0, -2.0, 0.5, -0.5]])
START = (0.0, 0.3, 0.1)
RATES = (0.4, 0.2)
"""Of the judge, and of the generator."""


def judge(params: Params, x: Array) -> Array:
    """``a x + b - x^2 / 10``."""
    return params["a"] * x + params["b"] - 0.1 * x**2


PAIR = Gan(
    init=lambda key: {
        "generator": {"m": jnp.array(START[0])},
        "discriminator": {"a": jnp.array(START[1]), "b": jnp.array(START[2])},
    },
    generate=lambda params, z: jnp.full(len(z), params["m"]),
    judge=judge,
    latent_size=1,
)


def alone(
    x: np.ndarray, m: float, a: float, b: float, steps: int, clip: float = np.inf
) -> np.ndarray:
    """A plain GAN's `m`, `a`, `b` after steps in turns; the judge's gradients by example."""

    def sigma(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    for _ in range(steps):
        real = sigma(a * x + b - 0.1 * x**2) - 1
        fake = sigma(a * m + b - 0.1 * m**2)
        slopes = np.stack([real * x + fake * m, real + fake])
        slopes = (slopes * np.minimum(1, clip / np.linalg.norm(slopes, axis=0))).mean(1)
        a, b = a - RATES[0] * slopes[0], b - RATES[0] * slopes[1]
        m = m - RATES[1] * (sigma(a * m + b - 0.1 * m**2) - 1) * (a - 0.2 * m)
    return np.array([m, a, b])


def by_hand(num_rounds: int, share: str, clip: float = np.inf) -> np.ndarray:
    """Generators `[R]` (with judges, `[R, 3]`, where both are shared): means of plain GANs."""
    kept, path = [np.array(START)] * len(X), []
    for _ in range(num_rounds):
        kept = [alone(x, *one, 3, clip) for x, one in zip(X, kept, strict=True)]
        mean = np.mean(kept, 0)
        path.append(mean if share == "both" else mean[0])
        kept = [mean if share == "both" else np.r_[mean[0], one[1:]] for one in kept]
    return np.array(path)


def found(num_rounds: int, share: str, clip: float | None = None) -> np.ndarray:
    """The same of the library."""
    data = from_owners({"x": X.ravel()}, np.repeat(range(len(X)), X.shape[1]), len(X))
    algo = fedgan(
        PAIR, optax.sgd(RATES[1]), optax.sgd(RATES[0]), share=share, clip=clip,
        plan=whole(3), sampler=everyone(),
    )  # fmt: skip
    key = jax.random.key(0)
    state, path = algo.init(key, PAIR.init(key), data), []
    for _ in range(num_rounds):
        state, _ = algo.round(key, state, data)
        m, other = state.server.params["generator"]["m"], state.server.params.get("discriminator")
        path.append(float(m) if other is None else [float(m), float(other["a"]), float(other["b"])])
    return np.array(path)


def undecided() -> float:
    """The loss of a judge that says 1/2."""
    params = {"generator": {"m": jnp.ones(())}, "discriminator": {"a": 0.0, "b": 0.1}}
    return float(discriminator_losses(PAIR, params, jnp.ones(1), jnp.ones((1, 1)))[0])


def checks() -> list[Check]:
    """Both networks, the generator alone, clipping, an undecided judge, and a known distance."""
    return [
        Check("both networks: three rounds", by_hand(3, "both"), lambda: found(3, "both")),
        Check("generator alone: three rounds", by_hand(3, "generator"),
              lambda: found(3, "generator")),
        Check("gradients clipped example by example", by_hand(1, "both", 0.5),
              lambda: found(1, "both", 0.5)),
        Check("a judge that says 1/2", 2 * np.log(2), undecided),
        Check("Frechet distance of points 3 apart", 9.0,
              lambda: frechet_distance(X.T, X.T + [3.0, 0.0])),
    ]  # fmt: skip
