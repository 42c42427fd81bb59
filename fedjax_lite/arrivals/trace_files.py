"""Files of traces: JSON, CSV or npz, read without trusting them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fedjax_lite.arrivals.trace import Hours, Speeds, Trace
from fedjax_lite.checks.arguments import as_path, check_slot
from fedjax_lite.data.formats.errors import DatasetFormatError

DAY = 86400.0
MOST_BYTES = 1 << 29
"""Of a file, and of what a compressed one unpacks to."""
SPEEDS = ("computation", "communication")
HOURS = ("active", "inactive")
REMEDY = (
    "a trace has for each client computation (ms an example), communication (kbit/s), and lists "
    "active and inactive of seconds; fl.arrivals.write_trace(fl.arrivals.sample_trace(), path) "
    "writes one to look at"
)
BROKEN = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError, RecursionError, MemoryError),
    *(csv.Error, zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def read_trace(*paths: str | os.PathLike[str]) -> Trace:
    r"""Reads speeds and hours of devices from one file or several.

    Three kinds of file, by their ending; names are FedScale's, whose own files are pickles: turn
    those into JSON where you trust them (``json.dump(pickle.load(file), other)``).

    * ``.json``: ``{"7": {"computation": 162.0, "communication": 5648.1, "active": [0, 7200],
      "inactive": [3600, 9000], "finish_time": 172800}, ...}``, or a list of such records, or
      either of them under ``"clients"``.
    * ``.csv``: a header with ``computation,communication``, a line a device; or with ``client,
      active,inactive``, a line an interval, and perhaps ``finish_time``; not both in one file.
    * ``.npz``: arrays of those names, `[D]` and `[I]`, and ``offsets`` int `[D + 1]`.

    Args:
      *paths: files that have speeds, hours or both; where several have the same, the last counts.

    Returns:
      A `Trace`. Where no ``finish_time`` is given, a device begins anew after whole days.

    Raises:
      FileNotFoundError: if a file does not exist.
      DatasetFormatError: if a file is damaged, has neither, has them of some clients only, or has
        numbers that cannot be: the message names the file, what is wrong, and what a trace looks
        like. Files above 512 MiB are refused; nothing is unpickled.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "hours.csv"
      >>> _ = path.write_text("client,active,inactive\nanna,0,3600\nanna,7200,9000\nbo,5,6\n")
      >>> trace = read_trace(path)
      >>> trace.hours.offsets.tolist(), trace.hours.finish_time.tolist()
      ([0, 2, 3], [86400.0, 86400.0])
    """
    if not paths:
        raise ValueError("paths must name a file, got none; fl.arrivals.read_trace('trace.json')")
    trace = Trace()
    for given in paths:
        path = as_path(given, "paths")
        found = _read(path)
        trace = Trace(found.speeds or trace.speeds, found.hours or trace.hours)
    return trace


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Writes a trace as JSON or npz, by the ending.

    Args:
      trace: what `read_trace` gives; as JSON, speeds and hours must be of as many devices.
      path: ends in ``.json`` or ``.npz``.

    Raises:
      ValueError: if the ending is another one, the trace is empty, or its parts differ in length
        where JSON is to hold both.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.npz"
      >>> trace = Trace(Speeds(np.array([20.0]), np.array([500.0])))
      >>> write_trace(trace, path)
      >>> read_trace(path).speeds.communication.tolist()
      [500.0]
    """
    check_slot(trace, "trace", Trace)
    path = as_path(path, "path")
    if trace.speeds is None and trace.hours is None:
        raise ValueError("trace must have speeds or hours, got none of them; read or make one")
    arrays = {k: v for part in trace if part is not None for k, v in part._asdict().items()}
    if path.suffix == ".npz":
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"clients": _records(trace)}, separators=(",", ":")) + "\n")
    else:
        raise ValueError(f"path must end in .json or .npz, got {str(path)!r}")


def _records(trace: Trace) -> list[dict[str, Any]]:
    speeds, hours = trace
    num = len(hours.finish_time) if speeds is None and hours is not None else 0
    num = num if speeds is None else len(speeds.computation)
    if speeds is not None and hours is not None and len(hours.finish_time) != num:
        raise ValueError(
            f"trace must have as many speeds as hours to be written as JSON, got {num} and "
            f"{len(hours.finish_time)}; write an .npz"
        )
    records: list[dict[str, Any]] = [{} for _ in range(num)]
    for i, record in enumerate(records):
        if speeds is not None:
            record |= {name: _short(getattr(speeds, name)[i]) for name in SPEEDS}
        if hours is not None:
            mine = slice(hours.offsets[i], hours.offsets[i + 1])
            record |= {name: [_short(x) for x in getattr(hours, name)[mine]] for name in HOURS}
            record["finish_time"] = _short(hours.finish_time[i])
    return records


def _short(number: Any) -> float | int:
    number = float(number)
    return int(number) if number.is_integer() else number


def _read(path: Path) -> Trace:
    readers: dict[str, Callable[[Path], Trace]] = {
        ".json": _from_json,
        ".csv": _from_csv,
        ".npz": _from_npz,
    }
    if path.suffix not in readers:
        raise DatasetFormatError(
            path,
            expected="a trace as .json, .csv or .npz",
            found=f"the ending {path.suffix!r} in paths",
            remedy="FedScale's pickles become JSON by json.dump(pickle.load(file), other), where "
            "you trust them",
        )
    if path.stat().st_size > MOST_BYTES:
        _refuse(path, f"{path.stat().st_size} bytes, more than any trace has")
    try:
        trace = readers[path.suffix](path)
        if trace.speeds is None and trace.hours is None:
            raise ValueError("neither computation and communication nor active and inactive")
        return Trace(_checked_speeds(trace.speeds), _checked_hours(trace.hours))
    except DatasetFormatError:
        raise
    except BROKEN as error:
        fault = f"a key that is missing, {error}" if isinstance(error, KeyError) else error
        _refuse(path, f"{str(fault) or type(error).__name__:.200}")


def _refuse(path: Path, found: str) -> NoReturn:
    raise DatasetFormatError(path, expected="a trace of devices", found=found, remedy=REMEDY)


def _from_json(path: Path) -> Trace:
    document = json.loads(path.read_text("utf-8"))
    if isinstance(document, dict) and "clients" in document:
        document = document["clients"]
    records = list(document.values()) if isinstance(document, dict) else document
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise ValueError("no records of clients: a dict or list of dicts")
    if not records:
        raise ValueError("no client")
    speeds = hours = None
    if _all_have(records, SPEEDS):
        speeds = Speeds(*(_array([one[name] for one in records], name) for name in SPEEDS))
    if _all_have(records, HOURS):
        counts = [len(one["active"]) for one in records]
        parts = (_array([x for one in records for x in one[name]], name) for name in HOURS)
        if counts != [len(one["inactive"]) for one in records]:
            raise ValueError("a client with another number of beginnings than of ends")
        active, inactive = parts
        given = [one.get("finish_time") for one in records]
        period = None if None in given else _array(given, "finish_time")
        hours = _hours(counts, active, inactive, period)
    return Trace(speeds, hours)


def _all_have(records: list[dict[str, Any]], names: tuple[str, ...]) -> bool:
    """Whether records have these; ValueError where some do and others not."""
    if not any(name in one for one in records for name in names):
        return False
    for i, one in enumerate(records):
        if missing := [name for name in names if name not in one]:
            raise ValueError(f"a key that is missing, {missing[0]!r}, in record {i}, not in others")
    return True


def _from_csv(path: Path) -> Trace:
    rows = csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    lines = list(rows)
    if not lines:
        raise ValueError("no line of numbers")
    if any(None in line or None in line.values() for line in lines):
        raise ValueError("a line with more or fewer fields than the header")
    if set(SPEEDS) & set(names) and set(HOURS) & set(names):
        raise ValueError("columns of speeds and of hours in one table; write two files")
    if set(SPEEDS) <= set(names):
        return Trace(Speeds(*(_array([line[name] for line in lines], name) for name in SPEEDS)))
    if not {"client", *HOURS} <= set(names):
        raise ValueError(f"the columns {names}")
    by_client: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_client.setdefault(line["client"], []).append(line)
    together = [line for mine in by_client.values() for line in mine]
    active, inactive = (_array([line[name] for line in together], name) for name in HOURS)
    period = None
    if "finish_time" in names:
        firsts = [mine[0]["finish_time"] for mine in by_client.values()]
        period = _array(firsts, "finish_time")
    return Trace(hours=_hours([len(mine) for mine in by_client.values()], active, inactive, period))


def _from_npz(path: Path) -> Trace:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MOST_BYTES:
            raise ValueError(f"{unpacked} bytes when unpacked, more than any trace has")
    with np.load(path, allow_pickle=False) as arrays:
        known = {name: _array(arrays[name], name) for name in arrays.files}
    speeds = Speeds(*(known[name] for name in SPEEDS)) if set(SPEEDS) & set(known) else None
    hours = None
    if set(HOURS) & set(known):
        counts = np.diff(known["offsets"]).astype(np.int64)
        if (counts < 0).any() or known["offsets"][0] != 0:
            raise ValueError("offsets that do not ascend from 0")
        period = known.get("finish_time")
        hours = _hours(counts.tolist(), known["active"], known["inactive"], period)
    return Trace(speeds, hours)


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, list) and any(isinstance(x, bool) for x in values):
        raise ValueError(f"{name} that is true or false")
    array = np.asarray(values)
    array = array.astype(np.float64) if array.dtype.kind in "iufU" else array
    if array.ndim != 1 or array.dtype.kind != "f":
        raise ValueError(f"{name} that is no list of numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} that is not finite")
    return array


def _hours(
    counts: list[int], active: np.ndarray, inactive: np.ndarray, period: np.ndarray | None
) -> Hours:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    if period is None:
        days = math.ceil(inactive.max(initial=1.0) / DAY)
        period = np.full(len(counts), days * DAY)
    return Hours(offsets, active, inactive, period)


def _checked_speeds(speeds: Speeds | None) -> Speeds | None:
    if speeds is None:
        return None
    if len(speeds.computation) != len(speeds.communication) or not len(speeds.computation):
        raise ValueError(f"{len(speeds[0])} computation and {len(speeds[1])} communication")
    for name, values in speeds._asdict().items():
        if not (values > 0).all():
            raise ValueError(f"{name} of {values.min():g}, which is not above 0")
    return speeds


def _checked_hours(hours: Hours | None) -> Hours | None:
    if hours is None:
        return None
    offsets, active, inactive, period = hours
    if not len(period) or len(offsets) != len(period) + 1:
        raise ValueError(f"{len(offsets) - 1} clients and {len(period)} of finish_time")
    if len(active) != len(inactive) or len(active) != offsets[-1]:
        raise ValueError(f"{len(active)} beginnings, {len(inactive)} ends, {offsets[-1]} in all")
    if (active < 0).any() or not (active < inactive).all():
        raise ValueError("an interval that does not end after it begins, or begins before 0")
    owner = np.repeat(np.arange(len(period)), np.diff(offsets))
    same = owner[1:] == owner[:-1]
    if (same & (active[1:] < inactive[:-1])).any():
        raise ValueError("intervals of one client that overlap or do not ascend")
    if not (period > 0).all() or (inactive > period[owner]).any():
        raise ValueError("a finish_time that lies before the end of an interval")
    return hours
