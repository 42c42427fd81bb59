"""Two laboratories with a few hundred rows each: is it worth to join?

    python experiments/scenes/two_laboratories.py            # seconds on two cores
    python experiments/scenes/two_laboratories.py --smoke

Real rows: the heart patients of Cleveland and of Hungary, about 200 to train on in each, as in
`four_hospitals.py`; and then the same two with 20 rows each, others for every seed. The held-out
patients are the same for every seed, so deviations leave out that they are few.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from four_hospitals import alone_and_together, hospitals
from shared.scene import Found, Part, SceneFlags, gain, seeds_of, tell
from shared.script import script

import fedjax_lite as fl

NAME = "two_laboratories"
CLAIM = "two laboratories with a few hundred rows each gain by training together, both of them"
Flags = SceneFlags
FEW = 20


def some(data: Any, number: int, seed: int) -> fl.data.FederatedDataset:
    """A population of which every client holds so many rows, drawn at random."""
    rng, offsets = np.random.default_rng(seed), np.asarray(data.offsets)
    order = np.arange(offsets[-1]) if data.order is None else np.asarray(data.order)
    rows = np.concatenate(
        [rng.permutation(order[a:b])[:number] for a, b in itertools.pairwise(offsets)]
    )
    arrays = {name: np.asarray(leaf)[rows] for name, leaf in data.examples.items()}
    return fl.data.from_arrays(arrays, np.repeat(np.arange(data.num_clients), number))


def measure(flags: SceneFlags) -> Found:
    """Accuracy in both, with all rows and with few."""
    train, test = hospitals(flags, (0, 1))
    whole = alone_and_together(flags, train, test)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in whole}
    for seed in seeds_of(flags):  # other rows for every seed
        one = dataclasses.replace(flags, num_seeds=1)
        few = alone_and_together(one, some(train, FEW, seed), test)
        for name in rows:
            rows[name].append(few[name][0])
    found = {name: np.c_[whole[name], np.array(rows[name])] for name in whole}
    alone, shared = found["alone"], found["FedAvg"]
    gains = {
        "Cleveland with all rows": gain(shared[:, 0], alone[:, 0]),
        "Hungary with all rows": gain(shared[:, 1], alone[:, 1]),
        f"with {FEW} rows each the mean": gain(shared[:, 2:].mean(1), alone[:, 2:].mean(1)),
    }
    parts = [Part(f"{who} gains {g.told(100, 1)} points", g.sure) for who, g in gains.items()]
    names = ("Cleveland", "Hungary")
    columns = (*names, *(f"{name}, {FEW} rows" for name in names))
    return Found(columns, found, parts, "accuracy")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
