"""fastest(): a round timed under several strategies, the fastest kept for the next start."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_key
from fedjax_lite.data.sources.cache import default_cache_dir
from fedjax_lite.engine.lanes import chunked, vmapped
from fedjax_lite.engine.peak_memory import forecast
from fedjax_lite.engine.program import Strategy
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.types import FederatedAlgorithm, Key, PyTree, RoundState


class Timing(NamedTuple):
    """What `fastest` found."""

    name: str
    """The fastest variant."""
    seconds: dict[str, float]
    """Median seconds of a round, of every variant that was tried."""
    skipped: dict[str, str]
    """Why the others were not."""
    cached: bool
    """Whether this was read, not measured."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in self.seconds.items())
        source = "measured earlier" if self.cached else "measured"
        return f"{self.name} ({source}: {times})"


def lane_strategies(cohort_size: int) -> dict[str, Strategy]:
    """The strategies worth timing for a cohort: 1, 2, 5, 10, 25 .. lanes, and all of them.

    Args:
      cohort_size: `C`.

    Returns:
      Strategies by name, few lanes first.

    Example:
      >>> list(lane_strategies(10))
      ['chunked(1)', 'chunked(2)', 'chunked(5)', 'vmapped()']
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    ladder = [m * 10**p for p in range(1 + int(math.log10(cohort_size))) for m in (1, 2, 5)]
    strategies = [*(chunked(lanes) for lanes in ladder if lanes < cohort_size), vmapped()]
    return {strategy.name: strategy for strategy in strategies}


def fastest(
    variants: Mapping[str, FederatedAlgorithm],
    key: Key,
    state: RoundState,
    data: PyTree,
    *,
    repeats: int = 3,
    max_seconds: float = 30.0,
    cache_dir: str | os.PathLike[str] | None = None,
    refresh: bool = False,
) -> Timing:
    """Times the next round under each variant and keeps the answer on disk.

    Every variant is compiled and run once, then all run in turn, forwards and backwards, so
    that drift of the machine hits all alike. The round is a real one on the real data, but its
    result is thrown away. Variants that memory cannot hold are skipped by forecast, and so are
    those that the time does not suffice for; the first is always tried, so put the best guess
    first. Results of training do not depend on the choice beyond rounding; a run that must
    resume in the same bytes records the name it was begun with.

    Args:
      variants: the same algorithm in several forms, such as
        ``{s.name: algo.with_strategy(s) for s in lane_strategies(10).values()}``, or of models
        whose convolutions have another `form`.
      key: as for `algo.round`.
      state: a state of the run.
      data: the population.
      repeats: timed rounds of each, besides the one that compiles.
      max_seconds: no further variant is begun after so many seconds.
      cache_dir: where the answer is kept: ``timings.json`` in this folder, default the cache
        folder of the data. It is found again by the programs of all variants, the clients'
        sizes, the device and the versions. Where a variant was skipped, nothing is kept.
      refresh: measure again.

    Returns:
      A `Timing`.

    Raises:
      ValueError: if there are no variants, or not one of them fits into memory.
      TypeError: if an argument has the wrong type.

    Example:
      >>> import tempfile, optax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.arange(4.0)}, [0, 1, 2, 3])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.1),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> key = jax.random.key(0)
      >>> state = algo.init(key, jnp.array(0.0), data)
      >>> variants = {n: algo.with_strategy(s) for n, s in lane_strategies(4).items()}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     found = fastest(variants, key, state, data, cache_dir=folder)
      ...     again = fastest(variants, key, state, data, cache_dir=folder)
      >>> found.name == again.name, found.cached, again.cached
      (True, False, True)
    """
    check_key(key)
    check_count(repeats, "repeats", minimum=1)
    if not variants:
        raise ValueError("variants must hold at least one algorithm, got none")
    for name, algo in variants.items():
        if not isinstance(algo, FederatedAlgorithm):
            raise TypeError(f"variants[{name!r}] must be a FederatedAlgorithm, got {algo!r}")
    path = default_cache_dir(cache_dir) / "timings.json"
    signature = _signature(variants, key, state, data)
    known = _read(path)
    if not refresh and signature in known:
        entry = known[signature]
        return Timing(entry["name"], entry["seconds"], entry["skipped"], cached=True)

    seconds, skipped = _measure(variants, key, state, data, repeats, max_seconds)
    if not seconds:
        raise ValueError(f"not one of the variants fits into memory: {skipped}")
    best = min(seconds, key=lambda name: seconds[name])
    entry = {"name": best, "seconds": seconds, "skipped": skipped, "device": _device()}
    if not skipped:  # another time there may be room or time for the others
        _write(path, {**_read(path), signature: entry})
    return Timing(best, seconds, skipped, cached=False)


def _measure(
    variants: Mapping[str, FederatedAlgorithm],
    key: Key,
    state: RoundState,
    data: PyTree,
    repeats: int,
    max_seconds: float,
) -> tuple[dict[str, float], dict[str, str]]:
    began = time.perf_counter()
    calls: dict[str, Callable[..., Any]] = {}
    skipped: dict[str, str] = {}
    for name, algo in variants.items():
        if calls and time.perf_counter() - began > max_seconds:
            skipped[name] = f"max_seconds={max_seconds} had passed"
            continue
        compiled = jax.jit(algo.round).lower(key, state, data).compile()
        predicted = forecast(compiled)
        if predicted is not None and not predicted.fits:
            skipped[name] = f"needs {predicted.extra_bytes:,} bytes"
            continue
        jax.block_until_ready(compiled(key, state, data))
        calls[name] = compiled
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name in _there_and_back(list(calls), turn):
            start = time.perf_counter()
            jax.block_until_ready(calls[name](key, state, data))
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}, skipped


def _there_and_back(names: Sequence[str], turn: int) -> Sequence[str]:
    return names if turn % 2 == 0 else names[::-1]


def _signature(
    variants: Mapping[str, FederatedAlgorithm], key: Key, state: RoundState, data: PyTree
) -> str:
    """Of everything that the answer depends on: programs, sizes of clients, device, versions."""
    digest = hashlib.sha256(json.dumps(_device(), sort_keys=True).encode())
    for name, algo in variants.items():
        digest.update(f"\0{name}\0".encode())
        digest.update(jax.jit(algo.round).lower(key, state, data).as_text().encode())
    sizes = getattr(data, "sizes", None)
    if sizes is not None:
        digest.update(np.asarray(sizes).tobytes())
    return digest.hexdigest()


def _device() -> dict[str, Any]:
    device = jax.local_devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def _read(path: Path) -> dict[str, Any]:
    """What is known; a file that is missing or damaged costs a measurement, not the run."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, entries: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json_atomic(path, entries)
    except OSError:  # a cache folder that cannot be written costs the cache only
        pass
