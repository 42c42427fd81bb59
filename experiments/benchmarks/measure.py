"""How the benchmarks measure: the machine, its own matrix product, compiling, alternating calls."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.run.settings import versions

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.flag_values import check_choices as check_choices
from shared.script import parse as parse


class Cold(NamedTuple):
    """A compiled program and what it cost to get it."""

    compiled: Any
    """Call it with the arguments that it was lowered for."""
    compile_seconds: float
    """Trace, lower and compile."""
    cold_seconds: float
    """The same and the first call."""
    temp_bytes: int | None
    """Peak temporary memory by the compiler's own account; None where it gives none."""
    first: Any
    """Result of the first call."""


class Yardstick:
    """The machine's own float32 matrix product, best of all calls of `measure`, in GFLOP/s.

    At JAX's default precision, which is what the models use: on a CPU that is float32 throughout.

    Args:
      size: the matrices are `[size, size]`.

    Example:
      >>> yardstick = Yardstick(64)
      >>> yardstick.measure() > 0
      True
    """

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self.all: list[float] = []
        rng = np.random.default_rng(0)
        self._a, self._b = (
            jnp.asarray(rng.standard_normal((size, size), dtype=np.float32)) for _ in range(2)
        )
        self._dot = jax.jit(jnp.dot).lower(self._a, self._b).compile()
        jax.block_until_ready(self._dot(self._a, self._b))

    def measure(self, num_calls: int = 3) -> float:
        """Calls it a few times and returns the best so far."""
        for _ in range(num_calls):
            seconds = call_seconds(self._dot, self._a, self._b)
            self.all.append(2 * self.size**3 / seconds / 1e9)
        return self.best

    @property
    def best(self) -> float:
        """The best call so far; 0 before the first."""
        return max(self.all, default=0.0)


def call_seconds(function: Callable[..., Any], *args: Any) -> float:
    """Wall-clock seconds of one call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began


def compile_cold(function: Callable[..., Any], *args: Any) -> Cold:
    """Traces, compiles and calls a function once, all caches of JAX emptied before.

    Args:
      function: a pure function of arrays.
      *args: its arguments; not donated.

    Returns:
      `Cold`.

    Raises:
      ValueError: if JAX keeps compiled programs on the disk, which would falsify the times.

    Example:
      >>> float(compile_cold(lambda x: x + 1, jnp.float32(1)).first)
      2.0
    """
    check_no_compilation_cache()
    jax.clear_caches()
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compiled_at = time.perf_counter()
    first = jax.block_until_ready(compiled(*args))
    done = time.perf_counter()
    analysis = compiled.memory_analysis()
    temp_bytes = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Cold(compiled, compiled_at - began, done - began, temp_bytes, first)


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    between: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn, so that drift of the machine hits all alike.

    Every other turn runs backwards: no call always follows the same one.

    Args:
      calls: functions by name, each already warm.
      repeats: turns, at least 1.
      between: called before each turn, not timed.

    Returns:
      Seconds `[repeats]` by name, in the order of `calls`.

    Example:
      >>> {name: len(times) for name, times in alternate({"a": int, "b": int}, repeats=2).items()}
      {'a': 2, 'b': 2}
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        between()
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            seconds[name].append(call_seconds(calls[name]))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes.

    Example:
      >>> spread([3.0, 1.0, 2.0])["median"], spread([3.0, 1.0, 2.0])["max"]
      (2.0, 3.0)
    """
    levels = np.quantile(values, [0.5, 0.0, 0.25, 0.75, 1.0]).tolist()
    return dict(zip(("median", "min", "quartile_1", "quartile_3", "max"), levels, strict=True))


def check_output(path: Path, overwrite: bool) -> None:
    """Refuses to replace figures that nobody gave up.

    Raises:
      FileExistsError: if the file exists and `overwrite` is False.

    Example:
      >>> check_output(Path("/nowhere/figures.json"), overwrite=False)
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it, or another --output")


def machine() -> dict[str, Any]:
    """What a figure of speed must be read with: processor, cores, load, versions, date."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions(),
    }


def cpu_model() -> str:
    """The processor's name, as the operating system gives it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_no_compilation_cache() -> None:
    """Raises ValueError where JAX keeps compiled programs on the disk."""
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if folder and getattr(jax.config, "jax_enable_compilation_cache", True):
        raise ValueError(
            f"JAX keeps compiled programs in {folder}, so cold times would be false; unset "
            "JAX_COMPILATION_CACHE_DIR for this benchmark"
        )
