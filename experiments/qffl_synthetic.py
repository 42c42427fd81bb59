"""q-FedAvg on q-FFL's synthetic devices: mean, worst and best tenth, variance, as published.

    python experiments/qffl_synthetic.py                   # as published, six CPU minutes
    python experiments/qffl_synthetic.py --preset short    # a tenth of the rounds, a minute
    python experiments/qffl_synthetic.py --smoke           # seconds

Li, Sanjabi, Beirami, Smith 2020 (arXiv:1905.10497) and their code: synthetic(1, 1) of 100 devices,
softmax regression, 80 % of a device's examples to train on, 10 % to validate, 10 % to test. In each
of 20,000 rounds 10 devices, drawn in proportion to their examples, do one epoch of batches of 10 at
rate 0.1, and count alike; q is 0 (FedAvg) or 1. The average is over all test examples, the other
figures are over the devices, each of which counts once; all are of the last model.

Their generator sets no seed, and sizes of log-deviation 2 give three times their 12,697 examples;
1 fits. Here each seed draws its own data, split, start, cohorts and batches; `--one-draw` splits
one draw of data anew, as they do. All seeds are one vmapped program. Prints the table beside the
published one and writes results.json.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

PRESETS = {"published": (20_000, 5), "short": (2_000, 5), "smoke": (20, 2)}
"""Rounds and seeds."""
QS = (0.0, 1.0)
FIGURES = ("average", "devices", "worst", "best", "variance")
NUM_FEATURES, NUM_CLASSES, COHORT_SIZE, BATCH_SIZE = 60, 10, 10, 10


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Devices and their examples."""

    num_clients: int = 100
    """Clients, that is devices, of which ten take part in a round."""
    size_deviation: float = 1.0
    """Deviation of the logarithm of a device's examples; 2 in the published generator."""
    one_draw: bool = False
    """Seeds share one draw of data, split anew by each."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Training, where it is to differ from the preset's."""

    num_rounds: int = 0
    """Rounds; 0 for the preset's."""
    learning_rate: float = 0.1
    """Rate of the devices' steps."""
    sampler: Literal["weighted", "uniform"] = "weighted"
    """How devices are drawn: in proportion to their examples, or all alike."""
    start: Literal["glorot", "zeros"] = "glorot"
    """Weights that training starts from; theirs are Glorot's."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds, and where results go."""

    preset: Literal["published", "short", "smoke"] = "published"
    """How many rounds and seeds."""
    num_seeds: int = 0
    """Seeds, 0, 1 and so on; 0 for the preset's number."""
    output_dir: Path = Path("outputs/qffl_synthetic")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """As `--preset smoke`: seconds."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Devices, training, files."""


class Runs(NamedTuple):
    """Every seed's data side by side, leaves `[S, ...]`."""

    train: fl.data.FederatedDataset
    held_out: dict[str, dict[str, jax.Array]]
    """Validation and test examples with their device; padding has none."""


def main(flags: Flags) -> dict[str, Any]:
    """Trains all seeds with either q, prints and writes the figures."""
    num_rounds, num_seeds = PRESETS[chosen_preset(flags)]
    num_rounds, num_seeds = flags.num_rounds or num_rounds, flags.num_seeds or num_seeds
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    began = time.perf_counter()
    runs = load(flags, num_seeds)
    rows = []
    # A tenth of the rounds, too: a public log of the authors' code ends there.
    rounds = sorted({max(1, num_rounds // 10), num_rounds})
    for q in QS:
        for at, found in trained(q, runs, flags, rounds):
            for name, values in found.items():
                row = {"q": q, "round": at, "split": name}
                rows.append(row | {k: v.round(4).tolist() for k, v in values.items()})
                print(line(rows[-1]), flush=True)
    sizes = np.asarray(runs.train.sizes)
    results = {
        "rows": rows,
        "settings": {
            "preset": chosen_preset(flags), "num_rounds": num_rounds, "num_seeds": num_seeds,
            **{k: getattr(flags, k) for k in ("num_clients", "size_deviation", "one_draw",
                                              "learning_rate", "sampler", "start")},
        },
        "train_examples": sizes.sum(1).tolist(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }  # fmt: skip
    tell(rows, num_rounds)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    return results


def split(flags: Flags, seed: int) -> list[dict[str, np.ndarray]]:
    """One seed's examples to train on, to validate and to test, device by device."""
    parts = fl.data.load(
        "synthetic", alpha=1.0, beta=1.0, num_clients=flags.num_clients,
        seed=0 if flags.one_draw else seed, size_deviation=flags.size_deviation,
    )  # fmt: skip
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rng = np.random.default_rng(seed)
    chosen: tuple[list[np.ndarray], ...] = ([], [], [])
    for client in range(flags.num_clients):
        rows = rng.permutation(np.flatnonzero(drawn["client"] == client))
        cuts = int(0.8 * len(rows)), int(0.9 * len(rows))
        for part, mine in zip(chosen, np.split(rows, cuts), strict=True):
            part.append(mine)
    return [{k: v[np.concatenate(part)] for k, v in drawn.items()} for part in chosen]


def load(flags: Flags, num_seeds: int) -> Runs:
    """All seeds; their arrays are padded to one length, which no device owns."""
    seeds = [split(flags, seed) for seed in range(num_seeds)]

    def stacked(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        most = max(len(part["y"]) for part in parts)

        def padded(part: dict[str, np.ndarray], name: str) -> np.ndarray:
            rest = ((0, most - len(part[name])),) + ((0, 0),) * (part[name].ndim - 1)
            return np.pad(part[name], rest, constant_values=-1 if name == "client" else 0)

        return {
            name: jnp.stack([jnp.asarray(padded(part, name)) for part in parts])
            for name in parts[0]
        }

    sizes = np.stack(
        [np.bincount(part["client"], minlength=flags.num_clients) for part, *_ in seeds]
    )
    offsets = np.concatenate([np.zeros((num_seeds, 1), int), sizes.cumsum(1)], axis=1)
    examples = stacked([train for train, *_ in seeds])
    train = fl.data.FederatedDataset(
        {name: examples[name] for name in ("x", "y")},
        jnp.asarray(offsets.astype(np.int32)),
        None,
        int(sizes.max()),
    )
    _, validation, test = (stacked([seed[part] for seed in seeds]) for part in range(3))
    return Runs(train, {"validation": validation, "test": test})


def trained(
    q: float, runs: Runs, flags: Flags, rounds: Sequence[int]
) -> Iterator[tuple[int, dict[str, dict[str, np.ndarray]]]]:
    """After each of these rounds: by split, every figure `[S]`."""
    model = fl.models.linear(NUM_CLASSES, (NUM_FEATURES,), init=flags.start)
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=BATCH_SIZE),
        "sampler": getattr(fl, flags.sampler)(COHORT_SIZE),
        "weighting": "uniform",
        "strategy": fl.chunked(2),  # of all seeds side by side: the least idle lanes
    }
    # q = 0 is FedAvg in every bit; this spares it the pass that measures losses.
    algo = (
        fl.q_fedavg(model.loss, flags.learning_rate, q=q, **slots)
        if q
        else fl.fedavg(model.loss, optax.sgd(flags.learning_rate), **slots)
    )

    def init(key: jax.Array, data: Any) -> Any:
        return algo.init(key, model.init(key), data)

    def some(state: Any, key: jax.Array, data: Any, count: int) -> Any:
        return jax.lax.scan(
            lambda s, _: (algo.round(key, s, data)[0], None), state, None, length=count
        )[0]

    def scores(params: Any, part: dict[str, jax.Array]) -> dict[str, jax.Array]:
        right = model.predict(params, {"x": part["x"]}).argmax(-1) == part["y"]
        return of_devices(right, part["client"], flags.num_clients)

    keys = jax.vmap(jax.random.key)(jnp.arange(len(runs.train.offsets)))
    state, done = jax.vmap(init)(keys, runs.train), 0
    score = jax.jit(jax.vmap(scores))
    for at in rounds:
        go = jax.jit(jax.vmap(functools.partial(some, count=at - done)))
        state, done = go(state, keys, runs.train), at
        found = {name: score(state.server.params, part) for name, part in runs.held_out.items()}
        yield at, {name: {k: np.asarray(v) for k, v in f.items()} for name, f in found.items()}


def of_devices(right: jax.Array, client: jax.Array, num_clients: int) -> dict[str, jax.Array]:
    """Figures in per cent (of the variance its square), from which examples `[E]` were right.

    Args:
      right: bool `[E]`.
      client: int `[E]`, -1 for padding.
      num_clients: `N`; a tenth of them, rounded down, are the worst and the best.

    Example:
      >>> found = of_devices(jnp.array([True, False, True]), jnp.array([0, 0, 1]), 2)
      >>> float(found["devices"]), float(found["variance"])
      (75.0, 625.0)
    """
    here = (client >= 0).astype(jnp.float32)
    owner = jnp.maximum(client, 0)
    hits = jax.ops.segment_sum(here * right, owner, num_clients)
    total = jax.ops.segment_sum(here, owner, num_clients)
    shares, tenth = jnp.sort(100 * hits / total), max(1, num_clients // 10)
    return {
        "average": 100 * hits.sum() / total.sum(),
        "devices": shares.mean(),
        "worst": shares[:tenth].mean(),
        "best": shares[-tenth:].mean(),
        "variance": shares.var(),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table: means and deviations over seeds."""
    cells = [
        f"{np.mean(row[name]):8.1f} +- {np.std(row[name], ddof=1):5.1f}"
        if len(row[name]) > 1
        else f"{row[name][0]:8.1f}" + " " * 9
        for name in FIGURES
    ]
    return f"q {row['q']:g}, round {row['round']:6d}, {row['split']:10s}" + "".join(cells)


def tell(rows: Sequence[dict[str, Any]], num_rounds: int) -> None:
    """The last test figures beside the published ones, which are of 20,000 rounds."""
    print(f"\n{'':32s}" + "".join(f"{name:>17s}" for name in FIGURES))
    for q, known in zip(QS, figures("qffl").values(), strict=True):
        (row,) = [r for r in rows if (r["q"], r["round"], r["split"]) == (q, num_rounds, "test")]
        print(line(row))
        cells = [
            f"{known[name]:8.1f} +- {known['deviation'][name]:5.1f}" if name in known else " " * 17
            for name in FIGURES
        ]
        print(f"{'published, 20,000 rounds':32s}" + "".join(cells))


if __name__ == "__main__":
    script(main, Flags, __doc__)
