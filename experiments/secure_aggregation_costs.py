"""What the parts of secure aggregation cost: masks inside jit, the protocol on the host, CKKS."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_lite as fl
from fedjax_lite import crypto
from fedjax_lite.aggregation.secure import secure_mean


@dataclasses.dataclass(frozen=True)
class CostFlags:
    """What is timed and weighed."""

    num_clients: tuple[int, ...] = (10, 30, 100)
    """Clients in a round of the protocol, a run each."""
    dimension: int = 100_000
    """Numbers in a client's update."""
    degree: int = 20
    """Neighbours of a client in the sparse protocol."""
    drop_fraction: float = 0.1
    """Share of the clients that drop out after sharing their secrets."""
    num_repeats: int = 5
    """Repetitions of what is timed; medians are shown."""


def seconds(function: Callable[[], Any], num_repeats: int) -> dict[str, float]:
    """Median and spread of a call, in seconds; a first call is not counted."""
    function()
    times = []
    for _ in range(num_repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return {"median": float(np.median(times)), "min": min(times), "max": max(times)}


def masks(cost: CostFlags, size: int, seed: int) -> list[dict[str, Any]]:
    """Seconds to aggregate one cohort inside jit: plain, fixed point, fixed point under masks."""
    dimension = cost.dimension
    values = np.random.default_rng(seed).normal(size=(size, dimension)).astype(np.float32)
    messages = fl.Message(jnp.asarray(values), jnp.ones(size))
    cohort = fl.Cohort(jnp.arange(size, dtype=jnp.int32), jnp.arange(size) > 0)
    aggregators = {
        "mean": fl.mean(),
        "secure, no masks": secure_mean(max_abs=1.0, bits=16),
        "secure, pairwise masks": secure_mean(max_abs=1.0, bits=16, masks="pairwise"),
    }
    rows = []
    for name, aggregator in aggregators.items():

        @jax.jit
        def fold(messages: fl.Message, aggregator: Any = aggregator) -> Any:
            acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), size)
            acc = aggregator.add(acc, messages, jnp.arange(size), cohort.mask)
            state = aggregator.init_state(messages.value[0])
            return aggregator.finish(jax.random.key(seed), state, acc, cohort)[1]

        took = seconds(
            lambda fold=fold: jax.block_until_ready(fold(messages)),  # type: ignore[misc]
            cost.num_repeats,
        )
        rows.append({"aggregator": name, "clients": size, "dimension": dimension, **took})
    show("seconds to aggregate one cohort inside jit, one client dropped out", rows)
    return rows


def protocol(cost: CostFlags, seed: int) -> list[dict[str, Any]]:
    """Seconds and bytes of whole rounds on the host, all pairs and sparse."""
    rng, rows = np.random.default_rng(seed), []
    for num_clients in cost.num_clients:
        words = rng.integers(0, 2**16, (num_clients, cost.dimension), dtype=np.uint32)
        vectors = dict(enumerate(words))
        drops = dict.fromkeys(range(int(cost.drop_fraction * num_clients)), "mask")
        for degree in (None, cost.degree):
            if degree is not None and degree >= num_clients - 1:
                continue
            holders = num_clients if degree is None else degree + 1
            options: dict[str, Any] = {
                "threshold": holders // 2 + 1,
                "degree": degree,
                "min_survivors": max(holders // 2 + 1, num_clients - len(drops)),
            }
            outcome = crypto.secure_sum(vectors, drops=drops, rng=rng, **options)
            plain = words[list(outcome.survivors)].sum(0, dtype=np.uint32)
            if not np.array_equal(outcome.total, plain):
                raise AssertionError("the protocol's sum is not the plain sum")
            took = seconds(
                lambda o=options, v=vectors, d=drops: crypto.secure_sum(v, drops=d, rng=rng, **o),  # type: ignore[misc]
                cost.num_repeats,
            )
            sent = {phase: float(np.mean(list(b.values()))) for phase, b in outcome.sent.items()}
            got = {f"got_{p}": float(np.mean(list(b.values() or [0]))) for p, b in
                   outcome.received.items()}  # fmt: skip
            total = sum(sent.values())
            rows.append(
                {
                    "clients": num_clients,
                    "neighbours": num_clients - 1 if degree is None else degree,
                    "threshold": options["threshold"],
                    "dropped": len(drops),
                    "seconds": took["median"],
                    "seconds_min": took["min"],
                    "seconds_max": took["max"],
                    **sent,
                    "sent": total,
                    "over_float32": total / (4 * cost.dimension),
                    **got,
                }
            )
    show(
        f"the protocol, {cost.dimension} numbers: seconds a round (all parties in one process) and "
        "bytes that a client sends",
        [{k: v for k, v in row.items() if not k.startswith(("got_", "seconds_"))} for row in rows],
    )
    return rows


def ckks(cost: CostFlags, seed: int) -> list[dict[str, Any]]:
    """The mean of five clients under CKKS: bytes a float, error, seconds; empty without tenseal."""
    values = np.random.default_rng(seed).normal(size=(5, cost.dimension))
    messages = fl.Message(values, np.ones(5))
    rows = []
    for divide in ("client", "server"):
        began = time.perf_counter()
        try:
            got, report = crypto.ckks_mean(messages, divide=divide)
        except ImportError as error:
            print(f"NOTICE: CKKS is left out: {error}")
            return []
        rows.append(
            {
                "divided": f"by the {divide}",
                "uplink_bytes_per_float": report.bytes_per_float,
                "blow_up": report.blow_up,
                "downlink_bytes_per_float": report.downlink_bytes / cost.dimension,
                "error": float(np.abs(got - values.mean(0)).max()),
                "seconds": time.perf_counter() - began,
            }
        )
    show(f"CKKS, 5 clients, {cost.dimension} numbers (N = 8192, 60/40/40/60 bits)", rows)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table, a column a field."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*[name.replace("_", " ") for name in names], title=title)
    for row in rows:
        table.add_row(*[cell(row.get(name)) for name in names])
    console = Console()
    if not console.is_terminal:  # a file has no width
        console = Console(width=150)
    console.print(table)


def cell(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
