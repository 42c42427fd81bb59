"""Shakespeare by speaking role: rounds of FedAvg and FedSGD to a target accuracy.

    python experiments/shakespeare.py                    # short: a small LSTM, 100 roles
    python experiments/shakespeare.py --preset paper     # the paper's LSTM, all roles; a GPU
    python experiments/shakespeare.py --smoke            # seconds

McMahan et al. 2017 (arXiv:1602.05629), Table 2: a two-layer character LSTM (embedding 8, 256 units)
predicts the next character in windows of 80; each of 1,146 roles is a client, a tenth of them train
in a round, plain SGD, weights by examples. The same windows dealt at random in equal parts (IID)
are the comparison. Test: the last fifth of each role's speeches. Rounds are counted as in the
paper: the accuracy curve is made monotone and interpolated between evaluations, the learning rate
is the best of a few for each cell; ours is the median over seeds. Differences:

* Another edition and another split of the speeches (1,123 roles with two speeches or more): compare
  ratios of rounds, not accuracies to a point.
* The IID deal shuffles windows of 80 characters; an "example" of the paper is a line.
* short (minutes on two CPU cores) has one layer of 64 units, 100 roles of 12 to 60 windows (about
  950 to 4,800 characters) and a target of 30 % instead of 54 %. Its learning rates are larger.

Accuracy is the share of the test characters that the model predicts; it is also given for each
role. Cells go into results.json as they are done and are kept by a later run. Writes results.json
and curves.png and prints the table beside the published rounds.
"""

from __future__ import annotations

import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mcmahan_mnist import rounds_to
from shakespeare_settings import (
    CELLS,
    DEALS,
    PUBLISHED,
    Cell,
    Flags,
    Setting,
    TrainingFlags,
    choose,
)
from shared.flags import schedule
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.evaluate import evaluate_clients, summarize_clients
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

STYLES = {
    "fedsgd": ("#000000", "o"),
    "e1-b50": ("#56B4E9", "v"),
    "e5-binf": ("#CC79A7", "D"),
    "e1-b10": ("#0072B2", "s"),
    "e5-b50": ("#E69F00", "P"),
    "e5-b10": ("#D55E00", "^"),
}


class Deals(NamedTuple):
    """The training data of both deals, and the test data by role."""

    train: dict[str, fl.data.FederatedDataset]
    test: fl.data.FederatedDataset
    roles: list[str]


def load(data_dir: Path | None, setting: Setting) -> Deals:
    """Draws the roles and deals their windows by role and at random."""
    length = setting.sequence_length
    train, test = fl.data.load("shakespeare", data_dir=data_dir, sequence_length=length)
    names, sizes = np.unique(train["role"], return_counts=True)
    able = names[(sizes >= setting.min_windows) & (sizes <= (setting.max_windows or sizes.max()))]
    count = setting.num_roles or len(able)
    if count > len(able):
        raise ValueError(
            f"--num-roles must be at most {len(able)}, the roles with {setting.min_windows} to "
            f"{setting.max_windows or sizes.max()} windows, got {count}"
        )
    roles = np.sort(np.random.default_rng(0).choice(able, count, replace=False))
    train = {k: v[np.isin(train["role"], roles)] for k, v in train.items()}
    test = {k: v[np.isin(test["role"], roles)] for k, v in test.items()}
    by_role = fl.data.partition(train, fl.data.by_key("role"))
    windows = {"x": train["x"], "y": train["y"]}
    iid = fl.data.partition(windows, fl.data.iid(num_clients=count, seed=0))
    held_out = fl.data.partition(test, fl.data.by_key("role"))
    return Deals({"iid": iid, "role": by_role}, held_out, roles.tolist())


def build(
    model: fl.models.Model, cell: Cell, rate: Any, *, cohort_size: int, decay: optax.Schedule
) -> fl.FederatedAlgorithm:
    """FedAvg as in the paper; FedSGD where one epoch is one batch."""
    sampler = fl.uniform(cohort_size)
    if cell.epochs == 1 and cell.batch_size is None:
        optimizer = optax.sgd(lambda step: rate * decay(step))
        return fl.fedsgd(model.loss, optimizer, sampler=sampler)
    plan = fl.Plan(batch_size=cell.batch_size, epochs=cell.epochs)
    return fl.fedavg(
        model.loss, lambda round: optax.sgd(rate * decay(round)), plan=plan, sampler=sampler
    )


def evaluation_interval(cell: Cell, max_rounds: int) -> int:
    """Rounds between evaluations: about as many as change the accuracy visibly."""
    work = cell.epochs * (1 if cell.batch_size is None else 50 / cell.batch_size)
    return max(1, min(round(10 / work), max_rounds))


def run_cell(
    name: str, deal: str, deals: Deals, *, setting: Setting, training: TrainingFlags
) -> dict[str, Any]:
    """Trains rates and seeds one after the other, each until the target or until it has lost."""
    cell, data = CELLS[name], deals.train[deal]
    fedsgd = name == "fedsgd"
    rates = setting.fedsgd_rates if fedsgd else setting.rates
    limit = setting.fedsgd_max_rounds if fedsgd else setting.max_rounds
    every = evaluation_interval(cell, limit)
    model = fl.models.char_lstm(hidden_size=setting.hidden_size, num_layers=setting.num_layers)
    cohort_size = max(1, round(setting.fraction * data.num_clients))
    decay = schedule(training.schedule, 1.0, training.decay, limit)
    made = functools.partial(build, model, cell, cohort_size=cohort_size, decay=decay)
    test = deals.test.examples
    rows = np.random.default_rng(0).permutation(len(test["y"]))[: setting.max_test_windows or None]
    score = fl.evaluator(model, {k: test[k][rows] for k in ("x", "y")}, batch_size=200)

    # Rate, state and data are arguments: one compilation serves all rates and seeds.
    @functools.partial(jax.jit, donate_argnums=2)
    def block(rate: Any, key: Any, state: Any, data: Any) -> Any:
        algo = made(rate)
        return jax.lax.scan(
            lambda s, _: (algo.round(key, s, data)[0], None), state, None, length=every
        )[0]

    began, crossings, curves, models = time.perf_counter(), {}, {}, {}
    for rate in rates:
        for seed in setting.seeds:
            key = jax.random.key(seed)
            state = made(jnp.float32(rate)).init(key, model.init(key), data)
            curve = [0.0]
            bound = cutoff(crossings, num_seeds=len(setting.seeds), limit=limit)
            while (len(curve) - 1) * every < bound and max(curve) < setting.target:
                state = block(jnp.float32(rate), key, state, data)
                curve.append(score(state)["test_accuracy"])
            models[rate, seed] = jax.device_get(state.server.params)
            curves[rate, seed] = curve
            crossings.setdefault(rate, []).append(rounds_to(np.array(curve), every, setting.target))
            print(
                f"  {name} {deal}, rate {rate:g}, seed {seed}: {max(curve):.1%} after "
                f"{(len(curve) - 1) * every} rounds, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    medians = {rate: float(np.median(values)) for rate, values in crossings.items()}
    # Where no rate arrives, the one that got furthest.
    furthest = {rate: max(max(curves[rate, s]) for s in setting.seeds) for rate in rates}
    best = min(rates, key=lambda rate: (medians[rate], -furthest[rate]))
    updates = cell.epochs * (
        1.0
        if cell.batch_size is None
        else float(np.ceil(np.asarray(data.sizes) / cell.batch_size).mean())
    )
    return {
        "cell": name,
        "deal": deal,
        "published": PUBLISHED[name][deal],
        "rounds": medians[best],
        "best_rate": best,
        "rounds_by_rate": {f"{rate:g}": values for rate, values in crossings.items()},
        "local_updates": updates,
        "every": every,
        "curves": [np.round(curves[best, s], 5).tolist() for s in setting.seeds],
        "test_by_role": score_roles(model, models[best, setting.seeds[0]], deals),
        "seconds": round(time.perf_counter() - began, 1),
    }


def cutoff(crossings: dict[float, list[float]], *, num_seeds: int, limit: int) -> float:
    """Rounds after which a rate has lost: the slowest seed of a rate of which all have arrived.

    A rate whose seeds are still being run bounds nobody, least of all its own later seeds.
    """
    whole = [seeds for seeds in crossings.values() if len(seeds) == num_seeds]
    return min([limit, *(max(seeds) for seeds in whole if all(map(math.isfinite, seeds)))])


def score_roles(model: fl.models.Model, params: Any, deals: Deals) -> dict[str, Any]:
    """Accuracy on each role's later speeches, and its summary (first seed, at the end)."""
    scores = evaluate_clients(model, params, deals.test, batch_size=200)
    summary = summarize_clients(scores["accuracy"], scores["size"])
    kept = ("mean", "weighted_mean", "std", "worst", "best")
    return {k: summary[k] for k in kept} | {
        "accuracies": dict(zip(deals.roles, scores["accuracy"].round(4).tolist(), strict=True))
    }


def ratios(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """How many times fewer rounds than FedSGD of the same deal: published, ours (nan unknown)."""
    found = {(row["cell"], row["deal"]): row for row in rows}
    result = {}
    for (cell, deal), row in found.items():
        base = found.get(("fedsgd", deal), {"rounds": math.nan})["rounds"]
        published = PUBLISHED["fedsgd"][deal] / row["published"]
        # A base that never arrived has no ratio; its limit would only bound it from below.
        known = math.isfinite(base) and math.isfinite(row["rounds"]) and row["rounds"] > 0
        result[cell, deal] = (published, base / row["rounds"] if known else math.nan)
    return result


def print_table(rows: list[dict[str, Any]], setting: Setting) -> None:
    """Ours beside the published rounds, and what each cell saves over FedSGD."""
    from rich.console import Console
    from rich.table import Table

    comparable = setting._replace(seeds=(), cells=()) == Setting(seeds=(), cells=())
    table = Table(
        title=f"Rounds to {setting.target:.0%} (published: to 54 %)",
        caption="x: times fewer rounds than FedSGD. "
        + ("Compare these ratios." if comparable else "Other model, target and roles than there."),
    )
    for column in ("cell", "clients", "updates", "published", "ours", "rate", "roles, worst 10 %"):
        table.add_column(column)
    gains = ratios(rows)
    for row in rows:
        published, ours = gains[row["cell"], row["deal"]]
        rounds = f"{row['rounds']:.0f}" if math.isfinite(row["rounds"]) else "not reached"
        table.add_row(
            row["cell"],
            row["deal"],
            f"{row['local_updates']:.1f}",
            f"{row['published']} ({published:.1f} x)",
            f"{rounds} ({ours:.1f} x)" if math.isfinite(ours) else rounds,
            f"{row['best_rate']:g}",
            f"{row['test_by_role']['mean']:.1%}, {row['test_by_role']['worst']:.1%}",
        )
    Console().print(table)


def plot(rows: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    """Left: accuracy by round. Right: how the roles' own accuracies are spread at the end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        colour, marker = STYLES[row["cell"]]
        dash = "-" if row["deal"] == "role" else "--"
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "lw": 1.4}
        label = f"{row['cell']}, {'by role' if row['deal'] == 'role' else 'IID'}"
        for i, curve in enumerate(row["curves"]):
            rounds = row["every"] * np.arange(1, len(curve))
            left.plot(
                rounds, 100 * np.array(curve[1:]), marker=marker, ms=4,
                markevery=max(1, len(rounds) // 8), label=label if i == 0 else None, **style,
            )  # fmt: skip
        scores = np.sort([v for v in row["test_by_role"]["accuracies"].values() if v is not None])
        shares = np.arange(1, len(scores) + 1) / len(scores)
        right.plot(100 * scores, 100 * shares, marker=marker, ms=4,
                   markevery=max(1, len(scores) // 8), **style)  # fmt: skip
    left.axhline(100 * setting.target, color="#666666", linestyle=":", lw=1)
    left.set(xlabel="round of communication", ylabel="test accuracy (% of characters)")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set(title=f"{setting.num_roles or 'all'} roles; target dotted")
    right.set(
        xlabel="test accuracy, a role's later speeches (%)", ylabel="roles at or below it (%)"
    )
    right.set(title="per role, at the end of the best run")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def earlier_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells of an earlier run of the same setting; null stands for a target not reached."""
    saved = json.loads(path.read_text())
    now = json.loads(json.dumps(settings))
    differ = [k for k, v in saved["settings"].items() if k != "cells" and v != now.get(k)]
    if differ:
        raise ValueError(
            f"{path} holds cells of another setting ({', '.join(differ)} differ); give another "
            "--output-dir or --overwrite"
        )
    for row in saved["rows"]:
        row["rounds"] = math.inf if row["rounds"] is None else row["rounds"]
    return saved["rows"]


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs the cells that are asked for, in both deals, and prints the table."""
    setting = choose(flags)
    training, path = flags.training, flags.run.output_dir / "results.json"
    settings = {
        "preset": chosen_preset(flags.run),
        **setting._asdict(),
        "schedule": training.schedule,
        "decay": training.decay,
    }
    rows = earlier_rows(path, settings) if path.exists() and not flags.run.overwrite else []
    deals = load(flags.data.data_dir, setting)
    sizes = np.asarray(deals.train["role"].sizes)
    print(
        f"{len(deals.roles)} roles of {sizes.min()} to {sizes.max()} windows, {sizes.sum()} in "
        f"all; {setting.hidden_size} units x {setting.num_layers}, target {setting.target:.0%}"
    )
    flags.run.output_dir.mkdir(parents=True, exist_ok=True)
    for name in setting.cells:
        for deal in DEALS:
            if any((row["cell"], row["deal"]) == (name, deal) for row in rows):
                print(f"{name} {deal}: kept from {path}; --overwrite runs it again")
                continue
            rows.append(run_cell(name, deal, deals, setting=setting, training=training))
            saved = {"versions": versions(), "settings": settings, "rows": rows}
            save_json_atomic(path, saved)
            plot(rows, setting, flags.run.output_dir / "curves.png")
    print_table(rows, setting)
    return rows


if __name__ == "__main__":
    script(main, Flags, __doc__)
