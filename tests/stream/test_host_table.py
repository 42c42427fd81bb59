"""Client rows on the host: versions that never change, and slots that no version loses."""

import os
from pathlib import Path

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.run import checkpoint
from fedjax_lite.stream.host_table import HostTable, TableEdit, make_table
from fedjax_lite.stream.layout import RowLayout
from fedjax_lite.types import RoundState

N = 30
ROW = {"w": np.arange(3, dtype=np.float32), "n": np.int16(4), "half": jnp.zeros(2, jnp.bfloat16)}


@pytest.fixture(params=["host", "disk"])
def folder(request, tmp_path):
    return None if request.param == "host" else tmp_path / "rows"


def table(folder, num_clients=N):
    return HostTable(ROW, num_clients=num_clients, folder=folder)


def rows(values):
    """Rows whose every entry is the value of their client."""
    values = np.asarray(values)
    return {
        "w": np.repeat(values[:, None], 3, 1).astype(np.float32),
        "n": values.astype(np.int16),
        "half": jnp.asarray(np.repeat(values[:, None], 2, 1), jnp.bfloat16),
    }


def values_of(table, ids=range(N)):
    """What the clients' rows hold; -1 for the initial row."""
    found = table.rows(np.array(list(ids)))
    initial = (found["w"] == ROW["w"]).all(1)
    expected = rows(found["n"])
    for name in ("w", "half"):
        np.testing.assert_array_equal(found[name][~initial], np.asarray(expected[name])[~initial])
    return np.where(initial, -1, found["n"]).tolist()


def fill(edit, ids, values):
    edit.scatter(np.asarray(ids), np.ones(len(ids), bool), rows(values))


def test_layout_keeps_every_bit():
    rng = np.random.default_rng(0)
    tree = {
        "a": np.frombuffer(rng.bytes(5 * 4 * 2), np.float32).reshape(5, 2),  # NaNs of any payload
        "b": rng.integers(0, 2, 5).astype(bool),
        "c": jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.bfloat16),
        "d": np.zeros((5, 0), np.float64),
    }
    layout = RowLayout(jax.tree.map(lambda leaf: leaf[0], tree))
    assert layout.num_bytes == 8 + 1 + 12
    back = layout.unpack(layout.pack(tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for got, leaf in zip(jax.tree.leaves(back), jax.tree.leaves(tree)):
        assert (got.dtype, got.shape) == (leaf.dtype, leaf.shape)
        assert got.tobytes() == np.asarray(leaf).tobytes()
    with pytest.raises(ValueError, match="keep the shapes"):
        layout.pack({**tree, "b": np.zeros(5, np.int32)})
    with pytest.raises(TypeError, match="plain arrays, got a typed key"):
        RowLayout({"key": jax.random.key(0)})


def test_a_million_large_rows_cost_nothing_until_they_are_written(tmp_path):
    row = np.zeros(1_600_000, np.float32)
    for place in (None, tmp_path / "rows"):
        big = HostTable(row, num_clients=10**6, folder=place)
        edit = TableEdit(big)
        edit.scatter(np.array([7, 999_999]), np.array([True, True]), np.ones((2, 1_600_000), "f"))
        version = edit.freeze()
        assert version.num_touched == 2
        assert version.rows([999_999, 3]).sum(1).tolist() == [1_600_000, 0]
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "rows").rglob("*"))
    assert used < 3 * row.nbytes


def test_versions_never_change(folder):
    """Random writes and forks against dictionaries; every live version keeps its values."""
    rng = np.random.default_rng()
    live = [(table(folder), {})]
    for step in range(120):
        version, model = live[rng.integers(len(live))]
        edit, model = TableEdit(version), dict(model)
        for _ in range(rng.integers(1, 4)):
            ids = rng.choice(N, rng.integers(1, 9), replace=False)
            mask = rng.random(len(ids)) < 0.7
            values = rng.integers(10, 10_000, len(ids))
            edit.scatter(ids, mask, rows(values))
            model |= dict(zip(ids[mask].tolist(), values[mask].tolist()))
            expected = rows([model.get(i, 0) for i in range(N)])["n"]
            got = edit.gather(np.arange(N))["n"]
            np.testing.assert_array_equal(got[list(model)], expected[list(model)], str(step))
        live.append((edit.freeze(), model))
        if len(live) > 5:
            gone, _ = live.pop(rng.integers(len(live)))
            if rng.random() < 0.5:
                gone.spend()
            del gone
        del edit, version
        for version, model in live:
            assert values_of(version) == [model.get(i, -1) for i in range(N)], step
    store = live[0][0].store
    assert store.num_bytes <= 8 * N * store.layout.num_bytes  # slots of dead versions are reused


def test_spent_versions_give_their_slots_back(folder):
    """A run's way: one version alive at a time, cohorts of 10."""
    version = table(folder)
    for step in range(100):
        edit = TableEdit(version)
        version.spend()
        fill(edit, np.arange(step % 3, N, 3), np.full(len(range(step % 3, N, 3)), step + 10))
        version = edit.freeze()
        del edit
    assert values_of(version)[:3] == [109, 107, 108]
    slots = version.store.num_bytes // version.store.layout.num_bytes
    assert slots <= 1.25 * N + 4 * 10


def test_forecast_names_the_disk():
    row = np.zeros(1000, np.float32)
    with pytest.raises(ValueError, match=r"8,000,000 bytes.*state=\"disk\""):
        make_table("host", row, 2000, None, available=7_999_999)
    assert make_table("host", row, 2000, None, available=8_000_000).num_touched == 0
    assert make_table("disk", row, 10**6, Path("/nowhere"), available=10).kind == "disk"


def test_ids_outside_and_spent_tables(folder):
    one = table(folder)
    with pytest.raises(IndexError, match=r"\[0, 30\)"):
        one.rows([30])
    with pytest.raises(IndexError):
        one.rows([-1])
    one.spend()
    with pytest.raises(RuntimeError, match="spent"):
        one.rows([0])


def state_of(version):
    return RoundState(jnp.int32(3), {"w": jnp.ones(2)}, version, (), (), ())


def test_checkpoints_keep_their_rows(folder, tmp_path):
    """Steps 1..6 with two kept: both come back whole, whatever was written after them."""
    edit, expected = TableEdit(table(folder)), {}
    for step in range(1, 7):
        fill(edit, [step, 0, 20], [100 + step, 200 + step, 300 + step])
        version = edit.freeze()
        expected[step] = values_of(version)
        checkpoint.save(tmp_path / "out", state_of(version), step=step, keep=2)
        version.spend()
    fill(edit, list(range(N)), [999] * N)  # after the last checkpoint: lost by the "kill"
    del edit, version
    for step in (5, 6, 5):
        back = checkpoint.restore(tmp_path / "out", state_of(table(folder)), step=step)
        assert values_of(back.clients) == expected[step]
        assert back.server["w"].tolist() == [1, 1]
    # What is written from step 5 on must not touch step 6.
    back = checkpoint.restore(tmp_path / "out", state_of(table(folder)), step=5)
    again = TableEdit(back.clients)
    for round in range(20):
        fill(again, list(range(N)), [1000 + round] * N)
        again.freeze().spend()
    six = checkpoint.restore(tmp_path / "out", state_of(table(folder)), step=6)
    assert values_of(six.clients) == expected[6]
    assert six.clients.num_touched == 8


def writes_and_dies(folder):
    edit = TableEdit(table(folder / "rows"))
    fill(edit, [1, 2], [11, 12])
    checkpoint.save(folder / "out", state_of(edit.freeze()), step=1)
    fill(edit, [1, 5], [55, 56])
    os.kill(os.getpid(), 9)


def test_rows_on_disk_survive_the_process(tmp_path):
    process = forked.start(writes_and_dies, tmp_path)
    process.join(timeout=120)
    assert process.exitcode == -9
    template = state_of(table(tmp_path / "rows"))
    back = checkpoint.restore(tmp_path / "out", template).clients
    assert values_of(back) == [-1, 11, 12] + [-1] * (N - 3)
    assert back.store.num_bytes > 2 * back.layout.num_bytes  # the lost writes' slots are free again
    back.store.collect()
    assert len(back.store._free) == back.store.num_bytes // back.layout.num_bytes - 2


def is_refused(folder):
    with pytest.raises(ValueError, match="is in use by another process"):
        TableEdit(table(folder))


def test_one_process_at_a_time(tmp_path):
    one = TableEdit(table(tmp_path / "rows"))
    process = forked.start(is_refused, tmp_path / "rows")
    process.join(timeout=120)
    assert process.exitcode == 0
    other = HostTable(np.zeros(3), num_clients=N, folder=tmp_path / "rows")
    with pytest.raises(ValueError, match="a state_dir of its own"):
        TableEdit(other)
    del one


def test_checkpoints_that_lost_their_rows_say_so(tmp_path):
    edit = TableEdit(table(tmp_path / "rows"))
    fill(edit, [1], [11])
    version = edit.freeze()
    checkpoint.save(tmp_path / "out", state_of(version), step=1)
    with pytest.raises(ValueError, match=r"clients: saved 30 rows of .* \(disk\), expected"):
        checkpoint.restore(tmp_path / "out", state_of(table(None)))
    with pytest.raises(ValueError, match="give the state_dir of the run"):
        checkpoint.restore(tmp_path / "out", state_of(table(tmp_path / "others")))
    del edit, version
    # Moved, and found again before a row was written: the rows are still there.
    os.rename(tmp_path / "out", tmp_path / "moved")
    back = checkpoint.restore(tmp_path / "moved", state_of(table(tmp_path / "rows")))
    assert values_of(back.clients)[1] == 11
    del back
    # Deleted: another run may write, and a copy from elsewhere is told that its rows are gone.
    os.rename(tmp_path / "moved", tmp_path / "hidden")
    edit = TableEdit(table(tmp_path / "rows"))
    fill(edit, [2], [22])
    del edit
    with pytest.raises(ValueError, match="any more"):
        checkpoint.restore(tmp_path / "hidden", state_of(table(tmp_path / "rows")))


def test_another_layout_needs_another_folder_while_checkpoints_live(tmp_path):
    edit = TableEdit(table(tmp_path / "rows"))
    fill(edit, [1], [11])
    version = edit.freeze()
    checkpoint.save(tmp_path / "out", state_of(version), step=1)
    del edit, version
    with pytest.raises(ValueError, match="choose another state_dir"):
        TableEdit(HostTable(np.zeros(3), num_clients=N, folder=tmp_path / "rows"))
    checkpoint.clear(tmp_path / "out")
    edit = TableEdit(HostTable(np.zeros(3), num_clients=N, folder=tmp_path / "rows"))
    edit.scatter(np.array([4]), np.array([True]), np.ones((1, 3)))
    assert edit.freeze().rows([4, 5]).sum(1).tolist() == [3, 0]


def test_a_truncated_file_is_named(folder, tmp_path):
    edit = TableEdit(table(folder))
    fill(edit, [1, 2], [11, 12])
    version = edit.freeze()
    saved = checkpoint.save(tmp_path / "out", state_of(version), step=1)
    path = (folder or saved / "tables" / "clients") / "rows.bin"
    os.truncate(path, 5)
    del edit, version
    with pytest.raises(ValueError, match=r"rows.bin is truncated"):
        checkpoint.restore(tmp_path / "out", state_of(table(folder))).clients.rows([1, 2])
