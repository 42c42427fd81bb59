"""Populations of columns: from arrays, tables and data sets that are cut."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fedjax_lite as fl

RNG = np.random.default_rng(0)
IDS = {"lab": np.array([7, 3, 5, 9]), "clinic": np.array([5, 7, 1, 3])}
X = {party: RNG.normal(size=(4, d)).astype(np.float32) for party, d in (("lab", 2), ("clinic", 3))}
Y = np.array([0, 1, 0, 1])
WANTED = {"lab": [1, 2, 0], "clinic": [3, 0, 1]}
"""Rows of 3, 5, 7."""


def test_from_columns_takes_the_rows_that_belong_together():
    data = fl.parties.from_columns(X, {"clinic": Y}, alignment=fl.parties.align(IDS))
    assert data.parties == ("clinic", "lab")
    assert data.num_entities == 3
    for party, rows in WANTED.items():
        np.testing.assert_array_equal(data.features[party], X[party][rows])
    np.testing.assert_array_equal(data.labels["clinic"], Y[WANTED["clinic"]])
    examples = data.take([True, False, True]).examples_of()
    np.testing.assert_array_equal(examples["y"], Y[WANTED["clinic"]][[0, 2]])
    again = jax.tree.map(lambda leaf: leaf, data)  # a pytree: an argument of compiled programs
    assert again.parties == data.parties
    assert len(jax.tree.leaves(data)) == 3


def as_dict(party):
    columns = {f"f{i}": X[party][:, i] for i in range(X[party].shape[1])}
    return {"id": IDS[party], **columns, **({"ill": Y} if party == "clinic" else {})}


class Frame:
    """What is used of a pandas DataFrame."""

    def __init__(self, columns):
        self.columns, self._held = list(columns), columns

    def __getitem__(self, name):
        return self._held[name]


@pytest.mark.parametrize("make", ["dict", "frame", "arrow", "parquet"])
def test_tables(make, tmp_path):
    tables = {}
    for party in X:
        columns = as_dict(party)
        tables[party] = columns if make == "dict" else Frame(columns)
        if make in ("arrow", "parquet"):
            tables[party] = pa.table(columns)
        if make == "parquet":
            pq.write_table(tables[party], tmp_path / f"{party}.parquet")
            tables[party] = str(tmp_path / f"{party}.parquet")
    data, found = fl.parties.from_tables(tables, id_column="id", labels={"clinic": "ill"})
    assert found.ids.tolist() == [3, 5, 7]
    assert found.report["lab"].unmatched == (9,)
    assert found.report["clinic"].unmatched == (1,)
    for party, rows in WANTED.items():
        np.testing.assert_array_equal(data.features[party], X[party][rows])
    np.testing.assert_array_equal(data.labels["clinic"], Y[WANTED["clinic"]])


def test_several_labels_and_several_holders():
    tables = {"a": {"id": [1, 2], "time": [3.0, 4.0], "event": [1, 0]},
              "b": {"id": [2, 1], "x": [1.0, 2.0], "cost": [5.0, 6.0]}}  # fmt: skip
    data, _ = fl.parties.from_tables(
        tables, id_column="id", labels={"a": ("time", "event"), "b": "cost"}
    )
    assert data.labels["a"]["event"].tolist() == [1, 0]
    assert data.labels["b"].tolist() == [6, 5]
    assert data.parties == ("b",)  # the other one has labels only
    with pytest.raises(ValueError, match=r"holder must be .*\['a', 'b'\], got None"):
        data.examples_of()


def test_cut_and_split():
    examples = {"x": np.arange(96).reshape(4, 6, 4), "y": Y}
    data = fl.parties.cut_columns(examples, {"top": range(3), "low": [5, 3]}, holder="top")
    np.testing.assert_array_equal(data.features["low"], examples["x"][:, [5, 3]])
    left = fl.parties.cut_columns(examples, {"left": [0], "right": [1]}, holder="left", axis=2)
    np.testing.assert_array_equal(left.features["right"], examples["x"][:, :, [1]])
    train, test = fl.parties.split_rows(data, 0.25, seed=3)
    both = np.concatenate([train.features["top"], test.features["top"]])
    assert len(test.labels["top"]) == 1
    assert sorted(both[:, 0, 0].tolist()) == examples["x"][:, 0, 0].tolist()  # each once


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: fl.parties.from_columns({"a": X["lab"][:2]}, {"b": Y}), ValueError,
         r"features\['a'\]: 2, labels\['b'\]: 4 rows; with ids"),
        (lambda: fl.parties.from_columns({"a": ["u", "v"]}, {"a": Y}), TypeError,
         r"\['a'\] must be numbers"),
        (lambda: fl.parties.from_columns({"lab": X["lab"][:3]}, {"clinic": Y},
                                         alignment=fl.parties.align(IDS)), ValueError,
         r"\['lab'\] must have a row for each of its 4 ids, got 3"),
        (lambda: fl.parties.from_columns({"other": X["lab"]}, {"clinic": Y},
                                         alignment=fl.parties.align(IDS)), ValueError, "'other'"),
        (lambda: fl.parties.from_tables({"a": as_dict("lab"), "b": {"id": [3], "x": [np.nan]}},
                                        id_column="id", labels={}), ValueError,
         r"tables\['b'\]\['x'\] must hold no missing value, got nan in row 0"),
        (lambda: fl.parties.from_tables({"a": as_dict("lab"), "b": as_dict("clinic")},
                                        id_column="ID", labels={}), ValueError, "column 'ID'"),
        (lambda: fl.parties.cut_columns({"x": np.eye(3), "y": Y[:3]}, {"a": [3]}, holder="a"),
         ValueError, r"cut\['a'\] must be indices in \[0, 3\), got \[3\]"),
        (lambda: fl.parties.split_rows(fl.parties.from_columns(X, {"lab": Y}), 0.01, seed=0),
         ValueError, "fraction must leave entities in both parts, got 0.01 of 4"),
    ],
)  # fmt: skip
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
