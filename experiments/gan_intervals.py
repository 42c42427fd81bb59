"""FedGAN's claim that networks may be averaged seldom: a system with a known end, and a ring.

    python experiments/gan_intervals.py            # minutes on one core
    python experiments/gan_intervals.py --smoke    # seconds

Rasouli, Sun, Rajagopal (2020), arXiv:2006.07228: agents whose data differ take K steps of SGD on
both networks between averages; K = 1 is the distributed GAN, and larger K are to end where it does.

The system is that of Nagarajan and Kolter (2017), arXiv:1706.04156: data uniform in [-1, 1], the
generator theta z with z uniform too, the discriminator psi x^2. Its only equilibrium with theta > 0
is exact: psi = 0, so that real and made up look alike, and E x^2 = theta^2 E z^2, so theta = 1.
Five agents hold a fifth of the interval each. The rates fall as the paper's theory wants it.

The ring is a mixture of eight Gaussians; four agents hold two neighbouring ones each, or, with
--deal random, all of them: whether it is the agents' differences that seldom averages cannot bear.
All K take as many local steps. Prints both tables with the verdict; writes results.json and
intervals.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gan_ring
import jax
import numpy as np
import optax
from shared.scene import gain
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

SEGMENTS, POINTS = 5, 200
"""Agents of the system, and points of each."""
AGENTS = gan_ring.MODES // 2
"""Of the ring."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Averages and local steps."""

    intervals: tuple[int, ...] = (1, 5, 20, 50)
    """Local steps between averages, K; the first is what the others are compared with."""
    problems: tuple[str, ...] = ("system", "ring")
    """What is run: system, ring."""
    deal: str = "modes"
    """How the ring's points are dealt: by modes, or at random."""
    system_steps: int = 20000
    """Local steps of an agent of the system, over all rounds."""
    system_rate: float = 0.1
    """SGD's rate there, of both networks; it falls as 1 / (1 + step / 1000)."""
    ring_steps: int = 5000
    """Local steps of an agent of the ring."""
    ring_rate: float = 0.1
    """SGD's rate there, of both networks."""
    ring_size: int = 500
    """Points of an agent of the ring."""
    batch_size: int = 50
    """Examples in a local step."""
    hidden: int = 64
    """Units of each of the two hidden layers, in both networks of the ring."""
    num_samples: int = 2000
    """Points that a generator is scored by."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seeds, and where results go."""

    num_seeds: int = 5
    """Number of seeds of starts and batches, 0, 1 and so on, side by side in a sweep."""
    output_dir: Path = Path("outputs/gan_intervals")
    """Where results.json and intervals.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(TrainingFlags, RunFlags):
    """The system, the ring and how seldom networks are averaged."""


def main(flags: Flags) -> dict[str, Any]:
    """Runs every interval on both, prints and writes where they end."""
    if flags.smoke:
        flags = shrunk(
            flags, intervals=(1, 5), system_steps=1000, ring_steps=10, ring_size=20, hidden=8,
            num_samples=100, num_seeds=2,
        )  # fmt: skip
    check(flags)
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    results: dict[str, Any] = {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(flags).items()
                     if isinstance(v, int | float | str | tuple)},
        "system": [], "ring": [], "versions": versions(),
    }  # fmt: skip
    paths, made = {}, {}
    print("system, K          theta              psi")
    for interval in flags.intervals if "system" in flags.problems else ():
        paths[interval] = ends = system(flags, interval)
        row = {
            "interval": interval,
            "theta": ends[:, -1, 0].tolist(),
            "psi": ends[:, -1, 1].tolist(),
        }
        results["system"].append(row)
        print(f"{interval:9d}" + "".join(f"{told(row[name], 4):>20s}" for name in ("theta", "psi")))
    print("ring, K            modes      near a mode   worst agent")
    for interval in flags.intervals if "ring" in flags.problems else ():
        made[interval] = ring(flags, interval)
        row = {"interval": interval, **scored(flags, made[interval])}
        results["ring"].append(row)
        shown = (told(row[name], 2) for name in ("modes", "quality", "worst"))
        print(f"{interval:9d}" + "".join(f"{cell:>15s}" for cell in shown), flush=True)
    results["parts"] = compared(results["ring"])
    for part in results["parts"]:
        print(f"  {'holds' if part['holds'] else 'does not hold':14s} {part['statement']}")
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    plot(paths, made, flags.output_dir / "intervals.png")
    return results


def check(flags: Flags) -> None:
    """Raises before anything runs where the numbers of steps do not fit.

    Raises:
      ValueError: naming the flag.
    """
    for interval in flags.intervals:
        for name in ("system_steps", "ring_steps"):
            if interval < 1 or getattr(flags, name) % interval:
                raise ValueError(
                    f"--intervals must divide --{name.replace('_', '-')}={getattr(flags, name)}, "
                    f"got {interval}"
                )
    for name in flags.problems:
        if name not in ("system", "ring"):
            raise ValueError(f"--problems must be among system and ring, got {name!r}")
    if flags.deal not in ("modes", "random"):
        raise ValueError(f"--deal must be modes or random, got {flags.deal!r}")
    if not flags.intervals:
        raise ValueError("--intervals must be some numbers of steps, got none; give 1 5")


def two_numbers() -> fl.models.Gan:
    """The system's pair; noise is uniform in [-1, 1]. Starts anywhere near its end."""

    def init(key: jax.Array) -> Any:
        own, other = jax.random.split(key)
        return {
            "generator": jax.random.uniform(own, (), minval=0.2, maxval=2.0),
            "discriminator": jax.random.uniform(other, (), minval=-1.0, maxval=1.0),
        }

    def generate(theta: jax.Array, z: jax.Array) -> jax.Array:
        return theta * (2 * jax.scipy.stats.norm.cdf(z) - 1)

    return fl.models.Gan(init, generate, lambda psi, x: psi * x[:, 0] ** 2, 1)


def segments() -> fl.data.FederatedDataset:
    """Five agents, points of a fifth of [-1, 1] each, at equal distances."""
    number = SEGMENTS * POINTS
    x = (2 * np.arange(number) + 1) / number - 1
    return fl.data.from_arrays({"x": x[:, None].astype(np.float32)}, np.arange(number) // POINTS)


def system(flags: Flags, interval: int) -> np.ndarray:
    """Theta and psi `[S, P, 2]` over a run of each seed, at 100 times and at its end."""

    def make() -> fl.FederatedAlgorithm:
        def sgd(round: Any) -> optax.GradientTransformation:
            return optax.sgd(flags.system_rate / (1 + round * interval / 1000))

        plan = fl.Plan(flags.batch_size, steps=interval)
        return fl.fedgan(two_numbers(), sgd, sgd, plan=plan, sampler=fl.everyone())

    def values(state: fl.RoundState) -> dict[str, jax.Array]:
        return {
            "theta": state.server.params["generator"],
            "psi": state.server.params["discriminator"],
        }

    rounds = flags.system_steps // interval
    swept = fl.sweep(
        make, {}, init=two_numbers().init, data=segments(), num_rounds=rounds,
        evaluate=values, every=max(rounds // 100, 1), seeds=range(flags.num_seeds), progress=False,
    )  # fmt: skip
    by_seed: dict[int, list[list[float]]] = {seed: [] for seed in range(flags.num_seeds)}
    for row in swept.rows:
        by_seed[row["seed"]].append([row["theta"], row["psi"]])
    return np.asarray(list(by_seed.values()), np.float64)


def ring(flags: Flags, interval: int) -> np.ndarray:
    """Points `[S, n, 2]` that the generator of each seed makes in the end."""
    pair = fl.models.mlp_gan(2, latent_size=8, hidden=(flags.hidden, flags.hidden))
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(AGENTS), flags.ring_size)
    modes = held(flags, owners)
    x = gan_ring.CENTRES[modes] + gan_ring.DEVIATION * rng.normal(size=(len(modes), 2))
    data = fl.data.from_arrays({"x": x.astype(np.float32)}, owners)

    def make() -> fl.FederatedAlgorithm:
        sgd, plan = optax.sgd(flags.ring_rate), fl.Plan(flags.batch_size, steps=interval)
        return fl.fedgan(pair, sgd, sgd, plan=plan, sampler=fl.everyone())

    def sample(params: Any) -> jax.Array:
        return pair.sample(params, jax.random.key(1), flags.num_samples)

    swept = fl.sweep(
        make, {}, init=pair.init, data=data, num_rounds=flags.ring_steps // interval,
        seeds=range(flags.num_seeds), progress=False,
    )  # fmt: skip
    return np.asarray(jax.jit(jax.vmap(sample))(swept.states.server.params))


def held(flags: Flags, owners: np.ndarray) -> np.ndarray:
    """The mode of each point `[E]`, by its agent: one of its two, or any of the eight in turn."""
    place = np.arange(len(owners))
    return 2 * owners + place % 2 if flags.deal == "modes" else place % gan_ring.MODES


def scored(flags: Flags, points: np.ndarray) -> dict[str, list[float]]:
    """Of every seed: modes made, the share of points near one, the worst agent's coverage."""
    counts = np.zeros((AGENTS, gan_ring.MODES), int)
    owners = np.repeat(np.arange(AGENTS), flags.ring_size)
    np.add.at(counts, (owners, held(flags, owners)), 1)
    radius = 3 * gan_ring.DEVIATION
    found = [fl.generation.mode_coverage(one, gan_ring.CENTRES, radius=radius) for one in points]
    return {
        "modes": [float((one.shares >= 0.1 / gan_ring.MODES).sum()) for one in found],
        "quality": [float(one.quality) for one in found],
        "worst": [float(fl.generation.client_coverage(one.shares, counts).min()) for one in found],
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether an interval is surely worse on the ring than the first one, seed by seed."""
    parts: list[dict[str, Any]] = []
    words = {
        "quality": "points near a mode are not surely fewer",
        "worst": "the worst agent is not surely covered less",
    }
    for row in rows[1:]:
        for name, text in words.items():
            lost = gain(rows[0][name], row[name])
            statement = f"K = {row['interval']}: {text} than with K = {rows[0]['interval']}"
            difference = f"{-lost.mean:+.3f} +- {lost.error:.3f}"
            parts.append({"statement": f"{statement} ({difference})", "holds": not lost.sure})
    return parts


def told(values: list[float], digits: int) -> str:
    """Mean and deviation over seeds."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0
    return f"{np.mean(values):.{digits}f} +- {deviation:.{digits}f}"


def plot(paths: dict[int, np.ndarray], made: dict[int, np.ndarray], path: Path) -> None:
    """The system's way to its end, and what each ring's generator makes, of the first seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * (1 + len(made)), 3.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(made), squeeze=False)[0]
    for colour, (interval, values) in enumerate(paths.items()):
        first.plot(*values[0].T, color=f"C{colour}", lw=0.8, label=f"K = {interval}")
    first.plot(1, 0, "k+", markersize=12)
    first.set(xlabel="theta", ylabel="psi", title="system: towards (1, 0)")
    if paths:
        first.legend(fontsize=7, frameon=False)
    for axes, (interval, points) in zip(others, made.items(), strict=True):
        axes.plot(*points[0][:600].T, ".", markersize=1.5, alpha=0.5)
        axes.plot(*gan_ring.CENTRES.T, "k+", markersize=10)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"ring, K = {interval}")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
