"""Models of the clients' own: who gains and who loses against training alone.

    python experiments/personal_models.py                  # CIFAR-10, minutes on two cores
    python experiments/personal_models.py --alpha 0.3      # less skew
    python experiments/personal_models.py --preset whole   # all of CIFAR-10, 100 clients; a GPU
    python experiments/personal_models.py --smoke          # seconds, scikit-learn's digits

Images are dealt to clients by Dirichlet shares of each label; a quarter of every client's own
images is held out, and each client is scored on its own with the model that it would use: the
global one (FedAvg), that model after some epochs on its own data (FedAvg + local), one that it
trained alone, or what Ditto, APFL, pFedMe, FedRep or FedPer keep for it. All see the same cohorts,
rounds and epochs; what these cost differs: Ditto and APFL compute two gradients a step, pFedMe
five, FedRep has its head epochs before the body's. pFedMe has its paper's pull 15 and five inner
steps, and its models are those of each client's last batch; other settings are round numbers;
nothing is tuned on the held-out images.

A gain is a client's accuracy minus that of the model that it trained alone. Each run goes into
results.json as it is done; a later run with the same settings keeps it and does what is missing.
Writes results.json, curves.png and clients.png and prints the table.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from personal_models_settings import Flags
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

ALONE = "local-only"
TUNED = "FedAvg + local"
STYLES = {
    ALONE: ("#666666", ":", ""),
    "FedAvg": ("#D55E00", "-", "o"),
    TUNED: ("#E69F00", "", "s"),
    "Ditto": ("#0072B2", "-", "^"),
    "APFL": ("#56B4E9", "--", "v"),
    "pFedMe": ("#CC79A7", "-.", "D"),
    "FedRep": ("#009E73", "-", "P"),
    "FedPer": ("#000000", "--", "X"),
}
METHODS = tuple(STYLES)


class Setting(NamedTuple):
    """What a preset fixes; a size of 0 means all examples."""

    dataset: str = "cifar10"
    train_size: int = 0
    num_clients: int = 100
    cohort_size: int = 10
    alpha: float = 0.1
    num_rounds: int = 300
    epochs: int = 2
    batch_size: int = 20
    learning_rate: float = 0.05
    held_out: float = 0.25
    tune_epochs: int = 5
    pull: float = 0.5
    mixing: float = 0.5
    outer_rate: float = 0.01
    every: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)


PRESETS = {
    "whole": Setting(),
    "short": Setting(
        train_size=5000, num_clients=20, num_rounds=30, epochs=1, batch_size=10, every=5, seeds=(0,)
    ),
    "smoke": Setting(
        "digits", 400, num_clients=6, cohort_size=3, num_rounds=4, epochs=1, every=2, seeds=(0,),
        tune_epochs=1,
    ),
}  # fmt: skip


def choose(flags: Flags) -> Setting:
    """The preset with what the flags change; raises where that cannot be run."""
    given = {k: v for k, v in vars(flags).items() if k in Setting._fields and v}
    setting = PRESETS[chosen_preset(flags)]._replace(**given)
    for name in ("alpha", "learning_rate", "pull", "outer_rate"):
        if not 0 < getattr(setting, name) < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be positive, got {getattr(setting, name)}")
    if not 0 < setting.held_out < 1:
        raise ValueError(f"--held-out must lie in (0, 1), got {setting.held_out}")
    if not 0 < setting.mixing <= 1:
        raise ValueError(f"--mixing must lie in (0, 1], got {setting.mixing}")
    if unknown := set(flags.methods) - set(METHODS):
        raise ValueError(f"--methods must be among {METHODS}, got {sorted(unknown)}")
    return setting


def load(flags: Flags, setting: Setting) -> tuple[dict[str, np.ndarray], fl.models.Model]:
    """The images to deal, and the network."""
    train = with_labels(fl.data.load(setting.dataset, data_dir=flags.data_dir)[0])
    rows = np.random.default_rng(0).permutation(len(train["y"]))[: setting.train_size or None]
    train = {name: values[rows] for name, values in train.items()}
    if setting.dataset == "cifar10":
        scale: dict[str, Any] = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
        return train, fl.models.lenet(**scale)
    return train, fl.models.mlp((64,), input_shape=train["x"].shape[1:])


def algorithm(name: str, loss: Any, setting: Setting) -> fl.FederatedAlgorithm:
    """A method with its settings; FedAvg + local begins as FedAvg."""
    rate, plan = setting.learning_rate, fl.Plan(setting.batch_size, epochs=setting.epochs)
    slots: dict[str, Any] = {"plan": plan, "sampler": fl.uniform(setting.cohort_size)}
    sgd = optax.sgd(rate)
    if name == ALONE:
        return fl.local_only(loss, sgd, **slots)
    if name == "Ditto":
        return fl.ditto(loss, sgd, pull=setting.pull, **slots)
    if name == "APFL":
        return fl.apfl(loss, sgd, mixing=setting.mixing, mixing_rate=rate, **slots)
    if name == "pFedMe":
        return fl.pfedme(loss, sgd, learning_rate=setting.outer_rate, weighting="examples", **slots)
    if name == "FedRep":
        return fl.fedrep(loss, sgd, **slots)
    if name == "FedPer":
        return fl.fedper(loss, sgd, **slots)
    return fl.fedavg(loss, sgd, **slots)


def train_one(
    name: str, model: fl.models.Model, parts: Any, setting: Setting, seed: int
) -> tuple[Any, list[dict[str, float]]]:
    """One method on one deal: its last state and its curve."""
    train, test = parts
    key, algo = jax.random.key(seed), algorithm(name, model.loss, setting)
    state, history = fl.run(
        algo, key, algo.init(key, model.init(key), train), train, num_rounds=setting.num_rounds,
        every=setting.every, evaluate=fl.client_evaluator(model, test), progress=False,
    )  # fmt: skip
    names = ("round", "test_accuracy_mean", "test_accuracy_worst")
    curve = [{k: row[k] for k in names} for row in history if "test_accuracy_mean" in row]
    return state, curve


def row_of(name: str, seed: int, scores: Any, curve: list[dict[str, float]]) -> dict[str, Any]:
    """What is kept of a run: each client's accuracy and number of held-out images."""
    return {
        "method": name,
        "seed": seed,
        "accuracy": np.round(scores["accuracy"].astype(float), 5).tolist(),
        "size": np.asarray(scores["size"]).tolist(),
        "rounds": [row["round"] for row in curve],
        "mean": [round(row["test_accuracy_mean"], 5) for row in curve],
        "worst": [round(row["test_accuracy_worst"], 5) for row in curve],
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method figures over clients, averaged over seeds, and gains on training alone."""
    alone = {
        row["seed"]: np.array(row["accuracy"], float) for row in rows if row["method"] == ALONE
    }
    found = []
    for name in (name for name in METHODS if any(row["method"] == name for row in rows)):
        mine = [row for row in rows if row["method"] == name]
        figures, gains = [], []
        for row in mine:
            accuracy, size = np.array(row["accuracy"], float), np.array(row["size"])
            summary = fl.summarize_clients(accuracy, size)
            figures.append([summary[which] for which in ("mean", "worst", "weighted_mean")])
            if row["seed"] in alone:
                gains += (accuracy - alone[row["seed"]])[size > 0].tolist()
        mean, worst, whole = np.mean(figures, axis=0)
        gained = np.array(gains)
        found.append(
            {
                "method": name,
                "mean": float(mean),
                "worst": float(worst),
                "all_images": float(whole),
                "num_seeds": len(mine),
                "gain": float(gained.mean()) if gains else None,
                "gain_share": float((gained > 0).mean()) if gains else None,
                "loss_share": float((gained < 0).mean()) if gains else None,
            }
        )
    return found


def by_seed(rows: list[dict[str, Any]], name: str) -> dict[int, np.ndarray]:
    """Each client's accuracy under a method, NaN where nothing is held out."""
    mine = (row for row in rows if row["method"] == name)
    return {row["seed"]: np.array(row["accuracy"], float) for row in mine}


def table(summary: list[dict[str, Any]]) -> str:
    """Accuracies in per cent, gains in points, shares of clients in per cent."""
    lines = ["method          clients  worst tenth  all images    gain  who gain  who lose"]
    for row in summary:
        gains = [row["gain"], row["gain_share"], row["loss_share"]]
        signs = ("+.1f", ".0f", ".0f")
        cells = ["-" if g is None else f"{100 * g:{s}}" for g, s in zip(gains, signs, strict=True)]
        ours = (
            f"{100 * row['mean']:7.1f} {100 * row['worst']:12.1f} {100 * row['all_images']:11.1f}"
        )
        lines.append(f"{row['method']:15s} {ours} {cells[0]:>7s} {cells[1]:>9s} {cells[2]:>9s}")
    return "\n".join(lines)


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    setting = choose(flags)
    path = flags.output_dir / "results.json"
    settings = json.loads(json.dumps({**setting._asdict(), "seeds": None}))
    rows = [] if flags.overwrite else earlier(path, settings)
    record = {"versions": versions(), "settings": settings}
    done = {(row["method"], row["seed"]) for row in rows}
    wanted = [name for name in METHODS if name in (flags.methods or METHODS)]
    examples, model = load(flags, setting)
    print(f"{chosen_preset(flags)} preset: {setting}")
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in setting.seeds:
        clients: dict[str, Any] = {"num_clients": setting.num_clients, "seed": seed}
        deal = fl.data.dirichlet(alpha=setting.alpha, min_size=8, **clients)
        parts = fl.data.split_clients(
            fl.data.partition(examples, deal), setting.held_out, seed=seed
        )
        average: Any = None
        for name in (name for name in wanted if (name, seed) not in done):
            began = time.perf_counter()
            if name in ("FedAvg", TUNED):
                run = average = average or train_one("FedAvg", model, parts, setting, seed)
            else:
                run = train_one(name, model, parts, setting, seed)
            state, curve = run
            if name == TUNED:
                plan = fl.Plan(setting.batch_size, epochs=setting.tune_epochs)
                sgd = optax.sgd(setting.learning_rate)
                state = fl.fine_tuned(model.loss, sgd, parts[0], plan=plan)(state)
                curve = []
            row = row_of(name, seed, fl.evaluate_clients(model, state, parts[1]), curve)
            rows.append({**row, "seconds": round(time.perf_counter() - began, 1)})
            save_json_atomic(path, record | {"rows": rows})
            print(f"{name}, seed {seed}: {np.nanmean(row['accuracy']):.1%}", flush=True)
    summary = summarise(rows)
    save_json_atomic(path, record | {"summary": summary, "rows": rows})
    print(table(summary))
    plot_curves(rows, summary, setting, flags.output_dir / "curves.png")
    plot_clients(rows, setting, flags.output_dir / "clients.png")
    return summary


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings; raises where they differ."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    differ = [k for k, v in settings.items() if saved["settings"].get(k) != v]
    if differ:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in differ)
        raise FileExistsError(
            f"{path} holds runs with other settings ({names}); --overwrite replaces them, or give "
            "another --output-dir"
        )
    return saved["rows"]


def plot_curves(
    rows: list[dict[str, Any]], summary: list[dict[str, Any]], setting: Setting, path: Path
) -> None:
    """Mean over clients and mean of the worst tenth, by round; what is tuned has a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    last = {row["method"]: row for row in summary}
    for axes, which, title in zip(panels, ("mean", "worst"), ("mean", "worst tenth"), strict=True):
        for name, (colour, dash, marker) in STYLES.items():
            runs = [row for row in rows if row["method"] == name]
            curves = [row[which] for row in runs if row["rounds"]]
            look = {"color": colour, "marker": marker or None, "markersize": 4, "label": name}
            if curves:
                values = 100 * np.mean(curves, axis=0)
                axes.plot(runs[0]["rounds"], values, linestyle=dash, **look)
            elif runs:
                axes.plot([setting.num_rounds], [100 * last[name][which]], linestyle="", **look)
        axes.set(xlabel="round", title=f"{title} of the clients")
    panels[0].set_ylabel("accuracy on held-out images (%)")
    panels[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{setting.dataset}, Dirichlet({setting.alpha:g}), a client's own images")
    save(figure, path)


def plot_clients(rows: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    """A panel a method, a point a client: its accuracy against that of training alone."""
    from matplotlib.figure import Figure

    alone = {
        row["seed"]: np.array(row["accuracy"], float) for row in rows if row["method"] == ALONE
    }
    shown = [name for name in METHODS[1:] if any(row["method"] == name for row in rows)]
    if not alone or not shown:
        return
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.8 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(panels.flat, shown, strict=False):
        mine = by_seed(rows, name)
        seeds = [seed for seed in mine if seed in alone]
        x, y = (np.concatenate([of[seed] for seed in seeds] or [[]]) for of in (alone, mine))
        colours = np.where(y > x, "#0072B2", np.where(y < x, "#D55E00", "#888888"))
        axes.plot([0, 100], [0, 100], color="#999999", linewidth=0.8)
        axes.scatter(100 * x, 100 * y, s=16, c=colours, alpha=0.75, linewidths=0)
        axes.set_title(f"{name}: {np.sum(y > x)} gain, {np.sum(y < x)} lose", fontsize=9)
        axes.set_aspect("equal")
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("a client's accuracy when it trains alone (%)", fontsize=9)
    figure.supylabel("with the method (%)", fontsize=9)
    figure.suptitle(
        f"{setting.dataset}, Dirichlet({setting.alpha:g}), held-out images of each client"
    )
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes the picture in one go."""
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
