"""One device a CPU core: how many cores there are, and asking JAX for as many devices."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax

from fedjax_lite.checks.arguments import check_count

_FORCED = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_TASKS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
"""Where the number of a run's processes stands; they deal by a mesh of their own."""
_asked = False
"""Whether `use_cores` was called: other devices of a CPU are the user's own affair."""
_ONE: ContextVar[bool] = ContextVar("one", default=False)


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is pinned to, and no more than its container's.

    Args:
      cgroups: where Linux keeps the quotas of containers, of version 2 or 1.

    Example:
      >>> usable_cores() >= 1
      True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, _quota(cgroups) or cores))


def _quota(cgroups: Path) -> int | None:
    """Whole cores of a container's quota, at least one; None where there is none."""
    try:
        if (cgroups / "cpu.max").exists():
            quota, period = (cgroups / "cpu.max").read_text().split()[:2]
        else:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none, "max", or another system
        return None
    return max(1, int(share)) if share > 0 else None


def use_cores(num_cores: int | None = None) -> int:
    r"""Makes each CPU core a device, over which `auto()` deals the clients of a round.

    XLA's threads slow small models down: a step whose matmuls are split over cores waits more
    than it computes. With a device a core every core trains clients of its own, and results are
    those of one device up to the order of one sum. `run` lays the data so that all cores read the
    same memory; evaluation is dealt, too. Call it before anything of JAX is computed, in each
    process once. On an accelerator it changes nothing, and neither in one of several processes
    (`fedjax_lite.hosts.launch`, Slurm, Open MPI), which share a mesh of their own, unless
    `num_cores` is given.

    Args:
      num_cores: devices to make; default ``JAX_NUM_CPU_DEVICES`` of the environment, else the
        cores that this process may use, see `usable_cores`.

    Returns:
      The number of CPU devices that JAX has from now on.

    Raises:
      ValueError: if `num_cores` is below 1.

    Example:
      >>> import subprocess, sys
      >>> code = "import fedjax_lite as fl, jax; print(fl.use_cores(3), jax.device_count('cpu'))"
      >>> subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
      '3 3\n'
    """
    global _asked
    if num_cores is not None:
        check_count(num_cores, "num_cores", minimum=1)
    chosen = jax.config.jax_num_cpu_devices  # -1 where nobody chose
    if num_cores is None and any(int(os.environ.get(name) or 1) > 1 for name in _TASKS):
        return max(chosen, 1)
    wanted = num_cores or (chosen if chosen > 0 else usable_cores())
    forced = _FORCED.search(os.environ.get("XLA_FLAGS", ""))
    if _started():
        found = jax.local_device_count("cpu")
        if found < wanted and jax.default_backend() == "cpu":
            warnings.warn(
                f"use_cores() came too late: JAX runs on {found} CPU device"
                f"{'s' * (found > 1)} already, and {wanted} were asked for; call it before "
                "anything is computed (restart a notebook's kernel), or start Python with "
                f"JAX_NUM_CPU_DEVICES={wanted} in its environment",
                stacklevel=2,
            )
    elif forced is not None:  # JAX takes the number from one place only
        found = int(forced.group(1))
    else:
        jax.config.update("jax_num_cpu_devices", wanted)
        found = wanted
    _asked = True
    return found


def cores() -> tuple[Any, ...]:
    """The devices that cohorts are dealt to: none but after `use_cores`, with several, on a CPU.

    Several processes have meshes of their own (`sharded`).
    """
    if not _asked or _ONE.get() or jax.default_backend() != "cpu" or jax.process_count() > 1:
        return ()
    devices = tuple(jax.local_devices())
    return devices if len(devices) > 1 else ()


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """What is traced inside runs on one device: others have their own share."""
    token = _ONE.set(True)
    try:
        yield
    finally:
        _ONE.reset(token)


def _started() -> bool:
    """Whether JAX has a backend, after which the number of its devices is fixed."""
    from jax._src import xla_bridge

    return bool(getattr(xla_bridge, "_backends", {}))
