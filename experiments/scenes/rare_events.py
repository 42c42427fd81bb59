"""Rare events: one example in 200 is a case; what does the focal loss find?

    python experiments/scenes/rare_events.py            # a minute on two cores
    python experiments/scenes/rare_events.py --smoke    # seconds

Ten clients of 1,000 examples, of which about five are cases, shifted by one standard deviation in
each of eight inputs, under a linear classifier. Cross-entropy, the focal loss (gamma 2), and either
with classes weighed by their inverse frequency; recall and precision where the model says "case",
and the area under the ROC curve, which no threshold and no weight of the constant can move.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, dealt, gain, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "rare_events"
CLAIM = "at 1 case in 200 the focal loss finds more cases than cross-entropy, and ranks them better"
Flags = SceneFlags
WIDTH, RARE, SHIFT = 8, 200, 1.0


def examples(rng: np.random.Generator, number: int) -> dict[str, np.ndarray]:
    """One in 200 is a case."""
    y = (rng.random(number) < 1 / RARE).astype(np.int32)
    x = rng.normal(size=(number, WIDTH)) + SHIFT * y[:, None]
    return {"x": x.astype(np.float32), "y": y}


def scores(logits: np.ndarray, y: np.ndarray) -> list[float]:
    """Recall and precision of cases, and the area under the ROC curve by ranks."""
    told = logits[:, 1] > logits[:, 0]
    ranks = np.argsort(np.argsort(logits[:, 1] - logits[:, 0])) + 1
    cases = int(y.sum())
    area = (ranks[y == 1].sum() - cases * (cases + 1) / 2) / (cases * (len(y) - cases))
    precision = (told & (y == 1)).sum() / max(told.sum(), 1)
    return [float(told[y == 1].mean()), float(precision), float(area)]


def measure(flags: SceneFlags) -> Found:
    """Four losses on the same clients."""
    even = jnp.array([1.0, RARE - 1.0]) / 2
    losses: dict[str, Any] = {
        "cross-entropy": functools.partial(fl.models.focal_loss, gamma=0.0),
        "focal": fl.models.focal_loss,
        "weighed": functools.partial(fl.models.focal_loss, gamma=0.0, alpha=even),
        "focal, weighed": functools.partial(fl.models.focal_loss, alpha=even),
    }
    rows: dict[str, list[list[float]]] = {name: [] for name in losses}
    for seed in seeds_of(flags):
        rng = np.random.default_rng(seed)
        train = dealt([examples(rng, 1000) for _ in range(10)])
        test = examples(rng, 40_000)
        for name, loss in losses.items():
            model = fl.models.from_functions(
                lambda key: {"w": jnp.zeros((WIDTH, 2)), "b": jnp.zeros(2)},
                lambda params, x, key: x @ params["w"] + params["b"],
                loss=loss,
            )
            algo = fl.fedavg(model.loss, optax.adam(0.02), plan=fl.Plan(100), sampler=fl.everyone())
            params = model.init(jax.random.key(seed))
            state = trained(algo, params, train, 5 if flags.smoke else 30, seed)
            logits = np.asarray(model.predict(state.server.params, test))
            rows[name].append(scores(logits, test["y"]))
    each = {name: np.array(values) for name, values in rows.items()}
    plain, focal = each["cross-entropy"].mean(0), each["focal"].mean(0)
    weighed = each["weighed"].mean(0)
    more = [gain(each["focal"][:, i], each["cross-entropy"][:, i]) for i in (0, 2)]
    parts = [
        Part(
            f"recall {focal[0]:.3f}, with cross-entropy {plain[0]:.3f} ({more[0].told()}); "
            f"weighing the classes alone gives {weighed[0]:.3f} at a precision of {weighed[1]:.3f}",
            more[0].sure,
        ),
        Part(
            f"area under the curve {focal[2]:.4f}, with cross-entropy {plain[2]:.4f} "
            f"({more[1].told(digits=4)})",
            more[1].sure,
        ),
    ]
    return Found(("recall", "precision", "area under ROC"), each, parts, "of cases")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
