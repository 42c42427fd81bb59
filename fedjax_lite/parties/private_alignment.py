"""Alignment without showing ids: a private intersection of the holder with every other party."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedjax_lite.crypto.psi import PsiParty
from fedjax_lite.parties.alignment import Alignment, Duplicates, aligned_among, checked_ids


def private_align(
    ids: Mapping[str, Any],
    *,
    holder: str,
    size: int | None = None,
    duplicates: Duplicates = "refuse",
) -> Alignment:
    """`align`, of which each party is told its own rows only.

    The holder asks every other party (`fedjax_lite.crypto.PsiParty`), keeps whom all of them know,
    and tells each the places of these in its own message. All sides run in this process; what would
    be sent between machines is what those objects hand over.

    **What leaks**: everybody learns the padded sizes and the entities that all parties know. The
    holder also learns whom it shares with each single party. Any side can probe with ids that it
    does not have. Duplicates are settled by each party alone, before anything is sent.

    Args:
      ids: `[n_p]` by party, as in `align`.
      holder: who asks; as a rule the party with labels.
      size: points that each party sends, ids and padding together; default the next power of two.
      duplicates: see `align`.

    Returns:
      The `Alignment` that `align` gives.

    Raises:
      TypeError, ValueError: as `align`; if the holder is none of the parties or `size` too small.
      ImportError: without ``cryptography``.

    Example:
      >>> found = private_align({"clinic": ["eve", "bob"], "lab": ["bob", "joe"]}, holder="clinic")
      >>> found.ids.tolist(), found.rows["lab"].tolist()
      (['bob'], [0])
    """
    values, places, twice = checked_ids(ids, duplicates=duplicates)
    if holder not in values:
        raise ValueError(f"holder must be one of {sorted(values)}, got {holder!r}; name a party")
    dropped = {party: set(twice[party] if duplicates == "drop" else ()) for party in places}
    offered = {
        party: [one for one in rows if one not in dropped[party]] for party, rows in places.items()
    }
    common, talks = set(offered[holder]), {}
    for party in sorted(set(offered) - {holder}):
        asks, answers = PsiParty(offered[holder], size=size), PsiParty(offered[party], size=size)
        found = asks.intersect(*answers.answer(asks.blinded()))
        talks[party] = (answers, dict(zip(asks.found, found, strict=True)))
        common &= set(asks.found)
    known = sorted(common)
    # Each is told of those that all know, of nobody else.
    for party, (answers, at) in talks.items():
        if (told := answers.told([at[one] for one in known])) != known:
            raise RuntimeError(f"{party} was told of {told}, but all know {known}")
    return aligned_among(known, values, places, twice)
