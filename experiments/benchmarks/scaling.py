"""A model of round time, fitted to measurements here, and what it says of 8 to 1024 devices.

    python experiments/benchmarks/scaling.py

    T(D, H) = max(compute, feed)
    compute = a + share * b + steps * c + psum(D)
    feed    = (d * C + e * C * bytes_per_client) / H                      (streamed populations)
    psum(D) = ceil(log2 D) * latency + 2 (D - 1) / D * model_bytes / bandwidth

with `share` = ceil(C / D) clients and `steps` local steps on the busiest device, taken from the
dealing of simulated log-normal cohorts; H hosts feed 8 devices each. Fitted here: a, b, c by least
squares over cohorts and steps of a real round, d, e from a memory-mapped population, and psum on
two forced devices as a check of its form. Latency and bandwidth between devices are assumptions,
printed as such: nothing of more than one machine was measured. So read the table for where time
goes and when a term takes over, not for its last digit. Writes scaling.json.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import check_output, machine, parse

import fedjax_lite as fl
from fedjax_lite.engine.mesh.sharded import deal
from fedjax_lite.engine.program import Work
from fedjax_lite.run.files import save_json_atomic

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What is assumed of the machines that are not here."""

    speedup: float = 1.0
    """How many times faster than this machine one device works off clients and steps (b and c)."""
    latency: float = 10e-6
    """Seconds of one hop between devices, assumed."""
    bandwidth: float = 50e9
    """Bytes a second between neighbouring devices, assumed."""
    clients_per_device: int = 32
    """Clients for each device: the cohort grows with the devices, C = clients_per_device * D."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    mean_size: int = 60
    """Examples of a client in the mean; sizes are log-normal(1.5)."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    repeats: int = 5
    """Measured calls of each point."""
    output: Path = Path("outputs/benchmarks/scaling.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds on few and small points; its figures mean nothing."""
    child: int = 0
    """Internal: measure psum of so many bytes on forced devices."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, RunFlags):
    """What is assumed of the machines that are not here, and how much is measured."""


class Compute(NamedTuple):
    """Fitted terms of one round on one device, seconds."""

    per_round: float
    per_client: float
    per_step: float
    residual: float
    """Largest relative error of the fit over its points."""


class Feed(NamedTuple):
    """Fitted terms of fetching a cohort from a memory-mapped population, seconds."""

    per_client: float
    per_byte: float
    residual: float


def median_seconds(call: Any, repeats: int) -> float:
    """Median of so many calls after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def fit(columns: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares on relative errors, coefficients not negative; and the largest such error.

    Example:
      >>> coefficients, error = fit(np.array([[1.0, 1.0], [1.0, 3.0]]), np.array([3.0, 7.0]))
      >>> coefficients.round(6).tolist(), round(error, 6)
      ([1.0, 2.0], 0.0)
    """
    from scipy.optimize import nnls

    scaled = columns / seconds[:, None]
    coefficients, _ = nnls(scaled, np.ones(len(seconds)))
    return coefficients, float(np.abs(scaled @ coefficients - 1).max())


def measure_compute(flags: Flags, model: fl.models.Model) -> tuple[Compute, list[Row]]:
    """Rounds of the 2NN over cohort sizes and local steps, one client at a time."""
    cohorts, steps = ((2, 4), (1, 2)) if flags.smoke else ((4, 16, 64), (1, 4, 16))
    rng = np.random.default_rng(0)
    population = max(cohorts)
    examples = {
        "x": rng.integers(0, 256, (20 * population, 28, 28, 1), dtype=np.uint8),
        "y": rng.integers(0, 10, 20 * population),
    }
    data = fl.data.partition(examples, fl.data.iid(num_clients=population, seed=0))
    key, rows = jax.random.key(0), []
    for cohort_size in cohorts:
        for num_steps in steps:
            algo = fl.fedavg(
                model.loss,
                optax.sgd(0.05),
                plan=fl.Plan(batch_size=10, steps=num_steps),
                sampler=fl.uniform(cohort_size),
                strategy=fl.sequential(),
            )
            state = algo.init(key, model.init(key), data)
            call = lambda algo=algo, state=state: algo.round(key, state, data)  # noqa: E731
            seconds = median_seconds(call, flags.repeats)
            rows.append({"clients": cohort_size, "steps": num_steps, "seconds": seconds})
    columns = np.array([[1.0, r["clients"], r["clients"] * r["steps"]] for r in rows])
    found, error = fit(columns, np.array([r["seconds"] for r in rows]))
    per_round, per_client, per_step = map(float, found)
    return Compute(per_round, per_client, per_step, error), rows


def measure_feed(flags: Flags) -> tuple[Feed, list[Row]]:
    """Fetching cohorts of a memory-mapped population whose pages are in memory."""
    counts = (10, 40) if flags.smoke else (100, 400, 1600)
    widths = (16, 256) if flags.smoke else (64, 784, 3072)
    rng, rows = np.random.default_rng(0), []
    for width in widths:
        sizes = np.full(max(counts) * 4, flags.mean_size, np.int32)
        with tempfile.TemporaryDirectory() as folder:
            x = rng.integers(0, 256, (int(sizes.sum()), width), dtype=np.uint8)
            fl.data.write_streamed(Path(folder) / "data", [(sizes, {"x": x})])
            del x
            store = fl.open_streamed(Path(folder) / "data").store
            for count in counts:
                draws = [rng.choice(len(sizes), count, replace=False) for _ in range(8)]
                times = []
                for ids in draws:
                    out = {"x": np.empty((int(sizes[ids].sum()), width), np.uint8)}
                    began = time.perf_counter()
                    store.read(ids, out)
                    times.append(time.perf_counter() - began)
                rows.append(
                    {
                        "clients": count,
                        "bytes": count * flags.mean_size * width,
                        "seconds": float(np.median(times)),
                    }
                )
    columns = np.array([[r["clients"], r["bytes"]] for r in rows], float)
    found, error = fit(columns, np.array([r["seconds"] for r in rows]))
    per_client, per_byte = map(float, found)
    return Feed(per_client, per_byte, error), rows


def measure_psum(flags: Flags) -> list[Row]:
    """All-reduce on two forced devices of this machine; a check of the form only."""
    rows = []
    for num_bytes in (2**12, 2**16) if flags.smoke else (2**12, 2**18, 2**21, 2**24):
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        child = [sys.executable, __file__, "--child", str(num_bytes)]
        done = subprocess.run(
            child, env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        rows.append({"bytes": num_bytes, "seconds": float(done.stdout.split()[-1])})
    return rows


def psum_child(num_bytes: int) -> float:
    """Seconds of one psum of so many bytes over all devices."""
    mesh = fl.client_mesh()
    spec = jax.sharding.PartitionSpec("clients")
    x = jnp.ones((mesh.size, num_bytes // 4))
    x = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "clients"), mesh=mesh, in_specs=spec, out_specs=spec
    )
    call = jax.jit(total)
    return median_seconds(lambda: call(x), 20)


def busiest(num_devices: int, cohort_size: int, flags: Flags) -> tuple[int, float]:
    """Steps of the busiest device for a dealt log-normal cohort, and their ratio to the mean."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0.0, 1.5, cohort_size)
    sizes = np.maximum(1, np.rint(sizes * flags.mean_size / math.exp(1.5**2 / 2)))
    steps = jnp.asarray(np.ceil(sizes / 10), jnp.int32)
    ids = jnp.arange(cohort_size, dtype=jnp.int32)
    work = Work(ids, ids, ids, ids, steps, steps, steps > 0)
    shares = np.asarray(deal(work, num_devices).num_steps).reshape(num_devices, -1).sum(1)
    return int(shares.max()), float(shares.max() / shares.mean())


def predict(
    num_devices: int, compute: Compute, feed: Feed, *, model_bytes: int, flags: Flags
) -> Row:
    """Every term of one round on so many devices."""
    cohort_size = flags.clients_per_device * num_devices
    steps, imbalance = busiest(num_devices, cohort_size, flags)
    hops = math.ceil(math.log2(num_devices)) if num_devices > 1 else 0
    psum = hops * flags.latency
    psum += 2 * (num_devices - 1) / num_devices * model_bytes / flags.bandwidth
    clients = flags.clients_per_device * compute.per_client / flags.speedup
    local = steps * compute.per_step / flags.speedup
    hosts = max(1, num_devices // 8)
    bytes_of_cohort = cohort_size * flags.mean_size * 784
    fed = (cohort_size * feed.per_client + bytes_of_cohort * feed.per_byte) / hosts
    computing = compute.per_round + clients + local + psum
    ideal = clients + local / imbalance
    return {
        "devices": num_devices,
        "cohort": cohort_size,
        "per_round": compute.per_round,
        "clients": clients,
        "steps": local,
        "imbalance": imbalance,
        "psum": psum,
        "feed": fed,
        "seconds": max(computing, fed),
        "efficiency": ideal / max(computing, fed),
    }


def population_bytes(num_clients: int, num_devices: int, flags: Flags) -> Row:
    """Where a population's bytes lie: sizes on every device, examples on disk."""
    return {
        "clients": num_clients,
        "sizes_bytes_per_device": 4 * num_clients,
        "examples_bytes": num_clients * flags.mean_size * 784,
        "scaffold_rows_bytes_per_host": num_clients * 4 * 199_210 // max(1, num_devices // 8),
    }


def main(flags: Flags) -> dict[str, Any]:
    """Measures, fits, prints, writes."""
    if flags.child:
        print(psum_child(flags.child))
        return {}
    check_output(flags.output, flags.overwrite)
    model = fl.models.mlp((200, 200))
    model_bytes = 4 * 199_210
    compute, compute_rows = measure_compute(flags, model)
    feed, feed_rows = measure_feed(flags)
    psum_rows = measure_psum(flags)
    print(
        f"round {1e3 * compute.per_round:.3f} ms + {1e6 * compute.per_client:.0f} us a client + "
        f"{1e6 * compute.per_step:.0f} us a step (largest error {compute.residual:.0%})\n"
        f"feed {1e6 * feed.per_client:.1f} us a client + {1e9 * feed.per_byte:.3f} ns a byte "
        f"(largest error {feed.residual:.0%})\n"
        "psum on two forced devices: "
        + ", ".join(f"{r['bytes']:,} B {1e6 * r['seconds']:.0f} us" for r in psum_rows)
        + f"\nassumed between devices: {1e6 * flags.latency:.0f} us a hop, "
        f"{flags.bandwidth / 1e9:.0f} GB/s; a device {flags.speedup:g} x this machine\n"
    )
    devices = (1, 8, 32, 128, 512, 1024)
    table = [predict(d, compute, feed, model_bytes=model_bytes, flags=flags) for d in devices]
    print("devices  cohort  clients    steps  imbalance     psum     feed  round ms  efficiency")
    for row in table:
        terms = (row["clients"], row["steps"])
        print(
            f"{row['devices']:7d} {row['cohort']:7d} "
            + " ".join(f"{1e3 * t:8.2f}" for t in terms)
            + f" {row['imbalance']:10.2f} {1e3 * row['psum']:8.3f} {1e3 * row['feed']:8.2f} "
            f"{1e3 * row['seconds']:9.2f} {row['efficiency']:11.2f}"
        )
    populations = [population_bytes(10**p, 64, flags) for p in (6, 7, 8, 9)]
    print("\nclients       sizes on each device   uint8 examples on disk   SCAFFOLD rows, 8 hosts")
    for row in populations:
        print(
            f"{row['clients']:13,} {row['sizes_bytes_per_device'] / 1e6:14,.0f} MB "
            f"{row['examples_bytes'] / 1e12:20,.2f} TB "
            f"{row['scaffold_rows_bytes_per_host'] / 1e12:18,.2f} TB a host"
        )
    result = {
        "machine": machine(),
        "smoke": flags.smoke,
        "assumed": {"latency": flags.latency, "bandwidth": flags.bandwidth},
        "speedup": flags.speedup,
        "compute": {**compute._asdict(), "points": compute_rows},
        "feed": {**feed._asdict(), "points": feed_rows},
        "psum_on_two_forced_devices": psum_rows,
        "table": table,
        "populations": populations,
    }
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.output, result)
    return result


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
