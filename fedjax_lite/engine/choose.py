"""How many clients train side by side: the rule that measurement recommends, and why."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_tree
from fedjax_lite.data.population.dataset import ClientData, FederatedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.lanes import chunked, vmapped
from fedjax_lite.engine.program import Job, Strategy, Table
from fedjax_lite.hosts.cores import cores
from fedjax_lite.types import PyTree

PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
SMALL_MODEL_BYTES = 2**18
"""Up to this a step on a CPU is mostly overhead, which lanes share; above it they share nothing."""


class Choice(NamedTuple):
    """What `auto()` chose."""

    num_lanes: int
    reason: str
    lane_bytes: int
    """Estimate of what the lanes hold: parameters, gradient and update of each."""


def chosen_lanes() -> Strategy:
    """Lanes by platform, model and size distribution: what `auto()` does on each device."""

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        cohort_size = job.work.ids.shape[0]
        downloaded = getattr(job.broadcast, "downloaded", job.broadcast)  # of several versions one
        lanes = choose(downloaded, job.data, cohort_size).num_lanes
        inner = vmapped() if lanes >= cohort_size else chunked(lanes)
        return inner.execute(job, table, acc)

    return Strategy(execute, "auto()")


def choose(
    params: PyTree, data: ClientData, cohort_size: int, *, platform: str | None = None
) -> Choice:
    """The rule of `auto()`, as a pure function of shapes.

    Args:
      params: what clients train (arrays or shapes).
      data: the population; only its shapes and `max_client_size` are read.
      cohort_size: clients a round, `C`.
      platform: "cpu", "gpu" or "tpu"; default: where JAX runs.

    Returns:
      The `Choice`.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"x": np.zeros(40)}, np.repeat(np.arange(10), 4))
      >>> choose({"w": np.zeros((784, 10), np.float32)}, data, 10, platform="cpu").num_lanes
      5
    """
    check_tree(params, "params")
    check_count(cohort_size, "cohort_size", minimum=1)
    if platform is not None and platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {list(PLATFORMS)}, got {platform!r}; or None")
    platform = platform or jax.default_backend()
    leaves = jax.tree.leaves(params)
    num_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    convolutional = any(len(leaf.shape) >= 4 for leaf in leaves)
    # 1.0 where all clients are as large as the largest.
    unevenness = data.max_client_size * data.num_clients / max(data.num_examples, 1)
    uneven = unevenness > 1.5
    if platform == "cpu":
        if convolutional:
            lanes, reason = 1, "convolutions on a CPU run fastest one client at a time"
        elif num_bytes > SMALL_MODEL_BYTES:
            lanes, reason = 1, f"{num_bytes / 2**20:.1f} MiB of weights keep a core busy alone"
        elif uneven:
            lanes, reason = 1, f"the largest client is {unevenness:.1f} times the mean"
        else:
            lanes, reason = 5, "small dense model, even sizes"
    elif uneven:
        lanes = max(1, cohort_size // 8)
        reason = f"the largest client is {unevenness:.1f} times the mean: sorted chunks"
    else:
        lanes, reason = cohort_size, "even sizes on an accelerator: the whole cohort at once"
    lanes = min(lanes, cohort_size)
    return Choice(lanes, f"{platform}: {reason}", 3 * lanes * num_bytes)


def explain(
    params: PyTree,
    data: FederatedDataset,
    *,
    plan: Plan,
    cohort_size: int,
    platform: str | None = None,
    num_trials: int = 32,
) -> str:
    """Says what `auto()` would do and why, before the run.

    After `use_cores` the cohort is dealt to the cores of a CPU by steps; lanes are then a core's.

    Args:
      params: what clients train.
      data: the population.
      plan: the local work; amounts given as functions are taken as one epoch.
      cohort_size: clients a round, `C`.
      platform: default: where JAX runs.
      num_trials: simulated cohorts for the share of padded steps.

    Returns:
      A few lines of text.

    Raises:
      ValueError: if the cohort is empty or larger than the population.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"x": np.zeros(40)}, np.repeat(np.arange(10), 4))
      >>> text = explain(np.zeros(784, np.float32), data, plan=Plan(batch_size=2), cohort_size=10)
      >>> "5 of 10 clients in lanes" in text
      True
    """
    if not 1 <= cohort_size <= data.num_clients:
        raise ValueError(
            f"cohort_size must lie in [1, {data.num_clients}], the population, got {cohort_size}"
        )
    check_count(num_trials, "num_trials", minimum=1)
    platform = jax.default_backend() if platform is None else platform
    if not platform:
        raise ValueError("platform must be the name of one, got ''; give 'cpu', 'gpu' or 'tpu'")
    num_devices = len(cores()) or 1 if platform == "cpu" and cohort_size > 1 else 1
    choice = choose(params, data, -(-cohort_size // num_devices), platform=platform)
    sizes = np.asarray(data.sizes)
    steps = planned_steps(plan, sizes)
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(sizes), cohort_size, replace=False) for _ in range(num_trials)]
    shares = [share for ids in draws for share in dealt_steps(steps[ids], num_devices)]
    padded = sum(padded_steps(share, choice.num_lanes) for share in shares)
    real = sum(int(steps[ids].sum()) for ids in draws)
    dealt = f", dealt to {num_devices} cores" if num_devices > 1 else ""
    each = " a core" if dealt else ""
    return (
        f"strategy: {choice.num_lanes} of {-(-cohort_size // num_devices)} clients in lanes"
        f"{each} ({choice.reason}){dealt}\n"
        f"padded over real steps: {padded / max(real, 1):.3f}\n"
        f"memory of the lanes: about {num_devices * choice.lane_bytes / 2**20:.1f} MiB "
        "(weights, gradients, updates; activations come on top)"
    )


def planned_steps(plan: Plan, sizes: np.ndarray) -> np.ndarray:
    """Steps of every client `[N]` for constant or per-client amounts; a function counts as 1."""
    amount = plan.epochs if plan.steps is None else plan.steps
    amount = 1 if callable(amount) else np.asarray(amount)
    if plan.steps is not None:
        return np.where(sizes > 0, amount, 0)
    per_epoch = np.minimum(sizes, 1) if plan.batch_size is None else -(-sizes // plan.batch_size)
    return amount * per_epoch


def dealt_steps(steps: np.ndarray, num_devices: int) -> list[np.ndarray]:
    """Steps of the clients that each device is dealt, longest first, there and back.

    Example:
      >>> [share.tolist() for share in dealt_steps(np.array([1, 9, 4, 5]), 2)]
      [[9, 1], [5, 4]]
    """
    ordered = np.sort(steps)[::-1]
    place = np.arange(len(ordered))
    lap, along = place // num_devices, place % num_devices
    owner = np.where(lap % 2 == 0, along, num_devices - 1 - along)
    return [ordered[owner == device] for device in range(num_devices)]


def padded_steps(steps: np.ndarray, num_lanes: int) -> int:
    """Steps that `chunked(num_lanes)` computes for clients of these `steps` `[C]`."""
    ordered = np.sort(steps)[::-1]
    return int(
        sum(
            ordered[i] * min(num_lanes, len(ordered) - i)
            if num_lanes >= len(ordered)
            else ordered[i] * num_lanes
            for i in range(0, len(ordered), num_lanes)
        )
    )
