"""Seconds to an accuracy: who is waited for, in three simulated worlds.

    python experiments/time_to_accuracy.py                 # MNIST by writer, 5 minutes on a core
    python experiments/time_to_accuracy.py --num-seeds 3 --resume  # three seeds, 15 minutes
    python experiments/time_to_accuracy.py --num-rounds 400 --target 0.95
    python experiments/time_to_accuracy.py --smoke         # one world, scikit-learn's digits

Eight servers train the same network on the same clients. FedAvg waits for all of its cohort, asks
30 % more and takes the first, or ends each round at a deadline: without those who are late, or with
the steps that they have done by then. Power-of-choice asks twice as many for their loss. Edges
average their own clients and meet every few rounds. FedAsync steps with every message, FedBuff with
every few; they have as many clients in flight as a cohort has, and are given as many messages in
all. Worlds: all devices alike; log-normal speeds and power-law links that a client keeps; the same
with nights, in days of ten minutes (hierarchies know none). The deadline is the median client's
time.

Seconds are simulated; accuracy is that of the global model on the test split. Writes results.json
and curves.png and prints, for each world and server, the seconds, rounds and megabytes to the
target, or -- where it was not met; the file has how well the last model serves the slowest quarter
of the clients, on their own data, how often their updates counted, and the mean length of rounds of
exponential clients, whose formula is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script
from shared.smoke import shrunk
from shared.time_servers import SERVERS

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

WORLDS = ("alike", "heavy tails", "day and night")
SMOKE = ("FedAvg", "partial work", "FedBuff")
SECONDS_PER_STEP = 0.05
LINK = 2e6
"""Bits a second of the median device, either way."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    dataset: Literal["mnist", "cifar10", "digits"] = "mnist"
    """MNIST by its writers, CIFAR-10 dealt to 100 clients by Dirichlet(0.5) (a convolutional
    network: hours on a CPU), or scikit-learn's digits dealt at random."""
    data_dir: Path | None = None
    """Folder that holds the data (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Local training and what servers wait for."""

    cohort_size: int = 20
    """Clients that are waited for in a round, and that are in flight."""
    buffer: int = 5
    """Messages in FedBuff's buffer."""
    epochs: int = 1
    """Passes of a client over its data each time."""
    batch_size: int = 20
    """Examples in a local step."""
    learning_rate: float = 0.1
    """Local learning rate, per step."""
    mixing: float = 0.5
    """FedAsync's share of an arriving model, in [0, 1]."""

    num_edges: int = 4
    """Edges of the hierarchy."""
    edge_rounds: int = 4
    """Rounds of the edges between two meetings."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Length of the run, and where results go."""

    num_rounds: int = 60
    """Rounds of the synchronous servers; the others get as many messages."""
    target: float = 0.9
    """The accuracy to reach, in (0, 1)."""
    seed: int = 0
    """Seed of parameters, cohorts, batches and latencies; devices are the same ones."""
    num_seeds: int = 1
    """Seeds, from --seed on: a row of the results each."""
    resume: bool = False
    """Keep the rows that results.json in --output-dir has, if it was made with these settings."""
    worlds: tuple[str, ...] = WORLDS
    """Some of the worlds, as the table names them."""
    servers: tuple[str, ...] = tuple(SERVERS)
    """Some of the servers, as the table names them."""
    smoke: bool = False
    """Digits, few rounds, one world and three servers."""
    output_dir: Path = Path("outputs/time_to_accuracy")
    """Where results.json and curves.png go."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """All of them."""


def population(flags: Flags) -> tuple[fl.data.FederatedDataset, dict[str, Any], fl.models.Model]:
    """Clients, test examples and the network."""
    train, test = fl.data.load(flags.dataset, data_dir=flags.data_dir)
    how = {
        "mnist": fl.data.by_key("writer"),
        "cifar10": fl.data.dirichlet(alpha=0.5, num_clients=100, seed=0),
        "digits": fl.data.iid(num_clients=60, seed=0),
    }[flags.dataset]
    data = fl.data.partition(train, how)
    test = with_labels(test)
    if flags.dataset == "cifar10":
        return data, test, fl.models.cnn(num_classes=10)
    return data, test, fl.models.mlp((64,), num_classes=10, input_shape=test["x"].shape[1:])


def world_of(name: str) -> tuple[fl.arrivals.Latency, fl.arrivals.Availability | None]:
    """How long clients are away, and when they are there."""
    world = fl.arrivals
    if name == "alike":
        link = world.constant(LINK)
        return world.latency(
            compute=world.constant(SECONDS_PER_STEP), download=link, upload=link
        ), None
    slow = world.of_device(world.log_normal(SECONDS_PER_STEP, 1.5), seed=1)
    link = world.of_device(world.pareto(LINK / 4, 1.0), seed=2)  # its median is half of LINK
    latency = world.latency(compute=slow, download=link, upload=link)
    if name == "heavy tails":
        return latency, None
    return latency, world.day_and_night(awake=0.5, zones=4, day=600.0, seed=3)


def seconds_of(
    latency: fl.arrivals.Latency, data: Any, bits: float, flags: Flags
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds a step of every client, and seconds on the wire, `[N]`."""
    sizes = data.sizes
    traffic = fl.arrivals.Traffic(np.float32(bits), np.float32(bits))

    def of(client: Any, size: Any) -> Any:
        info = fl.ClientInfo(client, size, client * 0 + 1, client * 0)
        return latency.parts(jax.random.key(flags.seed), info, traffic)

    parts = jax.vmap(of)(np.arange(len(sizes)), sizes)
    return np.asarray(parts.compute), np.asarray(parts.download + parts.upload)


def totals_of(latency: fl.arrivals.Latency, data: Any, bits: float, flags: Flags) -> np.ndarray:
    """Seconds of every client for a round, `[N]`."""
    by_step, on_the_wire = seconds_of(latency, data, bits, flags)
    steps = flags.epochs * -(-np.asarray(data.sizes) // flags.batch_size)
    return steps * by_step + on_the_wire


def algorithm(name: str, world: str, data: Any, model: Any, bits: float, flags: Flags) -> Any:
    """A server in a world."""
    latency, available = world_of(world)
    sgd, plan = optax.sgd(flags.learning_rate), fl.Plan(flags.batch_size, epochs=flags.epochs)
    size = flags.cohort_size
    both: dict[str, Any] = {"plan": plan, "latency": latency, "available": available}
    if name == "FedAsync":
        return fl.fedasync(model.loss, sgd, concurrency=size, mixing=flags.mixing, **both)
    if name == "FedBuff":
        return fl.fedbuff(model.loss, sgd, concurrency=size, buffer=flags.buffer, **both)
    if name == "hierarchy":
        edges = {"edges": np.arange(data.num_clients) % flags.num_edges}
        edges["edge_rounds"] = flags.edge_rounds
        wire = fl.arrivals.constant(10 * LINK)
        cloud = fl.arrivals.latency(download=wire, upload=wire)
        sampler = fl.arrivals.edge_clocked(fl.uniform(size), latency, cloud=cloud, **edges)
        sampler = fl.selection.counted(sampler, of="trained")
        return fl.hierfavg(model.loss, sgd, plan=plan, sampler=sampler, **edges)
    options: dict[str, Any] = {"available": available}
    if name == "power-of-choice":
        sampler = fl.clocked(fl.weighted(2 * size), latency, **options)
        sampler = fl.selection.counted(sampler, of="trained")
        plain = fl.fedavg(model.loss, sgd, plan=plan, sampler=sampler)
        return fl.selection.power_of_choice(plain, model.loss, cohort_size=size)
    if name == "over-selection":
        options["keep"] = size
        size = round(1.3 * size)
    if name in ("deadline", "partial work"):
        # A hair beyond the median: who does as many steps as fit comes at the last instant.
        options["deadline"] = 1.001 * float(np.median(totals_of(latency, data, bits, flags)))
    if name == "partial work":
        by_step, on_the_wire = seconds_of(latency, data, bits, flags)
        fits = fl.selection.in_time(options["deadline"] / 1.001, by_step, other_seconds=on_the_wire)
        plan = fl.Plan(flags.batch_size, epochs=flags.epochs, limit=fits)
    sampler = fl.selection.counted(fl.clocked(fl.uniform(size), latency, **options), of="trained")
    return fl.fedavg(model.loss, sgd, plan=plan, sampler=sampler)


def curve_of(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds, rounds, megabytes and accuracy wherever the model was scored."""
    rows = [row for row in history if "test_accuracy" in row and "simulated_seconds" in row]
    ways = [f"{level}{way}link_bits_total" for level in ("", "cloud_") for way in ("up", "down")]
    sent = [sum(row.get(way, 0.0) for way in ways) for row in rows]
    return {
        "rounds": [row["round"] for row in rows],
        "seconds": [row["simulated_seconds"] for row in rows],
        "megabytes": [bits / 8e6 for bits in sent],
        "accuracy": [row["test_accuracy"] for row in rows],
    }


def to_target(curve: dict[str, list[float]], target: float) -> dict[str, float | None]:
    """What the first score at the target had cost; None where there is none."""
    first = next((i for i, a in enumerate(curve["accuracy"]) if a >= target), None)
    names = ("seconds", "rounds", "megabytes")
    return {name: None if first is None else curve[name][first] for name in names}


def participation(state: Any, seconds: np.ndarray) -> dict[str, float | None]:
    """How unevenly clients' updates counted, and the slowest quarter's share of them.

    Servers without rounds do not count them: None.
    """
    times = getattr(state.sampler, "times", None)
    if times is None or not int(times.sum()):
        return {"gini": None, "slow_share": None}
    times, slow = np.asarray(times, float), seconds >= np.quantile(seconds, 0.75)
    apart = np.abs(times[:, None] - times).mean()
    return {"gini": apart / (2 * times.mean()), "slow_share": times[slow].sum() / times.sum()}


def slow_clients(model: Any, state: Any, data: Any, seconds: np.ndarray) -> dict[str, float]:
    """Mean accuracy over clients on their own data, and over the slowest quarter of them."""
    scores = np.asarray(fl.evaluate_clients(model, state, data)["accuracy"])
    slow = seconds >= np.quantile(seconds, 0.75)
    return {"all": float(np.nanmean(scores)), "slow": float(np.nanmean(scores[slow]))}


def order_statistics(seed: int, draws: int = 4000) -> dict[str, dict[str, float]]:
    """Mean seconds until the tenth of so many exponential clients: by formula, and simulated."""
    found = {}
    for asked in (10, 13):
        away = fl.arrivals.latency(overhead=fl.arrivals.exponential(1.0))
        sampler = fl.clocked(fl.uniform(asked), away, keep=10)
        state, sizes = sampler.init(asked), jax.numpy.ones(asked, int)

        def one(key: Any, sampler: Any = sampler, state: Any = state, sizes: Any = sizes) -> Any:
            return sampler.sample(key, state, sizes)[0].metrics["round_seconds"]

        keys = jax.random.split(jax.random.key(seed), draws)
        mean = float(jax.jit(jax.vmap(one))(keys).mean())
        formula = float((1 / np.arange(asked - 9, asked + 1)).sum())
        found[f"10 of {asked}"] = {"formula": formula, "simulated": mean}
    return found


def draw(rows: list[dict[str, Any]], flags: Flags) -> None:
    """Accuracy against simulated seconds, a panel a world and a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(flags.worlds), sharey=True, squeeze=False)[0]
    for axes, world in zip(panels, flags.worlds, strict=True):
        for row in (row for row in rows if row["world"] == world):
            colour, dash = SERVERS[row["server"]]
            seconds, accuracy = row["curve"]["seconds"], np.array(row["curve"]["accuracy"])
            label = row["server"] if row["seed"] == flags.seed else None
            axes.plot(seconds, 100 * accuracy, dash, color=colour, label=label)
        axes.axhline(100 * flags.target, color="#BBBBBB", linewidth=0.8)
        axes.set(xscale="log", title=world, xlabel="simulated seconds")
    panels[0].set_ylabel("test accuracy (%)")
    panels[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(flags.output_dir / "curves.png", dpi=150)


def check(flags: Flags) -> None:
    """Raises ValueError where the target, a world, a server or the number of seeds is none."""
    if flags.num_seeds < 1:
        raise ValueError(f"--num-seeds must be at least 1, got {flags.num_seeds}")
    if not 0 < flags.target < 1:
        raise ValueError(f"--target must lie in (0, 1), got {flags.target}")
    if not flags.worlds or not set(flags.worlds) <= set(WORLDS):
        raise ValueError(f"--worlds must be among {WORLDS}, got {flags.worlds}")
    if not flags.servers or not set(flags.servers) <= set(SERVERS):
        raise ValueError(f"--servers must be among {tuple(SERVERS)}, got {flags.servers}")


def settings_of(flags: Flags) -> dict[str, Any]:
    """What the results say of the flags."""
    return {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in dataclasses.asdict(flags).items()
        if name not in ("output_dir", "data_dir", "resume")
    }


def kept_rows(flags: Flags) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same settings but for seeds, worlds and servers."""
    path = flags.output_dir / "results.json"
    if not flags.resume or not path.exists():
        return []
    saved, free = json.loads(path.read_text()), ("seed", "num_seeds", "worlds", "servers")
    for name, value in settings_of(flags).items():
        if name not in free and saved["settings"].get(name) != value:
            raise ValueError(
                f"--resume needs the settings of {path}, got --{name.replace('_', '-')} {value} "
                f"where it has {saved['settings'].get(name)}; give another --output-dir"
            )
    return saved["rows"]


def one_run(
    server: str, world: str, data: Any, test: Any, model: Any, flags: Flags
) -> dict[str, Any]:
    """A server in a world, with one seed."""
    key = jax.random.key(flags.seed)
    params = model.init(key)
    bits = 32.0 * sum(leaf.size for leaf in jax.tree.leaves(params))
    totals = totals_of(world_of(world)[0], data, bits, flags)
    algo = algorithm(server, world, data, model, bits, flags)
    messages = {"FedAsync": 1, "FedBuff": flags.buffer}.get(server, flags.cohort_size)
    num_rounds = flags.num_rounds * flags.cohort_size // messages
    state, history = fl.run(
        *(algo, key, algo.init(key, params, data), data),
        num_rounds=num_rounds,
        # The cloud has a new model where edges meet.
        every=flags.edge_rounds if server == "hierarchy" else max(1, num_rounds // 30),
        evaluate=fl.evaluator(model, test),
        progress=False,
    )
    curve = curve_of(history)
    return {
        "world": world,
        "server": server,
        "seed": flags.seed,
        "to_target": to_target(curve, flags.target),
        "curve": curve,
        "participation": participation(state, totals),
        "clients": slow_clients(model, state, data, totals),
    }


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every server in every world with every seed."""
    if flags.smoke:
        flags = shrunk(flags, dataset="digits", num_rounds=4, cohort_size=4, buffer=2, target=0.5,
                       worlds=WORLDS[1:2], servers=SMOKE)  # fmt: skip
    check(flags)
    data, test, model = population(flags)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    rows = kept_rows(flags)
    done = {(row["world"], row["server"], row["seed"]) for row in rows}
    print(f"{'world':14} {'server':15} {'seconds':>10} {'rounds':>7} {'MB':>8}  best accuracy")
    order = order_statistics(flags.seed)
    seeds = range(flags.seed, flags.seed + flags.num_seeds)
    for seed, world, server in itertools.product(seeds, flags.worlds, flags.servers):
        if (world, server, seed) in done:
            continue
        row = one_run(server, world, data, test, model, dataclasses.replace(flags, seed=seed))
        rows.append(row)
        shown = ["--" if v is None else f"{v:.0f}" for v in row["to_target"].values()]
        best = 100 * max(row["curve"]["accuracy"])
        print(
            f"{world:14} {server:15} {shown[0]:>10} {shown[1]:>7} {shown[2]:>8}  {best:.1f} %",
            flush=True,
        )
        saved = {"order_statistics": order, "rows": rows, "settings": settings_of(flags)}
        saved |= {"versions": versions()}
        save_json_atomic(flags.output_dir / "results.json", saved)
    draw(rows, flags)
    return rows


if __name__ == "__main__":
    script(main, Flags, __doc__)
