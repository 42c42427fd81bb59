"""What a local step costs inside a round, beside the same step in a bare loop, part by part.

    python experiments/benchmarks/step.py
    python experiments/benchmarks/step.py --workloads 2nn --repeats 15

One core (the process pins itself), one client at a time. "bare" is a compiled loop over batches
that lie in memory one behind the other: gradient of the mean loss, plain SGD, nothing else. Each
part adds what the engine adds: batches gathered by an index, the keyed shuffle that makes the
index, the client's step (masks, losses summed), and last a whole round of clients with the same
number of steps, sampled, aggregated and applied, divided by its steps. All programs do the same
arithmetic on batches of the same size, in turns. Writes step.json.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts its threads

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import alternate, check_choices, check_output, machine, parse, spread
from workloads import WORKLOADS, Workload

import fedjax_lite as fl
from fedjax_lite.engine.batches import take_batch
from fedjax_lite.engine.phases import step_of
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.types import ClientInfo

PARTS = ("bare", "gather", "shuffle", "client step", "round")
STEPS = {"2nn": 60, "logreg": 60, "pfl-cnn": 5}
"""Local steps of every client: those of the workload's mean client."""
CLIENTS = {"2nn": 10, "logreg": 10, "pfl-cnn": 4}


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The workloads to measure."""

    workloads: tuple[str, ...] = tuple(STEPS)
    """Workloads of workloads.py: 2nn, logreg, pfl-cnn."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Length of the run, and where results go."""

    repeats: int = 9
    """Turns; medians are reported."""
    output: Path = Path("outputs/benchmarks/step.json")
    """File for the results, JSON."""
    overwrite: bool = False
    """Replace an earlier file of results."""
    smoke: bool = False
    """A run of seconds; its figures mean nothing."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, RunFlags):
    """What to measure."""


def programs(work: Workload, num_steps: int, num_clients: int) -> dict[str, Callable[[], Any]]:
    """Calls by name, compiled and warm; each does ``num_clients * num_steps`` steps."""
    size, rate = work.batch_size, work.learning_rate
    total = num_clients * num_steps * size
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.integers(0, 256, (total, *work.image_shape), dtype=np.uint8),
        "y": rng.integers(0, 10, total, dtype=np.int32),
    }
    data = fl.data.from_arrays(examples, np.arange(total) // (num_steps * size))
    model, plan, key = work.model(), work.plan(), jax.random.key(0)
    params = model.init(key)
    order = jnp.asarray(rng.permutation(total).astype(np.int32))
    seed = jax.random.bits(key, (2,), jnp.uint32)
    client = fl.local_sgd(model.loss, optax.sgd(rate))

    def descend(params: Any, batch: Any, key: Any) -> Any:
        grad = jax.grad(lambda p: model.loss(p, batch, key).mean())(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grad)

    def each(step: Callable[[Any, Any, Any, Any], Any]) -> Callable[..., Any]:
        """All steps, client after client, in one compiled loop."""

        def loop(params: Any, data: Any, order: Any) -> Any:
            def body(i: Any, params: Any) -> Any:
                return step(i, params, data, order)

            return jax.lax.fori_loop(0, num_clients * num_steps, body, params)

        return jax.jit(loop)

    def bare(i: Any, params: Any, data: Any, order: Any) -> Any:
        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i * size, size)  # noqa: E731
        return descend(params, jax.tree.map(cut, data.examples), jax.random.fold_in(key, i))

    def gather(i: Any, params: Any, data: Any, order: Any) -> Any:
        rows = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), data.examples)
        return descend(params, batch, jax.random.fold_in(key, i))

    def shuffle(i: Any, params: Any, data: Any, order: Any) -> Any:
        which, at = i // num_steps, i % num_steps
        batch = take_batch(plan, data, seed, key, which, at)
        return descend(params, batch.examples, batch.key)

    def stepwise(params: Any, data: Any, order: Any) -> Any:
        def one(which: Any, params: Any) -> Any:
            numbers = (which, jnp.int32(num_steps * size), jnp.int32(num_steps), jnp.int32(0))
            carry = client.start(key, (), params, ClientInfo(*numbers))

            def body(at: Any, carry: Any) -> Any:
                batch = take_batch(plan, data, seed, key, which, at)
                return step_of(client)(params, carry, batch)

            carry = jax.lax.fori_loop(0, num_steps, body, carry)
            return carry.params

        return jax.lax.fori_loop(0, num_clients, one, params)

    algo = fl.fedavg(
        model.loss, optax.sgd(rate), plan=plan, sampler=fl.uniform(num_clients),
        weighting=work.weighting, strategy=fl.sequential(),
    )  # fmt: skip
    state = algo.init(key, params, data)
    loops = {"bare": each(bare), "gather": each(gather), "shuffle": each(shuffle)}
    loops["client step"] = jax.jit(stepwise)
    calls: dict[str, Callable[[], Any]] = {}
    for name, loop in loops.items():
        compiled = loop.lower(params, data, order).compile()
        calls[name] = lambda compiled=compiled: compiled(params, data, order)
    whole = jax.jit(algo.round).lower(key, state, data).compile()
    calls["round"] = lambda: whole(key, state, data)
    for call in calls.values():
        jax.block_until_ready(call())
    return calls


def main(flags: Flags) -> None:
    """Times all parts in turns and prints microseconds a step, and times the bare loop."""
    check_choices("workloads", flags.workloads, list(STEPS))
    check_output(flags.output, flags.overwrite)
    results: dict[str, Any] = {}
    for name in flags.workloads:
        steps, clients = (2, 2) if flags.smoke else (STEPS[name], CLIENTS[name])
        calls = programs(WORKLOADS[name], steps, clients)
        seconds = alternate(calls, repeats=2 if flags.smoke else flags.repeats)
        scale = 1e6 / (steps * clients)
        rows = {part: spread([scale * s for s in seconds[part]]) for part in PARTS}
        for part in PARTS:
            rows[part]["times_bare"] = rows[part]["median"] / rows["bare"]["median"]
            print(
                f"{name:8s} {part:12s} {rows[part]['median']:10.1f} us a step "
                f"({rows[part]['min']:.1f} .. {rows[part]['max']:.1f})  "
                f"{rows[part]['times_bare']:.2f} x bare",
                flush=True,
            )
        results[name] = rows
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(
        flags.output, {"machine": machine(), "smoke": flags.smoke, "workloads": results}
    )


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
