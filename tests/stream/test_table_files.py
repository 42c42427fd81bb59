"""Damaged files beside the rows of clients: each is named, with what to do."""

import json

import numpy as np
import pytest

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.stream.host_table import HostTable, TableEdit

ROW = np.zeros(2, np.float32)


def table(folder=None):
    edit = TableEdit(HostTable(ROW, num_clients=5, folder=folder))
    edit.write(np.array([1, 3]), np.arange(16, dtype=np.uint8).reshape(2, 8))
    return edit.freeze()


def saved(tmp_path, folder=None):
    place = tmp_path / "checkpoint"
    made = table(folder)
    made.save_to(place, final=place)
    return made, place


def test_a_table_comes_back(tmp_path):
    made, place = saved(tmp_path)
    again = made.restore_from(place)
    np.testing.assert_array_equal(np.load(place / "ids.npy"), [1, 3])
    np.testing.assert_array_equal(again.index >= 0, made.index >= 0)


@pytest.mark.parametrize(
    "ids", [[1, 5], [-1, 3], [3, 1], [1, 1], [[1], [3]], [1.0, 3.0], [2**40, 2**41]]
)
def test_clients_that_there_are_not(tmp_path, ids):
    made, place = saved(tmp_path)
    np.save(place / "ids.npy", np.array(ids))
    with pytest.raises(ValueError, match=r"ids\.npy.*earlier checkpoint"):
        made.restore_from(place)


@pytest.mark.parametrize("file", ["ids.npy", "rows.bin"])
def test_files_cut_short(tmp_path, file):
    made, place = saved(tmp_path)
    path = place / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{file}.*truncated.*earlier checkpoint"):
        made.restore_from(place)


@pytest.mark.parametrize("index", [np.zeros(4, np.int32), np.full(5, -2, np.int32), np.zeros(5)])
def test_an_index_of_another_kind(tmp_path, index):
    made, place = saved(tmp_path, tmp_path / "rows")
    np.save(place / "index.npy", index)
    with pytest.raises(DatasetFormatError, match=r"index\.npy.*earlier checkpoint"):
        made.restore_from(place)


@pytest.mark.parametrize("text", ["", "[", "3", "{}", '{"checkpoints": 3}', "[" * 100_000])
def test_a_note_of_checkpoints_that_is_damaged(tmp_path, text):
    made, place = saved(tmp_path, tmp_path / "rows")
    (pin,) = (tmp_path / "rows" / "pins").glob("*.json")
    assert json.loads(pin.read_text())["checkpoints"] == [str(place)]
    pin.write_text(text)
    with pytest.raises(DatasetFormatError, match=r"pins.*damaged.*state_dir"):
        made.restore_from(place)
