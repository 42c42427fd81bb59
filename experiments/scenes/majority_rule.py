"""Tyranny of the majority: what the mean gains, two small clients pay.

    python experiments/scenes/majority_rule.py            # about a minute on two cores
    python experiments/scenes/majority_rule.py --smoke    # seconds

Two clients of 200 and two of 40 examples fit a linear rule; that of the small ones contradicts the
large ones' in a quarter of the 20 inputs. FedAvg against training alone, then q-FedAvg and AFL,
which lean towards the worst-off, and Ditto, whose clients keep models of their own. "all examples"
weighs clients by their number of training examples, as FedAvg does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, dealt, gain, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl

NAME = "majority_rule"
CLAIM = (
    "averaging makes the mean client better and the two small ones worse than alone; methods that "
    "lean towards the worst-off, or models of the clients' own, give that back"
)
Flags = SceneFlags
SIZES, TEST, WIDTH = (200, 200, 40, 40), 1000, 20
COLUMNS = ("large 1", "large 2", "small 1", "small 2", "all examples", "worst client")


def clients(seed: int) -> tuple[fl.data.FederatedDataset, fl.data.FederatedDataset]:
    """Train and test of four clients; labels are signs, one in twenty is wrong."""
    rng = np.random.default_rng(seed)
    rule = rng.normal(size=WIDTH)
    other = np.where(np.arange(WIDTH) % 4 == 0, -rule, rule)

    def examples(number: int, weights: np.ndarray) -> dict[str, np.ndarray]:
        x = rng.normal(size=(number, WIDTH)).astype(np.float32)
        y = (x @ weights > 0) ^ (rng.random(number) < 0.05)
        return {"x": x, "y": y.astype(np.int32)}

    rules = (rule, rule, other, other)
    return (
        dealt([examples(n, w) for n, w in zip(SIZES, rules, strict=True)]),
        dealt([examples(TEST, w) for w in rules]),
    )


def measure(flags: SceneFlags) -> Found:
    """Test accuracy of every client with the model that it would use."""
    model = fl.models.linear(2, (WIDTH,))
    num_rounds = 10 if flags.smoke else 60
    sgd = optax.sgd(0.2)
    same = {"plan": fl.Plan(10, epochs=1), "sampler": fl.everyone()}
    methods = {
        "alone": fl.local_only(model.loss, sgd, **same),
        "FedAvg": fl.fedavg(model.loss, sgd, **same),
        "q-FedAvg, q = 2": fl.q_fedavg(model.loss, 0.2, q=2.0, **same),
        "AFL": fl.afl(model.loss, sgd, mixture_rate=0.1, **same),
        "Ditto": fl.ditto(model.loss, sgd, pull=0.1, **same),
    }
    if flags.smoke:
        methods = {name: methods[name] for name in ("alone", "FedAvg", "q-FedAvg, q = 2")}
    rows: dict[str, list[list[float]]] = {name: [] for name in methods}
    for seed in seeds_of(flags):
        train, test = clients(seed)
        for name, algo in methods.items():
            params = model.init(jax.random.key(seed))
            state = trained(algo, params, train, num_rounds, seed)
            each = fl.evaluate_clients(model, state, test)["accuracy"]
            whole = float(np.average(each, weights=SIZES))
            rows[name].append([*each.tolist(), whole, float(each.min())])
    found = {name: np.array(values) for name, values in rows.items()}
    return Found(COLUMNS, found, verdict(found), "test accuracy")


def verdict(found: dict[str, np.ndarray]) -> list[Part]:
    """The claim in parts, from figures `[S, columns]`."""
    mean = {name: values.mean(0) for name, values in found.items()}
    alone, shared = mean["alone"], mean["FedAvg"]
    each = {name: np.c_[values[:, :2].mean(1), values] for name, values in found.items()}
    more = [gain(each["FedAvg"][:, i], each["alone"][:, i]) for i in (0, 5)]
    less = [gain(each["alone"][:, i], each["FedAvg"][:, i]) for i in (3, 4)]
    parts = [
        Part(
            f"FedAvg helps the large ones: {shared[:2].mean():.3f}, alone {alone[:2].mean():.3f}",
            more[0].sure,
        ),
        Part(f"and examples on average: {shared[4]:.3f}, alone {alone[4]:.3f}", more[1].sure),
        Part(
            f"both small ones lose: {shared[2]:.3f} and {shared[3]:.3f}, alone {alone[2]:.3f} and "
            f"{alone[3]:.3f}",
            all(one.sure for one in less),
        ),
    ]
    for name in ("q-FedAvg, q = 2", "AFL", "Ditto"):
        if name in mean:
            lift = gain(found[name][:, 5], found["FedAvg"][:, 5])
            parts.append(
                Part(
                    f"{name} lifts the worst client by {lift.told()}, at {mean[name][4]:.3f} for "
                    f"examples on average, FedAvg {shared[4]:.3f}",
                    lift.sure,
                )
            )
    return parts


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
