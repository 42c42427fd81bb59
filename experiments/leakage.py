"""What a client's update gives away: reconstructed MNIST digits, and who was trained on.

    python experiments/leakage.py            # minutes on two cores
    python experiments/leakage.py --smoke    # seconds, scikit-learn's digits

**Reconstruction.** A server that follows the protocol looks at the update of one client with one
image and inverts it (Geiping et al. 2020, arXiv:2003.14053: cosine distance, total variation, Adam
on signs) on DLG's sigmoid LeNet (Zhu et al. 2019, arXiv:1906.08935), labels known. Each row is
FedAvg with another defence; updates come out of real rounds (`leakage.observe`): local steps, a
compressed or noisy uplink, or the sum over several clients, as secure aggregation leaves it. PSNR
in dB beside a mean image's; a low one means that *this* attack failed (against signs it is blunt).
Of a dense first layer the input is read off exactly, without search.

**Membership.** An overfitted model against the same training with client-level DP: AUC of the loss
attack (Yeom et al. 2018, arXiv:1709.01604) and of LiRA with reference models (Carlini et al. 2021,
arXiv:2112.03570), and the advantage that the accounted epsilon allows (to examples as to clients).

Writes results.json and reconstructions.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script

import fedjax_lite as fl
from fedjax_lite.attacks import leakage, membership
from fedjax_lite.models.layers import conv_layer, dense, init_affine
from fedjax_lite.privacy import central_gaussian
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.transforms import gaussian_noise, scaled_sign, top_k
from fedjax_lite.types import Key


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What is reconstructed, audited and defended."""

    num_images: int = 4
    """Images that are reconstructed, a client each."""
    num_iterations: int = 1000
    """Iterations of the gradient inversion."""
    variation: float = 1e-3
    """Weight of the total variation in the inversion."""
    noise_multipliers: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Standard deviations of the noise on a clipped update, over its clip, per coordinate."""
    epsilons: tuple[float, ...] = (8.0, 1.0)
    """Privacy budgets of the private trainings."""
    num_references: int = 4
    """Reference models of LiRA."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    num_members: int = 400
    """Examples that are trained on, eight for each client."""
    data_dir: Path | None = None
    """Folder that holds MNIST (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    learning_rate: float = 0.1
    """Local learning rate of the clients under attack."""
    num_rounds: int = 60
    """Rounds of the training that is attacked."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    seed: int = 0
    """Seed of everything random."""
    output_dir: Path = Path("outputs/leakage")
    """Where results.json and reconstructions.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds: digits, two images, few defences."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """Both attacks."""


class Defence(NamedTuple):
    """A row of the table."""

    algo: fl.FederatedAlgorithm
    simulate: leakage.Simulation
    """What the attacker thinks that a client does."""
    together: bool = False
    """The server sees the sum over all clients only."""
    sparse: bool = False
    """The attacker compares the entries that were sent only."""


def main(flags: Flags) -> dict[str, Any]:
    """Runs both attacks, prints both tables, writes both files."""
    if flags.smoke:
        flags = dataclasses.replace(
            flags, num_images=2, num_iterations=150, noise_multipliers=(0.1,), num_members=80,
            num_rounds=8, epsilons=(8.0,), num_references=2,
        )  # fmt: skip
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(f"{path} is there already; give --overwrite or another --output-dir")
    if flags.num_members % 8 or flags.num_members < 16:
        raise ValueError(f"--num-members must be a multiple of 8 from 16, got {flags.num_members}")
    name = "digits" if flags.smoke else "mnist"
    given: dict[str, Any] = {} if flags.smoke else {"data_dir": flags.data_dir}
    train, _ = map(with_labels, fl.data.load(name, **given))
    x = train["x"] / np.float32(255 if train["x"].dtype == np.uint8 else 1)
    train = {"x": x.reshape(*x.shape[:3], 1).astype(np.float32), "y": train["y"].astype(np.int32)}
    order = np.random.default_rng(flags.seed).permutation(len(train["y"]))
    train = {k: v[order] for k, v in train.items()}
    images, rows = reconstructions(flags, train)
    members = memberships(flags, train)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(flags).items()
                if k not in ("output_dir", "overwrite")}  # fmt: skip
    results = {"versions": versions(), "dataset": name, "settings": settings,
               "reconstruction": rows, "membership": members}  # fmt: skip
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(path, results)
    print_tables(rows, members)
    plot(images, rows, name, flags.output_dir / "reconstructions.png")
    return results


# -- reconstruction -------------------------------------------------------------------------


def sigmoid_lenet(input_shape: tuple[int, ...], num_classes: int = 10) -> fl.models.Model:
    """DLG's network: three 5x5 convolutions of 12 channels (strides 2, 2, 1) and a dense layer."""
    height, width, channels = input_shape
    flat = -(-height // 4) * -(-width // 4) * 12
    shapes = {"conv1": (5, 5, channels, 12), "conv2": (5, 5, 12, 12), "conv3": (5, 5, 12, 12),
              "head": (flat, num_classes)}  # fmt: skip

    def init(key: Key) -> Any:
        keys = jax.random.split(key, len(shapes))

        def uniform(leaf: jax.Array, key: Key) -> jax.Array:
            return jax.random.uniform(key, leaf.shape, minval=-0.5, maxval=0.5)

        made = {n: init_affine(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
        leaves, treedef = jax.tree.flatten(made)
        return jax.tree.unflatten(treedef, map(uniform, leaves, jax.random.split(key, len(leaves))))

    def apply(params: Any, x: jax.Array, key: Any) -> jax.Array:
        for name, strides in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            x = jax.nn.sigmoid(conv_layer(params[name], x, strides=strides))
        return dense(params["head"], x.reshape(x.shape[0], -1))

    return fl.models.from_functions(init, apply)


def defences(flags: Flags, model: fl.models.Model, norm: float) -> dict[str, Defence]:
    """FedAvg, and with what it may be defended; `norm` is the typical length of an update."""
    rate = flags.learning_rate

    def fedavg(steps: int = 1, **slots: Any) -> fl.FederatedAlgorithm:
        plan = fl.Plan(batch_size=1, steps=steps)
        return fl.fedavg(model.loss, optax.sgd(rate), plan=plan, sampler=fl.everyone(), **slots)

    one = leakage.gradient_of(model.loss)
    many = leakage.local_steps(model.loss, rate, num_steps=8)
    rows = {
        "none": Defence(fedavg(), one),
        "8 local steps": Defence(fedavg(8), many),
        "8 steps, taken for one": Defence(fedavg(8), one),
        "sign": Defence(fedavg(uplink=scaled_sign()), one),
        "top 10 %": Defence(fedavg(uplink=top_k(0.1)), one, sparse=True),
        "top 1 %": Defence(fedavg(uplink=top_k(0.01)), one, sparse=True),
    }
    for z in flags.noise_multipliers:
        private = fl.chain(fl.clip(norm), gaussian_noise(z * norm))
        rows[f"clip, noise {z:g}"] = Defence(fedavg(uplink=private), one)
    rows[f"sum of {flags.num_images} clients"] = Defence(fedavg(), one, together=True)
    if flags.smoke:
        kept = ("none", f"clip, noise {flags.noise_multipliers[0]:g}")
        rows = {name: rows[name] for name in kept}
    return rows


def reconstructions(flags: Flags, train: dict) -> tuple[dict, list[dict[str, Any]]]:
    """Images by defence, and the rows of the table."""
    key, count = jax.random.key(flags.seed), flags.num_images
    _, first = np.unique(train["y"], return_index=True)  # other labels, so that sums come apart
    chosen = np.random.default_rng(flags.seed).permutation(first)[:count]
    x, y = train["x"][chosen], train["y"][chosen]
    data = fl.data.from_arrays({"x": x, "y": y}, np.arange(count))
    shape = tuple(x.shape[1:])
    model = sigmoid_lenet(shape)
    params = jax.jit(model.init)(key)

    @jax.jit
    @jax.vmap
    def length(x: jax.Array, y: jax.Array) -> jax.Array:
        gradient = leakage.gradient_of(model.loss)(params, {"x": x, "y": y})
        return jnp.asarray(optax.tree.norm(gradient))

    lengths = length(jnp.asarray(x)[:, None], jnp.asarray(y)[:, None])
    norm = flags.learning_rate * float(jnp.min(lengths))
    guess = np.broadcast_to(train["x"].mean(0), x.shape)
    images, rows = {"original": x}, []
    rows.append({"defence": "(mean image)", "psnr": quality(guess, x), "labels": None})
    images["exact, from a dense layer"] = exact = from_dense(flags, data, shape)
    rows.append({"defence": "none; dense first layer", "psnr": quality(exact, x), "labels": None})
    for name, defence in defences(flags, model, norm).items():
        state = defence.algo.init(key, params, data)
        seen = [
            leakage.observe(defence.algo, state, data=data, clients=clients, key=key)[0]
            for clients in ([range(count)] if defence.together else [[i] for i in range(count)])
        ]
        updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)
        labels = jnp.asarray(y).reshape(len(seen), -1)

        def attack(update: Any, labels: Any, key: Any, defence: Defence = defence) -> jax.Array:
            simulate = defence.simulate
            if defence.sparse:
                simulate = leakage.where_sent(simulate, update)
            return leakage.invert(
                update, simulate, params=params, labels=labels, input_shape=shape, key=key,
                variation=flags.variation, num_iterations=flags.num_iterations,
            ).x  # fmt: skip

        keys = jax.random.split(key, len(seen))
        found = np.asarray(jax.jit(jax.vmap(attack))(updates, labels, keys)).reshape(x.shape)
        images[name] = found
        guessed = jax.vmap(leakage.infer_label)(updates["head"]["bias"])
        right = None if defence.together else int((np.asarray(guessed) == y).sum())
        rows.append({"defence": name, "psnr": quality(found, x), "labels": right})
        print(f"{name}: {np.mean(rows[-1]['psnr']):.1f} dB", flush=True)
    return images, rows


def from_dense(flags: Flags, data: fl.data.FederatedDataset, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of a multilayer perceptron, read off the update of its first layer."""
    model = fl.models.mlp((64,), input_shape=shape)
    algo = fl.fedavg(
        model.loss,
        optax.sgd(flags.learning_rate),
        plan=fl.Plan(batch_size=1, steps=1),
        sampler=fl.everyone(),
    )
    key = jax.random.key(flags.seed)
    state, found = algo.init(key, model.init(key), data), []
    for client in range(data.num_clients):
        update, _ = leakage.observe(algo, state, data=data, clients=[client], key=key)
        layer = update["dense1"]
        found.append(leakage.linear_input(layer["kernel"], layer["bias"]).reshape(shape))
    return np.clip(np.stack(found), 0, 1)


def quality(found: np.ndarray, x: np.ndarray) -> list[float]:
    """PSNR of each image; at most 99 dB, where only rounding is left."""
    values = leakage.psnr(jnp.asarray(found), jnp.asarray(x))
    return np.minimum(np.asarray(values, np.float64), 99.0).tolist()


# -- membership -----------------------------------------------------------------------------


def memberships(flags: Flags, train: dict) -> list[dict[str, Any]]:
    """A row a training: without privacy, and for each budget."""
    count, shape = flags.num_members, tuple(train["x"].shape[1:])
    parts = [
        {k: v[i * count : (i + 1) * count] for k, v in train.items()}
        for i in range(2 + flags.num_references)
    ]
    members, others, *rest = parts
    model = fl.models.mlp((64,), input_shape=shape)
    key, num_clients, delta = jax.random.key(flags.seed), count // 8, 1e-3
    slots: dict[str, Any] = {"plan": fl.Plan(batch_size=8, steps=5)}

    def trained(algo: fl.FederatedAlgorithm, part: dict, number: int = 0) -> Any:
        # The initial model is public; cohorts and noise are not: reference models have their own.
        own = jax.random.fold_in(key, number)
        data = fl.data.from_arrays(part, np.arange(count) // 8)
        state = algo.init(own, model.init(key), data)
        for _ in range(flags.num_rounds):
            state, _ = algo.round(own, state, data)
        return state.server.params

    def row(name: str, params: Any, epsilon: float | None, references: Any = None) -> dict:
        sets: dict[str, Any] = {"members": members, "non_members": others}
        loss = membership.membership_inference(model.loss, params, **sets)
        lira = membership.membership_inference(model.loss, params, references=references, **sets)
        right = [(np.asarray(model.predict(params, part)).argmax(1) == part["y"]).mean()
                 for part in (members, others)]  # fmt: skip
        allowed = None if epsilon is None else membership.advantage_bound(epsilon, delta=delta)
        return {"training": name, "train_accuracy": float(right[0]),
                "test_accuracy": float(right[1]), "loss_auc": loss.auc,
                "loss_interval": [loss.auc_low, loss.auc_high], "lira_auc": lira.auc,
                "lira_interval": [lira.auc_low, lira.auc_high], "advantage":
                max(loss.advantage, lira.advantage), "allowed_advantage": allowed}  # fmt: skip

    plain = fl.fedavg(model.loss, optax.sgd(0.2), sampler=fl.uniform(num_clients // 2), **slots)
    references = [trained(plain, part, i) for i, part in enumerate(rest, 1)]
    rows = [
        row("untrained", model.init(key), None, references),
        row("FedAvg", trained(plain, members), None, references),
    ]
    for epsilon in flags.epsilons:
        private = central_gaussian(
            clip=0.5, num_clients=num_clients, sampling_rate=0.5, epsilon=epsilon, delta=delta,
            num_rounds=flags.num_rounds, method="rdp" if flags.smoke else "pld",
        )  # fmt: skip
        algo = fl.fedavg(model.loss, optax.sgd(0.2), privacy=private, **slots)
        spent = algo.accountant.spent(flags.num_rounds)["epsilon"] if algo.accountant else np.nan
        shadows = [trained(algo, part, i) for i, part in enumerate(rest, 1)]
        name = f"DP-FedAvg, epsilon {spent:.2f}"
        rows.append(row(name, trained(algo, members), spent, shadows))
    return rows


# -- output ---------------------------------------------------------------------------------


def print_tables(rows: list[dict[str, Any]], members: list[dict[str, Any]]) -> None:
    """Both tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    table = Table("defence", "PSNR, mean (dB)", "best (dB)", "labels right",
                  title="reconstruction from an update")  # fmt: skip
    for row in rows:
        right = "-" if row["labels"] is None else f"{row['labels']} of {len(row['psnr'])}"
        cells = f"{np.mean(row['psnr']):.1f}", f"{np.max(row['psnr']):.1f}"
        table.add_row(row["defence"], *cells, right)
    console.print(table)
    table = Table("training", "train / test acc.", "AUC, loss", "AUC, LiRA", "advantage", "allowed",
                  title="membership inference (95 %)")  # fmt: skip
    for row in members:
        low, high = row["loss_interval"]
        allowed = row["allowed_advantage"]
        table.add_row(
            row["training"], f"{row['train_accuracy']:.1%} / {row['test_accuracy']:.1%}",
            f"{row['loss_auc']:.3f} ({low:.3f}-{high:.3f})",
            f"{row['lira_auc']:.3f} ({row['lira_interval'][0]:.3f}-{row['lira_interval'][1]:.3f})",
            f"{row['advantage']:.3f}", "-" if allowed is None else f"{allowed:.3f}",
        )  # fmt: skip
    console.print(table)


def plot(images: dict, rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Originals and reconstructions: a row a defence."""
    from matplotlib.figure import Figure

    psnr = {row["defence"]: np.mean(row["psnr"]) for row in rows}
    psnr["exact, from a dense layer"] = psnr["none; dense first layer"]
    count = len(images["original"])
    figure = Figure(figsize=(2.6 + 1.1 * count, 1.05 * len(images) + 0.5), layout="constrained")
    panels = figure.subplots(len(images), count, squeeze=False)
    for line, (label, pictures) in zip(panels, images.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        text = label if label == "original" else f"{label}\n{psnr[label]:.1f} dB"
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(f"{name}: images from a client's update (mean PSNR)", fontsize=10)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
