"""What a round of another algorithm costs, in rounds of FedAvg on the same workload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from measure import alternate, spread
from workloads import Workload

import fedjax_lite as fl

PRICED = ("fedavg", "fedprox", "scaffold", "fednova", "feddyn", "mimelite")
SLOTS = ("clip_qsgd", "clip_top_k", "median", "secure_mean")
"""FedAvg with something in its uplink or as its aggregator."""


def factories(workload: Workload) -> dict[str, Callable[[], fl.FederatedAlgorithm]]:
    """The algorithms by name, all with the workload's loss, plan, sampler and learning rate.

    FedAvg comes first: the others are measured against it.
    """
    rate, loss = workload.learning_rate, workload.model().loss
    slots: dict[str, Any] = {
        "plan": workload.plan(),
        "sampler": workload.sampler(),
        "weighting": workload.weighting,
    }
    return {
        "fedavg": lambda: fl.fedavg(loss, optax.sgd(rate), **slots),
        "fedprox": lambda: fl.fedprox(loss, optax.sgd(rate), mu=0.01, **slots),
        "scaffold": lambda: fl.scaffold(loss, rate, **slots),
        "fednova": lambda: fl.fednova(loss, rate, **slots),
        "feddyn": lambda: fl.feddyn(loss, optax.sgd(rate), alpha=0.01, **slots),
        "mimelite": lambda: fl.mimelite(loss, rate, **slots),
        "clip_qsgd": lambda: fl.fedavg(
            loss, optax.sgd(rate), uplink=fl.chain(fl.clip(1.0), fl.qsgd(127)), **slots
        ),
        "clip_top_k": lambda: fl.fedavg(
            loss, optax.sgd(rate), uplink=fl.chain(fl.clip(1.0), fl.top_k(0.01)), **slots
        ),
        "median": lambda: fl.fedavg(
            loss, optax.sgd(rate), aggregator=fl.aggregation.median(), **slots
        ),
        "secure_mean": lambda: fl.fedavg(
            loss, optax.sgd(rate), aggregator=fl.aggregation.secure_mean(max_abs=0.1), **slots
        ),
    }


def price(workload: Workload, names: tuple[str, ...], *, repeats: int) -> list[dict[str, Any]]:
    """Times scans of rounds in turns; the ratio to FedAvg is paired by turn, so drift cancels.

    The state is donated from call to call, as `fedjax_lite.run` does it, so a client table
    (SCAFFOLD's and FedDyn's: N x model) is held once and updated in place.

    Args:
      workload: clients of equal size, for the calls draw different cohorts.
      names: among `PRICED` and `SLOTS`; "fedavg" is measured in any case.
      repeats: calls of each.

    Returns:
      One row each: ``algorithm, seconds, ratio, state_bytes``.

    Raises:
      ValueError: if a name is unknown, or the clients are of unequal sizes.
      RuntimeError: if the parameters diverged.
    """
    known = (*PRICED, *SLOTS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"algorithms must be among {known}, got {unknown}")
    data, key = workload.population(), jax.random.key(0)
    sizes = np.asarray(data.sizes)
    if sizes.min() != sizes.max():
        raise ValueError(
            f"workload must have clients of equal size, got {sizes.min()} to {sizes.max()} "
            "examples; take pfl-cnn or 2nn"
        )
    params = workload.model().init(key)
    states: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name in dict.fromkeys(("fedavg", *names)):
        algo = factories(workload)[name]()

        def rounds(key: Any, state: Any, data: Any, algo: Any = algo) -> Any:
            one = lambda s, _: (algo.round(key, s, data)[0], None)  # noqa: E731
            return jax.lax.scan(one, state, length=workload.num_rounds)[0]

        program = jax.jit(rounds, donate_argnums=1)
        states[name] = program(key, algo.init(key, params, data), data)

        def call(name: str = name, program: Any = program) -> Any:
            states[name] = program(key, states[name], data)
            return states[name]

        calls[name] = call
        print(f"  {name}: compiled", flush=True)
    seconds = alternate(calls, repeats=repeats)
    rows = []
    for name, times in seconds.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[name].server)):
            raise RuntimeError(f"{name} diverged; lower the workload's learning_rate")
        ratios = [mine / base for mine, base in zip(times, seconds["fedavg"], strict=True)]
        arrays = [x for x in jax.tree.leaves(states[name]) if not _is_key(x)]
        rows.append(
            {
                "algorithm": name,
                "seconds": {**spread(times), "all": times},
                "ratio": spread(ratios),
                "state_bytes": int(sum(x.nbytes for x in arrays)),
            }
        )
    return rows


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def print_prices(rows: list[dict[str, Any]]) -> None:
    """One line an algorithm."""
    print(f"\n{'algorithm':10s} {'seconds a call':>26s} {'over FedAvg':>24s} {'state MiB':>10s}")
    for row in rows:
        time, ratio = row["seconds"], row["ratio"]
        print(
            f"{row['algorithm']:10s} "
            f"{time['median']:9.4f} ({time['min']:.4f} .. {time['max']:.4f}) "
            f"{ratio['median']:7.3f} ({ratio['min']:.3f} .. {ratio['max']:.3f}) "
            f"{row['state_bytes'] / 2**20:10.1f}"
        )
