"""Heart disease, cut by columns: what a practice, a laboratory and a heart station find together.

    python experiments/vertical_hospitals.py             # a minute on two CPU cores
    python experiments/vertical_hospitals.py --preset short
    python experiments/vertical_hospitals.py --smoke     # seconds

The 740 patients of Fed-Heart-Disease (Ogier du Terrail et al. 2022, arXiv:2210.04620), whose 13
columns lie with two or three parties: the practice has age, sex, blood pressure, kind of pain and
the diagnosis; the laboratory cholesterol and sugar; the heart station pulse, angina under exercise,
the ST segment and the resting ECG. Logistic regression by gradient descent over the wire
(Hardy et al. 2017, arXiv:1711.10677), in double precision.

Shown: that it equals gradient descent on the pooled table, to 1e-6 or an error; accuracy and AUC on
held-out patients by who takes part; with a party that is missing at inference only; with 30 % of
the patients unknown to one of the parties, aligned by private set intersection; FedBCD with as many
steps and so much fewer exchanges; what the residuals of one exchange tell of diagnoses, with noise
on them, and what that noise costs in accuracy; and, where tenseal is installed, what a step costs
whose residuals travel under CKKS. Writes results.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from shared.script import script
from shared.smoke import chosen_preset, shrunk

import fedjax_lite as fl
from fedjax_lite.attacks.leakage import label_leakage
from fedjax_lite.data.sources.heart import FEATURES
from fedjax_lite.run.files import save_json_atomic

HOLDER = "practice"
COLUMNS = {
    "practice": ("age", "sex", "trestbps", "cp_2", "cp_3", "cp_4"),
    "laboratory": ("chol", "fbs"),
    "station": ("thalach", "exang", "oldpeak", "restecg_1", "restecg_2"),
}
TOLERANCE = 1e-6
PRESETS = {
    "full": {},
    "short": {"num_rounds": 100, "num_seeds": 2},
    "smoke": {"num_rounds": 10, "num_seeds": 1},
}


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The patients, and who knows whom."""

    data_dir: Path | None = None
    """Folder with heart_disease/processed.*.data (else FEDJAX_LITE_DATA, the cache)."""
    unmatched: float = 0.3
    """Share of the patients whom one of the other parties does not know."""
    held_out: float = 0.25
    """Share of the patients that are scored."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Gradient descent."""

    num_rounds: int = 300
    """Steps of gradient descent: as many rounds, one exchange about all patients each; of FedBCD so
    many fewer rounds."""
    learning_rate: float = 0.5
    """Step size, a rate on the mean loss."""
    local_steps: int = 5
    """Steps of FedBCD for each exchange."""
    noise: tuple[float, ...] = (0.5, 2.0)
    """Deviations of the noise on residuals, in units of the largest possible residual."""
    bound: float = 10.0
    """No standardised column is larger in size: public, for the masks of encrypted products."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seeds, and where results go."""

    preset: Literal["full", "short", "smoke"] = "full"
    """How much is run."""
    num_seeds: int = 5
    """Seeds of the split and of who is unknown to whom."""
    output_dir: Path = Path("outputs/vertical_hospitals")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """As --preset smoke: seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Heart disease over columns."""


def main(flags: Flags) -> dict[str, Any]:
    """Runs everything in double precision, prints and writes it."""
    flags = shrunk(flags, **PRESETS[chosen_preset(flags)])
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    with jax.enable_x64(True):
        rows, checks = [], []
        for seed in range(flags.num_seeds):
            found, gap = one_seed(flags, seed)
            rows += found
            checks.append(gap)
    gap = max(checks)
    print(f"largest difference from the pooled table's coefficients: {gap:.1e}")
    if not gap < TOLERANCE:
        raise AssertionError(f"vertical training differs from pooled training by {gap:.1e}")
    table = summary(rows)
    print(f"{'':34} accuracy   AUC    patients  kB up")
    for row in table:
        print(
            f"{row['what']:34} {row['accuracy']:.3f}    {row['auc']:.3f}  "
            f"{row['patients']:8.0f}  {row['kilobytes']:.0f}"
        )
    leaks = residuals_tell(flags)
    for leak in leaks:
        print(f"residuals with noise {leak['noise']:.1f}: AUC of diagnoses {leak['auc']:.3f}")
    protected = under_encryption(flags)
    if protected:
        print(
            f"a step under CKKS: {protected['kilobytes_up']:.0f} kB up, "
            f"{protected['kilobytes_down']:.0f} kB down, gradient wrong by {protected['gap']:.1e}"
        )
    results = {
        "largest_gap": gap,
        "protected": protected,
        "table": table,
        "rows": rows,
        "leakage": leaks,
        "flags": {k: str(v) for k, v in vars(flags).items()},
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    return results


def one_seed(flags: Flags, seed: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of one split, and how far the coefficients are from those of the pooled table."""
    tables = patients(flags)
    others = np.concatenate([tables["laboratory"], tables["station"]], axis=1)
    two = {"practice": tables["practice"], "hospital": others}
    y = tables["y"]
    rows, gaps = [], []
    cuts = {
        "practice alone": {"practice": tables["practice"]},
        "practice + laboratory": {p: tables[p] for p in ("practice", "laboratory")},
        "practice + station": {p: tables[p] for p in ("practice", "station")},
        "all three": {p: tables[p] for p in COLUMNS},
        "two parties, all columns": two,
    }
    for what, columns in cuts.items():
        data = fl.parties.from_columns(columns, {HOLDER: y})
        train, test = fl.parties.split_rows(data, flags.held_out, seed=seed)
        state, history, model = trained(flags, train)
        gaps.append(gap_to_pooled(flags, train, state))
        rows.append(scored(what, seed, model, state, history, train, test))
        if what == "all three":
            for party in ("laboratory", "station"):
                name = f"all three, {party} missing later"
                rows.append(scored(name, seed, model, state, history, train, test, (party,)))
            state, history, model = trained(flags, train, flags.local_steps)
            name = f"all three, FedBCD with {flags.local_steps} steps"
            rows.append(scored(name, seed, model, state, history, train, test))
            for level in flags.noise:
                state, history, model = trained(flags, train, noise=level)
                name = f"all three, noise {level:g} on residuals"
                rows.append(scored(name, seed, model, state, history, train, test))
            few, share = partly_known(flags, train, seed)
            state, history, model = trained(flags, few)
            gaps.append(gap_to_pooled(flags, few, state))
            rows.append(
                scored(f"all three, {share:.0%} unmatched", seed, model, state, history, few, test)
            )
    return rows, max(gaps)


def patients(flags: Flags) -> dict[str, np.ndarray]:
    """The columns of every party, and the diagnoses, of all patients of the benchmark."""
    parts = fl.data.load("heart_disease", data_dir=flags.data_dir)
    x = np.concatenate([np.asarray(part["x"], np.float64) for part in parts])
    y = np.concatenate([np.asarray(part["y"], np.float64) for part in parts])
    places = {name: i for i, name in enumerate(FEATURES)}
    tables = {party: x[:, [places[name] for name in names]] for party, names in COLUMNS.items()}
    return {**tables, "y": y}


def trained(
    flags: Flags, data: Any, local_steps: int = 1, *, noise: float = 0.0
) -> tuple[Any, Any, Any]:
    """A logistic regression after all steps; what it says of itself; and the model."""
    model = fl.parties.regression("logistic", data)
    options: Any = {"plan": fl.Plan(batch_size=None), "downlink": noise_of(noise, data)}
    if local_steps > 1:
        algo = fl.parties.fedbcd(
            model, optax.sgd(flags.learning_rate), local_steps=local_steps, **options
        )
    else:
        algo = fl.parties.vertical_sgd(model, optax.sgd(flags.learning_rate), **options)
    key, rounds = jax.random.key(0), max(flags.num_rounds // local_steps, 1)
    state, history = fl.run(
        algo, key, algo.init(key, None, data), data, num_rounds=rounds, every=rounds,
        progress=False,
    )  # fmt: skip
    return state, history, model


def noise_of(level: float, data: Any) -> Any:
    """On residuals, in units of the largest that is possible: they are of the mean loss."""
    return fl.gaussian_noise(level / data.num_entities) if level else None


def gap_to_pooled(flags: Flags, data: Any, state: Any) -> float:
    """The largest difference of a coefficient from gradient descent on one table, by numpy."""
    x = np.concatenate([np.asarray(data.features[party]) for party in data.parties], axis=1)
    y, w, b = np.asarray(data.labels[HOLDER]), np.zeros(x.shape[1]), 0.0
    for _ in range(flags.num_rounds):
        residual = (1 / (1 + np.exp(-(x @ w + b))) - y) / len(y)
        w, b = w - flags.learning_rate * x.T @ residual, b - flags.learning_rate * residual.sum()
    params = state.server.params
    found = np.concatenate([np.asarray(params.bottoms[party]) for party in data.parties])
    return float(max(np.abs(found - w).max(), abs(params.heads[HOLDER]["intercept"] - b)))


def scored(
    what: str, seed: int, model: Any, state: Any, history: Any, train: Any, test: Any,
    missing: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Accuracy and AUC on the held-out patients, and what training cost."""
    examples = test.examples_of()
    examples["y"] = np.asarray(examples["y"]).astype(np.int32)
    evaluate = fl.evaluator(
        fl.parties.joint(model, missing=missing), examples, metrics={"auc": fl.metrics.auc(None)}
    )
    found = evaluate(state)
    return {
        "what": what,
        "seed": seed,
        "accuracy": found["test_accuracy"],
        "auc": found["test_auc"],
        "patients": train.num_entities,
        "kilobytes": history[-1]["uplink_bits_total"] / 8e3,
    }


def partly_known(flags: Flags, data: Any, seed: int) -> tuple[Any, float]:
    """The patients whom all parties know, found by private set intersection; the share of others.

    Every party has its patients in an order of its own; each of the others misses as many.
    """
    rng = np.random.default_rng(seed)
    size = data.num_entities
    lost = rng.permutation(size)[: round(flags.unmatched * size)]
    others = [party for party in data.parties if party != HOLDER]
    unknown = dict(zip(others, np.array_split(lost, len(others)), strict=True))
    known = {
        party: rng.permutation(np.setdiff1d(np.arange(size), unknown.get(party, [])))
        for party in data.parties
    }
    found = fl.parties.private_align(known, holder=HOLDER, size=1024)
    if seed == 0:
        print(found)
    features = {p: np.asarray(data.features[p])[known[p]] for p in data.parties}
    labels = {HOLDER: np.asarray(data.labels[HOLDER])[known[HOLDER]]}
    few = fl.parties.from_columns(features, labels, alignment=found)
    return few, 1 - few.num_entities / size


def residuals_tell(flags: Flags) -> list[dict[str, float]]:
    """How well the station tells diagnoses by the residuals of the first exchange."""
    tables = patients(flags)
    data = fl.parties.from_columns({p: tables[p] for p in COLUMNS}, {HOLDER: tables["y"]})
    model = fl.parties.regression("logistic", data)
    found = []
    for level in (0.0, *flags.noise):
        tapped = fl.parties.wiretap(
            *(model, model.init(jax.random.key(0)), data),
            key=jax.random.key(1),
            downlink=noise_of(level, data),
        )
        residuals = np.asarray(tapped.gradients["station"])
        # The score of who knows that residuals of the ill are negative: the number itself.
        shifted = (residuals.max() - residuals)[:, None]
        found.append(
            {"noise": level, "auc": label_leakage(shifted, tables["y"].astype(int)).norm_auc}
        )
    return found


def under_encryption(flags: Flags) -> dict[str, float] | None:
    """What one step costs in which residuals are encrypted; None without tenseal."""
    if importlib.util.find_spec("tenseal") is None:
        return None
    tables = patients(flags)
    data = fl.parties.from_columns({p: tables[p] for p in COLUMNS}, {HOLDER: tables["y"]})
    with jax.enable_x64(True):
        data = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, float), data)
        model = fl.parties.regression("logistic", data)
        params, whole = model.init(jax.random.key(0)), fl.parties.joint(model)
        found = fl.parties.protected_gradients(model, params, data, bound=flags.bound)
        plain = jax.grad(lambda params: whole.loss(params, data.examples_of(), None).mean())(params)
    gaps = [
        np.abs(found.gradients.bottoms[party] - np.asarray(plain.bottoms[party])).max()
        for party in COLUMNS
    ]
    return {
        "kilobytes_up": found.uplink_bytes / 1e3,
        "kilobytes_down": found.downlink_bytes / 1e3,
        "kilobytes_once": found.context_bytes / 1e3,
        "gap": float(max(gaps)),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and the deviation of the accuracy."""
    table = []
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        means = {
            name: float(np.mean([row[name] for row in mine]))
            for name in ("accuracy", "auc", "patients", "kilobytes")
        }
        deviation = float(np.std([row["accuracy"] for row in mine]))
        table.append({"what": what, **means, "deviation": deviation})
    return table


if __name__ == "__main__":
    script(main, Flags, __doc__)
