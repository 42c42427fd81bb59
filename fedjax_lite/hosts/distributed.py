"""Several processes as one program: joining them, and the few things that they must agree on.

Every process runs the same script from top to bottom. Processes exchange numbers inside compiled
programs only (see `sharded`), and, between those, what is here: a barrier, the largest of some
numbers, a text of the coordinator. All of it is a no-op in a single process.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lite.types import PyTree

HEARTBEAT_VARIABLE = "FEDJAX_LITE_HEARTBEAT_SECONDS"
"""How `fedjax_lite.hosts.launch` hands its ``--heartbeat-seconds`` to the processes."""


def initialize(
    coordinator_address: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: int | Sequence[int] | None = None,
    cluster: str | None = None,
    heartbeat_seconds: int | None = None,
    shutdown_seconds: int = 60,
    start_seconds: int = 120,
) -> bool:
    """Joins this process with the others of its run; does nothing where there are no others.

    Call it first, before anything that touches a device. Where the arguments are None it looks at
    the environment variables ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0),
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, which ``python -m fedjax_lite.hosts.launch`` sets,
    and then for a job of several tasks under Slurm (``srun``) or Open MPI (``mpirun``), and for a
    TPU VM, whose addresses JAX finds by itself. On CPUs the processes talk by Gloo.

    When a process dies, the others are ended with a message: by the launcher, by the broken
    connection inside the next sum over devices, or at the latest by the coordination service,
    after `heartbeat_seconds`. A Python exception ends its process at once, without waiting
    for the others, who notice in the same ways.

    Args:
      coordinator_address: host:port of process 0, the same in all processes.
      num_processes: how many there are.
      process_id: which of them this is, 0 .. num_processes - 1; 0 is the coordinator.
      local_device_ids: accelerators of this machine that are this process's; default all of them
        (Slurm and Open MPI: the one of the task's local number).
      cluster: look nowhere else: "slurm", "ompi", "mpi4py", "k8s" or another of JAX's detection
        methods, or "auto" for all of them.
      heartbeat_seconds: a process that gave no sign of life for so long is dead; default what the
        launcher was given, or else 30.
      shutdown_seconds: how long a process that is done waits for the others (JAX before 0.9 has no
        such limit to set: 300).
      start_seconds: how long to wait for the others at the start.

    Returns:
      Whether there are several processes.

    Raises:
      ValueError: if only some of address, number and id are known, or they are out of range.
      RuntimeError: if a device was touched before, or the others do not come.

    Example:
      >>> initialize()
      False
    """
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    found = {
        "coordinator_address": coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(num_processes, "num_processes", "JAX_NUM_PROCESSES"),
        "process_id": _number(process_id, "process_id", "JAX_PROCESS_ID"),
    }
    if heartbeat_seconds is None:
        heartbeat_seconds = int(os.environ.get(HEARTBEAT_VARIABLE, "30"))
    for name, value in (("heartbeat", heartbeat_seconds), ("shutdown", shutdown_seconds)):
        if value < 1:
            raise ValueError(f"{name}_seconds must be at least 1, got {value}")
    if cluster is None:
        missing = [name for name, value in found.items() if value is None]
        if len(missing) == 3:
            if not (_tasks_of_job() > 1 or _on_tpu_vm()):
                return False
        elif missing:
            raise ValueError(
                f"{', '.join(missing)} must be given too, or JAX_COORDINATOR_ADDRESS, "
                f"JAX_NUM_PROCESSES and JAX_PROCESS_ID together in the environment; got "
                f"{ {name: value for name, value in found.items() if value is not None} }"
            )
        elif found["num_processes"] == 1:
            return False
        else:
            cluster = "deactivate"  # nothing is left to detect
    # "gloo" is JAX's default today; None would mean that processes on CPUs cannot talk at all.
    if jax.config.jax_cpu_collectives_implementation is None:  # pyright: ignore
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options: dict[str, int] = {"heartbeat_timeout_seconds": heartbeat_seconds}
    if "shutdown_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:
        options["shutdown_timeout_seconds"] = shutdown_seconds
    jax.distributed.initialize(
        **found,  # pyright: ignore[reportArgumentType]
        local_device_ids=local_device_ids,
        cluster_detection_method=None if cluster == "auto" else cluster,
        initialization_timeout=start_seconds,
        **options,
    )
    _end_at_once_on_errors()
    _connect()
    barrier("initialize")
    return jax.process_count() > 1


def is_coordinator() -> bool:
    """Whether this process is the one that prints and writes: process 0.

    Example:
      >>> is_coordinator()
      True
    """
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Args:
      name: the same in all of them; an error where it is not.

    Example:
      >>> barrier("checkpoint")
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(number: int) -> int:
    """The largest of the processes' numbers, in all of them.

    Args:
      number: any int32, such as the signal that a process has got, or 0.

    Returns:
      The maximum over processes; a barrier, too.

    Example:
      >>> agree(15)
      15
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_coordinator(text: str) -> str:
    """Process 0's text, in all processes: a name made from the clock, a decision.

    Args:
      text: at most 4096 bytes of UTF-8; only process 0's counts.

    Returns:
      The text of process 0.

    Raises:
      ValueError: if it is too long.

    Example:
      >>> from_coordinator("outputs/20260101")
      'outputs/20260101'
    """
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    words = text.encode()
    if len(words) > 4096:
        raise ValueError(f"text must have at most 4096 bytes, got {len(words)}")
    buffer = np.zeros(4096, np.uint8)
    buffer[: len(words)] = np.frombuffer(words, np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8)
    return shared.tobytes().rstrip(b"\0").decode()


def local(tree: PyTree) -> PyTree:
    """This process's copies of arrays that all processes hold whole.

    What is computed from them is computed in every process by itself, without the others.

    Args:
      tree: arrays, such as ``state.server.params`` or a state.

    Returns:
      The tree; arrays that are split over processes, and those of this process, are left as
      they are.

    Example:
      >>> import jax.numpy as jnp
      >>> local({"w": jnp.arange(2)})["w"].tolist()
      [0, 1]
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else leaf

    return jax.tree.map(one, tree)


def fail(message: str) -> NoReturn:
    """Ends this process with a message and code 1; others are not waited for.

    Args:
      message: for standard error.

    Raises:
      SystemExit: in a single process.

    Example:
      >>> fail("error: --alpha must be positive")
      Traceback (most recent call last):
      ...
      SystemExit: error: --alpha must be positive
    """
    if jax.distributed.is_initialized():
        print(message, file=sys.stderr)
        _leave()
    raise SystemExit(message)


def _number(value: int | None, name: str, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{name} is read from {variable}, which must be an int, got {text!r}"
        ) from None


def _tasks_of_job() -> int:
    """Tasks of the Slurm step or Open MPI job that this process belongs to; 1 where there is none.

    JAX's own detection of Kubernetes asks the cluster's server, so it is not tried unasked.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in os.environ for name in slurm):
        return int(os.environ.get("SLURM_NTASKS", "1"))
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    return 1


def _on_tpu_vm() -> bool:
    if importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _connect() -> None:
    """Adds up a one of every device.

    So the devices' connections are made where everyone arrives at about the same time: later, one
    process may compile for longer than another waits for it.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("devices",), ()))
    ones = jax.make_array_from_callback((mesh.size,), split, lambda index: np.ones(1, np.float32))
    total = int(jax.jit(jnp.sum, out_shardings=whole)(ones))
    if total != mesh.size:
        raise RuntimeError(f"{mesh.size} devices were to add up their ones, but got {total}")


def _end_at_once_on_errors() -> None:
    """After an exception a process must not wait at its exit for others, who wait for it."""
    before = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        before(kind, error, traceback)
        if issubclass(kind, Exception):
            _leave()

    sys.excepthook = hook


def _leave() -> NoReturn:
    """Ends the process without JAX's own farewell, which waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
