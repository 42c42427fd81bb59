"""One million clients on one machine: a population on disk, streamed cohort by cohort.

    python experiments/million_clients.py

Makes a population of log-normal(1.5) sizes (mean 60) once: features float16 and labels from a
planted linear model that drifts from client to client, written with bounded memory. Then it trains
logistic regression or a 2NN with FedAvg, or SCAFFOLD with its rows in host memory or on disk,
cohort 1000, E=1, B=10. Prints rounds a second, the share of time for which the device waited for
data, the accuracy on fresh examples, and the peak of resident memory beside the stated formula;
writes results.json and curves.png. At 32 features the folder takes 66 bytes an example, 4.0 GB
for a million clients; a smaller try: --smoke, or --num-clients 20000 --cohort-size 200.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from shared.script import script

import fedjax_lite as fl
from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.stores.npy_store import NpyStore, write_streamed
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.stream import HostTable, open_streamed, streamed_bytes


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    num_clients: int = 1_000_000
    """Clients in the population."""
    mean_size: float = 60.0
    """Examples of a client in the mean; at least 1 each."""
    sigma: float = 1.5
    """Spread of log sizes (log-normal)."""
    num_features: int = 32
    """Features of an example, stored as float16."""
    num_classes: int = 10
    """Classes of the labels."""
    drift: float = 0.5
    """Size of a client's own part of the planted model beside the common one."""
    data_dir: Path = Path("outputs/million_clients_data")
    """Folder of the population; one that is there is used if it was made with the same flags."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    cohort_size: int = 1000
    """Clients that train in a round."""
    batch_size: int = 10
    """Examples in a local step."""
    learning_rate: float = 0.05
    """Local learning rate, per step."""
    num_rounds: int = 50
    """Rounds of the run."""
    algorithm: Literal["fedavg", "scaffold"] = "fedavg"
    """Method that is run."""
    state: Literal["host", "disk", "device"] = "host"
    """Where SCAFFOLD's rows lie; on disk they are under --output-dir."""
    model: Literal["logistic", "2nn"] = "logistic"
    """Model: logistic regression, or two hidden layers of 200."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    seed: int = 0
    """Seed of the population and of the run."""
    output_dir: Path = Path("outputs/million_clients")
    """Where results.json, curves.png and rows on disk go."""
    overwrite: bool = False
    """Replace the results of an earlier run, and a population made with other flags."""
    smoke: bool = False
    """A run of seconds: 2000 clients, cohorts of 50, 6 rounds."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """The population, the method and the length of the run."""


EVERY = 10
NUM_TEST = 10_000


class Planted:
    """Labels: the largest of ``(W + drift V_i) x + Gumbel noise`` with a client's own `V_i`."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        rng = np.random.default_rng([flags.seed, 1])
        shape = (flags.num_features, flags.num_classes)
        self.common = rng.normal(size=shape).astype(np.float32)

    def sizes(self) -> np.ndarray:
        """int32 `[N]`."""
        rng = np.random.default_rng([self.flags.seed, 2])
        centre = np.log(self.flags.mean_size) - self.flags.sigma**2 / 2
        draws = rng.lognormal(centre, self.flags.sigma, self.flags.num_clients)
        return np.clip(np.round(draws), 1, 100 * self.flags.mean_size).astype(np.int32)

    def chunks(self, clients_per_chunk: int = 5000) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """The population, a few thousand clients at a time."""
        sizes, began, shown = self.sizes(), time.perf_counter(), 0.0
        for low in range(0, len(sizes), clients_per_chunk):
            part = sizes[low : low + clients_per_chunk]
            rng = np.random.default_rng([self.flags.seed, 3, low])
            own = rng.normal(size=(len(part), *self.common.shape)).astype(np.float32)
            yield part, self.draw(rng, np.repeat(np.arange(len(part)), part), own)
            if time.perf_counter() - shown > 10:
                shown = time.perf_counter()
                print(f"writing: {low + len(part):,} clients, {shown - began:.0f} s", flush=True)

    def draw(
        self, rng: np.random.Generator, owners: np.ndarray, own: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Examples whose clients have the planted parts ``own[owners]``."""
        x = rng.standard_normal((len(owners), self.flags.num_features), np.float32)
        x = x.astype(np.float16)
        logits = x.astype(np.float32) @ self.common
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(owners)], strict=True):
            part = x[start:end].astype(np.float32) @ own[owners[start]]
            logits[start:end] += self.flags.drift * part
        logits += rng.gumbel(size=logits.shape).astype(np.float32)
        return {"x": x, "y": logits.argmax(1).astype(np.uint8)}

    def test(self) -> dict[str, np.ndarray]:
        """Examples of clients that are not in the population, one each."""
        rng = np.random.default_rng([self.flags.seed, 4])
        own = rng.normal(size=(NUM_TEST, *self.common.shape)).astype(np.float32)
        return self.draw(rng, np.arange(NUM_TEST), own)


def main(flags: Flags) -> dict[str, Any]:
    """Makes the population where it is not there, trains, and reports."""
    bare = resident()
    flags = smaller(flags) if flags.smoke else flags
    flags = dataclasses.replace(flags, data_dir=as_path(flags.data_dir, "data_dir"))
    check(flags)
    planted = Planted(flags)
    writing = make_population(flags, planted)
    stateful = flags.algorithm == "scaffold"
    place = flags.state if stateful else "device"
    rows_dir = flags.output_dir / "rows" if place == "disk" else None
    data = open_streamed(flags.data_dir, state=place, state_dir=rows_dir)
    gibibytes = sum(path.stat().st_size for path in flags.data_dir.iterdir()) / 2**30
    print(
        f"{data.num_clients:,} clients, {data.num_examples:,} examples, {gibibytes:.2f} GiB, "
        f"largest {data.max_client_size}"
    )
    model = make_model(flags)
    algo = make_algorithm(flags, model)
    key = jax.random.key(flags.seed)
    params = model.init(key)
    state = algo.init(key, params, data)
    row = params if stateful else None
    formula = streamed_bytes(
        data.sizes, data.store.leaves, cohort_size=flags.cohort_size, row=row, state=place
    )
    print(
        f"formula: device {formula.device / 2**20:.0f} MiB, host {formula.host / 2**20:.0f} MiB, "
        f"disk up to {formula.disk / 2**30:.2f} GiB"
    )
    score = fl.evaluator(model, planted.test())
    # The first rounds compile; what is timed comes after them.
    warm = min(EVERY, flags.num_rounds // 2)
    state, first = fl.run(algo, key, state, data, num_rounds=warm, evaluate=score, every=EVERY)
    data.timings.clear()
    compiled = resident()
    with Watch() as watch:
        began = time.perf_counter()
        state, rows = fl.run(
            algo, key, state, data, num_rounds=flags.num_rounds, evaluate=score, every=EVERY
        )
        seconds = time.perf_counter() - began
    timings = data.timings
    results = {
        "rounds_per_second": timings.num_rounds / timings.seconds,
        "steps_per_second": sum(row["num_steps"] for row in rows) / seconds,
        "waited_share": timings.waited / timings.seconds,
        # Without pages of mapped files, which the system takes back when it needs them.
        "own_memory": {"at_start": bare, "compiled": compiled, "peak": watch.peak},
        "peak_rss": peak(),
        "formula": formula._asdict(),
        "writing": writing,
        "num_examples": data.num_examples,
        "gibibytes": gibibytes,
        "test_accuracy": [r["test_accuracy"] for r in [*first, *rows] if "test_accuracy" in r],
    }
    if isinstance(state.clients, HostTable):
        results["clients_touched"] = state.clients.num_touched
    print(
        f"{results['rounds_per_second']:.2f} rounds/s, the device waited for data in "
        f"{100 * results['waited_share']:.1f} % of the time; test accuracy "
        f"{results['test_accuracy'][0]:.3f} -> {results['test_accuracy'][-1]:.3f}"
    )
    print(
        f"memory of its own: {bare / 2**20:.0f} MiB at the start, {compiled / 2**20:.0f} when all "
        f"was compiled, {watch.peak / 2**20:.0f} at most (with pages of mapped files, which the "
        f"system may take back, {peak() / 2**20:.0f})"
    )
    report(flags, results, [*first, *rows])
    return results


def smaller(flags: Flags) -> Flags:
    """The same, tiny."""
    return dataclasses.replace(
        flags, num_clients=2000, mean_size=20.0, cohort_size=50, num_rounds=6
    )


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    if flags.num_rounds < 2:
        raise ValueError(f"--num-rounds must be at least 2, got {flags.num_rounds}")
    if not 1 <= flags.cohort_size <= flags.num_clients:
        raise ValueError(
            f"--cohort-size must lie in [1, {flags.num_clients}], got {flags.cohort_size}"
        )
    if flags.mean_size < 1 or flags.sigma < 0:
        raise ValueError(
            f"--mean-size must be at least 1 and --sigma not negative, got {flags.mean_size} and "
            f"{flags.sigma}"
        )
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )
    flags.output_dir.mkdir(parents=True, exist_ok=True)


def make_population(flags: Flags, planted: Planted) -> dict[str, float] | None:
    """Writes the population unless it is there; says how long a gigabyte took."""
    sizes, described = planted.sizes(), population_of(flags)
    note = flags.data_dir / "population.json"
    if flags.data_dir.exists() and not (flags.overwrite and not same(note, described)):
        if not same(note, described):
            raise FileExistsError(
                f"{flags.data_dir} holds a population made with other flags; --overwrite replaces "
                "it, or give another --data-dir"
            )
        store = NpyStore(flags.data_dir)
        if not np.array_equal(store.sizes, sizes):
            raise ValueError(f"{flags.data_dir} is damaged: sizes differ; delete it")
        return None
    began = time.perf_counter()
    write_streamed(flags.data_dir, planted.chunks(), overwrite=flags.overwrite)
    save_json_atomic(note, described)
    seconds = time.perf_counter() - began
    gigabytes = sum(path.stat().st_size for path in flags.data_dir.iterdir()) / 1e9
    print(f"wrote {gigabytes:.2f} GB in {seconds:.0f} s, {seconds / gigabytes:.0f} s a GB")
    return {"gigabytes": gigabytes, "seconds_per_gigabyte": seconds / gigabytes}


def population_of(flags: Flags) -> dict[str, Any]:
    """The flags that fix the population."""
    names = ("num_clients", "mean_size", "sigma", "num_features", "num_classes", "drift", "seed")
    return {name: getattr(flags, name) for name in names}


def same(note: Path, described: dict[str, Any]) -> bool:
    """Whether a population was made with these flags."""
    import json

    return note.exists() and json.loads(note.read_text()) == described


def make_model(flags: Flags) -> fl.models.Model:
    """Scores of classes from features in float16."""
    hidden = () if flags.model == "logistic" else (200, 200)
    return fl.models.mlp(hidden, num_classes=flags.num_classes, input_shape=(flags.num_features,))


def make_algorithm(flags: Flags, model: fl.models.Model) -> fl.FederatedAlgorithm:
    """The method, all of it streamed alike."""
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=flags.batch_size, epochs=1),
        "sampler": fl.uniform(flags.cohort_size),
    }
    if flags.algorithm == "scaffold":
        return fl.scaffold(model.loss, flags.learning_rate, **slots)
    return fl.fedavg(model.loss, optax.sgd(flags.learning_rate), **slots)


class Watch:
    """Peak of the memory that is the process's own (without pages of files), while it is open."""

    def __enter__(self) -> Watch:
        """Begins to look every 20 ms."""
        self.peak, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops looking."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Bytes of resident memory that no file backs; all of it where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return peak()


def peak() -> int:
    """Bytes of resident memory at most, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def report(flags: Flags, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """results.json and curves.png."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(flags).items()
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {"cpus": os.cpu_count(), "load": load, "device": str(jax.devices()[0])}
    save_json_atomic(
        flags.output_dir / "results.json",
        {"versions": versions(), "machine": machine, "settings": settings, "results": results},
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    losses = [(row["round"], row["train_loss"]) for row in rows if "train_loss" in row]
    axes.plot(*zip(*losses, strict=True), color="#0072B2", label="train loss of the cohort")
    scores = [(row["round"], row["test_accuracy"]) for row in rows if "test_accuracy" in row]
    axes.plot(*zip(*scores, strict=True), color="#D55E00", marker="o", label="test accuracy")
    axes.set(xlabel="round", title=f"{flags.num_clients:,} clients, {flags.algorithm}")
    axes.legend()
    temporary = flags.output_dir / "curves.tmp.png"
    figure.savefig(temporary, dpi=120)
    temporary.replace(flags.output_dir / "curves.png")


if __name__ == "__main__":
    script(main, Flags, __doc__)
