"""Four hospitals on four machines: secure aggregation over TLS, private, beside the simulation.

    python experiments/deploy_hospitals.py                      # a minute on two CPU cores
    python experiments/deploy_hospitals.py --hidden hospitals --epsilon 20
    python experiments/deploy_hospitals.py --hidden hospitals --epsilon 20 --noise server
    python experiments/deploy_hospitals.py --own-keys           # as it must be in earnest
    python experiments/deploy_hospitals.py --smoke

The hospitals of Fed-Heart-Disease (Ogier du Terrail et al. 2022, arXiv:2210.04620), logistic
regression. Each hospital is a process with a folder of its own: its file of patients, its
certificate, its row. This process is the server; it sees sums of updates (Bonawitz et al. 2017),
the numbers of patients, and nothing else. They talk over TLS 1.3 on loopback, certificates on
both sides.

Hidden are patients (every step of local training is noised and clipped by patient, `dp_sgd`), or
whole hospitals, or nobody. Hospitals hide from the server, too (the distributed discrete Gaussian:
each adds a part of the noise, and the server accounts for it), or from whoever sees the models
(--noise server: `secure_gaussian`, the server adds noise to the sum, which it sees).

Beside it runs the simulation of the same method, which has all files. By default machines draw
their noise from the simulation's key, so that both end in the same model, or this script in an
error. All of them know that key: where the guarantee is meant, every machine and the server draw
keys of their own (--own-keys), and the models differ by the noise. Writes results.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from deploy_hospitals_node import (
    SAMPLING_RATE,
    agreed,
    algorithm,
    hidden_hospitals,
    key_of,
    predict,
    start,
)
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.data.sources.heart import HOSPITALS, SOURCES
from fedjax_lite.data.sources.locate import locate
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

HOST = "127.0.0.1"
TOLERANCE = 1e-5
"""Between a coefficient here and there: programs for one client and for four round differently."""
NODE = Path(__file__).with_name("deploy_hospitals_node.py")


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The patients."""

    data_dir: Path | None = None
    """Folder with heart_disease/processed.*.data (else FEDJAX_LITE_DATA, the cache)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Local training and rounds."""

    num_rounds: int = 15
    """Rounds in all."""
    steps: int = 100
    """Local steps of a hospital in a round."""
    learning_rate: float = 0.01
    """Step size, a rate on the mean loss of a batch."""


@dataclasses.dataclass(frozen=True)
class PrivacyFlags:
    """Who is hidden, and how well."""

    hidden: Literal["patients", "hospitals", "nobody"] = "patients"
    """What one row of the guarantee is."""
    epsilon: float = 1.0
    """Of the whole run; noise is calibrated for it."""
    delta: float = 1e-3
    """Probability that the bound may fail."""
    noise: Literal["machines", "server"] = "machines"
    """Where hospitals hide, who adds the noise: a part each of them, or the server all of it."""
    own_keys: bool = False
    """Machines and server draw noise from keys of their own; models then differ by the noise."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seed, patience, and where results go."""

    seed: int = 0
    """Seed of batches and noise."""
    timeout_seconds: float = 300.0
    """Seconds that the server waits for a reply, and a machine for the server."""
    output_dir: Path = Path("outputs/deploy_hospitals")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A try in half a minute: two rounds of few steps; it needs the data."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, PrivacyFlags, RunFlags):
    """Hospitals on machines of their own."""


def main(flags: Flags) -> dict[str, Any]:
    """Trains on machines and in the simulation, compares, prints and writes."""
    flags = shrunk(flags, num_rounds=2, steps=5) if flags.smoke else flags
    target = flags.output_dir / "results.json"
    check(flags, target)
    settings = agreement(flags)
    machines = on_machines(flags, settings)
    simulation = in_simulation(flags, settings)
    gap = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(
            jax.tree.leaves(machines["params"]), jax.tree.leaves(simulation["params"]), strict=True
        )
    )
    test = fl.data.load("heart_disease", data_dir=flags.data_dir)[1]
    scores = {
        "machines": accuracies(machines["params"], test),
        "simulation": accuracies(simulation["params"], test),
    }
    print(f"{'held-out accuracy, %':22}" + "".join(f"{name:>13}" for name in HOSPITALS))
    for name, found in scores.items():
        print(f"{name:22}" + "".join(f"{100 * value:13.1f}" for value in found))
    rows = machines["rows"]
    down, up = (sum(row[name] for row in rows) for name in ("bytes_down", "bytes_up"))
    share = len(rows) * len(HOSPITALS)
    spent = epsilon_of(flags, settings, rows)
    print(f"largest difference of a coefficient: {gap:.1e}" + " (own keys)" * flags.own_keys)
    print(f"bytes a hospital and round: {down / share:.0f} down, {up / share:.0f} up")
    meant = (
        ""
        if flags.own_keys
        else f", were the keys of the noise known to the {flags.noise} only (--own-keys)"
    )
    if flags.hidden != "nobody":
        print(f"epsilon of {flags.hidden}: {spent:.4g} at delta {flags.delta:g}{meant}")
    if not flags.own_keys and not gap <= TOLERANCE:
        raise AssertionError(f"machines and simulation differ by {gap:.1e} in a coefficient")
    results = {
        "versions": versions(),
        "settings": settings,
        "largest_gap": gap,
        "accuracy": scores,
        "epsilon": spent,
        "bytes_down": down,
        "bytes_up": up,
        "rows": rows,
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    return results


def check(flags: Flags, target: Path) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    for name in ("num_rounds", "steps"):
        if getattr(flags, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(flags, name)}")
    for name in ("learning_rate", "epsilon", "timeout_seconds"):
        if not getattr(flags, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(flags, name)}")
    if not 0 < flags.delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {flags.delta}")
    if flags.noise == "server" and flags.hidden != "hospitals":
        raise ValueError(
            f"noise must be 'machines' where {flags.hidden} hide, got 'server': it would see them; "
            "--hidden hospitals"
        )
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")


def agreement(flags: Flags) -> dict[str, Any]:
    """What all machines are told, JSON."""
    z = 0.0
    if flags.hidden == "patients":
        z = fl.privacy.noise_multiplier(
            epsilon=flags.epsilon,
            delta=flags.delta,
            sampling_rate=SAMPLING_RATE,
            num_rounds=flags.steps * flags.num_rounds,
        )
    if flags.hidden == "hospitals":
        accountant = hidden_hospitals(
            flags.noise, delta=flags.delta, epsilon=flags.epsilon, num_rounds=flags.num_rounds
        ).accountant
        assert accountant.noise_multiplier is not None
        z = accountant.noise_multiplier
    names = ("num_rounds", "steps", "learning_rate", "hidden", "noise", "delta", "own_keys")
    told = {name: getattr(flags, name) for name in names}
    told["seed"] = flags.seed
    return {**told, "noise_multiplier": float(z), "patience": flags.timeout_seconds}


def on_machines(flags: Flags, settings: dict[str, Any]) -> dict[str, Any]:
    """The model and the rows of a federation of five processes, this one the server."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        made = fl.deploy.make_certificates(
            root / "authority", num_clients=len(HOSPITALS), host=HOST
        )
        exchange = fl.deploy.listen(
            HOST,
            0,
            num_clients=len(HOSPITALS),
            timeout=flags.timeout_seconds,
            tls=made.server,
        )
        hub = fl.deploy.secure_server(
            algorithm(settings),
            key_of(settings),
            start(),
            num_clients=len(HOSPITALS),
            secure=agreed(settings),
        )
        with exchange, machines(root, flags, {**settings, "port": exchange.port}, made):
            done = fl.deploy.federate(
                hub,
                exchange,
                num_rounds=flags.num_rounds,
                folder=root / "server",
                min_clients=len(HOSPITALS),
            )
        return {"params": done.served.state.server.params, "rows": done.rows}


@contextlib.contextmanager
def machines(
    root: Path, flags: Flags, settings: dict[str, Any], made: fl.deploy.Certificates
) -> Iterator[None]:
    """A process and a folder a hospital, with nothing of another one's in it."""
    files = locate(SOURCES[0], data_dir=flags.data_dir).files
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # where all share a GPU
    started: list[subprocess.Popen[bytes]] = []
    logs = []
    try:
        for client_id, (hospital, path) in enumerate(zip(HOSPITALS, files, strict=True)):
            folder = root / hospital
            folder.mkdir()
            own = made.clients[client_id]
            shutil.copy(path, folder / f"processed.{hospital}.data")
            for source, name in (
                (own.certificate, "own.pem"),
                (own.key, "own.key"),
                (own.authority, "authority.pem"),
            ):
                shutil.copy(source, folder / name)
            told = {**settings, "client_id": client_id, "host": HOST}
            (folder / "settings.json").write_text(json.dumps(told), encoding="utf-8")
            logs.append((folder / "log.txt").open("wb"))
            started.append(
                subprocess.Popen(
                    [sys.executable, str(NODE), str(folder)],
                    stdout=logs[-1],
                    stderr=logs[-1],
                    env=environment,
                )
            )
        yield
    except fl.deploy.FederationAborted as error:
        for hospital in HOSPITALS:
            last = (root / hospital / "log.txt").read_text(errors="replace").splitlines()[-1:]
            error.add_note(f"{hospital}: {' '.join(last)}")
        raise
    finally:
        for process in started:
            process.terminate()
            process.wait()
        for log in logs:
            log.close()


def in_simulation(flags: Flags, settings: dict[str, Any]) -> dict[str, Any]:
    """The model of the same method in one compiled program, from all files."""
    train, _ = fl.data.load("heart_disease", data_dir=flags.data_dir)
    arrays = {name: train[name] for name in ("x", "y")}
    data = fl.data.from_arrays(arrays, train["hospital"])
    algo, key = algorithm(settings, fl.sequential()), jax.random.key(flags.seed)
    state = algo.init(key, start(), data)
    state, _ = fl.run(algo, key, state, data, num_rounds=flags.num_rounds, progress=False)
    return {"params": state.server.params}


def accuracies(params: Any, test: dict[str, Any]) -> list[float]:
    """On the held-out patients of each hospital."""
    right = (np.asarray(predict(params, test["x"])) > 0) == np.asarray(test["y"])
    return [float(right[np.asarray(test["hospital"]) == i].mean()) for i in range(len(HOSPITALS))]


def epsilon_of(flags: Flags, settings: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """What was spent: of hospitals by the server's account, of patients by the number of steps."""
    if flags.hidden == "hospitals":
        return float(rows[-1]["epsilon"])
    if flags.hidden == "nobody":
        return float("inf")
    return fl.privacy.dp_sgd_epsilon(
        noise_multiplier=settings["noise_multiplier"],
        delta=flags.delta,
        steps=flags.steps,
        num_rounds=flags.num_rounds,
        sampling_rate=SAMPLING_RATE,
    )


if __name__ == "__main__":
    script(main, Flags, __doc__)
