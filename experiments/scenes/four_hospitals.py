"""Four hospitals: trained together against each alone, on real patients.

    python experiments/scenes/four_hospitals.py            # seconds on two cores
    python experiments/scenes/four_hospitals.py --smoke

Heart disease in Cleveland, Hungary, Switzerland and Long Beach (740 patients, the split of FLamby),
logistic regression, 100 local steps of 4 patients in each of 15 rounds; each alone does as many
steps. A gain is the accuracy together over that alone, less one. The held-out patients are the same
for every seed, so deviations are those of training alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, gain, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "four_hospitals"
CLAIM = "four hospitals that train together are 15 to 20 % more accurate than each alone"
Flags = SceneFlags
CLAIMED = (0.15, 0.20)
NAMES = ("Cleveland", "Hungary", "Switzerland", "Long Beach")


def hospitals(flags: SceneFlags, which: Any = range(4)) -> tuple[Any, Any]:
    """Train and test populations of some of the four, in that order."""
    found = []
    for part in fl.data.load("heart_disease", data_dir=flags.data_dir):
        rows = np.concatenate([np.flatnonzero(part["hospital"] == h) for h in which])
        arrays = {"x": part["x"][rows], "y": part["y"][rows].astype(np.int32)}
        owners = np.searchsorted(np.asarray(which), part["hospital"][rows])
        found.append(fl.data.from_arrays(arrays, owners, num_clients=len(which)))
    return found[0], found[1]


def alone_and_together(flags: SceneFlags, train: Any, test: Any) -> dict[str, np.ndarray]:
    """Test accuracies `[S, N]` of every client: alone, FedAvg, and FedAvg with own last steps."""
    model = fl.models.linear(2, (13,))
    num_rounds = 2 if flags.smoke else 15
    same: dict[str, Any] = {"plan": fl.Plan(4, steps=100), "sampler": fl.everyone()}
    sgd = optax.sgd(0.01)
    methods = {
        "alone": fl.local_only(model.loss, sgd, **same),
        "FedAvg": fl.fedavg(model.loss, sgd, weighting="examples", **same),
    }
    rows: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for seed in seeds_of(flags):
        for name, algo in methods.items():
            state = trained(algo, model.init(jax.random.key(seed)), train, num_rounds, seed)
            rows[name].append(fl.evaluate_clients(model, state, test)["accuracy"])
    return {name: np.array(values) for name, values in rows.items()}


def measure(flags: SceneFlags) -> Found:
    """Accuracy in each hospital, their plain mean, and the gain."""
    train, test = hospitals(flags)
    rows = alone_and_together(flags, train, test)
    rows = {name: np.c_[each, each.mean(1)] for name, each in rows.items()}
    alone, shared = rows["alone"].mean(0), rows["FedAvg"].mean(0)
    most = 100 * (shared[-1] / alone[-1] - 1)
    gains = [gain(rows["FedAvg"][:, i], rows["alone"][:, i]) for i in range(5)]
    told = [f"{name} {one.told(100, 1)}" for name, one in zip(NAMES, gains, strict=False)]
    parts = [
        Part(f"the mean of the four changes by {most:+.1f} %", gains[-1].sure),
        Part(f"by +15 to +20 %: {most:+.1f} %", bool(CLAIMED[0] <= most / 100 <= CLAIMED[1])),
        Part(f"every hospital gains: {', '.join(told)} points", all(one.sure for one in gains)),
    ]
    return Found((*NAMES, "mean of four"), rows, parts, "held-out accuracy")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
