"""Robust rules against attacks: the bucketing paper's MNIST setting as a heat map and a table.

    python experiments/byzantine.py                       # a small network, minutes on two cores
    python experiments/byzantine.py --preset published    # the paper's network and all of MNIST
    python experiments/byzantine.py --preset smoke        # seconds, scikit-learn's digits

Karimireddy, He, Jaggi (2022, arXiv:2006.09365): 25 workers, 5 of them hostile and knowing, batches
of 32, one local step a round, 600 rounds, data dealt by sorted labels to the honest ones, test
accuracy at the end with and without bucketing (s = 2). Worker momentum is a running mean here,
m <- beta m + (1 - beta) g; the paper's lacks the factor, so its rate 0.01 is 0.01 / (1 - beta),
and clipping at 10 / (1 - beta) is at 10 (in units of gradients). The authors' code clips at 10
unless it is told to scale; the log of its table is, digit for digit, that of the run that scales.
Three iterations of clipping and eight of RFA, as there. Differences:

* The default network is small (its cells are marked "other model"); "published" has the paper's,
  and rules, mimic and dropout as the authors wrote them (`byzantine_rules.py`).
* Hostile workers hold as many examples as the honest, drawn at random from all (copies).
* Under sign and label flips their hostile workers have no momentum; ours have.
* min-max, trimmed mean and multi-Krum are not in the paper's table.

A rule is compiled once: attack, learning rate, momentum, clipping radius and data are arguments of
its program. Where all attacks are made of the honest messages (ipm, alie, mimic, min-max), hostile
workers compute nothing. Cells that results.json of the same setting has are kept. Writes
results.json and heat_map.png.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from byzantine_pictures import plot, print_table
from byzantine_rules import (
    KNOWING,
    authors_network,
    joined_by,
    krum_of_fourth_powers,
    rfa_from_zero,
)
from byzantine_settings import ATTACKS, RULES, Flags
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite import aggregation, attacks
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.transforms.worker_momentum import worker_momentum


class Setting(NamedTuple):
    """What a preset fixes; sizes of 0 mean all examples."""

    dataset: str
    model: str
    train_size: int
    test_size: int
    num_rounds: int
    authors: bool = False
    """Rules, mimic and dropout as the authors wrote them."""


PRESETS = {
    "small": Setting("mnist", "mlp", 20_000, 5_000, 600),
    "published": Setting("mnist", "cnn", 0, 0, 600, authors=True),
    "smoke": Setting("digits", "mlp", 800, 200, 20),
}


EVERY = 100
"""Rounds between evaluations, at most: a divisor of all of them."""


class Tuned(NamedTuple):
    """Arguments of a rule's program."""

    attack: Any
    """int32, a place in --attacks."""
    learning_rate: Any
    momentum: Any
    clip_radius: Any


def rule(
    name: str, tuned: Tuned, num_inputs: int, num_byzantine: int, authors: bool = False
) -> fl.Aggregator:
    """A robust rule for `num_inputs` messages, or buckets, of which `num_byzantine` are bad."""
    if authors and name == "krum":
        return krum_of_fourth_powers(num_byzantine)
    if authors and name == "rfa":
        smoothing = 0.1 * tuned.learning_rate * (1 - tuned.momentum)
        return rfa_from_zero(iterations=8, smoothing=smoothing)
    # Messages are gradients times the rate, and the radius is in units of gradients.
    return {
        "mean": lambda: aggregation.mean(),
        "median": lambda: aggregation.median(),
        "trimmed mean": lambda: aggregation.trimmed_mean(num_byzantine / num_inputs),
        "krum": lambda: aggregation.krum(num_byzantine),
        "multi-krum": lambda: aggregation.multi_krum(num_byzantine),
        "rfa": lambda: aggregation.geometric_median(iterations=8),
        "cclip": lambda: aggregation.centered_clipping(
            tuned.clip_radius * tuned.learning_rate, iterations=3
        ),
    }[name]()


def any_attack(names: Sequence[str], index: Any, warmup: int = 20) -> attacks.Attack:
    """One attack out of `names`, picked by a traced number: a rule needs one program for all.

    A label flip happens in the data, so its row is what the clients sent, as without an attack.
    """
    obey = attacks.Attack(lambda params: (), lambda key, state, scene: (state, scene.values))
    known = {
        "none": obey,
        "sign flip": attacks.sign_flip(),
        "label flip": obey,
        "ipm": attacks.ipm(0.1),
        "alie": attacks.alie(),
        "mimic": attacks.mimic(warmup=warmup),
        "min-max": attacks.min_max(),
    }
    choices = [known[name] for name in names]

    def branch(place: int) -> Callable[..., tuple[Any, Any]]:
        def run(key: Any, states: tuple, scene: attacks.Scene) -> tuple[Any, Any]:
            state, rows = choices[place].make(key, states[place], scene)
            full = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), rows, scene.values)
            return (*states[:place], state, *states[place + 1 :]), full

        return run

    return attacks.Attack(
        lambda params: tuple(choice.init(params) for choice in choices),
        lambda key, states, scene: jax.lax.switch(
            index, [branch(i) for i in range(len(choices))], key, states, scene
        ),
    )


def algorithm(
    model: fl.models.Model,
    name: str,
    bucket_size: int,
    flags: Flags,
    tuned: Tuned,
    authors: bool = False,
) -> fl.FederatedAlgorithm:
    """Local momentum SGD, hostile clients, and a rule, perhaps on buckets."""
    num_inputs = -(-flags.num_clients // bucket_size)
    inner = rule(name, tuned, num_inputs, flags.num_byzantine, authors)
    if bucket_size > 1:
        inner = aggregation.bucketing(bucket_size, inner=inner)
    attacked = attacks.byzantine(
        any_attack(flags.attacks, tuned.attack, 1 if authors else 20),
        inner=inner,
        clients=hostile_ids(flags),
    )
    if idle(flags):
        honest = flags.num_clients - flags.num_byzantine
        attacked = joined_by(flags.num_byzantine, honest, attacked)
    return fl.fedavg(
        model.loss,
        optax.sgd(tuned.learning_rate),
        plan=fl.Plan(batch_size=flags.batch_size, steps=1),
        sampler=fl.everyone(),
        weighting="uniform",
        uplink=worker_momentum(tuned.momentum),
        aggregator=attacked,
        strategy=fl.vmapped(),
    )


class Program(NamedTuple):
    """A run in parts of equal length, each one call of the same compiled program."""

    start: Callable[..., Any]
    """``(key, tuned, data) -> state``."""
    go_on: Callable[..., Any]
    """``(key, tuned, data, state) -> state``."""


def make_program(
    model: fl.models.Model,
    name: str,
    bucket_size: int,
    flags: Flags,
    num_rounds: int,
    authors: bool = False,
) -> Program:
    """The start of a run, and `num_rounds` more of it."""

    def algo(tuned: Tuned) -> fl.FederatedAlgorithm:
        return algorithm(model, name, bucket_size, flags, tuned, authors)

    @jax.jit
    def start(key: Any, tuned: Tuned, data: fl.data.FederatedDataset) -> Any:
        return algo(tuned).init(key, model.init(key), data)

    @functools.partial(jax.jit, donate_argnums=3)
    def go_on(key: Any, tuned: Tuned, data: fl.data.FederatedDataset, state: Any) -> Any:
        here = algo(tuned)
        step = lambda state, _: (here.round(key, state, data)[0], None)  # noqa: E731
        return jax.lax.scan(step, state, length=num_rounds)[0]

    return Program(start, go_on)


def idle(flags: Flags) -> bool:
    """Whether hostile clients need not compute: no attack looks at what they would have sent."""
    return set(flags.attacks) <= set(KNOWING)


def hostile_ids(flags: Flags) -> np.ndarray:
    """The last ones are hostile: the partition does not depend on them."""
    return np.arange(flags.num_clients - flags.num_byzantine, flags.num_clients)


def deal(train: dict[str, np.ndarray], flags: Flags, seed: int) -> fl.data.FederatedDataset:
    """Deals examples to the honest clients, by sorted labels; the hostile get copies at random."""
    rng = np.random.default_rng(seed)
    num_honest, total = flags.num_clients - flags.num_byzantine, len(train["y"])
    order = rng.permutation(total)
    if not flags.iid:
        order = order[np.argsort(train["y"][order], kind="stable")]
    parts = np.array_split(order, num_honest)
    size = total // num_honest
    if not idle(flags):
        parts += [rng.choice(total, size, replace=False) for _ in range(flags.num_byzantine)]
    rows = np.concatenate(parts)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return fl.data.from_arrays({k: v[rows] for k, v in train.items()}, owners)


def load(flags: Flags, setting: Setting, seed: int) -> tuple[dict, dict]:
    """Training and test examples, as many as the preset says."""
    options: dict[str, Any] = {"data_dir": flags.data_dir} if setting.dataset == "mnist" else {}
    train, test = map(with_labels, fl.data.load(setting.dataset, **options))
    rng = np.random.default_rng(seed)
    sizes = (setting.train_size, setting.test_size)
    picked = [
        rng.permutation(len(part["y"]))[: size or None]
        for part, size in zip((train, test), sizes, strict=True)
    ]
    return tuple(  # type: ignore[return-value]
        {k: np.asarray(v)[rows] for k, v in part.items()}
        for part, rows in zip((train, test), picked, strict=True)
    )


def network(kind: str, input_shape: Sequence[int], authors: bool = False) -> fl.models.Model:
    """The paper's network (1,199,882 parameters on MNIST), or a perceptron of 32 hidden units."""
    scale: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,), "input_shape": input_shape}
    if kind == "mlp":
        return fl.models.mlp((32,), **scale)
    if authors:
        return authors_network(**scale)
    return fl.models.conv_net(
        (32, 64), (128,), kernel_size=3, padding="VALID", pool_after=(False, True),
        conv_dropout=0.25, dense_dropout=0.5, **scale,
    )  # fmt: skip


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs the grid; one row a rule, bucket size, attack and seed."""
    check(flags)
    setting = PRESETS[chosen_preset(flags)]
    kind = flags.model or setting.model
    num_rounds = flags.num_rounds or setting.num_rounds
    settings = {**dataclasses.asdict(flags), **setting._asdict()}
    settings.update(model=kind, num_rounds=num_rounds)
    for drop in ("output_dir", "overwrite", "data_dir"):
        del settings[drop]
    path = flags.output_dir / "results.json"
    rows = kept_rows(path, settings, flags.overwrite)
    inputs = [(seed, *load(flags, setting, seed)) for seed in flags.seeds]
    model = network(kind, inputs[0][1]["x"].shape[1:], setting.authors)
    rate = flags.learning_rate / (1 - flags.momentum)
    part = max(n for n in range(1, EVERY + 1) if num_rounds % n == 0)
    for name, bucket_size in itertools.product(flags.rules, flags.bucket_sizes):
        if name == "mean" and bucket_size > 1:
            continue  # a mean of means
        program = make_program(model, name, bucket_size, flags, part, setting.authors)
        for (seed, train, test), attack in itertools.product(inputs, flags.attacks):
            place = {"rule": name, "bucket_size": bucket_size, "attack": attack, "seed": seed}
            if any(place.items() <= row.items() for row in rows):
                print(f"{name}, s={bucket_size}, {attack}, seed {seed}: kept from {path}")
                continue
            data = deal(train, flags, seed)
            if attack == "label flip":
                data = attacks.label_flip(data, hostile_ids(flags), num_classes=10)
            tuned = Tuned(
                *map(
                    jnp.asarray,
                    (flags.attacks.index(attack), rate, flags.momentum, flags.clip_radius),
                )
            )
            key, began, score = jax.random.key(seed), time.perf_counter(), fl.evaluator(model, test)
            state, curve = program.start(key, tuned, data), []
            for _ in range(num_rounds // part):
                state = program.go_on(key, tuned, data, state)
                curve.append(100 * score(state.server.params)["test_accuracy"])
                if setting.authors:  # minutes a cell
                    spent = time.perf_counter() - began
                    print(f"  {part * len(curve)}: {curve[-1]:.2f} %, {spent:.0f} s", flush=True)
            seconds = round(time.perf_counter() - began, 1)
            rows.append({**place, "accuracy": curve[-1], "curve": curve, "seconds": seconds})
            path.parent.mkdir(parents=True, exist_ok=True)
            save_json_atomic(path, {"versions": versions(), "settings": settings, "rows": rows})
            print(
                f"{name:13s} s={bucket_size} {attack:11s} seed {seed}  {curve[-1]:6.2f}", flush=True
            )
    comparable = kind == "cnn" and setting.dataset == "mnist" and not flags.iid
    print_table(rows, flags, comparable)
    plot(rows, flags, flags.output_dir / "heat_map.png")
    return rows


def kept_rows(path: Path, settings: dict[str, Any], overwrite: bool) -> list[dict[str, Any]]:
    """Cells of an earlier run of the same setting; its rules, attacks and seeds may be others.

    Raises:
      FileExistsError: if `path` holds results of another setting.
    """
    if not path.exists() or overwrite:
        return []
    found = json.loads(path.read_text())
    axes = ("rules", "attacks", "bucket_sizes", "seeds")
    wanted, given = (
        json.dumps({k: v for k, v in used.items() if k not in axes}, sort_keys=True)
        for used in (settings, found.get("settings", {}))
    )
    if wanted != given:
        raise FileExistsError(
            f"{path} holds the results of another setting; --overwrite replaces them, or give "
            "another --output-dir"
        )
    return found["rows"]


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    for given, known, name in (
        (flags.rules, RULES, "--rules"),
        (flags.attacks, ATTACKS, "--attacks"),
    ):
        if not given or set(given) - set(known):
            raise ValueError(f"{name} must be out of {', '.join(known)}, got {given}")
    if not flags.seeds or not flags.bucket_sizes or min(flags.bucket_sizes) < 1:
        raise ValueError(
            "--seeds and --bucket-sizes must not be empty, and buckets hold 1 client or more; got "
            f"{flags.seeds} and {flags.bucket_sizes}"
        )
    if not 0 <= flags.num_byzantine < flags.num_clients:
        raise ValueError(
            f"--num-byzantine must lie in [0, {flags.num_clients}), got {flags.num_byzantine}"
        )
    if not 0 <= flags.momentum < 1:
        raise ValueError(f"--momentum must lie in [0, 1), got {flags.momentum}")


if __name__ == "__main__":
    script(main, Flags, __doc__)
