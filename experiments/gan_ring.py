"""FedGAN on a ring of eight Gaussians that is dealt by mode: whose modes does a generator forget?

    python experiments/gan_ring.py            # minutes on two CPU cores
    python experiments/gan_ring.py --smoke    # seconds

Three large clients hold two neighbouring modes each, six on one side of the ring; a small one holds
the other two, with a twentieth of the data or a hundredth. Rasouli et al. (2020), arXiv:2006.07228,
have a mixture of Gaussians, too. One generator is averaged by examples (the plain mean) or with the
same weight for every client (fair weights); or there are two, one for each kind of client, and who
is of which kind is told; or found as in IFCA (Ghosh et al. 2020, arXiv:2006.04088): in every round
a client trains the pair whose generator makes points nearest to its own (learnt). Clients take a
few steps of SGD and the server is Adam: in trials with Adam at the clients, which starts anew in
each round, of 5 or 15 steps a round, at most
15 % of the points were near a mode by 15,000 steps. Coverage of a client: how much of its data is
made at least as often as in the data of all, see `client_coverage`. Seeds are one vmapped sweep.
Prints the table with the verdict; writes results.json and ring.png.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from shared.scene import gain
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.algorithms.clusters.ifca import best_of_several
from fedjax_lite.algorithms.clusters.in_clusters import cluster_server, in_clusters
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

MODES, LARGE, SMALL = 8, 3, 1
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
DEVIATION = 0.15
WAYS = PLAIN, FAIR, CLUSTERED, LEARNT = (
    "plain mean", "fair weights", "two generators", "two, learnt"
)  # fmt: skip
NEAREST = 256
"""Points that a generator makes to be chosen by."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Points and clients."""

    large_size: int = 600
    """Examples of each of the three large clients."""
    small_sizes: tuple[int, ...] = (100, 20)
    """Examples of the small client, one experiment each."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and local training."""

    num_rounds: int = 1500
    """Rounds of each run, all clients in each."""
    steps: int = 5
    """Local steps a round, of both networks in turns."""
    batch_size: int = 64
    """Examples in a local step."""
    learning_rate: float = 1e-3
    """Learning rate of the server's Adam, of both networks."""
    client_rate: float = 0.1
    """Learning rate of the clients' SGD, of both networks."""
    hidden: int = 64
    """Units of each of the two hidden layers, in both networks."""
    num_samples: int = 2000
    """Points that a generator is scored by."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seeds, and where results go."""

    num_seeds: int = 3
    """Number of seeds of starts and batches, 0, 1 and so on, side by side in a sweep."""
    output_dir: Path = Path("outputs/gan_ring")
    """Where results.json and ring.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """The ring and the ways."""


class Trained(NamedTuple):
    """Generators of one way."""

    points: np.ndarray
    """`[S, K, n, 2]`: of every seed, what each of its generators makes."""
    which: np.ndarray
    """int `[S, N]`: of every seed, the generator that a client uses."""


def main(flags: Flags) -> dict[str, Any]:
    """Trains each way, prints and writes what is covered."""
    if flags.smoke:
        flags = shrunk(
            flags, large_size=40, small_sizes=(20,), num_rounds=2, steps=1, batch_size=10, hidden=8,
            num_samples=100, num_seeds=2,
        )  # fmt: skip
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    deals, drawn = [], {}
    for size in flags.small_sizes:
        deal, ways = of_size(flags, size)
        deals.append(deal)
        drawn[size] = ways
    results = {
        "deals": deals,
        "settings": {
            k: list(v) if isinstance(v, tuple) else v if isinstance(v, int | float) else str(v)
            for k, v in vars(flags).items()
        },
        "versions": versions(),
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    plot(drawn, results, flags.output_dir / "ring.png")
    return results


def of_size(flags: Flags, size: int) -> tuple[dict[str, Any], dict[str, Trained]]:
    """All ways where the small client holds so many examples: figures, and what is made."""
    x, modes, owners = ring(flags.large_size, size)
    counts = np.zeros((LARGE + SMALL, MODES), int)
    np.add.at(counts, (owners, modes), 1)
    everybody = np.zeros(LARGE + SMALL, int)
    side = (np.arange(LARGE + SMALL) >= LARGE).astype(int)
    ways = {
        PLAIN: trained(flags, x, owners, everybody, "examples"),
        FAIR: trained(flags, x, owners, everybody, "uniform"),
        CLUSTERED: trained(flags, x, owners, side, "examples"),
        LEARNT: learnt(flags, x, owners),
    }
    rows = [{"way": way, **scored(one, counts)} for way, one in ways.items()]
    found = {row["way"]: row for row in rows}
    parts = [part for way in WAYS[1:] for part in compared(way, found[way], found[PLAIN])]
    deal = {"small_size": size, "rows": rows, "parts": parts, "counts": counts.tolist()}
    tell(deal)
    return deal, ways


def ring(large_size: int, small_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points `[E, 2]`, their modes `[E]` and owners `[E]`.

    Client `i` holds modes ``2 i`` and ``2 i + 1``; the last one is the small one.
    """
    rng = np.random.default_rng(0)
    sizes = [large_size] * LARGE + [small_size] * SMALL
    owners = np.repeat(np.arange(LARGE + SMALL), sizes)
    modes = 2 * owners + np.concatenate([np.arange(size) % 2 for size in sizes])
    x = CENTRES[modes] + DEVIATION * rng.normal(size=(len(modes), 2))
    return x.astype(np.float32), modes, owners


def trained(
    flags: Flags, x: np.ndarray, owners: np.ndarray, which: np.ndarray, weighting: str
) -> Trained:
    """One generator for each cluster of clients, of every seed."""
    pair = networks(flags)
    make = functools.partial(method, flags, pair, weighting)
    sample = functools.partial(pair.sample, key=jax.random.key(1), size=flags.num_samples)
    made = []
    for cluster in range(which.max() + 1):
        rows = np.flatnonzero(which[owners] == cluster)
        names = np.unique(owners[rows], return_inverse=True)[1]
        swept = fl.sweep(
            make, {"learning_rate": [flags.learning_rate]}, init=pair.init,
            data=fl.data.from_arrays({"x": x[rows]}, names), num_rounds=flags.num_rounds,
            seeds=range(flags.num_seeds), progress=False,
        )  # fmt: skip
        made.append(np.asarray(jax.jit(jax.vmap(sample))(swept.states.server.params)))
    return Trained(np.stack(made, 1), np.tile(which, (flags.num_seeds, 1)))


def networks(flags: Flags) -> fl.models.Gan:
    """A generator and a discriminator of points."""
    return fl.models.mlp_gan(2, latent_size=8, hidden=(flags.hidden, flags.hidden))


def method(
    flags: Flags, pair: fl.models.Gan, weighting: Any, learning_rate: Any
) -> fl.FederatedAlgorithm:
    """FedGAN with SGD at the clients and Adam at the server."""
    sgd, plan = optax.sgd(flags.client_rate), fl.Plan(flags.batch_size, steps=flags.steps)
    return fl.fedgan(
        pair, sgd, sgd, plan=plan, sampler=fl.everyone(), weighting=weighting,
        server_optimizer=optax.adam(learning_rate, b1=0.5),
    )  # fmt: skip


def learnt(flags: Flags, x: np.ndarray, owners: np.ndarray) -> Trained:
    """Two pairs of networks, of which each client chooses one in every round."""
    pair = networks(flags)

    def make(learning_rate: Any) -> fl.FederatedAlgorithm:
        slots = method(flags, pair, "examples", learning_rate).slots
        assert slots is not None
        return fl.federated_algorithm(
            best_of_several(slots.client, nearness(pair), slots.plan, 2), plan=slots.plan,
            sampler=slots.sampler, server=cluster_server(slots.server, 2, "model"),
            aggregator=in_clusters(slots.aggregator, 2),
        )  # fmt: skip

    sample = functools.partial(pair.sample, key=jax.random.key(1), size=flags.num_samples)
    swept = fl.sweep(
        make, {"learning_rate": [flags.learning_rate]},
        init=lambda key: fl.several_models(pair.init, key, 2),
        data=fl.data.from_arrays({"x": x}, owners), num_rounds=flags.num_rounds,
        seeds=range(flags.num_seeds), progress=False,
    )  # fmt: skip
    made = jax.jit(jax.vmap(jax.vmap(sample)))(swept.states.server.params)
    return Trained(np.asarray(made), np.asarray(swept.states.clients.cluster))


def nearness(pair: fl.models.Gan) -> Callable[[Any, Any, Any], jax.Array]:
    """``(params, examples, key) -> [B]``: squared distances to the nearest point that is made."""

    def losses(params: Any, examples: Any, key: Any) -> jax.Array:
        made = pair.sample(params, jax.random.key(0), NEAREST)
        apart = examples["x"][:, None] - made
        return (apart.reshape(*apart.shape[:2], -1) ** 2).sum(-1).min(1)

    return losses


def scored(way: Trained, counts: np.ndarray) -> dict[str, Any]:
    """Coverage of every client, of modes by whoever holds them, and the share near a mode."""
    coverage, modes, quality = [], [], []
    for made, which in zip(way.points, way.which, strict=True):
        found = [fl.generation.mode_coverage(one, CENTRES, radius=3 * DEVIATION) for one in made]
        each = [fl.generation.client_coverage(one.shares, counts) for one in found]
        coverage.append([each[k][i] for i, k in enumerate(which)])
        # A mode counts as made where a client that holds it uses a generator that makes it.
        seen = np.stack([found[k].shares for k in which]) >= 0.1 / MODES
        modes.append(int((seen & (counts > 0)).any(0).sum()))
        quality.append(float(np.mean([one.quality for one in found])))
    large, small = np.array(coverage)[:, :LARGE], np.array(coverage)[:, LARGE:]
    return {
        "coverage": coverage,
        "large": large.mean(1).tolist(),
        "small": small.mean(1).tolist(),
        "worst": np.min(coverage, axis=1).tolist(),
        "modes": modes,
        "quality": quality,
        "generators": way.which.tolist(),
    }


def compared(way: str, row: dict[str, Any], plain: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the small client gains against the plain mean, and whether the large ones pay."""
    small, large = gain(row["small"], plain["small"]), gain(plain["large"], row["large"])
    told = gain(row["large"], plain["large"])
    return [
        {"statement": f"{way}: the small client's coverage gains ({small.told()})",
         "holds": small.sure},
        {"statement": f"{way}: the large clients keep theirs ({told.told()})",
         "holds": not large.sure},
    ]  # fmt: skip


def tell(deal: dict[str, Any]) -> None:
    """The table and the verdicts."""
    shown = ("large", "small", "worst", "modes", "quality")
    print(f"small client: {deal['small_size']:4d}" + "".join(f"{name:>16s}" for name in shown))
    for row in deal["rows"]:
        cells = [f"{np.mean(row[name]):.3f} +- {np.std(row[name]):.3f}" for name in shown]
        print(f"{row['way']:18s}" + "".join(f"{cell:>16s}" for cell in cells))
    for part in deal["parts"]:
        print(f"  {'holds' if part['holds'] else 'does not hold':14s} {part['statement']}")


def plot(drawn: dict[int, dict[str, Trained]], results: dict[str, Any], path: Path) -> None:
    """What is made, of the first seed, and coverage client by client; a line for each size."""
    from matplotlib.figure import Figure

    height = 3.6 * len(results["deals"])
    figure = Figure(figsize=(16, height), layout="constrained")
    widths = (*(1 for _ in WAYS), 1.5)
    lines = figure.subplots(len(results["deals"]), len(widths), width_ratios=widths, squeeze=False)
    for panels, deal in zip(lines, results["deals"], strict=True):
        ways = drawn[deal["small_size"]]
        for axes, (name, way) in zip(panels, ways.items(), strict=False):
            for cluster, made in enumerate(way.points[0]):
                axes.plot(*made[:600].T, ".", markersize=1.5, color=f"C{cluster}", alpha=0.5)
            for part, colour, whose in (
                (CENTRES[: 2 * LARGE], "k", "large"),
                (CENTRES[2 * LARGE :], "r", "small"),
            ):
                label = f"of the {whose}"
                axes.plot(*part.T, "+", color=colour, markersize=10, label=label)
            axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"{name}, seed 0")
        panels[0].set_ylabel(f"small client: {deal['small_size']} examples")
        panels[0].legend(fontsize=7, loc="center", frameon=False, title="modes")
        bars(panels[-1], deal)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def bars(axes: Any, deal: dict[str, Any]) -> None:
    """Coverage client by client, a bar a way."""
    place = np.arange(LARGE + SMALL)
    for i, row in enumerate(deal["rows"]):
        each = np.array(row["coverage"])
        axes.bar(
            place + 0.2 * (i - 1.5), each.mean(0), 0.2, yerr=each.std(0), label=row["way"],
            error_kw={"lw": 0.8},
        )  # fmt: skip
    axes.set_xticks(place, [*(f"large {i + 1}" for i in range(LARGE)), "small"])
    axes.set(ylabel="coverage", ylim=(0, 1.4), title="coverage: means, deviations over seeds")
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    script(main, Flags, __doc__)
