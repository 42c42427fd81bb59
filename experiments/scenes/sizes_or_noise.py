"""What shall a client weigh by: by how many examples it has, or by how noisy they are?

    python experiments/scenes/sizes_or_noise.py            # a minute on two cores
    python experiments/scenes/sizes_or_noise.py --smoke    # seconds

Eight clients measure one linear law of ten inputs. The large ones have bad instruments: 400
examples with noise of standard deviation 3, the small ones 50 examples with 0.1. The best weights
are n / variance; clients measure the variance of their residuals before they train.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, dealt, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "sizes_or_noise"
CLAIM = (
    "weights by inverse noise beat weights by sample size where large clients are noisy, and cost "
    "nothing where all are alike"
)
Flags = SceneFlags
WIDTH, FLOOR = 10, 1e-3


def residual(w: jax.Array, e: dict[str, jax.Array], key: Any) -> jax.Array:
    """What the law does not explain, `[B]`."""
    return e["y"] - e["x"] @ w


def loss(w: jax.Array, e: dict[str, jax.Array], key: Any) -> jax.Array:
    """Half its square."""
    return 0.5 * residual(w, e, key) ** 2


def clients(seed: int, noises: tuple[float, float]) -> tuple[Any, np.ndarray]:
    """Four large and four small clients, whose noise is as given; and the law."""
    rng = np.random.default_rng(seed)
    law = rng.normal(size=WIDTH).astype(np.float32)
    arrays = []
    for number, noise in zip((400,) * 4 + (50,) * 4, np.repeat(noises, 4), strict=True):
        x = rng.normal(size=(number, WIDTH)).astype(np.float32)
        y = x @ law + noise * rng.normal(size=number)
        arrays.append({"x": x, "y": y.astype(np.float32)})
    return dealt(arrays), law


def measure(flags: SceneFlags) -> Found:
    """Distance of the model to the law."""
    same: dict[str, Any] = {"plan": fl.Plan(None, steps=5), "sampler": fl.everyone()}
    sgd = optax.sgd(0.2)
    methods = {
        "by sample size": fl.fedavg(loss, sgd, weighting="examples", **same),
        "all alike": fl.fedavg(loss, sgd, weighting="uniform", **same),
        "by inverse noise": fl.precision_weighted(loss, sgd, floor=FLOOR, measure=residual, **same),
    }
    rows: dict[str, list[list[float]]] = {name: [] for name in methods}
    for seed in seeds_of(flags):
        worlds = [clients(seed, noises) for noises in ((3.0, 0.1), (1.0, 1.0))]
        for name, algo in methods.items():
            found = []
            for data, law in worlds:
                state = trained(algo, jnp.zeros(WIDTH), data, 10 if flags.smoke else 30, seed)
                found.append(float(np.linalg.norm(np.asarray(state.server.params) - law)))
            rows[name].append(found)
    each = {name: np.array(values) for name, values in rows.items()}
    mean = {name: values.mean(0) for name, values in each.items()}
    size, noise = mean["by sample size"], mean["by inverse noise"]
    parts = [
        Part(
            f"large clients noisy: {noise[0]:.3f} from the law, by sample size {size[0]:.3f}",
            bool(noise[0] < size[0]),
        ),
        Part(
            f"all alike: {noise[1]:.3f}, by sample size {size[1]:.3f} (at most a tenth more)",
            bool(noise[1] < 1.1 * size[1]),
        ),
    ]
    return Found(("large ones noisy", "same noise"), each, parts, "distance to the law")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
