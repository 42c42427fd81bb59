"""A trace that was made up: devices of many speeds, which charge at night."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from fedjax_lite.arrivals.trace import Hours, Speeds, Trace
from fedjax_lite.arrivals.trace_files import DAY, read_trace
from fedjax_lite.checks.arguments import check_count

SAMPLE = "sample_trace.json"


def synthetic_trace(num_devices: int = 200, *, num_days: int = 2, seed: int = 0) -> Trace:
    r"""Devices as phones might be; no real person's hours are in it.

    Milliseconds an example are log-normal around 60 with :math:`\sigma = 1`, kilobits a second
    log-normal around 5,000 with :math:`\sigma = 1.2`, slower where the device is. In each night a
    device is plugged in for six to nine hours, around an evening hour of its owner; and on some
    days once or twice more, for half an hour to two.

    Args:
      num_devices: `D`.
      num_days: after which each device begins anew.
      seed: of numpy's frozen generator, so that every version makes the same trace.

    Returns:
      A `Trace` with speeds and hours, of whole seconds.

    Raises:
      ValueError: if an amount is below 1.

    Example:
      >>> trace = synthetic_trace(5)
      >>> len(trace.speeds.computation), len(trace.hours.offsets)
      (5, 6)
    """
    check_count(num_devices, "num_devices", minimum=1)
    check_count(num_days, "num_days", minimum=1)
    check_count(seed, "seed", minimum=0)
    random = np.random.RandomState(seed)
    slow = random.normal(size=num_devices)
    noise = random.normal(size=num_devices)
    link = -0.5 * slow + np.sqrt(0.75) * noise
    speeds = Speeds(np.round(60 * np.exp(slow), 1) + 0.1, np.round(5000 * np.exp(1.2 * link)) + 1)
    counts, active, inactive, end = [], [], [], int(num_days * DAY)
    for _ in range(num_devices):
        evening, found = random.normal(22.5, 1.5) % 24, []
        for day in range(-1, num_days):
            begin = (day * 24 + evening + random.normal(0, 0.5)) * 3600
            found.append((begin, begin + random.uniform(6, 9) * 3600))
            for _ in range(random.randint(3)):
                begin = (day * 24 + random.uniform(9, 20)) * 3600
                found.append((begin, begin + random.uniform(0.5, 2) * 3600))
        merged: list[list[int]] = []
        for begin, stop in sorted(found):
            first, last = max(int(begin), 0), min(int(stop), end)
            if first >= last:
                continue
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(last, merged[-1][1])
            else:
                merged.append([first, last])
        counts.append(len(merged))
        active += [one[0] for one in merged]
        inactive += [one[1] for one in merged]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    period = np.full(num_devices, float(end))
    return Trace(speeds, Hours(offsets, np.array(active, float), np.array(inactive, float), period))


def sample_trace() -> Trace:
    """The trace that comes with the package: ``synthetic_trace(200)``, as a file to look at.

    Returns:
      A `Trace` of 200 devices and two days.

    Example:
      >>> trace = sample_trace()
      >>> len(trace.speeds.computation), float(trace.hours.finish_time[0])
      (200, 172800.0)
    """
    with resources.as_file(resources.files("fedjax_lite.arrivals") / SAMPLE) as path:
        return read_trace(Path(path))
