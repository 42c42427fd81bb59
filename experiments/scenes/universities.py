"""Universities that leave the sensitive attribute out: is the model fair then?

    python experiments/scenes/universities.py            # a minute on two cores
    python experiments/scenes/universities.py --smoke    # seconds

Six universities of 500 applicants. Merit is the same in both groups, but past decisions held 0.8
standard deviations against one of them, and two of ten inputs tell the group without naming it.
The model never sees the group. Half of the universities do not even record it: their applicants
train encoder and predictor, not the adversary. Parity gap: the difference of the groups' shares of
positive answers, on 20,000 other applicants; accuracy against past decisions, and against merit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, dealt, gain, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "universities"
CLAIM = (
    "a model that is not shown the group still treats groups differently; adversarial debiasing "
    "halves the gap at a loss of at most five points of accuracy"
)
Flags = SceneFlags
WIDTH, AGAINST = 10, 0.8


def applicants(rng: np.random.Generator, number: int, recorded: bool = True) -> dict[str, Any]:
    """Inputs, past decisions, merit, and the group, -1 where nobody wrote it down."""
    group = rng.integers(2, size=number)
    x = rng.normal(size=(number, WIDTH))
    merit = x[:, 2:6].sum(1) / 2
    x[:, :2] += 1.5 * (2 * group[:, None] - 1)
    decided = merit - AGAINST * group + 0.3 * rng.normal(size=number) > 0
    known = group if recorded else np.full(number, -1)
    return {
        "x": x.astype(np.float32),
        "y": decided.astype(np.int32),
        "merit": (merit > 0).astype(np.int32),
        "group": known.astype(np.int32),
    }


def measure(flags: SceneFlags) -> Found:
    """Without an adversary, and with it at two strengths."""
    parts = fl.models.adversarial(
        fl.models.linear(4, (WIDTH,), init="lecun"),
        fl.models.linear(2, (4,), init="lecun"),
        fl.models.mlp((16,), num_classes=2, input_shape=(4,)),
    )
    num_rounds = 15 if flags.smoke else 60
    same: dict[str, Any] = {"plan": fl.Plan(50), "sampler": fl.everyone()}
    methods = {
        f"strength {strength:g}": fl.debiasing(
            parts, optax.sgd(0.1), adversary_optimizer=optax.sgd(0.3),
            strength=fl.models.ramped_strength(strength, num_rounds), **same,
        )
        for strength in ((0.0, 1.0) if flags.smoke else (0.0, 0.3, 1.0, 3.0, 10.0))
    }  # fmt: skip
    rows: dict[str, list[list[float]]] = {name: [] for name in methods}
    for seed in seeds_of(flags):
        rng = np.random.default_rng(seed)
        train = dealt([applicants(rng, 500, recorded=i % 2 == 0) for i in range(6)])
        test = applicants(rng, 20_000)
        for name, algo in methods.items():
            params = parts.init(jax.random.key(seed))
            state = trained(algo, params, train, num_rounds, seed)
            told = np.asarray(parts.model.predict(state.server.params, test)).argmax(1)
            on_device = jax.tree.map(jax.numpy.asarray, test)
            hits, _ = parts.hits(state.server.params, on_device)
            share = [float(told[test["group"] == g].mean()) for g in (0, 1)]
            right = [float((told == test[name]).mean()) for name in ("y", "merit")]
            rows[name].append([abs(share[0] - share[1]), *right, float(hits.mean())])
    each = {name: np.array(values) for name, values in rows.items()}
    strongest = list(each)[-1]
    plain, fair = each["strength 0"].mean(0), each[strongest].mean(0)
    less = gain(each["strength 0"][:, 0], each[strongest][:, 0])
    verdicts = [
        Part(f"without the attribute the parity gap is {plain[0]:.3f}", bool(plain[0] > 0.05)),
        Part(
            f"at {strongest} it is {fair[0]:.3f} ({less.told()} less), half or less",
            bool(less.sure and fair[0] <= plain[0] / 2),
        ),
        Part(
            f"accuracy then is {fair[1]:.3f}, before {plain[1]:.3f}; against merit {fair[2]:.3f}, "
            f"before {plain[2]:.3f}",
            bool(fair[1] >= plain[1] - 0.05),
        ),
    ]
    columns = ("parity gap", "past decisions", "merit", "adversary right")
    return Found(columns, each, verdicts, "gap, accuracies")


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
