"""Rows of several parties that belong together: exact, in a fixed order, nothing lost unsaid."""

import numpy as np
import pytest

import fedjax_lite as fl

NAMES = [f"p{i}" for i in range(40)]


def shuffled(seed):
    """Ids of three parties, each with people that others do not know, in orders of its own."""
    rng = np.random.default_rng(seed)
    known = {"a": NAMES[:30], "b": NAMES[10:], "c": NAMES[5:35]}
    return {party: [ids[i] for i in rng.permutation(len(ids))] for party, ids in known.items()}


def test_intersection_in_one_order_whoever_comes_first():
    expected = sorted(NAMES[10:30])
    ids = shuffled(0)
    for given in (ids, dict(reversed(ids.items())), shuffled(1)):
        found = fl.parties.align(given)
        assert found.ids.tolist() == expected
        for party, rows in found.rows.items():
            assert [given[party][row] for row in rows] == expected
        assert found.report["a"].unmatched == tuple(sorted(NAMES[:10]))
        assert found.report["b"].unmatched == tuple(sorted(NAMES[30:]))
        assert [r.num_rows for r in found.report.values()] == [len(v) for v in given.values()]
    assert "a: 30 rows, 20 matched, 10 ids unmatched ('p0', 'p1', 'p2', ...)" in str(found)


def test_large_integers_stay_what_they_are():
    """Neighbours above 2**53 are one float."""
    big = 2**53
    found = fl.parties.align({"a": np.array([big, big + 1]), "b": np.array([big + 2, big + 1])})
    assert found.ids.tolist() == [big + 1]
    beyond = fl.parties.align({"a": [2**64, 3], "b": [3, 2**64 + 1]})
    assert beyond.ids.tolist() == [3]


def test_ids_are_given_back_as_they_are():
    """Numpy would make floats of these two, and one id of -1 and 2**63 in its integers."""
    both = [-1, 2**63 + 5]
    found = fl.parties.align({"a": both, "b": both[::-1]})
    assert found.ids.tolist() == both
    assert {type(one) for one in found.ids.tolist()} == {int}
    nul = fl.parties.align({"a": ["x\0", "x"], "b": ["x", "x\0"]})  # numpy drops a NUL at the end
    assert nul.ids.tolist() == ["x", "x\0"]
    counted = fl.parties.align({"a": [np.int64(7), np.int64(3)], "b": [3, np.uint8(7)]})
    assert counted.ids.tolist() == [3, 7]
    assert counted.rows["b"].tolist() == [0, 1]


def test_duplicates():
    ids = {"a": ["x", "y", "x", "z"], "b": ["z", "x", "y"]}
    with pytest.raises(ValueError, match=r"ids\['a'\] .*'x' in rows 0, 2 .*duplicates='first'"):
        fl.parties.align(ids)
    first = fl.parties.align(ids, duplicates="first")
    assert first.ids.tolist() == ["x", "y", "z"]
    assert first.rows["a"].tolist() == [0, 1, 3]
    dropped = fl.parties.align(ids, duplicates="drop")
    assert dropped.ids.tolist() == ["y", "z"]
    assert first.report["a"].duplicates == dropped.report["a"].duplicates == ("x",)
    assert dropped.report["b"].unmatched == ("x",)


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ({"a": [1]}, ValueError, "two or more parties, got 1"),
        ({"a": [1, 2], "b": ["1", "2"]}, TypeError, "'a': int, 'b': str.*7 and '7'"),
        ({"a": [1, 2], "b": [1.0, 2.0]}, TypeError, r"ids\['b'\] must be all integers or all str"),
        ({"a": [1, 2], "b": [3, 4]}, ValueError, "must share an entity.*'a': 2, 'b': 2"),
        ({"a": ["u", None], "b": ["u", "v"]}, ValueError, r"ids\['a'\].*None in row 1"),
        ({"a": np.eye(2), "b": [1]}, ValueError, r"one id a row, \[n\], got shape \(2, 2\)"),
    ],
)
def test_refusals(ids, kind, message):
    with pytest.raises(kind, match=message):
        fl.parties.align(ids)
