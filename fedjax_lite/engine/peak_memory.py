"""forecast(): the memory of a compiled program before it runs, and an error where it cannot fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_lite.engine.table_memory import available_bytes

PACKING = 1.5
"""XLA:CPU packs the right side of a matrix product while it computes, outside the compiler's
account: 1.1 to 2.1 times its bytes were seen over lanes 1 to 64 (test_forecast.py measures)."""

RUNTIME_BYTES = 8 * 2**20
"""What a first call costs a CPU process besides: stacks of threads, the allocator's slack."""


class Forecast(NamedTuple):
    """Bytes that a compiled program needs on one device."""

    argument_bytes: int
    """What it is given: state, data. On the device already."""
    extra_bytes: int
    """What it needs on top while it runs: temporaries, outputs that are not donated arguments."""
    available_bytes: int | None
    """What the device has left beside the arguments; None where it cannot be found out."""

    @property
    def peak_bytes(self) -> int:
        """Arguments and extra."""
        return self.argument_bytes + self.extra_bytes

    @property
    def fits(self) -> bool:
        """Whether the extra bytes are available, as far as is known."""
        return self.available_bytes is None or self.extra_bytes <= self.available_bytes


def forecast(compiled: Any, *, device: Any = None) -> Forecast | None:
    r"""Predicts the peak memory of a compiled program, per device.

    .. math::  \mathrm{peak} = \mathrm{arguments} + \mathrm{temporaries} + \mathrm{outputs}
               - \mathrm{donated}
               + 1.5 \max_{\mathrm{dots}} |\mathrm{right\ side}| + 8\,\mathrm{MiB}

    The first four are the compiler's own account; the last two are what XLA:CPU allocates besides,
    and are left out elsewhere. Within 20 % of the measured peak on the programs of
    ``experiments/benchmarks/memory.py`` (2 CPU cores); not measured on GPU or TPU.

    Args:
      compiled: ``jax.jit(f).lower(...).compile()``.
      device: where it is going to run; default the first one. Devices of one CPU share its memory.

    Returns:
      A `Forecast`, or None where the compiler gives no account.

    Example:
      >>> import jax.numpy as jnp
      >>> compiled = jax.jit(lambda x: x + 1).lower(jnp.zeros(256)).compile()
      >>> predicted = forecast(compiled)
      >>> predicted.argument_bytes, predicted.peak_bytes >= 2048
      (1024, True)
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    device = jax.local_devices()[0] if device is None else device
    extra = (
        analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    )
    available = available_bytes(device)
    if device.platform == "cpu":
        if available is not None:
            available //= _num_local_devices(compiled)
        extra += int(PACKING * largest_right_side(compiled.as_text())) + RUNTIME_BYTES
    return Forecast(analysis.argument_size_in_bytes, extra, available)


def check_fits(compiled: Any, recompile: Callable[[int], Any] | None, most_lanes: int) -> None:
    """Raises where a program cannot fit, and says how many lanes would.

    Args:
      compiled: as in `forecast`.
      recompile: ``(num_lanes) ->`` the same rounds compiled with so many lanes; None if unknown.
      most_lanes: clients of a cohort, `C`.

    Raises:
      ValueError: if the forecast exceeds what is available.
    """
    if _certainly_fits(compiled):
        return
    predicted = forecast(compiled)
    if predicted is None or predicted.fits:
        return
    if recompile is None:
        remedy = "a smaller batch, model or cohort is needed"
    else:
        lanes = lanes_that_fit(recompile, most_lanes)
        if lanes:
            remedy = f"chunked({lanes}) would fit: strategy=fl.chunked({lanes})"
        else:
            remedy = "not even one lane would fit: a smaller batch or model is needed"
    available = mib(predicted.available_bytes or 0)
    raise ValueError(
        f"the rounds would run out of memory: beside {mib(predicted.argument_bytes)} of state and "
        f"data they need {mib(predicted.extra_bytes)}, and {available} are available; {remedy}"
    )


def _certainly_fits(compiled: Any) -> bool:
    """A bound that needs no look at the program's text, which takes longer than a small round."""
    analysis = compiled.memory_analysis()
    available = available_bytes(jax.local_devices()[0])
    if analysis is None or available is None:
        return True
    held = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    most = (1 + PACKING) * held + analysis.output_size_in_bytes + RUNTIME_BYTES
    return most <= available / jax.local_device_count()


def lanes_that_fit(recompile: Callable[[int], Any], most_lanes: int) -> int:
    """The most lanes whose forecast fits; 0 if not even one does.

    Memory is a line in the number of lanes, so two programs place a first guess; what is returned
    was itself compiled and fits.
    """

    def needed(lanes: int) -> tuple[int, bool]:
        predicted = forecast(recompile(lanes))
        assert predicted is not None
        available = math.inf if predicted.available_bytes is None else predicted.available_bytes
        rooms.append(available)
        return predicted.extra_bytes, predicted.fits

    rooms: list[float] = []
    one, fits = needed(1)
    if not fits:
        return 0
    two, fits = needed(min(2, most_lanes))
    if not fits:
        return 1
    slope = max(two - one, 1)
    lanes = int(min(most_lanes, 1 + (rooms[0] - one) // slope))
    while lanes > 2 and not needed(lanes)[1]:
        lanes = max(2, int(0.8 * lanes))
    return max(lanes, min(2, most_lanes))


def largest_right_side(hlo: str) -> int:
    """Bytes of the largest right operand of a matrix product in a compiled program's text."""
    largest, shapes = 0, {}
    for line in hlo.splitlines():
        if line.endswith("{"):  # a new computation: names are its own
            shapes = {}
        elif found := _LINE.match(line):
            shapes[found["name"]] = found["shape"]
            if found["operator"] == "dot":
                right = found["operands"].rpartition("%")[2]
                largest = max(largest, _num_bytes(shapes.get(right, "")))
    return largest


_LINE = re.compile(
    r"\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>\w+\[[\d,]*\])\S* "
    r"(?P<operator>[\w\-]+)\((?P<operands>[^()]*)\)"
)


def _num_local_devices(compiled: Any) -> int:
    """Devices of this process that a program runs on; they share the memory of one CPU."""
    shardings = jax.tree.leaves(getattr(compiled, "input_shardings", ()))
    devices = {d for sharding in shardings for d in getattr(sharding, "device_set", ())}
    return max(1, sum(d.process_index == jax.process_index() for d in devices))


def _num_bytes(shape: str) -> int:
    kind, _, axes = shape.rstrip("]").partition("[")
    digits = re.match(r"[a-z]+(\d+)", kind)  # f32, bf16, s8, f8e4m3; pred is a byte
    bits = int(digits[1]) if digits else 8
    return math.prod(int(axis) for axis in axes.split(",") if axis) * bits // 8 if shape else 0


def mib(num_bytes: float) -> str:
    """Bytes as readable text."""
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes < 2**34 else f"{num_bytes / 2**30:,.0f} GiB"
