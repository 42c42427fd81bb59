"""SCAFFOLD's rate does not depend on heterogeneity: quadratics whose optima drift apart.

    python experiments/scaffold_quadratics.py

Clients ``f_i(x) = a_i/2 (x - 1 - s d_i)^2`` with ``sum a_i d_i = 0``: the optimum is 1 for every
spread `s` of the clients' own optima. FedAvg ends in a bias that grows with `s`; SCAFFOLD and
FedDyn go to the optimum for every `s`, with full and partial participation; Mime with full (its
control is the cohort's, so a partial cohort leaves an error). In float64. Prints ``|x - 1|`` and
the rounds until it stays below 1e-6 max(1, s), checks what was claimed from these numbers, and
writes results.json and curves.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    scales: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    """Heterogeneity: spreads of the clients' optima around the common one."""
    num_clients: int = 10
    """Clients in the population."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    cohort_size: int = 4
    """Clients in a round of the partial runs."""
    steps: int = 5
    """Local steps of a client in a round."""
    learning_rate: float = 0.05
    """Local learning rate, per step."""
    num_rounds: int = 400
    """Rounds of each run."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    output_dir: Path = Path("outputs/scaffold_quadratics")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A try in seconds: twenty rounds; what is claimed needs them all."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """The problem and the length of the runs."""


CLOSE = 1e-6
"""An error is small below this times max(1, s)."""
SPREAD = 1.5
"""Heterogeneity does not slow a method that takes at most this many times the rounds that it
takes at the smallest `s`. (It may take fewer: from 0 the error begins at 1, and s grows.)"""


def methods(flags: Flags, sampler: fl.Sampler) -> dict[str, fl.FederatedAlgorithm]:
    """The methods, all with uniform weights."""
    loss, rate = fl.data.quadratic_loss, flags.learning_rate
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=None, steps=flags.steps),
        "sampler": sampler,
    }
    return {
        "fedavg": fl.fedavg(loss, optax.sgd(rate), weighting="uniform", **slots),
        "scaffold": fl.scaffold(loss, rate, **slots),
        "feddyn": fl.feddyn(loss, optax.sgd(rate), alpha=1.0, **slots),
        "mime": fl.mime(loss, rate, momentum=0.0, **slots),
    }


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every method at every scale, the scales as one vmapped program."""
    flags = shrunk(flags, num_rounds=20) if flags.smoke else flags
    check(flags)
    with jax.enable_x64(True):
        rows, lines = run_all(flags)
    verdicts = claims(rows)
    for text in verdicts:
        print(text)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(flags)
    del settings["output_dir"], settings["overwrite"], settings["smoke"]
    save_json_atomic(
        flags.output_dir / "results.json",
        {"versions": versions(), "settings": settings, "claims": verdicts, "rows": rows},
    )
    plot(lines, flags.output_dir / "curves.png")
    return rows


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    if not flags.scales or not all(scale > 0 for scale in flags.scales):
        raise ValueError(f"--scales must be positive numbers, got {flags.scales}")
    if flags.num_rounds < 1:
        raise ValueError(f"--num-rounds must be at least 1, got {flags.num_rounds}")
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def run_all(flags: Flags) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows of the table, and the errors `[scales, rounds]` of each run."""
    rng = np.random.default_rng(0)
    a, d = rng.uniform(1.0, 4.0, flags.num_clients), rng.normal(size=flags.num_clients)
    d -= (a * d).sum() / a.sum()
    key, scales = jax.random.key(0), jnp.array(flags.scales)
    data = fl.data.from_arrays({"a": a, "b": d}, np.arange(flags.num_clients))
    rows, lines = [], {}
    samplers = {"full": fl.everyone(), "partial": fl.uniform(flags.cohort_size)}
    print(f"{'method':10s} {'cohort':8s} error |x - 1| after {flags.num_rounds} rounds (rounds)")
    for cohort, sampler in samplers.items():
        for name, algo in methods(flags, sampler).items():

            def run(
                scale: jax.Array, data: fl.data.FederatedDataset, algo: Any = algo
            ) -> jax.Array:
                scaled = {"a": data.examples["a"], "b": 1 + scale * data.examples["b"]}
                data = dataclasses.replace(data, examples=scaled)
                state = algo.init(key, jnp.array(0.0), data)

                def one(state: Any, _: None) -> tuple[Any, jax.Array]:
                    state, _ = algo.round(key, state, data)
                    return state, state.server.params

                return jax.lax.scan(one, state, None, length=flags.num_rounds)[1]

            curves = np.abs(np.asarray(jax.jit(jax.vmap(run, (0, None)))(scales, data)) - 1)
            lines[f"{name}, {cohort}"] = curves
            names = [f"{scale:g}" for scale in flags.scales]
            ends = dict(zip(names, curves[:, -1].tolist(), strict=True))
            taken = dict(zip(names, map(rounds_to, curves, flags.scales), strict=True))
            rows.append(
                {"method": name, "cohort": cohort, "error_by_scale": ends, "rounds_by_scale": taken}
            )
            shown = "  ".join(f"s={s}: {ends[s]:.1e} ({taken[s] or '-'})" for s in names)
            print(f"{name:10s} {cohort:8s} {shown}", flush=True)
    return rows, lines


def rounds_to(errors: np.ndarray, scale: float) -> int | None:
    """The first round from which the error stays small; None where it does not."""
    large = np.flatnonzero(~(errors <= CLOSE * max(1.0, scale)))
    first = int(large[-1]) + 2 if len(large) else 1
    return first if first <= len(errors) else None


def claims(rows: list[dict[str, Any]]) -> list[str]:
    """What was claimed, a line each with PASS or FAIL, from the numbers of the table."""
    texts = []
    for row in rows:
        errors = {float(s): error for s, error in row["error_by_scale"].items()}
        taken = list(row["rounds_by_scale"].values())
        who = f"{row['method']}, {row['cohort']}"
        if row["method"] == "fedavg":
            shares = [error / s for s, error in errors.items()]
            holds = min(shares) > CLOSE and max(shares) <= 1.01 * min(shares)
            text = f"{who}: the error is {min(shares):.2g} s, it grows with heterogeneity"
        elif row["method"] == "mime" and row["cohort"] == "partial":
            continue  # of an error, nothing is claimed
        else:
            least = taken[int(np.argmin(list(errors)))]
            holds = None not in taken and max(taken) <= SPREAD * least
            text = f"{who}: small after {taken} rounds, heterogeneity does not slow it"
        texts.append(f"{'PASS' if holds else 'FAIL'}  {text}")
    return texts


def plot(lines: dict[str, np.ndarray], path: Path) -> None:
    """Error by round; one line a spread, the thicker the larger."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = {"fedavg": "#D55E00", "scaffold": "#0072B2", "feddyn": "#009E73", "mime": "#CC79A7"}
    for axes, cohort in zip(panels, ("full", "partial"), strict=True):
        for label, curves in lines.items():
            name, kind = label.split(", ")
            for i, curve in enumerate(curves if kind == cohort else ()):
                axes.semilogy(
                    np.maximum(curve, 1e-16),
                    color=colours[name],
                    linewidth=1 + i,
                    alpha=0.5,
                    label=name if i == 0 else None,
                )
        axes.set(xlabel="round", title=f"{cohort} participation")
        axes.legend()
    panels[0].set_ylabel("|x - 1|")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
