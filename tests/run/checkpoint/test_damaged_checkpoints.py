"""Whatever happens to the files of a checkpoint, no other number than the saved one comes back."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_algorithm import raw

from fedjax_lite.run import checkpoint
from fedjax_lite.run.checkpoint import CheckpointDamaged
from fedjax_lite.stream.host_table import HostTable, TableEdit
from fedjax_lite.types import RoundState

N = 6


def state(seed):
    """Incompressible arrays, a bfloat16, a typed key."""
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(40, 9)).astype(np.float32)),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "key": jax.random.key(seed),
    }


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(bytes(content))


def exchanged(folder, one, other):
    os.replace(folder / one, folder / "kept")
    os.replace(folder / other, folder / one)
    os.replace(folder / "kept", folder / other)


def damages(folder):
    """Every way to spoil one file, and every pair of files exchanged, as (name, function)."""
    rng, files = np.random.default_rng(0), files_of(folder)
    for path in files:
        name, size = path.relative_to(folder), path.stat().st_size
        for position in rng.integers(0, 8 * size, 4).tolist():
            yield f"{name} bit {position}", lambda d, n=name, p=position: flipped(d / n, p)
        yield f"{name} cut", lambda d, n=name, s=size: os.truncate(d / n, s - 1)
        yield f"{name} emptied", lambda d, n=name: os.truncate(d / n, 0)
        yield f"{name} longer", lambda d, n=name: (d / n).write_bytes((d / n).read_bytes() + b"\0")
        yield f"{name} deleted", lambda d, n=name: (d / n).unlink()
    for one, other in zip(files, files[1:] + files[:1]):
        names = one.relative_to(folder), other.relative_to(folder)
        yield f"{one.name} exchanged with {other.name}", lambda d, n=names: exchanged(d, *n)


def refusal(folder, template, expected):
    """What restoring says; None where it gives what is expected, and nothing else is allowed."""
    try:
        found = checkpoint.load(folder, template).state
    except CheckpointDamaged as error:
        return str(error)
    assert raw(found) == expected
    return None


def test_no_damage_to_any_file_gives_another_value(tmp_path):
    step = checkpoint.save(tmp_path / "good", state(1), step=1, texts={"note.txt": "one\n"})
    expected, tried = raw(state(1)), 0
    for what, damage in damages(step):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        damage(tmp_path / "bad" / "00000001")
        tried += 1
        said = refusal(tmp_path / "bad", state(0), expected)
        if said is None:  # only white space of the manifest may differ without a trace
            assert what.startswith("manifest.json"), what
        else:
            assert str(tmp_path / "bad" / "00000001") in said, what  # the file, and
            assert "start anew" in said, what  # the remedy
    assert tried > 80


@pytest.fixture
def two_steps(tmp_path):
    for step in (3, 4):
        checkpoint.save(tmp_path, state(step), step=step)
    return tmp_path


def spoil(folder, step):
    largest = max(files_of(folder / f"{step:08d}"), key=lambda path: path.stat().st_size)
    flipped(largest, 4321)
    return largest


def test_a_damaged_newest_step_is_passed_over_with_a_warning(two_steps):
    file = spoil(two_steps, 4)
    with pytest.warns(UserWarning, match=r"step 4 is damaged .*going back to step 3") as caught:
        found = checkpoint.restore(two_steps, state(0))
    assert str(file) in str(caught[0].message)
    assert raw(found) == raw(state(3))
    with pytest.raises(
        CheckpointDamaged, match=r"step 4 is damaged.*restore another step, of \[3\]"
    ):
        checkpoint.restore(two_steps, state(0), step=4)
    assert raw(checkpoint.restore(two_steps, state(0), step=3)) == raw(state(3))
    assert checkpoint.steps(two_steps) == [3, 4]  # reading changes nothing
    spoil(two_steps, 3)
    with pytest.raises(
        CheckpointDamaged, match=r"no checkpoint in .* is whole.*00000004.*00000003"
    ):
        checkpoint.restore(two_steps, state(0))


def test_files_of_two_steps_are_not_mixed(two_steps):
    three, four = two_steps / "00000003", two_steps / "00000004"
    shutil.copy(three / "manifest.json", four / "manifest.json")
    with pytest.raises(CheckpointDamaged, match=r"00000004/manifest.json is of step 3"):
        checkpoint.restore(two_steps, state(0), step=4)
    shutil.rmtree(three)
    os.rename(four, three)
    shutil.rmtree(three / "arrays")
    with pytest.raises(CheckpointDamaged, match=r"arrays.* is missing"):
        checkpoint.restore(two_steps, state(0), step=3)


def test_what_is_no_folder_of_a_step_is_no_step(two_steps):
    (two_steps / "00000009").write_text("a file")
    (two_steps / "00000008.saving").write_text("a file")
    shutil.copytree(two_steps / "00000004", two_steps / "000000005")  # no name of step 5
    (two_steps / "00000010").symlink_to(two_steps / "nowhere")
    assert checkpoint.steps(two_steps) == [3, 4]
    checkpoint.save(two_steps, state(9), step=9)
    assert checkpoint.steps(two_steps) == [4, 9]
    checkpoint.save(two_steps, state(10), step=10)
    names = sorted(path.name for path in two_steps.iterdir())
    assert names == ["000000005", "00000009", "00000010"]


def without_digests(folder):
    """As earlier versions wrote it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    kept = {name: manifest[name] for name in ("step", "num_clients", "tables", "leaves")}
    path.write_text(json.dumps(kept))


def test_steps_without_digests_are_read_with_a_warning(two_steps):
    without_digests(two_steps / "00000004")
    with pytest.warns(UserWarning, match="saved without digests"):
        assert raw(checkpoint.restore(two_steps, state(0))) == raw(state(4))
    shutil.rmtree(two_steps / "00000004" / "arrays" / "d")
    with pytest.warns(UserWarning, match="going back to step 3"):
        assert raw(checkpoint.restore(two_steps, state(0))) == raw(state(3))


def test_a_manifest_robbed_of_its_digests_is_not_taken_for_an_old_one(two_steps):
    path = two_steps / "00000004" / "manifest.json"
    content = json.loads(path.read_text())
    for gone in ("files", "digest", "format"):
        path.write_text(json.dumps({name: v for name, v in content.items() if name != gone}))
        with pytest.raises(CheckpointDamaged, match="digest"):
            checkpoint.restore(two_steps, state(0), step=4)


def test_arguments_and_absence_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="step 0"):
        checkpoint.restore(tmp_path, {}, step=0)
    with pytest.raises(TypeError, match="step must be an int"):
        checkpoint.save(tmp_path, {}, step=1.5)
    with pytest.raises(ValueError, match="UTF-8"):
        checkpoint.save(tmp_path / "a\udcff", {}, step=1)
    with pytest.raises(ValueError, match="folder"):
        checkpoint.steps("")


def rows_on_disk(folder):
    return HostTable(np.arange(3, dtype=np.float32), num_clients=N, folder=folder)


def streamed(table):
    return RoundState(jnp.int32(3), {"w": jnp.ones(2)}, table, (), (), ())


def filled(folder, value):
    edit = TableEdit(rows_on_disk(folder))
    ids = np.array([0, 2, 5])
    edit.scatter(ids, np.ones(3, bool), value + np.arange(9, dtype=np.float32).reshape(3, 3))
    return edit.freeze()


def rows_refused(folder, rows, expected):
    try:
        back = checkpoint.restore(folder, streamed(rows_on_disk(rows)))
    except CheckpointDamaged as error:
        return str(error)
    assert back.clients.rows(np.arange(N)).tobytes() == expected
    return None


@pytest.mark.parametrize("place", ["host", "disk"])
def test_rows_of_clients_come_back_as_they_were_or_not_at_all(place, tmp_path):
    rows = None if place == "host" else tmp_path / "good" / "rows"
    version = filled(rows, 1.0)
    expected = version.rows(np.arange(N)).tobytes()
    step = checkpoint.save(tmp_path / "good" / "out", streamed(version), step=1)
    table = step / "tables" / "clients"
    paths = files_of(table) + ([] if rows is None else [rows / "rows.bin"])
    assert len(paths) == (3 if rows is None else 4)
    del version
    rng, refused = np.random.default_rng(0), 0
    for path in paths:
        content = path.read_bytes()
        bits = rng.integers(0, 8 * len(content), 6).tolist()
        for bit in [*bits, None]:
            if bit is None:
                path.write_bytes(content[: len(content) // 2])
            else:
                flipped(path, bit // 8)
            said = rows_refused(tmp_path / "good" / "out", rows, expected)
            assert said is None or path.name in said, (path, bit)
            refused += said is not None
            path.write_bytes(content)
    # A bit of rows.bin that belongs to no client's row may be flipped without harm.
    assert refused >= 7 * (len(paths) - 1)


def test_a_damaged_row_on_disk_leads_back_to_the_step_before(tmp_path):
    edit = TableEdit(rows_on_disk(tmp_path / "rows"))
    ones, expected = np.ones(1, bool), {}
    for step in (1, 2):
        edit.scatter(np.array([step]), ones, np.full((1, 3), float(step), np.float32))
        version = edit.freeze()
        expected[step] = version.rows(np.arange(N)).tobytes()
        checkpoint.save(tmp_path / "out", streamed(version), step=step)
    written = int(version.index[2])
    del edit, version
    flipped(tmp_path / "rows" / "rows.bin", 12 * written + 1)
    with pytest.warns(UserWarning, match=r"rows\.bin does not hold the rows.*going back to step 1"):
        back = checkpoint.restore(tmp_path / "out", streamed(rows_on_disk(tmp_path / "rows")))
    assert back.clients.rows(np.arange(N)).tobytes() == expected[1]


def test_notes_beside_the_rows_are_named_where_they_are_damaged(tmp_path):
    checkpoint.save(tmp_path / "out", streamed(filled(tmp_path / "rows", 1.0)), step=1)
    pin = next((tmp_path / "rows" / "pins").glob("*.json"))
    pin.write_text("{")
    with pytest.raises(ValueError, match=r"pins/.*damaged.*state_dir"):
        checkpoint.restore(tmp_path / "out", streamed(rows_on_disk(tmp_path / "rows")))
    assert pin.read_text() == "{"  # not written over: it may name other copies of the checkpoint
    edit = TableEdit(rows_on_disk(tmp_path / "rows"))
    with pytest.raises(ValueError, match=r"pins/.*damaged"):
        edit.scatter(np.array([1]), np.ones(1, bool), np.ones((1, 3), np.float32))
    del edit
    (tmp_path / "rows" / "layout.json").write_text("[]")
    with pytest.raises(ValueError, match=r"layout.json.*damaged"):
        TableEdit(rows_on_disk(tmp_path / "rows"))
