"""Does the table of client rows fit? An answer before it is allocated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from fedjax_lite import trees
from fedjax_lite.types import PyTree


def table_bytes(rows: PyTree, num_clients: int) -> int:
    """Bytes of a table `[N, ...]` with one row a client.

    Args:
      rows: one client's rows (arrays or shapes), e.g. client and uplink state.
      num_clients: `N`.

    Example:
      >>> import numpy as np
      >>> table_bytes({"w": np.zeros((3, 4), np.float32)}, 1000)
      48000
    """
    return num_clients * (trees.num_bits(rows) // 8)


def available_bytes(device: jax.Device) -> int | None:
    """Bytes that a device can still allocate; the host's memory where it does not say, as CPUs.

    Inside a container the limit of its control group counts. None where nothing can be found out.

    Example:
      >>> available = available_bytes(jax.local_devices()[0])
      >>> available is None or available > 0
      True
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return max(stats["bytes_limit"] - stats.get("bytes_in_use", 0), 0)
    return host_bytes() if device.platform == "cpu" else None


def host_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of free host memory, from Linux' estimate or from the system's page counts."""
    available = None
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # neither Linux nor a System V
            return None
    return min([available, *group_bytes()])


def group_bytes(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes that each control group of this process may still take; those without limit left out.

    Pages of files that were read once do not count as taken: the system gives them back.

    Args:
      groups: which groups this process is in.
      root: where groups are mounted, version 2, or version 1 with a folder `memory`.
    """
    try:
        lines = groups.read_text().split()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        mine = base / path.strip("/")
        # Inside a container the path is often the host's, and the group itself is mounted.
        for folder in {base, *(p for p in (mine, *mine.parents) if p.is_relative_to(base))}:
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = dict(li.split() for li in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group, or "max"
                continue
            found.append(max(0, limit - used + int(stat.get(names[2], 0))))
    return found


def check_table(rows: PyTree, num_clients: int, *, available: int | None = None) -> None:
    """Raises where the table of client rows cannot fit, before it is allocated.

    Only the table is counted: a round that is given its state by donation, as `run` does, updates
    it in place; one that is not holds a second table while it runs.

    Args:
      rows: one client's rows.
      num_clients: `N`.
      available: bytes; default: what is left on the device that holds `rows`.

    Raises:
      ValueError: with the bytes needed, the bytes available and the choices.

    Example:
      >>> import numpy as np
      >>> check_table(np.zeros(10, np.float32), 100, available=1000)
      Traceback (most recent call last):
      ...
      ValueError: num_clients=100 rows of client state need 4,000 bytes (40 a client), ...
    """
    needed = table_bytes(rows, num_clients)
    if needed == 0:
        return
    device = _device(rows)
    available = available_bytes(device) if available is None else available
    if available is None or needed <= available:
        return
    raise ValueError(
        f"num_clients={num_clients} rows of client state need {needed:,} bytes "
        f"({needed // num_clients:,} a client), but {available:,} bytes are available on "
        f"{device}; halve it with rows in bfloat16 (table_dtype=jnp.bfloat16 where the "
        f"algorithm has it), take fewer clients (at most {available // (needed // num_clients):,} "
        "fit), or keep the state in host memory (jax.default_device(jax.devices('cpu')[0]))"
    )


def _device(rows: Any) -> jax.Device:
    """Where the table is going to lie: with its rows, or else where JAX puts things."""
    for leaf in jax.tree.leaves(rows):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            return min(leaf.devices(), key=lambda device: device.id)
    default = jax.config.jax_default_device
    return default if isinstance(default, jax.Device) else jax.local_devices()[0]
