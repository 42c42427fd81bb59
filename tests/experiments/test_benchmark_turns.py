"""The comparison with other simulators: workers of their own process, and how they take turns."""

import os
import time
from pathlib import Path

import pytest
from benchmark_folder import ROOT

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="child processes are found through /proc"
)


# -- workers ----------------------------------------------------------------------------------

FAKE = """
import json, subprocess, sys, time
name, variant = sys.argv[0].rpartition("/")[2], sys.argv[2]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"versions": {"child": child.pid}}), flush=True)
calls = 0
for line in sys.stdin:
    number = json.loads(line)["rounds"]
    calls += 1
    if variant == "broken" or (variant == "fragile" and calls == 4):
        sys.exit("no more rounds today")
    with open(sys.argv[1] + "/order", "a") as file:
        file.write(f"{name[0]}{number} ")
    # The machine is five times slower in every system's third call.
    speed = {"slow": 3.0, "fast": 1.0}.get(variant, 1.0)
    print(json.dumps({"seconds": number * speed * (5 if calls == 3 else 1)}), flush=True)
child.kill()
"""


@pytest.fixture
def fakes(parts, tmp_path, monkeypatch):
    """Programs that answer times without doing anything."""
    (tmp_path / "programs").mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / "programs" / name).write_text(FAKE)
    monkeypatch.setattr(parts["workers"], "PROGRAMS", tmp_path / "programs")
    return parts


def start(fakes, tmp_path, variant="fast"):
    return fakes["workers"].Worker(
        "a.py", tmp_path, variant=variant, python=None, num_threads=1, log=tmp_path / "log"
    )


def state_of(pid):
    """One letter: R, S (asleep), T (stopped); None when the process is gone or a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
    return None if state == "Z" else state


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_proc
def test_a_worker_is_frozen_and_ended_with_its_children(fakes, tmp_path):
    began = time.perf_counter()
    worker = start(fakes, tmp_path)
    child = int(worker.versions["child"])
    assert fakes["workers"].descendants(os.getpid()).count(child) == 1
    worker.freeze()
    until(lambda: state_of(child) == "T")
    worker.thaw()
    until(lambda: state_of(child) == "S")
    assert worker.cold_seconds is None
    assert worker.rounds(7) == 7.0
    cold = worker.cold_seconds
    assert 0 < cold <= time.perf_counter() - began
    worker.rounds(1)
    assert worker.cold_seconds == cold  # of the first rounds only
    worker.freeze()
    worker.close()
    until(lambda: state_of(child) is None)


@needs_proc
def test_what_a_dead_worker_said_is_in_the_error(fakes, tmp_path):
    """Although its child lives on and holds the pipe open."""
    worker = start(fakes, tmp_path, "broken")
    child = int(worker.versions["child"])
    with pytest.raises(fakes["workers"].WorkerFailed, match="ended; no more rounds today"):
        worker.rounds(1)
    worker.close()
    until(lambda: state_of(child) is None)


def test_workers_see_nothing_that_would_falsify_times(parts, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    make = parts["workers"].environment
    own, foreign = (make(Path("x"), "1", own=own, num_threads=2) for own in (True, False))
    assert not {"JAX_COMPILATION_CACHE_DIR", "PYTHONPATH"} & set(foreign)
    assert own["PYTHONPATH"] == str(ROOT)
    assert foreign["PEERS_CLIENT_THREADS"] == foreign["OMP_NUM_THREADS"] == "1"
    # A number at the end is the threads of a worker, whatever the number of workers.
    for variant, threads in (("auto", "2"), ("threads-2x1", "1"), ("serial-1x2", "2")):
        assert make(Path("x"), variant, own=True, num_threads=2)["OMP_NUM_THREADS"] == threads


# -- turns ------------------------------------------------------------------------------------


@pytest.fixture
def bench(fakes, tmp_path, monkeypatch):
    """A bench whose workloads are not written down."""
    compare = fakes["compare"]

    def write(folder, setting, **options):
        folder.mkdir()
        compare.written = options
        return {"data": "none"}

    monkeypatch.setattr(compare.exports, "write", write)
    monkeypatch.setattr(compare.shutil, "rmtree", lambda folder: None)
    return compare.Bench(tmp_path, tmp_path / "envs", repeats=3, num_threads=1)


def measure(bench, fakes, monkeypatch, systems, name="logreg"):
    compare = fakes["compare"]
    monkeypatch.setattr(compare, "SYSTEMS", systems)
    setting = fakes["exports"].SETTINGS[name].smoke()
    result = bench.measure(name, setting, tuple(systems))
    return result, {row["system"]: row for row in result["rows"]}


def test_turns_alternate_and_ratios_are_taken_by_turn(bench, fakes, monkeypatch, tmp_path):
    system = fakes["compare"].System
    systems = {
        "ours": system("a.py", ("fast",)),
        "other": system("b.py", ("slow",)),
        "elsewhere": system("c.py", ("fast",), only=("pfl-cnn",)),
    }
    result, rows = measure(bench, fakes, monkeypatch, systems)
    order = (tmp_path / "logreg-time" / "order").read_text().split()
    assert order == ["a1", "a2", "b1", "b2", *("a2", "b2"), *("b2", "a2"), *("a2", "b2")]
    assert list(rows) == ["ours", "other"]
    assert rows["ours"]["ms_per_round"]["all"] == [5000.0, 1000.0, 1000.0]
    assert rows["other"]["ms_per_round"]["median"] == 3000.0
    # The first turn was slow for both: by turn the ratio is 3 all the same.
    assert (rows["other"]["ratio"]["min"], rows["other"]["ratio"]["max"]) == (3.0, 3.0)
    assert rows["ours"]["ratio"]["median"] == 1.0
    assert fakes["compare"].written["num_rounds"] == 1 + 2 * 4  # a schedule for every round
    assert (result["turns"], result["rounds_per_turn"]) == (3, 2)


def test_the_fastest_variant_is_kept(bench, fakes, monkeypatch):
    system = fakes["compare"].System
    systems = {"ours": system("a.py", ("slow", "fast", "broken"))}
    _, rows = measure(bench, fakes, monkeypatch, systems)
    assert rows["ours"]["variant"] == "fast"
    assert rows["ours"]["variants_ms"] == {"slow": 3000.0, "fast": 1000.0}
    assert "error" not in rows["ours"]


def test_convolution_variants_are_tried_only_where_there_are_some(parts):
    loop = parts["compare"].SYSTEMS["loop"]
    settings = parts["exports"].SETTINGS
    assert {"xla", "matmul", "matmul-cores"} <= set(loop.variants_for(settings["lenet"]))
    assert set(loop.variants_for(settings["logreg"])) == {"auto", "auto-cores", "auto-threads"}


def test_what_fails_is_a_row_with_the_reason(bench, fakes, monkeypatch, peers, capsys):
    def cannot(name, folder):
        raise fakes["environments"].CannotInstall("ERROR: no such package")

    monkeypatch.setattr(fakes["environments"], "prepare", cannot)
    system = fakes["compare"].System
    systems = {
        "ours": system("a.py", ("fast",)),
        "absent": system("b.py", ("1", "2"), environment="nowhere"),
        "broken": system("b.py", ("broken",)),
        "fragile": system("c.py", ("fragile",)),
    }
    result, rows = measure(bench, fakes, monkeypatch, systems)
    assert rows["absent"] == {
        "system": "absent",
        "error": "CannotInstall: ERROR: no such package",
    }
    assert "no more rounds today" in rows["broken"]["error"]
    assert "no more rounds today" in rows["fragile"]["error"]
    assert "ms_per_round" not in rows["fragile"]
    assert len(rows["ours"]["ms_per_round"]["all"]) == 3
    capsys.readouterr()
    peers.print_table({"logreg": result})
    table = capsys.readouterr().out
    assert "not measured: CannotInstall: ERROR: no such package" in table
    assert table.count("not measured") == 3
