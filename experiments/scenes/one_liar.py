"""One liar among ten: the mean follows it, the median and the trimmed mean do not.

    python experiments/scenes/one_liar.py            # a minute on two cores
    python experiments/scenes/one_liar.py --smoke    # seconds

Scikit-learn's digits, dealt at random to ten clients that train a linear classifier. One of them
turns its update around and sends it ten times as long.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "one_liar"
CLAIM = (
    "one liar in ten ruins the mean; the coordinate-wise median and the trimmed mean lose next to "
    "nothing to it, and next to nothing without it"
)
Flags = SceneFlags
LITTLE = 0.03
"""Of accuracy: what is next to nothing."""


def right_of(model: fl.models.Model, state: Any, test: dict[str, np.ndarray]) -> float:
    """The share of the test examples that the server's model names."""
    told = np.asarray(model.predict(state.server.params, test)).argmax(1)
    return float((told == test["y"]).mean())


def measure(flags: SceneFlags) -> Found:
    """Test accuracy of each rule, without the liar and with it."""
    examples, test = fl.data.load("digits")
    model = fl.models.linear(10, (8, 8, 1))
    rules = {"mean": fl.mean(), "median": fl.median(), "trimmed mean": fl.trimmed_mean(0.1)}
    num_rounds = 10 if flags.smoke else 30
    same: dict[str, Any] = {"plan": fl.Plan(20), "sampler": fl.everyone()}
    methods = {  # whoever is client 0 lies: every seed deals anew, so it is somebody else
        name: [
            fl.fedavg(model.loss, optax.sgd(0.1), aggregator=aggregator, **same)
            for aggregator in (rule, fl.byzantine(fl.sign_flip(10.0), clients=[0], inner=rule))
        ]
        for name, rule in rules.items()
    }
    rows: dict[str, list[list[float]]] = {name: [] for name in rules}
    for seed in seeds_of(flags):
        data = fl.data.partition(examples, fl.data.iid(num_clients=10, seed=seed))
        params = model.init(jax.random.key(seed))
        for name, algos in methods.items():
            states = [trained(algo, params, data, num_rounds, seed) for algo in algos]
            rows[name].append([right_of(model, state, test) for state in states])
    rows_of = {name: np.array(values) for name, values in rows.items()}
    mean = {name: values.mean(0) for name, values in rows_of.items()}
    parts = [
        Part(
            f"the mean falls from {mean['mean'][0]:.3f} to {mean['mean'][1]:.3f}",
            bool(mean["mean"][1] < mean["mean"][0] - 10 * LITTLE),
        )
    ]
    for name in ("median", "trimmed mean"):
        clean, hurt = mean[name]
        parts.append(
            Part(
                f"the {name} has {clean:.3f} without the liar, {hurt:.3f} with it",
                bool(clean > mean["mean"][0] - LITTLE and hurt > clean - LITTLE),
            )
        )
    return Found(("all honest", "one liar"), rows_of, parts, "test accuracy")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
