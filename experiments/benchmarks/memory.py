"""Predicted against measured peak memory of a round, each program in a process of its own.

    python experiments/benchmarks/memory.py

On a CPU the measured peak is what the process grew by (VmHWM, reset before the round) plus the
state and data that were there before; on a GPU the allocator's own peak. Writes memory.json.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from measure import check_choices, check_output, machine, parse
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.engine.peak_memory import forecast
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.rounds import many_rounds, own

PROGRAMS: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "mlp": ("mlp", (28, 28, 1), 10),
    "cnn": ("cnn", (32, 32, 3), 50),
    "lenet": ("lenet", (32, 32, 3), 50),
    "mcmahan_cnn": ("mcmahan_cnn", (28, 28, 1), 50),
    "pfl_cnn": ("pfl_cnn", (32, 32, 3), 10),
}
"""Model, image, batch size."""
NUM_CLIENTS = 64


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The programs to measure."""

    programs: tuple[str, ...] = tuple(PROGRAMS)
    """Models to measure: mlp, cnn, lenet, mcmahan_cnn, pfl_cnn."""
    lanes: tuple[int, ...] = (1, 4, 16, 64)
    """Clients that train at the same time, a point each."""
    algorithms: tuple[str, ...] = ("fedavg", "scaffold")
    """Algorithms: fedavg, scaffold (with its client table)."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    output: Path = Path("outputs/benchmarks/memory.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A try in seconds: one small program."""
    child: str = ""
    """Internal: the one program that this process measures."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """Which programs to measure."""


def build(program: str, algorithm: str, lanes: int) -> tuple[Any, Any, Any, Any]:
    """Algorithm, key, state and data of one program."""
    name, shape, batch_size = PROGRAMS[program]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100 * NUM_CLIENTS, *shape)).astype(np.uint8)
    examples = {"x": images, "y": rng.integers(0, 10, len(images))}
    data = fl.data.partition(examples, fl.data.iid(num_clients=NUM_CLIENTS, seed=0))
    options: dict[str, Any] = {"num_classes": 10, "input_shape": shape}
    if name == "mlp":
        model = fl.models.mlp((1000, 1000), **options)
    else:
        model = getattr(fl.models, name)(**options)
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=batch_size),
        "sampler": fl.uniform(NUM_CLIENTS),
        "strategy": fl.chunked(lanes),
    }
    if algorithm == "scaffold":
        algo = fl.scaffold(model.loss, 0.1, **slots)
    else:
        algo = fl.fedavg(model.loss, optax.sgd(0.1, momentum=0.9), **slots)
    key = jax.random.key(0)
    return algo, key, own(algo.init(key, model.init(key), data)), data


def measure(program: str, algorithm: str, lanes: int) -> dict[str, Any]:
    """One row: predicted and measured bytes."""
    algo, key, state, data = build(program, algorithm, lanes)
    jax.block_until_ready((state, data))
    compiled = many_rounds.lower(key, state, data, np.int32(1), algo.round, 1).compile()
    predicted = forecast(compiled)
    assert predicted is not None
    device = jax.local_devices()[0]
    before = 0 if device.platform != "cpu" else resident("VmRSS")
    if device.platform == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    jax.block_until_ready(many_rounds(key, state, data, np.int32(1), algo.round, 1))
    if device.platform == "cpu":
        measured = predicted.argument_bytes + resident("VmHWM") - before
    else:
        measured = device.memory_stats()["peak_bytes_in_use"]
    return {
        "program": program,
        "algorithm": algorithm,
        "num_lanes": lanes,
        "argument_bytes": predicted.argument_bytes,
        "predicted_bytes": predicted.peak_bytes,
        "measured_bytes": measured,
        "ratio": predicted.peak_bytes / measured,
    }


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def check(flags: Flags) -> None:
    """Raises for programs that are not there."""
    check_choices("programs", flags.programs, list(PROGRAMS))


def main(flags: Flags) -> None:
    """Measures each program in a child and prints the table."""
    if flags.child:
        program, algorithm, lanes = flags.child.split(",")
        print(json.dumps(measure(program, algorithm, int(lanes))))
        return
    if flags.smoke:
        flags = shrunk(flags, programs=("mlp",), lanes=(1,), algorithms=("fedavg",))
    check(flags)
    check_output(flags.output, flags.overwrite)
    rows = []
    for program in flags.programs:
        for algorithm in flags.algorithms:
            for lanes in flags.lanes:
                child = [sys.executable, __file__, "--child", f"{program},{algorithm},{lanes}"]
                done = subprocess.run(child, capture_output=True, text=True, timeout=900)
                if done.returncode:
                    sys.exit(f"error: {program} {algorithm} {lanes}: {done.stderr[-2000:]}")
                row = json.loads(done.stdout.splitlines()[-1])
                rows.append(row)
                print(
                    f"{program:12s} {algorithm:9s} {lanes:3d} lanes  predicted "
                    f"{row['predicted_bytes'] / 2**20:7.0f} MiB  measured "
                    f"{row['measured_bytes'] / 2**20:7.0f} MiB  ratio {row['ratio']:.2f}",
                    flush=True,
                )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"largest error {worst:.0%} (aim: 20 %): {'PASS' if worst <= 0.2 else 'FAIL'}")
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.output, {"machine": machine(), "rows": rows, "largest_error": worst})


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
