"""Owners of examples are exact or refused, with the row that is wrong."""

import re
from datetime import datetime
from decimal import Decimal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.data import ParquetStore, by_key, from_arrays, owners, write_streamed

BIG = 2**60
STRING = np.dtypes.StringDType(na_object=np.nan)


class Unknown:
    """As pandas.NA: neither equal nor unequal to anything, and no truth value."""

    def __ne__(self, other):
        return self

    def __eq__(self, other):
        return self

    def __hash__(self):
        return 2**61 - 1

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


class Metres(float):
    """A float that is none of numpy's types."""


def numbered(ids):
    """Owners by brute force: the place of each value among the sorted distinct ones."""
    names = sorted({one for one in ids})
    return [names.index(one) for one in ids]


def both_ways(ids):
    """Owners as `from_arrays` and as `by_key` have them."""
    x = np.zeros((len(ids), 1), np.float32)
    data = from_arrays({"x": x}, ids)
    keyed = owners({"x": x, "who": ids}, by_key("who"))
    assert data.client_of_example.tolist() == keyed.tolist()
    return keyed.tolist()


EXACT = {
    "int64": np.array([BIG + 1, BIG, BIG + 2, BIG]),
    "uint64": np.array([2**63 + 1, 2**63, 0, 2**63], np.uint64),
    "list of big and negative": [2**63 + 5, 2**63 + 6, -1, 2**63 + 5],
    "beyond uint64": [2**70 + 1, 2**70, -(2**70), 2**70],
    "numpy scalars of both kinds": [np.int64(BIG), np.uint64(BIG + 1), np.int64(BIG + 2)],
    "objects": np.array([BIG + 1, -1, BIG], object),
    "integers and small floats": [3, 2.5, -1, 3.0],
    "floats": np.array([1.5, -2.0, 2.0**53 - 1, 1.5]),
    "float32": np.array([2.0**24 - 1, 0.0, 5.0], np.float32),
    "bfloat16": np.array([3.0, 1.0, 255.0], ml_dtypes.bfloat16),
    "strings": ["nancy", "None of us", "bo", "nancy"],
    "country": np.array(["NA", "SE", "NA"]),
    "trailing zero byte": ["a", "a\0", "b"],
    "variable strings": np.array(["b", "a", "b"], STRING),
    "dates": np.array(["2020-01-02", "2020-01-01"], "datetime64[D]"),
    "list of dates": [np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00")],
    "timestamps": [datetime(2020, 1, 2), datetime(2020, 1, 1)],
    "tuple": ("b", "a", "b"),
    "bools": [True, False, True],
    "one-element arrays": [jnp.int32(4), jnp.int32(2), jnp.int32(4)],
    "masked without masks": np.ma.array([5, 4, 5]),
}


@pytest.mark.parametrize("name", EXACT)
def test_ids_are_numbered_exactly(name):
    if name == "list of dates":
        assert both_ways(EXACT[name]) == [0, 0]  # the same day in two units
        return
    ids = EXACT[name]
    values = list(ids) if isinstance(ids, list | tuple) else ids.tolist()
    plain = [one.item() if hasattr(one, "item") else one for one in values]
    assert both_ways(ids) == numbered(plain)


def test_numbers_beside_strings_are_strings():
    assert both_ways([2, "a", 10]) == numbered(["2", "a", "10"])
    with pytest.raises(ValueError, match=r"row 0.*all ids strings or all numbers"):
        both_ways([1, "1", "b"])


NAN = float("nan")
MISSING = {
    "NaN": (np.array([1.0, 2.0, NAN]), 2),
    "infinity": (np.array([1.0, -np.inf, 1.0]), 1),
    "NaN in a list": ([1.0, NAN, 2.0], 1),
    "NaN among integers": ([1, 2, NAN], 2),
    "NaN among strings": (["a", NAN, "b"], 1),
    "NaN that became a string": (np.array(["a", "b", NAN]), 2),
    "None that became a string": (np.array(["a", None, "b"], object).astype(str), 1),
    "NaT that became a string": (np.array([1, "NaT"], "datetime64[D]").astype(str), 1),
    "NA that became a string": (np.array(["a", "<NA>"]), 1),
    "bytes": (np.array([b"nan", b"a"]), 0),
    "empty": (["a", "", "b"], 1),
    "None": (["a", "b", None], 2),
    "a number without value": ([Decimal(1), Decimal("NaN")], 1),
    "an endless number": ([Decimal(1), Decimal("-Infinity")], 1),
    "a field of a pair": (np.array([(1, 2.0), (1, NAN)], "i4,f4"), 1),
    "a small float in a list": ([ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(NAN)], 1),
    "complex in a list": ([1j, complex(0, NAN)], 1),
    "a number that refuses comparison": ([Decimal(1), Decimal("sNaN")], 1),
    "None among integers": ([None, 1, 2], 0),
    "NaT": (np.array(["2020-01-01", "NaT"], "datetime64[D]"), 1),
    "NaT in a list": ([np.datetime64("NaT"), np.datetime64("2020-01-01")], 0),
    "length of time": (np.array([1, "NaT"], "timedelta64[s]"), 1),
    "NA of pandas": (np.array([1, 2, Unknown()], object), 2),
    "NA in a list": ([Unknown(), "a"], 0),
    "variable strings": (np.array(["b", NAN], STRING), 1),
    "masked": (np.ma.array([1, 2, 3], mask=[0, 1, 0]), 1),
    "masked in a list": ([1, np.ma.masked], 1),
    "complex": (np.array([1 + 1j, complex(0, NAN)]), 1),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_owner_is_refused_with_its_row(name):
    ids, row = MISSING[name]
    for argument, call in (
        ("client_ids", lambda: from_arrays({"x": np.zeros((len(ids), 1))}, ids)),
        ("examples['who']", lambda: owners({"who": ids}, by_key("who"))),
    ):
        with pytest.raises(ValueError, match=rf"{re.escape(argument)} must.*row {row}\b.*drop"):
            call()


ROUNDED = {
    "float64": (np.array([1.0, 2.0**53]), 1),
    "pandas after a merge": (np.array([BIG + i for i in range(3)], float), 0),
    "int64 beside uint64": (np.concatenate([np.array([BIG]), np.array([BIG + 1], np.uint64)]), 0),
    "negative": ([1.0, -(2.0**60)], 1),
    "float32": (np.array([1, 2**24], np.float32), 1),
    "float16": (np.array([2048, 1], np.float16), 0),
    "bfloat16": (np.array([1, 256], ml_dtypes.bfloat16), 1),
    "among integers": ([2**60, 2.0**60 + 4096], 1),
    "complex in a list": ([1j, complex(0, 2**60 + 1), complex(0, 2**60)], 1),
    "bfloat16 in a list": ([ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(257)], 1),
    "a float by another name": ([Metres(1), Metres(2**60)], 1),
    "a field of a pair": (np.array([(1, 2.0), (1, 2.0**24)], "i4,f4"), 1),
    "scalars": ([np.float32(2**25), np.float32(1)], 0),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_ids_rounded_to_floats_are_refused_with_their_row(name):
    ids, row = ROUNDED[name]
    with pytest.raises(ValueError, match=rf"client_ids must.*row {row}\b.*integers or strings"):
        from_arrays({"x": np.zeros((len(ids), 1))}, ids)
    with pytest.raises(ValueError, match=rf"row {row}\b"):
        owners({"who": ids}, by_key("who"))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, None, 1], ValueError, "row 1"),
        (np.ma.array([0, 1, 1], mask=[0, 0, 1]), ValueError, "row 2"),
        ([0, 1, 2**64], ValueError, "18446744073709551616 in row 2"),
        (np.array([0, 1, 2**64 - 1], np.uint64), ValueError, "row 2"),
        ([0, -1, 1], ValueError, "-1 in row 1"),
        (np.array([0.0, 1.0, 1.0]), TypeError, "float64"),
        ([0.0, 1.0, 1.0], TypeError, "float64"),
        ([True, False, True], TypeError, "bool"),
        (["0", "1", "1"], TypeError, "integers"),
        ([np.array([1]), 2, 3], ValueError, "client_ids must be one value"),
        ([{}, 2, 3], TypeError, "dict in row 0"),
    ],
)
def test_row_numbers_of_the_population(ids, error, message):
    with pytest.raises(error, match=message):
        from_arrays({"x": np.zeros((3, 1))}, ids, num_clients=2)


def test_unsigned_row_numbers_and_lists_count():
    for ids in (np.array([2, 0, 2], np.uint64), [2, 0, 2], [np.uint8(2), 0, np.int64(2)]):
        assert from_arrays({"x": np.zeros((3, 1))}, ids, num_clients=4).sizes.tolist() == [
            1,
            0,
            2,
            0,
        ]


def test_masked_examples_sizes_and_answers_are_refused(tmp_path):
    hidden = np.ma.array([1.0, 2.0, 3.0], mask=[0, 0, 1])
    with pytest.raises(ValueError, match=r"examples\['x'\] must not hold masked.*row 2"):
        from_arrays({"x": hidden}, [0, 1, 1])
    with pytest.raises(ValueError, match=r"examples\['x'\] must not hold masked.*row 2"):
        write_streamed(tmp_path / "a", [([3], {"x": hidden})])
    sizes = np.ma.array([1, 2], mask=[0, 1])
    with pytest.raises(ValueError, match=r"sizes must not hold masked.*row 1"):
        write_streamed(tmp_path / "b", [(sizes, {"x": np.zeros(3)})])
    with pytest.raises(ValueError, match=r"sizes must not hold masked.*row 1"):
        fl.data.ArrayStore({"x": np.zeros(3)}, sizes)
    mine = fl.data.Partitioner(lambda e: np.ma.array([0, 0, 1], mask=[1, 0, 0]), 2, "mine")
    with pytest.raises(ValueError, match=r"mine must not hold masked.*row 0"):
        fl.data.partition({"x": np.zeros(3)}, mine)


def test_column_of_clients_in_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def written(*columns):
        paths = []
        for number, column in enumerate(columns):
            paths.append(tmp_path / f"{number}.parquet")
            x = pa.array(np.zeros(len(column)))
            pq.write_table(pa.table({"client": column, "x": x}), paths[-1])
        return paths

    mixed = written(pa.array([0, 1], pa.int64()), pa.array([1, 3], pa.uint64()))
    assert ParquetStore(mixed).sizes.tolist() == [1, 2, 0, 1]
    for column, message in (
        (pa.array([0, None, 1]), r"got null in row 1 \(1 in all\)"),
        (pa.array([0.0, 1.0]), "double; number"),
        (pa.array([0, 2**63 + 1], pa.uint64()), "9223372036854775809 in row 1"),
        (pa.array([0, 2, 1]), "1 after 2 in row 2"),
    ):
        with pytest.raises(ValueError, match=rf"'client'.*{message}"):
            ParquetStore(written(column))


def test_tables_of_pandas():
    pd = pytest.importorskip("pandas")
    assert both_ways(pd.Series([BIG + 1, BIG, BIG + 1], dtype="Int64")) == [1, 0, 1]
    assert both_ways(pd.Series(["b", "a", "b"], dtype="category")) == [1, 0, 1]
    for column in (
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", None], dtype="category"),
        pd.Series([pd.Timestamp("2020"), pd.NaT]),
        pd.Series(["a", pd.NA], dtype=object),
    ):
        with pytest.raises(ValueError, match="in row 1"):
            from_arrays({"x": np.zeros(len(column))}, column)
