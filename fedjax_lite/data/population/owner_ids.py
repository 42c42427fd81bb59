"""Who owns an example: ids to numbers, exactly or not at all.

Everything that takes ids asks here (`from_arrays`, `by_key`, the column of clients of Parquet).
Two ids are one client only if the caller's values are equal; an id that is missing, or that has
been rounded on its way here, is refused with its row.
"""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import jax.numpy as jnp
import numpy as np

_SPELT = frozenset({"", "nan", "NaN", "NaT", "None", "<NA>", "--"})
"""What ``str`` and ``astype(str)`` make of missing values (`--`: numpy's masked ones)."""
_CALLED = (
    "; if somebody is really called so, number the clients: "
    "np.unique(names, return_inverse=True)[1]"
)


def number_ids(ids: Any, name: str) -> tuple[np.ndarray, int]:
    """Numbers the distinct ids in their sorted order.

    Args:
      ids: `[E]`, any sortable values: an array, a masked array, a list, a column of a table.
      name: of the argument, for messages.

    Returns:
      ``(owners, num_clients)``, int64 `[E]` in `[0, num_clients)`.

    Raises:
      TypeError: if the values cannot be sorted.
      ValueError: if one is missing (NaN, NaT, None, NA, masked, their spelling as a string),
        infinite, or a float so large that neighbouring integers round to it.

    Example:
      >>> number_ids([2**63 + 5, -1, 2**63 + 6, -1], "client_ids")[0].tolist()
      [1, 0, 2, 0]
      >>> number_ids(["a", None], "client_ids")
      Traceback (most recent call last):
      ...
      ValueError: client_ids must name the owner of every example, got None in row 1; drop such \
rows, or give them an owner of their own
    """
    check_unmasked(ids, name)
    array = as_ids(ids, name)
    if array.dtype.kind == "O":
        return _number_objects(array, name)
    _check_exact(array, name)
    names, owners = np.unique(array, return_inverse=True)
    if array.dtype.kind in "US":
        for number, value in enumerate(names.tolist()):
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if text.strip() in _SPELT:
                raise _missing(name, repr(value), owners.reshape(-1) == number, _CALLED)
    return owners.reshape(-1).astype(np.int64), len(names)


def as_ids(ids: Any, name: str) -> np.ndarray:
    """Ids as an array in which no two that differ have become one: lists stay Python objects.

    Numpy makes floats of integers beyond int64, and strings of anything beside a string.

    Example:
      >>> as_ids([2**63, -1], "ids").dtype, as_ids(np.arange(2), "ids").dtype
      (dtype('O'), dtype('int64'))
    """
    if isinstance(ids, list | tuple) and not any(np.ndim(one) for one in ids[:1]):
        kinds = set(map(type, ids)) - {np.ma.core.MaskedConstant}
        if not any(hasattr(kind, "__array__") and not _is_scalar(kind) for kind in kinds):
            return np.fromiter(ids, object, len(ids))
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"{name} must be one value per example, [E]; {error}") from error
    return array.astype(object) if array.dtype.kind == "T" else array


def _is_scalar(kind: type) -> bool:
    """Numpy's scalars, but for those of time: their hashes do not follow their units."""
    return issubclass(kind, np.generic) and not issubclass(kind, np.datetime64 | np.timedelta64)


def check_unmasked(values: Any, name: str) -> None:
    """Raises ValueError where an array of `numpy.ma` hides one of its values.

    Numpy would go on with whatever lies below the mask.

    Example:
      >>> check_unmasked(np.ma.array([1, 2]), "client_ids")
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        row = (*np.argwhere(np.ma.getmaskarray(values))[0].tolist(), 0)[0]
        raise ValueError(
            f"{name} must not hold masked values, got one in row {row}; drop such rows, or put "
            "there what is meant: values.filled(...)"
        )


def row_numbers(ids: Any, name: str, num_clients: int) -> np.ndarray:
    """Ids that are row numbers of the population already.

    Args:
      ids: `[E]` integers.
      name: of the argument, for messages.
      num_clients: the population's size.

    Returns:
      int64 `[E]`.

    Raises:
      TypeError: if they are not integers.
      ValueError: if one is missing or lies outside the population; the message names its row.

    Example:
      >>> row_numbers(np.array([1, 0], np.uint64), "client_ids", 2).tolist()
      [1, 0]
    """
    check_unmasked(ids, name)
    array = as_ids(ids, name)
    if array.dtype.kind == "O":
        _check_objects(array, name)
        values = array.tolist()
        kinds = set(map(type, values))
        if kinds != {bool} and all(issubclass(kind, int | np.integer) for kind in kinds):
            values = [min(max(int(one), -1), num_clients) for one in values]
        array = np.asarray(values)  # numpy names the kind of what is no integer
    else:
        _check_exact(array, name)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{name} must be integers when num_clients is given, got {array.dtype}; "
            "leave num_clients out to number the distinct keys"
        )
    outside = (array < 0) | (array >= num_clients)
    if outside.any():
        given = np.asarray(ids)
        raise ValueError(
            f"{name} must lie in [0, num_clients={num_clients}), got {given.min()}..{given.max()} "
            f"(first outside: {given[np.argmax(outside)]} in row {np.argmax(outside)}); raise "
            "num_clients, or number the clients anew: np.unique(ids, return_inverse=True)[1]"
        )
    return array.astype(np.int64)


def _number_objects(array: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """Python objects, compared as Python does: integers of any size stay what they are."""
    _check_objects(array, name)
    values = array.tolist()
    distinct = set(values)
    texts = [one for one in distinct if isinstance(one, str)]
    if texts and len(texts) < len(distinct):  # numbers beside strings: strings, as numpy has it
        spelt = {one: str(one) for one in distinct}
        if len(set(spelt.values())) < len(spelt):
            twice = next(one for one in distinct if not isinstance(one, str) and str(one) in texts)
            raise ValueError(
                f"{name} must tell clients apart, got {twice!r} beside {str(twice)!r} (row "
                f"{values.index(twice)}); make all ids strings or all numbers"
            )
        values, distinct = [spelt[one] for one in values], set(spelt.values())
    try:
        names = sorted(distinct)
    except TypeError as error:
        kinds = sorted({type(one).__name__ for one in distinct})
        raise TypeError(
            f"{name} must be values of one kind that can be sorted, got {', '.join(kinds)}; "
            "number the clients, or name them by strings"
        ) from error
    number = {one: place for place, one in enumerate(names)}
    owners = np.fromiter(map(number.__getitem__, values), np.int64, len(values))
    return owners, len(names)


def _check_objects(array: np.ndarray, name: str) -> None:
    """Raises for an object that is missing, inexact or no id."""
    values = array.tolist()
    try:
        distinct = set(values)
    except TypeError as error:
        rows = np.array([_is_missing(one) for one in values])
        if rows.any():
            raise _missing(name, repr(values[int(np.argmax(rows))]), rows) from error
        row = next((r for r, one in enumerate(values) if type(one).__hash__ is None), 0)
        raise TypeError(
            f"{name} must be numbers or strings, got {type(values[row]).__name__} in row {row}; "
            "name each owner by one value"
        ) from error
    if any(map(_is_missing, distinct)):
        rows = np.array([_is_missing(one) for one in values])
        one = values[int(np.argmax(rows))]
        raise _missing(name, repr(one), rows, _CALLED if isinstance(one, str | bytes) else "")
    for one in distinct:
        limit = _exact_below(type(one)) if _is_inexact(one) else math.inf
        parts = (one.real, one.imag) if isinstance(one, complex | np.complexfloating) else (one,)
        wrong = next((part for part in parts if limit < math.inf and not abs(part) < limit), None)
        if wrong is not None:
            row = next(row for row, other in enumerate(values) if other == one)
            raise _inexact(name, wrong, type(one).__name__, limit, row)


def _is_missing(one: Any) -> bool:
    if one is None or one is np.ma.masked:
        return True
    if isinstance(one, str | bytes):
        return (one.decode("latin-1") if isinstance(one, bytes) else one).strip() in _SPELT
    try:
        if _is_inexact(one) or isinstance(one, Number):
            return bool(one != one or abs(one) == math.inf)  # type: ignore[arg-type]
        return bool(one != one)  # NaT, and what holds NaN
    except (TypeError, ArithmeticError):  # pandas.NA has no truth, Decimal("sNaN") no equality
        return True
    except ValueError:  # an array, which is no id
        return False


def _is_inexact(one: Any) -> bool:
    """Floats and complex numbers of Python, of numpy and beside it (bfloat16)."""
    if isinstance(one, float | complex):
        return True
    return isinstance(one, np.generic) and jnp.issubdtype(one.dtype, jnp.inexact)


def _exact_below(kind: Any) -> float:
    """From here on neighbouring integers are one float: 2^53 for float64."""
    if issubclass(getattr(kind, "type", kind), float | complex):  # subclasses, too
        kind = np.float64
    return 2.0 ** (jnp.finfo(kind).nmant + 1)


def _check_exact(array: np.ndarray, name: str) -> None:
    """Raises for NaN, NaT, infinity, and floats beyond the integers that their type tells apart."""
    if array.dtype.kind in "mM":
        missing = np.isnat(array)
        if missing.any():
            raise _missing(name, "NaT", missing)
    for field in array.dtype.names or ():
        _check_exact(array[field], name)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    if array.dtype.kind == "c":
        _check_exact(np.real(array), name)
        _check_exact(np.imag(array), name)
        return
    limit, kind = _exact_below(array.dtype), str(array.dtype)
    if array.dtype.kind != "f":  # bfloat16 and its like
        array = array.astype(np.float32)
    missing = ~np.isfinite(array)
    if missing.any():
        raise _missing(name, str(array[missing][0]), missing)
    wrong = np.abs(array) >= limit
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _inexact(name, array[row], kind, limit, row)


def _inexact(name: str, value: Any, kind: str, limit: float, row: int) -> ValueError:
    return ValueError(
        f"{name} must tell clients apart, got {float(value):.17g} as {kind} in row {row}: from "
        f"{limit:.0f} on several integers become one float; keep ids as integers or strings (an "
        "integer column turns into floats where a value is missing, and where int64 meets uint64)"
    )


def _missing(name: str, shown: str, rows: np.ndarray, remedy: str = "") -> ValueError:
    """The error for rows without owner, `rows` True where they lie."""
    places = np.flatnonzero(rows)
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return ValueError(
        f"{name} must name the owner of every example, got {shown} in row {places[0]}{more}; drop "
        f"such rows, or give them an owner of their own{remedy}"
    )
