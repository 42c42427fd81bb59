"""Robust rules against attacks: the bucketing paper's MNIST setting as a heat map and a table.

    python experiments/byzantine.py                       # a small network, minutes on two cores
    python experiments/byzantine.py --preset published    # the paper's network and all of MNIST
    python experiments/byzantine.py --preset smoke        # seconds, scikit-learn's digits

Karimireddy, He, Jaggi (2022, arXiv:2006.09365): 25 workers, 5 of them hostile and knowing, batches
of 32, one local step a round, 600 rounds, data dealt by sorted labels to the honest ones, test
accuracy at the end with and without bucketing (s = 2). Worker momentum is a running mean here,
m <- beta m + (1 - beta) g; the paper's lacks the factor, so its rate 0.01 is 0.01 / (1 - beta), and
clipping at 10 / (1 - beta) is at 10 (in units of gradients). Three iterations of clipping and eight
of RFA, as in the authors' code. Differences:

* The default network is small (its cells are marked "other model"); "published" has the paper's.
* Hostile workers hold as many examples as the honest, drawn at random from all (copies).
* min-max, trimmed mean and multi-Krum are not in the paper's table.

A rule is compiled once: attack, learning rate, momentum, clipping radius and data are arguments of
its program. Writes results.json and heat_map.png.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from byzantine_settings import ATTACKS, RULES, Flags
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite import aggregation, attacks
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.transforms.worker_momentum import worker_momentum

PUBLISHED = figures("bucketing")
"""Per cent at s = 1 and 2, worker momentum 0.9, by rule and attack."""


class Setting(NamedTuple):
    """What a preset fixes; sizes of 0 mean all examples."""

    dataset: str
    model: str
    train_size: int
    test_size: int
    num_rounds: int


PRESETS = {
    "small": Setting("mnist", "mlp", 20_000, 5_000, 600),
    "published": Setting("mnist", "cnn", 0, 0, 600),
    "smoke": Setting("digits", "mlp", 800, 200, 20),
}


class Tuned(NamedTuple):
    """Arguments of a rule's program."""

    attack: Any
    """int32, a place in --attacks."""
    learning_rate: Any
    momentum: Any
    clip_radius: Any


def rule(name: str, tuned: Tuned, num_inputs: int, num_byzantine: int) -> fl.Aggregator:
    """A robust rule for `num_inputs` messages, or buckets, of which `num_byzantine` are bad."""
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


def any_attack(names: Sequence[str], index: Any) -> attacks.Attack:
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
        "mimic": attacks.mimic(warmup=20),
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
    model: fl.models.Model, name: str, bucket_size: int, flags: Flags, tuned: Tuned
) -> fl.FederatedAlgorithm:
    """Local momentum SGD, hostile clients, and a rule, perhaps on buckets."""
    num_inputs = -(-flags.num_clients // bucket_size)
    inner = rule(name, tuned, num_inputs, flags.num_byzantine)
    if bucket_size > 1:
        inner = aggregation.bucketing(bucket_size, inner=inner)
    return fl.fedavg(
        model.loss,
        optax.sgd(tuned.learning_rate),
        plan=fl.Plan(batch_size=flags.batch_size, steps=1),
        sampler=fl.everyone(),
        weighting="uniform",
        uplink=worker_momentum(tuned.momentum),
        aggregator=attacks.byzantine(
            any_attack(flags.attacks, tuned.attack), inner=inner, clients=hostile_ids(flags)
        ),
        strategy=fl.vmapped(),
    )


def make_program(
    model: fl.models.Model, name: str, bucket_size: int, flags: Flags, num_rounds: int
) -> Callable[..., Any]:
    """A whole run as one compiled program: ``(key, tuned, data) -> params``."""

    @jax.jit
    def run(key: Any, tuned: Tuned, data: fl.data.FederatedDataset) -> Any:
        algo = algorithm(model, name, bucket_size, flags, tuned)
        state = algo.init(key, model.init(key), data)
        step = lambda state, _: (algo.round(key, state, data)[0], None)  # noqa: E731
        return jax.lax.scan(step, state, length=num_rounds)[0].server.params

    return run


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
    parts += [rng.choice(total, size, replace=False) for _ in range(flags.num_byzantine)]
    rows = np.concatenate(parts)
    owners = np.repeat(np.arange(flags.num_clients), [len(part) for part in parts])
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


def network(kind: str, input_shape: Sequence[int]) -> fl.models.Model:
    """The paper's network (1,199,882 parameters on MNIST), or a perceptron of 32 hidden units."""
    scale: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,), "input_shape": input_shape}
    if kind == "mlp":
        return fl.models.mlp((32,), **scale)
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
    rows: list[dict[str, Any]] = []
    inputs = [(seed, *load(flags, setting, seed)) for seed in flags.seeds]
    model = network(kind, inputs[0][1]["x"].shape[1:])
    rate = flags.learning_rate / (1 - flags.momentum)
    for name, bucket_size in itertools.product(flags.rules, flags.bucket_sizes):
        if name == "mean" and bucket_size > 1:
            continue  # a mean of means
        program = make_program(model, name, bucket_size, flags, num_rounds)
        for (seed, train, test), attack in itertools.product(inputs, flags.attacks):
            data = deal(train, flags, seed)
            if attack == "label flip":
                data = attacks.label_flip(data, hostile_ids(flags), num_classes=10)
            tuned = Tuned(
                *map(
                    jnp.asarray,
                    (flags.attacks.index(attack), rate, flags.momentum, flags.clip_radius),
                )
            )
            params = program(jax.random.key(seed), tuned, data)
            accuracy = 100 * fl.evaluator(model, test)(params)["test_accuracy"]
            row = {"rule": name, "bucket_size": bucket_size, "attack": attack, "seed": seed}
            rows.append({**row, "accuracy": accuracy})
            print(
                f"{name:13s} s={bucket_size} {attack:11s} seed {seed}  {accuracy:6.2f}", flush=True
            )
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {**dataclasses.asdict(flags), **setting._asdict()}
    settings.update(model=kind, num_rounds=num_rounds)
    for drop in ("output_dir", "overwrite", "data_dir"):
        del settings[drop]
    save_json_atomic(
        flags.output_dir / "results.json",
        {"versions": versions(), "settings": settings, "rows": rows},
    )
    comparable = kind == "cnn" and setting.dataset == "mnist" and not flags.iid
    print_table(rows, flags, comparable)
    plot(rows, flags, flags.output_dir / "heat_map.png")
    return rows


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
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Mean and standard deviation over seeds of each cell."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        place = (row["rule"], row["bucket_size"], row["attack"])
        groups.setdefault(place, []).append(row["accuracy"])
    return {place: (float(np.mean(x)), float(np.std(x))) for place, x in groups.items()}


def published(name: str, bucket_size: int, attack: str) -> float | None:
    """The paper's accuracy in per cent, where it has one."""
    if attack not in PUBLISHED.get(name, ()) or bucket_size not in (1, 2):
        return None
    return PUBLISHED[name][attack][bucket_size - 1]


def print_table(rows: list[dict[str, Any]], flags: Flags, comparable: bool) -> None:
    """Test accuracies in per cent, the published one in brackets."""
    from rich.console import Console
    from rich.table import Table

    title = f"Test accuracy in per cent, {flags.num_byzantine} of {flags.num_clients} hostile"
    caption = "[published]" if comparable else "[published: other model or data]"
    table = Table(title=title, caption=caption.replace("[", r"\["))
    for column in ("rule", "s", *flags.attacks):
        table.add_column(column)
    means = cells(rows)
    for name, size in dict.fromkeys((row["rule"], row["bucket_size"]) for row in rows):
        texts = []
        for attack in flags.attacks:
            known = published(name, size, attack)
            text = f"{means[name, size, attack][0]:.1f}"
            texts.append(text if known is None else f"{text} \\[{known:.1f}]")
        table.add_row(name, str(size), *texts)
    Console().print(table)


def plot(rows: list[dict[str, Any]], flags: Flags, path: Path) -> None:
    """A heat map: rules by attacks."""
    from matplotlib.figure import Figure

    means = cells(rows)
    lines = list(dict.fromkeys((row["rule"], row["bucket_size"]) for row in rows))
    grid = np.array([[means[name, s, a][0] for a in flags.attacks] for name, s in lines])
    figure = Figure(
        figsize=(2.5 + len(flags.attacks), 1.6 + 0.42 * len(lines)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        axes.text(j, i, f"{value:.1f}", ha="center", va="center",
                  color="black" if value > 55 else "white")  # fmt: skip
    axes.set_xticks(range(len(flags.attacks)), flags.attacks)
    axes.set_yticks(range(len(lines)), [n if s == 1 else f"{n}, buckets of {s}" for n, s in lines])
    axes.set(xlabel="attack", ylabel="rule")
    axes.set_title(f"{flags.num_byzantine} of {flags.num_clients} workers hostile", fontsize=10)
    figure.colorbar(image, label="test accuracy (%)")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
