"""Which rows of several parties are about the same entity: by their ids, exactly, in one order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.owner_ids import as_ids, number_ids

Duplicates = Literal["refuse", "first", "drop"]


class Matched(NamedTuple):
    """What became of one party's rows."""

    num_rows: int
    """All that it has."""
    num_matched: int
    """Entities that every party knows."""
    unmatched: tuple[Any, ...]
    """Ids, each once and sorted, that some other party does not know."""
    duplicates: tuple[Any, ...]
    """Ids, each once and sorted, that stand in several of its rows."""


class Alignment(NamedTuple):
    """Rows of the parties that belong together."""

    ids: np.ndarray
    """`[n]`: the entities that all parties know, each once, sorted: the order is the same whatever
    the order of rows and of parties. Integers or strings, as Python objects where no type of numpy
    holds all of them exactly (-1 beside 2**63)."""
    rows: dict[str, np.ndarray]
    """int64 `[n]` by party: the row of each of these entities."""
    report: dict[str, Matched]
    """By party."""

    def __str__(self) -> str:
        """What was matched and what was missed, a line a party."""
        lines = [f"{len(self.ids)} entities known to {len(self.rows)} parties"]
        for party, found in self.report.items():
            missed, twice = _few(found.unmatched), _few(found.duplicates)
            lines.append(
                f"  {party}: {found.num_rows} rows, {found.num_matched} matched, "
                f"{len(found.unmatched)} ids unmatched{missed}, "
                f"{len(found.duplicates)} ids in several rows{twice}"
            )
        return "\n".join(lines)


def align(ids: Mapping[str, Any], *, duplicates: Duplicates = "refuse") -> Alignment:
    r"""The entities that every party knows, in a fixed order, and where each party has them.

    .. math::  I = \bigcap_p I_p, \text{ sorted}; \qquad
               \text{ids}_p[\text{rows}_p[j]] = I_j \text{ for every party } p

    Ids are compared as they are: no spelling is made alike and nothing is guessed. Everybody's ids
    are in the open here; `private_align` finds the same without showing them.

    Args:
      ids: `[n_p]` by party: integers or strings, the same kind with all of them.
      duplicates: what an id in several rows of one party means: "refuse" it, take its "first" row,
        or "drop" the entity.

    Returns:
      An `Alignment`; printed, it tells what was matched, missed and there twice.

    Raises:
      TypeError: if ids are no integers or strings, or of different kinds.
      ValueError: if there are fewer than two parties, an id is missing or there twice, or nobody is
        known to all.

    Example:
      >>> both = align({"clinic": ["eve", "bob", "ann"], "lab": ["bob", "joe", "eve"]})
      >>> both.ids.tolist(), both.rows["clinic"].tolist(), both.rows["lab"].tolist()
      (['bob', 'eve'], [1, 0], [0, 2])
      >>> print(both)
      2 entities known to 2 parties
        clinic: 3 rows, 2 matched, 1 ids unmatched ('ann'), 0 ids in several rows
        lab: 3 rows, 2 matched, 1 ids unmatched ('joe'), 0 ids in several rows
    """
    values, places, twice = checked_ids(ids, duplicates=duplicates)
    known = set.intersection(*(set(rows) for rows in places.values()))
    if duplicates == "drop":
        known -= {one for several in twice.values() for one in several}
    return aligned_among(sorted(known), values, places, twice)


Places = dict[str, dict[Any, int]]
"""By party, the first row of every id."""


def checked_ids(
    ids: Any, *, duplicates: Duplicates
) -> tuple[dict[str, list[Any]], Places, dict[str, list[Any]]]:
    """What `align` reads of ids: them as lists, first rows, and what stands in several rows.

    Raises:
      TypeError, ValueError: as `align`.

    Example:
      >>> checked_ids({"a": [7, 7], "b": [7]}, duplicates="first")
      ({'a': [7, 7], 'b': [7]}, {'a': {7: 0}, 'b': {7: 0}}, {'a': [7], 'b': []})
    """
    if not isinstance(ids, Mapping) or len(ids) < 2:
        found = f"{len(ids)} of them" if isinstance(ids, Mapping) else shown(ids)
        raise ValueError(
            f"ids must hold those of two or more parties, got {found}; "
            '{"clinic": ids, "lab": ids}'
        )
    if duplicates not in ("refuse", "first", "drop"):
        raise ValueError(
            f"duplicates must be 'refuse', 'first' or 'drop', got {duplicates!r}; 'drop' leaves "
            "entities out that stand in several rows"
        )
    values = {party: values_of(of_party, f"ids[{party!r}]") for party, of_party in ids.items()}
    kinds = {party: str if isinstance(v[0], str) else int for party, v in values.items() if v}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{party!r}: {kind.__name__}" for party, kind in kinds.items())
        raise TypeError(
            f"ids must be of one kind with all parties, got {told}; make them all strings or all "
            "integers, so that 7 and '7' are told apart by you and not by chance"
        )
    places: dict[str, dict[Any, int]] = {}
    twice: dict[str, list[Any]] = {}
    for party, of_party in values.items():
        places[party], twice[party] = _first_rows(of_party)
        if twice[party] and duplicates == "refuse":
            one = twice[party][0]
            again = [row for row, value in enumerate(of_party) if value == one]
            raise ValueError(
                f"ids[{party!r}] must name every entity once, got {one!r} in rows "
                f"{', '.join(map(str, again[:5]))} ({len(twice[party])} ids in several rows); "
                "duplicates='first' takes the first of them, duplicates='drop' none"
            )
    return values, places, twice


def values_of(ids: Any, name: str) -> list[Any]:
    """One party's ids as Python integers or strings, looked at one by one.

    Raises:
      TypeError: if they are of another kind, or of several.
      ValueError: if one is missing, or they are no list.

    Example:
      >>> values_of(np.array([3, 1]), "ids")
      [3, 1]
    """
    array = as_ids(ids, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one id a row, [n], got shape {array.shape}; ids[:, 0]")
    number_ids(ids, name)  # refuses what is missing, masked, rounded
    values = [one.item() if isinstance(one, np.generic) else one for one in array.tolist()]
    kinds = {type(value) for value in values}
    if not (kinds <= {str} or kinds <= {int}):
        told = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(
            f"{name} must be all integers or all strings, got {told}; name entities by one kind, "
            "[str(id) for id in ids] (a float such as 7.0 is not the id 7)"
        )
    return values


def aligned_among(
    common: list[Any], values: dict[str, list[Any]], places: Places, twice: dict[str, list[Any]]
) -> Alignment:
    """The alignment of the entities that all parties know, in this order.

    Raises:
      ValueError: if there are none.

    Example:
      >>> aligned_among([7], *checked_ids({"a": [9, 7], "b": [7]}, duplicates="drop")).rows
      {'a': array([1]), 'b': array([0])}
    """
    if not common:
        sizes = ", ".join(f"{party!r}: {len(of_party)}" for party, of_party in values.items())
        raise ValueError(
            f"ids must share an entity, got none that all parties know ({sizes}); look at how each "
            "of them spells its ids"
        )
    rows = {
        party: np.fromiter((of_party[one] for one in common), np.int64, len(common))
        for party, of_party in places.items()
    }
    report = {
        party: Matched(
            len(values[party]),
            len(common),
            tuple(sorted(set(of_party) - set(common))),
            tuple(twice[party]),
        )
        for party, of_party in places.items()
    }
    return Alignment(_exactly(common), rows, report)


def _exactly(ids: list[Any]) -> np.ndarray:
    """Ids as an array that holds them as they are: objects, where numpy would change one."""
    array = np.asarray(ids)
    if array.dtype.kind in "iuU" and array.tolist() == ids:
        return array
    return np.fromiter(ids, object, len(ids))


def _first_rows(values: list[Any]) -> tuple[dict[Any, int], list[Any]]:
    """The first row of every id, and the ids that have several, sorted."""
    rows: dict[Any, int] = {}
    again = set()
    for row, value in enumerate(values):
        if rows.setdefault(value, row) != row:
            again.add(value)
    return rows, sorted(again)


def _few(ids: tuple[Any, ...]) -> str:
    if not ids:
        return ""
    return f" ({', '.join(map(repr, ids[:3]))}{', ...' if len(ids) > 3 else ''})"
