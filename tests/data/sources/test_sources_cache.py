"""The cache of parsed arrays: hit, miss, stale, damaged, not writable, two at once."""

import json
import os
import threading

import numpy as np
import pytest

from fedjax_lite.data.sources import cache
from fedjax_lite.data.sources.cache import cached, default_cache_dir


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    for name in ("FEDJAX_LITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "_warned", set())


class Parser:
    """Parses numbers from a text file and counts how often it was asked to."""

    def __init__(self, path):
        self.path, self.calls = path, 0

    def __call__(self):
        self.calls += 1
        x = np.array(self.path.read_text().split(), np.int32)
        return {"x": x, "role": np.array(["a", "bc"])}, {"x": x[:0], "role": np.array(["d"])}


@pytest.fixture
def parser(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("1 2 3")
    return Parser(path)


def run(parser, folder, *, version=1, **options):
    return cached(
        parser, cache_dir=folder, name="a", files=[parser.path], version=version, options=options
    )


def manifest_of(folder):
    (path,) = folder.rglob("manifest.json")
    return path


def test_the_second_time_is_a_map_of_the_first(tmp_path, parser):
    first, second = run(parser, tmp_path / "c"), run(parser, tmp_path / "c")
    assert parser.calls == 1
    for splits in (first, second):
        assert splits[0]["x"].tolist() == [1, 2, 3]
        assert splits[0]["role"].tolist() == ["a", "bc"]
        assert splits[1]["x"].shape == (0,)
        assert isinstance(splits[0]["x"], np.memmap)
        assert not splits[0]["x"].flags.writeable


@pytest.mark.parametrize("same_time", [True, False])
def test_a_changed_source_is_parsed_anew(tmp_path, parser, same_time):
    old = run(parser, tmp_path / "c")
    stat = parser.path.stat()
    # Another size at the same time, or the same size at another time: each is enough.
    parser.path.write_text("7 8 9 10" if same_time else "7 8 9")
    shift = 0 if same_time else 1
    os.utime(parser.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + shift))
    new = run(parser, tmp_path / "c")
    assert parser.calls == 2
    assert new[0]["x"].tolist()[:3] == [7, 8, 9]
    # What was mapped before stays readable.
    assert old[0]["x"].tolist() == [1, 2, 3]
    run(parser, tmp_path / "c")
    assert parser.calls == 2


def test_a_new_version_or_other_options_are_parsed_anew(tmp_path, parser):
    run(parser, tmp_path / "c")
    run(parser, tmp_path / "c", version=2)
    run(parser, tmp_path / "c", version=2, sequence_length=80)
    assert parser.calls == 3
    run(parser, tmp_path / "c", version=2, sequence_length=80)
    run(parser, tmp_path / "c", version=2)
    assert parser.calls == 3


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_manifest(path, change):
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


DAMAGE = {
    "array cut short": lambda m: shorten(m.parent / "train-0.npy"),
    "array too long": lambda m: (m.parent / "train-0.npy").write_bytes(
        (m.parent / "train-0.npy").read_bytes() + b"more"
    ),
    "array gone": lambda m: (m.parent / "train-0.npy").unlink(),
    "array of nonsense": lambda m: (m.parent / "train-0.npy").write_bytes(
        b"?" * (m.parent / "train-0.npy").stat().st_size
    ),
    "pickled objects": lambda m: np.save(
        m.parent / "train-0.npy", np.array([{}]), allow_pickle=True
    ),
    "manifest cut short": shorten,
    "manifest empty": lambda m: m.write_text(""),
    "manifest a list": lambda m: m.write_text("[]"),
    "manifest not text": lambda m: m.write_bytes(b"\xff\xfe"),
    "manifest without arrays": lambda m: change_manifest(m, lambda s: s.pop("arrays")),
    "other dtype": lambda m: change_manifest(m, lambda s: s["arrays"][0].update(dtype="<i8")),
    "other shape": lambda m: change_manifest(m, lambda s: s["arrays"][0].update(shape=[4])),
    "other layout": lambda m: change_manifest(m, lambda s: s.update(layout=-1)),
    "arrays not a list": lambda m: change_manifest(m, lambda s: s.update(arrays=[3])),
    "manifest gone": lambda m: m.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_rebuilt(tmp_path, parser, damage):
    run(parser, tmp_path / "c")
    damage(manifest_of(tmp_path / "c"))
    for _ in range(2):
        train, _ = run(parser, tmp_path / "c")
        assert train["x"].tolist() == [1, 2, 3]
    assert parser.calls == 2


def test_nothing_half_written_is_left_behind(tmp_path, parser, monkeypatch):
    run(parser, tmp_path / "c")
    assert [p.name[0] for p in (tmp_path / "c" / "parsed").iterdir()] == ["a"]

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", fail)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        train, _ = run(parser, tmp_path / "d")
    assert train["x"].tolist() == [1, 2, 3]
    assert list((tmp_path / "d" / "parsed").iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path, parser):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match=r"cannot write the cache folder .*FEDJAX_LITE_CACHE"):
        train, _ = run(parser, tmp_path / "file")
    assert train["x"].tolist() == [1, 2, 3]
    run(parser, tmp_path / "file")
    assert parser.calls == 2


def test_two_at_once_both_get_the_data(tmp_path, parser):
    # Both have parsed before either writes.
    barrier, results = threading.Barrier(2), []

    def parse():
        splits = parser()
        barrier.wait(timeout=60)
        return splits

    def work():
        arguments = {"cache_dir": tmp_path / "c", "name": "a", "files": [parser.path]}
        results.append(cached(parse, **arguments, version=1, options={}))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [train["x"].tolist() for train, _ in results] == [[1, 2, 3]] * 2
    assert parser.calls == 2
    run(parser, tmp_path / "c")
    assert parser.calls == 2


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "fedjax_lite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "fedjax_lite"
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    assert default_cache_dir(tmp_path / "given") == tmp_path / "given"
