"""Private set intersection: right, and silent about everybody else."""

import itertools
from typing import Any

import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.crypto.psi import CURVE_A, PRIME, Points, PsiParty, encoded_id, hash_to_curve

MINE, THEIRS = [f"p{i}" for i in range(12)], [f"p{i}" for i in range(7, 27)]


@pytest.fixture(scope="module")
def talk():
    """Both sides and all that went between them."""
    asks, answers = PsiParty(MINE, size=32), PsiParty(THEIRS, size=40)
    first = asks.blinded()
    again, own = answers.answer(first)
    places = asks.intersect(again, own)
    return asks, answers, first, again, own, places


def test_both_learn_the_intersection(talk):
    asks, answers, *_, places = talk
    assert asks.found == answers.told(places) == sorted(set(MINE) & set(THEIRS))
    assert fl.crypto.private_intersection([2**70, 3, -1], [-1, 2**70 + 1]) == [-1]
    assert fl.crypto.private_intersection(["7"], [7]) == []
    mixed = ["a", 10, 9, b"a"]  # kinds that have no order among each other
    assert fl.crypto.private_intersection(mixed, mixed[::-1]) == [b"a", 9, 10, "a"]


def test_messages_have_the_padded_size_and_no_other_content(talk):
    """As many different points as was agreed, whoever is behind them; none of them a bare hash."""
    _, _, first, again, own, _ = talk
    assert (first.count, again.count, own.count) == (32, 32, 40)
    sent = [*first.split(), *again.split(), *own.split()]
    assert len(set(sent)) == len(sent)
    hashes = {hash_to_curve(encoded_id(one)) for one in {*MINE, *THEIRS}}
    assert not hashes & set(sent)
    assert PsiParty(MINE).blinded().count == 16  # the default hides 12 of 9 to 16
    # All lie on the curve: on which of curve and twist a hash falls, no key would hide.
    for point in (*first.split(), *own.split()):
        u = int.from_bytes(point, "little")
        assert pow((u**3 + CURVE_A * u * u + u) % PRIME, (PRIME - 1) // 2, PRIME) == 1


def test_another_run_shares_no_point_and_no_order(talk):
    asks, _, first, *_ = talk
    other = PsiParty(MINE, size=32)
    assert not set(first.split()) & set(other.blinded().split())
    assert asks._order != list(range(32))  # one in 32! that it were
    assert asks._order != other._order


def test_lies_are_refused(talk):
    asks, answers, first, again, own, places = talk
    with pytest.raises(ValueError, match="different points, got one twice"):
        answers.answer(Points(first.data[:32] * 2))
    with pytest.raises(ValueError, match="Points of 32 bytes each, got Points of 33 bytes"):
        answers.answer(Points(b"x" * 33))
    with pytest.raises(ValueError, match="again must hold this party's 32 points, got 40"):
        asks.intersect(own, again)
    padding = next(p for p in range(40) if answers._ids[answers._order[p]] is None)
    for place in (padding, 40, -1):
        with pytest.raises(ValueError, match=f"places must be of ids that were sent, got {place}"):
            answers.told([place])
    with pytest.raises(ValueError, match=f"places must be there once each, got {places[0]} twice"):
        answers.told([places[0]] * 2)
    point = first.data[:32]
    spelt = [point[:31] + bytes([point[31] | 0x80]), (PRIME + 9).to_bytes(32, "little")]
    for again_the_same in spelt:  # X25519 drops the highest bit, and reduces
        with pytest.raises(ValueError, match=r"first must hold numbers below 2\*\*255 - 19"):
            answers.answer(Points(point + again_the_same))
    with pytest.raises(ValueError, match="must not be of low order"):  # a point of low order
        answers.answer(Points(bytes(32)))


@pytest.mark.parametrize(
    ("ids", "size", "kind", "message"),
    [
        (["a", "a"], None, ValueError, "got 'a' twice"),
        ([1, 2, 3], 2, ValueError, "size must hold all 3 ids, got 2"),
        ([1.5], None, TypeError, r"got \[?1\.5"),
        ([True], None, TypeError, r"got \[?True"),
    ],
)
def test_refusals(ids: Any, size, kind, message):
    with pytest.raises(kind, match=message):
        PsiParty(ids, size=size)


@pytest.mark.parametrize("duplicates", ["first", "drop"])
def test_private_alignment_is_the_open_one(duplicates):
    rng = np.random.default_rng(0)
    ids = {p: rng.permutation([*range(low, low + 9), low + 2]) for p, low in
           (("a", 0), ("b", 1), ("c", 2))}  # fmt: skip
    expected = fl.parties.align(ids, duplicates=duplicates)
    found = fl.parties.private_align(ids, holder="b", duplicates=duplicates, size=12)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.report == expected.report
    for party, rows in expected.rows.items():
        np.testing.assert_array_equal(found.rows[party], rows)
    with pytest.raises(ValueError, match="holder must be one of"):
        fl.parties.private_align(ids, holder="d", duplicates=duplicates)
    for one, other in itertools.combinations(ids, 2):
        with pytest.raises(ValueError, match="share an entity"):
            fl.parties.private_align({one: [1], other: [2]}, holder=one)
