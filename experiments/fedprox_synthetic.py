"""FedProx on synthetic(1, 1) with stragglers: Figure 1 of Li et al. 2020, on a pinned draw.

    python experiments/fedprox_synthetic.py
    python experiments/fedprox_synthetic.py --num-rounds 50 --mu 0.1

30 clients, 10 a round, 20 epochs, batches of 10, rate 0.01, softmax regression from zero. A
straggler does 1 to 19 epochs. FedAvg drops stragglers, so its cohort is what is left of it: exactly
10, 5 or 1 clients. FedProx keeps them: each sampled client is one with the given probability.
Prints mean and standard deviation over the last rounds beside the reference of the pinned draw,
and writes results.json and curves.png.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import fedjax_lite as fl
from fedjax_lite.history import save_json_atomic, versions

REFERENCE = {
    ("fedavg", 0.0): (0.509, 0.902),
    ("fedprox mu", 0.0): (0.2201, 0.9245),
    ("fedavg", 0.9): (0.450, 0.878),
    ("fedprox 0", 0.9): (0.361, 0.906),
    ("fedprox mu", 0.9): (0.2215, 0.9255),
}
"""Training loss and test accuracy of an independent run on the same draw, mu = 1, 200 rounds."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Stragglers and penalty."""

    stragglers: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Shares of a cohort that do less than 20 epochs."""
    mu: float = 1.0
    """FedProx's penalty."""
    num_rounds: int = 200
    """Rounds."""
    last: int = 20
    """Rounds at the end over which figures are averaged."""
    seed: int = 0
    """Of cohorts, batches and stragglers; the data are pinned."""
    output_dir: Path = Path("outputs/fedprox_synthetic")
    """Where results.json and curves.png go."""


def stragglers(share: float) -> Any:
    """20 epochs, or with probability `share` 1 to 19 of them."""

    def epochs(key: jax.Array, client: jax.Array) -> jax.Array:
        key_who, key_work = jax.random.split(key)
        slow = jax.random.bernoulli(key_who, share)
        return jnp.where(slow, jax.random.randint(key_work, (), 1, 20), 20)

    return epochs


def curves(algo: fl.FederatedAlgorithm, model: Any, data: Any, test: dict, flags: Flags) -> Any:
    """Training loss and test accuracy after every round, as one compiled program."""
    key = jax.random.key(flags.seed)
    state = algo.init(key, model.init(key), data)

    @jax.jit
    def run(key, state, data, test):
        def one(state, _):
            state, _ = algo.round(key, state, data)
            params = state.server.params
            right = model.predict(params, test).argmax(-1) == test["y"]
            return state, (model.loss(params, data.examples, None).mean(), right.mean())

        return jax.lax.scan(one, state, None, length=flags.num_rounds)[1]

    return tuple(np.asarray(curve) for curve in run(key, state, data, test))


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every method at every share of stragglers and prints the table."""
    train, test = fl.data.load("synthetic", alpha=1.0, beta=1.0)
    data = fl.data.from_arrays({k: train[k] for k in ("x", "y")}, train["client"])
    held_out = {k: jnp.asarray(test[k]) for k in ("x", "y")}
    model = fl.models.linear(10, input_shape=(60,))
    optimizer = optax.sgd(0.01)
    rows, lines = [], {}
    print(f"{'method':12s} {'stragglers':>10s} {'train loss':>18s} {'test acc.':>10s}  reference")
    for share in flags.stragglers:
        kept = max(1, round(10 * (1 - share)))
        plan = fl.Plan(batch_size=10, epochs=stragglers(share))
        methods = {
            "fedavg": fl.fedavg(
                model.loss,
                optimizer,
                plan=fl.Plan(batch_size=10, epochs=20),
                sampler=fl.uniform(kept),
            ),
            "fedprox 0": fl.fedprox(
                model.loss, optimizer, mu=0.0, plan=plan, sampler=fl.uniform(10)
            ),
            "fedprox mu": fl.fedprox(
                model.loss, optimizer, mu=flags.mu, plan=plan, sampler=fl.uniform(10)
            ),
        }
        for name, algo in methods.items():
            loss, accuracy = curves(algo, model, data, held_out, flags)
            row = {
                "method": name,
                "mu": flags.mu if name == "fedprox mu" else 0.0,
                "stragglers": share,
                "train_loss": float(loss[-flags.last :].mean()),
                "train_loss_std": float(loss[-flags.last :].std()),
                "test_accuracy": float(accuracy[-flags.last :].mean()),
                "reference": REFERENCE.get((name, share)),
            }
            rows.append(row)
            lines[f"{name}, {share:.0%} stragglers"] = loss
            print(
                f"{name:12s} {share:10.0%} {row['train_loss']:9.4f} +- {row['train_loss_std']:.4f} "
                f"{row['test_accuracy']:10.4f}  {row['reference'] or ''}",
                flush=True,
            )
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in dataclasses.asdict(flags).items() if k != "output_dir"}
    save_json_atomic(
        flags.output_dir / "results.json",
        {"versions": versions(), "settings": settings, "rows": rows},
    )
    plot(lines, flags.output_dir / "curves.png")
    return rows


def plot(lines: dict[str, np.ndarray], path: Path) -> None:
    """Training loss by round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    styles = {
        "fedavg": ("#D55E00", "-"),
        "fedprox 0": ("#009E73", "--"),
        "fedprox mu": ("#0072B2", "-"),
    }
    widths = iter(np.repeat(np.linspace(1.0, 2.5, max(1, len(lines) // 3)), 3))
    for label, loss in lines.items():
        colour, dash = styles[label.split(",")[0]]
        axes.plot(loss, dash, color=colour, label=label, linewidth=next(widths))
    axes.set(xlabel="round", ylabel="training loss", yscale="log", title="synthetic(1, 1)")
    axes.legend(fontsize=8)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
