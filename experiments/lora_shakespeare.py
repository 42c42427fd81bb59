"""Adapts a pre-trained character transformer to speaking roles: accuracy against megabytes sent.

    python experiments/lora_shakespeare.py                  # short: a small model, 100 roles
    python experiments/lora_shakespeare.py --preset full    # all roles, ranks 2 to 16; a GPU
    python experiments/lora_shakespeare.py --smoke          # seconds

A transformer is trained on all roles of every other play, as plain training on pooled data. Then
the roles of the remaining plays are clients, and it is trained on: in full (FedAvg), by LoRA of
several ranks, by LoRA with the first factor frozen (FFA-LoRA), by bottleneck adapters, or the head
alone. Clients use Adam, which starts anew each round, and send what is trained; the server
averages. Test: the last fifth of each role's speeches.

Every method has a learning rate of its own, times each of --rate-factors; the best final accuracy
counts, by the same test data for all. The rates were set after a few short runs: no tuned
comparison. The table has what each method keeps of full training's gain, at which share of its
bytes. Writes results.json and accuracy_by_megabytes.png.

Low rank keeps little here, and rank is what it lacks (short's and core's results: the guide's
table). Tried in single runs of short, where full training gained 1.8 points: LoRA of rank 48, no
restriction at that width, gained 3.0; rank 4 .7, at four and ten times the rate .4 and -1.1,
without the head .7. What training does to kernels is of high rank (--cut-ranks), with Adam at two
rates and with SGD alike; the leaves that are no kernels gain nothing by themselves.

The gain is that of training on, since pre-training is short: with 3,000 steps in place of 800 the
model of core began at 49.2 %, and full training at this rate ended at 49.0 (one seed; the run ended
there).
Then there is no gain to keep a part of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from lora_shakespeare_figure import plot
from shared.low_rank_change import low_rank_parts, mean_over_seeds
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

RATES = {"full": 1e-3, "lora": 3e-3, "ffa": 5e-3, "bottleneck": 5e-3, "head": 3e-3}
"""Adam's learning rate on the clients, by kind."""


class Setting(NamedTuple):
    """What a preset fixes."""

    num_roles: int
    min_windows: int
    sequence_length: int
    width: int
    num_layers: int
    pretrain_steps: int
    cohort_size: int
    batch_size: int
    num_rounds: int
    every: int
    methods: tuple[str, ...]
    max_test_windows: int
    seeds: tuple[int, ...]


PRESETS = {
    "full": Setting(
        0, 2, 80, 128, 4, 4000, 50, 10, 300, 10,
        ("full", "lora-2", "lora-4", "lora-8", "lora-16", "ffa-4", "bottleneck-8", "head"),
        0, (0, 1, 2),
    ),
    "short": Setting(
        100, 12, 40, 48, 2, 800, 10, 10, 40, 10,
        ("full", "lora-2", "lora-4", "lora-8", "lora-16", "ffa-4", "bottleneck-4", "head"),
        1000, (0,),
    ),
    "smoke": Setting(
        4, 1, 20, 8, 1, 3, 2, 4, 2, 1, ("full", "lora-1", "bottleneck-2"), 50, (0,)
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What this script compares."""

    methods: tuple[str, ...] = ()
    """full, head, or lora-R, ffa-R, bottleneck-R of rank or size R; none: the preset's."""
    rate_factors: tuple[float, ...] = (1.0,)
    """Factors on each method's learning rate; the best counts."""
    cut_ranks: tuple[int, ...] = ()
    """Also score full training's change of the kernels cut to these ranks."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    data_dir: Path | None = None
    """Folder of shakespeare_roles.json.gz (else FEDJAX_LITE_DATA, then the cache)."""
    num_roles: int = 0
    """Clients: roles drawn from those that have enough windows; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    num_rounds: int = 0
    """Rounds of adaptation; 0: the preset's."""
    pretrain_steps: int = 0
    """Steps of plain training on the other plays; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    preset: Literal["short", "full", "smoke"] = "short"
    """short: minutes on two CPU cores; full: all roles; smoke: seconds."""
    smoke: bool = False
    """The same as --preset smoke."""
    seeds: tuple[int, ...] = ()
    """Seeds of parameters, cohorts and batches; the mean counts; none: the preset's."""
    output_dir: Path = Path("outputs/lora_shakespeare")
    """Where results.json and accuracy_by_megabytes.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """A preset, and what to change of it."""


class Plays(NamedTuple):
    """Windows of the plays to begin with, and the roles of the others."""

    before: fl.data.FederatedDataset
    train: fl.data.FederatedDataset
    test: dict[str, np.ndarray]


class Method(NamedTuple):
    """What is trained, and how."""

    model: fl.models.Model
    params: Any
    make: Callable[[Any], fl.FederatedAlgorithm]
    """``(learning rate) -> algorithm``."""


def main(flags: Flags) -> list[dict[str, Any]]:
    """Pre-trains once a seed, adapts by every method, prints and writes what they gave."""
    setting = choose(flags)
    plays = load(flags.data_dir, setting)
    print(f"{plays.before.num_examples} windows, then {plays.train.num_clients} roles", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in setting.methods}
    cuts: list[list[dict[str, float]]] = []
    for seed in setting.seeds:
        base, start = pretrain(plays, setting, seed)
        for name in setting.methods:
            found = [adapt(name, base, plays, setting, seed, f) for f in flags.rate_factors]
            best = max(found, key=lambda run: run["accuracy"][-1])
            runs[name].append({**best, "before": start})
            if name == "full" and flags.cut_ranks:
                score = fl.evaluator(transformer(setting), plays.test, batch_size=200)
                cuts.append(low_rank_parts(base, best["params"], score, flags.cut_ranks))
            print(f"  {name}, seed {seed}: {best['accuracy'][-1]:.2%}", flush=True)
    rows = [row_of(name, found) for name, found in runs.items()]
    changes = mean_over_seeds(cuts, rows[0]["before"])
    with_shares(rows)
    print_table(rows)
    for one in changes:
        print(f"cut to rank {one['rank']}: {one['share']:.0%}, {100 * one['gain']:+.2f} points")
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"preset": chosen_preset(flags), **setting._asdict(), "rates": RATES}
    settings["rate_factors"] = flags.rate_factors
    written = {"versions": versions(), "settings": settings, "rows": rows, "cut": changes}
    save_json_atomic(flags.output_dir / "results.json", written)
    plot(rows, flags.output_dir / "accuracy_by_megabytes.png")
    return rows


def choose(flags: Flags) -> Setting:
    """The preset with what was given, checked before anything runs."""
    setting = PRESETS[chosen_preset(flags)]
    for name in ("methods", "num_roles", "num_rounds", "pretrain_steps", "seeds"):
        given = getattr(flags, name)
        if isinstance(given, int) and given < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {given}")
        if given:
            setting = setting._replace(**{name: given})
    for name in setting.methods:
        kind, _, size = name.partition("-")
        sized = kind in ("lora", "ffa", "bottleneck") and size.isdecimal() and int(size) > 0
        if name not in ("full", "head") and not sized:
            raise ValueError(
                f"--methods must be full, head, lora-R, ffa-R or bottleneck-R, got {name!r}; give "
                "for example lora-4"
            )
    if not flags.rate_factors or min(flags.rate_factors) <= 0:
        raise ValueError(f"--rate-factors must be above 0, got {flags.rate_factors}; give 1")
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )
    return setting


def load(data_dir: Path | None, setting: Setting) -> Plays:
    """Every other play to begin with; roles of the others are clients."""
    length = setting.sequence_length
    train, test = fl.data.load("shakespeare", data_dir=data_dir, sequence_length=length)
    titles = np.unique([role.split("/")[0] for role in train["role"]])
    first = np.isin([role.split("/")[0] for role in train["role"]], titles[::2])
    names, sizes = np.unique(train["role"][~first], return_counts=True)
    able = names[sizes >= setting.min_windows]
    count = setting.num_roles or len(able)
    if count > len(able):
        raise ValueError(
            f"--num-roles must be at most {len(able)}, the roles of every other play with "
            f"{setting.min_windows} windows, got {count}"
        )
    roles = np.random.default_rng(0).choice(able, count, replace=False)
    chosen = {k: v[np.isin(train["role"], roles)] for k, v in train.items()}
    held = {k: v[np.isin(test["role"], roles)] for k, v in test.items()}
    rows = np.random.default_rng(0).permutation(len(held["y"]))[: setting.max_test_windows or None]
    before = {k: train[k][first] for k in ("x", "y")}
    return Plays(
        fl.data.from_arrays(before, np.zeros(int(first.sum()), int)),
        fl.data.partition(chosen, fl.data.by_key("role")),
        {k: held[k][rows] for k in ("x", "y")},
    )


def transformer(setting: Setting, bottleneck_size: int = 0) -> fl.models.Model:
    """The model, with adapters where they are asked for."""
    return fl.models.char_transformer(
        max_length=setting.sequence_length,
        width=setting.width,
        num_layers=setting.num_layers,
        bottleneck_size=bottleneck_size,
    )


def pretrain(plays: Plays, setting: Setting, seed: int) -> tuple[Any, float]:
    """Plain training on the first plays; parameters, and their accuracy on the roles to come."""
    model = transformer(setting)
    rate = optax.cosine_decay_schedule(3e-3, setting.pretrain_steps)
    plan = fl.Plan(batch_size=32, steps=setting.pretrain_steps)
    algo, key = fl.centralised(model.loss, optax.adam(rate), plan=plan), jax.random.key(seed)
    state = algo.init(key, model.init(key), plays.before)
    state, _ = algo.round(key, state, plays.before)
    score = fl.evaluator(model, plays.test, batch_size=200)(state)["test_accuracy"]
    print(f"pre-trained, seed {seed}: {score:.2%}", flush=True)
    return state.server.params, score


def method(name: str, base: Any, setting: Setting, seed: int) -> Method:
    """What a name trains of the pre-trained model."""
    kind, _, size = name.partition("-")
    model, key = transformer(setting), jax.random.key(seed + 1)
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=setting.batch_size, epochs=1),
        "sampler": fl.uniform(setting.cohort_size),
    }
    if kind == "full":
        return Method(model, base, lambda rate: fl.fedavg(model.loss, optax.adam(rate), **slots))
    if kind in ("lora", "ffa"):
        adapted = fl.models.lora(model, base, rank=int(size), alpha=2.0 * int(size))
        averaging: Any = "frozen_a" if kind == "ffa" else "factors"
        return Method(
            adapted,
            adapted.init(key),
            lambda rate: fl.fedlora(adapted.loss, optax.adam(rate), averaging=averaging, **slots),
        )
    params = base
    if kind == "bottleneck":
        model = transformer(setting, int(size))
        params = jax.tree_util.tree_map_with_path(
            lambda path, new: new if is_adapter(path) else at(base, path), model.init(key)
        )
    mine = is_adapter if kind == "bottleneck" else lambda path: path[0].key == "head"

    def is_frozen(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: not mine(path), params)

    return Method(
        model,
        params,
        lambda rate: fl.frozen_leaves(model.loss, optax.adam(rate), is_frozen=is_frozen, **slots),
    )


def is_adapter(path: Any) -> bool:
    """Whether a leaf is one of a bottleneck."""
    return any(key.key.startswith("adapter") for key in path)


def at(tree: Any, path: Any) -> Any:
    """The leaf at a path of dicts."""
    for key in path:
        tree = tree[key.key]
    return tree


def adapt(
    name: str, base: Any, plays: Plays, setting: Setting, seed: int, factor: float
) -> dict[str, Any]:
    """One run: accuracy and megabytes sent, by round."""
    chosen = method(name, base, setting, seed)
    rate = factor * RATES[name.partition("-")[0]]
    algo, key = chosen.make(rate), jax.random.key(seed)
    state = algo.init(key, chosen.params, plays.train)
    score = fl.evaluator(chosen.model, plays.test, batch_size=200)
    block = min(setting.every, setting.num_rounds)

    @jax.jit
    def rounds(state: Any, data: Any) -> Any:
        def one(state: Any, _: None) -> Any:
            state, metrics = algo.round(key, state, data)
            return state, (metrics["uplink_bits"], metrics["num_clients"])

        return jax.lax.scan(one, state, None, length=block)

    sent, accuracies, megabytes, messages = 0.0, [], [], 0.0
    for _ in range(-(-setting.num_rounds // block)):
        state, (bits, clients) = rounds(state, plays.train)
        sent += float(np.sum(np.asarray(bits, np.float64))) / 8e6
        messages += float(np.sum(clients))
        accuracies.append(score(state)["test_accuracy"])
        megabytes.append(sent)
    return {
        "rate": rate,
        "params": state.server.params,
        "trained": round(sent * 8e6 / 32 / messages),
        "rounds": [block * (i + 1) for i in range(len(accuracies))],
        "accuracy": accuracies,
        "megabytes": megabytes,
    }


def row_of(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, and all of them."""
    return {
        "method": name,
        "trained": runs[0]["trained"],
        "rates": [run["rate"] for run in runs],
        "rounds": runs[0]["rounds"],
        "megabytes": runs[0]["megabytes"],
        "accuracies": [run["accuracy"] for run in runs],
        "before": float(np.mean([run["before"] for run in runs])),
        "after": float(np.mean([run["accuracy"][-1] for run in runs])),
    }


def with_shares(rows: list[dict[str, Any]]) -> None:
    """Adds what each method keeps of full training's gain, and at which share of its bytes."""
    full = next((row for row in rows if row["method"] == "full"), None)
    for row in rows:
        gain = full["after"] - full["before"] if full else 0.0
        row["gain_kept"] = (row["after"] - row["before"]) / gain if gain > 0 else None
        row["bytes_share"] = row["megabytes"][-1] / full["megabytes"][-1] if full else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line a method."""
    print(f"{'method':14}{'trained':>9}{'MB up':>10}{'bytes':>8}{'accuracy':>10}{'gain kept':>11}")
    print(f"{'pre-trained':14}{0:9d}{0.0:10.3f}{'':8}{rows[0]['before']:10.2%}")
    for row in rows:
        share, kept = row["bytes_share"], row["gain_kept"]
        print(
            f"{row['method']:14}{row['trained']:9d}{row['megabytes'][-1]:10.3f}"
            f"{'-' if share is None else f'{share:.1%}':>8}{row['after']:10.2%}"
            f"{'-' if kept is None else f'{kept:.0%}':>11}"
        )


if __name__ == "__main__":
    script(main, Flags, __doc__)
