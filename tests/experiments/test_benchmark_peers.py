"""The comparison with other simulators: what is exported, how turns are taken, what is judged."""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"
OWN_MODULES = ("peers", "measure", "workloads", "peers_programs", "worker_protocol")

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="child processes are found through /proc"
)


@pytest.fixture(scope="module")
def peers():
    """The script as a module; its neighbours are found as when it runs as a script."""
    path = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER / "peers_programs")]
    yield importlib.import_module("peers")
    sys.path[:] = path
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN_MODULES:
            del sys.modules[name]


@pytest.fixture
def parts(peers):
    """The modules that the script is made of, by name."""
    names = ("compare", "environments", "exports", "jax_models", "workers")
    return {name: importlib.import_module(f"peers_programs.{name}") for name in names}


# -- what is exported -------------------------------------------------------------------------


@pytest.fixture
def written(parts, tmp_path, monkeypatch):
    """Writes a shrunk workload of random data and reads it back."""

    def absent(*args, **options):
        raise fl.data.DatasetNotFoundError("not here", reasons=(), remedies=())

    monkeypatch.setattr(fl.data, "load", absent)

    def write(name, **options):
        setting = parts["exports"].SETTINGS[name].smoke()
        folder = tmp_path / name
        parts["exports"].write(folder, setting, num_rounds=4, num_threads=1, **options)
        arrays = {file.stem: np.load(file) for file in folder.glob("*.npy")}
        return setting, arrays, json.loads((folder / "task.json").read_text()), folder

    return write


@pytest.mark.parametrize("name", ["pfl-cnn", "logreg", "lenet", "lognormal"])
def test_every_system_gets_the_model_of_the_workload(parts, name):
    setting = parts["exports"].SETTINGS[name]
    ours = setting.workload.model()
    net = json.loads(json.dumps(parts["exports"].dataclasses.asdict(setting.net)))
    described = parts["jax_models"].build(net)
    key = jax.random.key(3)
    shapes = jax.eval_shape(ours.init, key)
    x = jax.ShapeDtypeStruct((3, *setting.workload.image_shape), "uint8")
    examples = {"x": x, "y": jax.ShapeDtypeStruct((3,), "int32")}
    for function, arguments in (("init", (key,)), ("loss", (shapes, examples, key))):
        programs = [
            jax.make_jaxpr(getattr(model, function))(*arguments) for model in (described, ours)
        ]
        assert str(programs[0]) == str(programs[1])
        assert [str(c) for c in programs[0].consts] == [str(c) for c in programs[1].consts]


def test_the_population_is_dealt_client_by_client(written):
    setting, arrays, task, _ = written("pfl-cnn")
    data = fl.data.partition(
        {"x": np.zeros((240, 1)), "row": np.arange(240)}, setting.workload.deal(20)
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (240, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 240, dtype=np.int32)
    for client in range(20):
        mine = slice(*arrays["offsets"][client : client + 2])
        rows = np.asarray(data.client(client)["row"])
        np.testing.assert_array_equal(arrays["x"][mine], images[rows])
        np.testing.assert_array_equal(arrays["y"][mine], labels[rows])
    scaled = (arrays["x"] / np.float32(255) - np.float32(0.5)) / np.float32(0.29)
    np.testing.assert_allclose(arrays["x_float"], scaled.transpose(0, 3, 1, 2), atol=1e-6)
    assert arrays["x_float"].dtype == np.float32
    assert task["data"] == "random"
    assert (task["batch_size"], task["epochs"], task["weighting"]) == (10, 1, "uniform")


def test_the_schedule_is_what_our_rounds_draw(written):
    setting, arrays, task, _ = written("logreg")
    inner = setting.workload.sampler()

    def sample(key, state, sizes):
        _, cohort = inner.sample(key, (), sizes)
        return cohort.ids, cohort

    recording = fl.Sampler(lambda num_clients: jnp.zeros(5, jnp.int32), sample)
    algo = setting.workload.algorithm(fl.vmapped(), sampler=recording)
    data, key = setting.workload.population(), jax.random.key(task["seed"])
    state = algo.init(key, setting.workload.model().init(key), data)
    for due in arrays["cohorts"]:
        state, _ = algo.round(key, state, data)
        assert np.asarray(state.sampler).tolist() == due.tolist()
    assert len({tuple(cohort) for cohort in arrays["cohorts"]}) > 1


def test_the_check_of_agreement_leaves_nothing_to_chance(written):
    setting, arrays, task, folder = written("pfl-cnn", purpose="agree")
    assert (task["net"]["conv_dropout"], task["net"]["dense_dropout"]) == (0, 0)
    assert setting.net.conv_dropout == 0.25
    assert task["batch_size"] is None
    assert task["epochs"] > 1
    assert all(sorted(cohort) == list(range(6)) for cohort in arrays["cohorts"])
    assert arrays["offsets"][-1] == len(arrays["y"]) == len(arrays["x"])
    assert arrays["x_float"].dtype == np.float64
    with np.load(folder / "weights.npz") as weights:
        assert {leaf.dtype for leaf in weights.values()} == {np.dtype("float64")}


def test_full_workloads_are_the_published_ones(parts):
    settings = parts["exports"].SETTINGS
    lenet = settings["lenet"].workload
    assert (lenet.num_clients, lenet.num_examples // lenet.num_clients) == (100, 400)
    assert (lenet.cohort_size, lenet.batch_size, settings["lenet"].epochs) == (100, 50, 5)
    assert {name: setting.workload.cohort_size for name, setting in settings.items()} == {
        "pfl-cnn": 50,
        "logreg": 10,
        "lenet": 100,
        "lognormal": 100,
    }


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
    deadline = time.monotonic() + 20
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
    assert make(Path("x"), "auto", own=True, num_threads=2)["OMP_NUM_THREADS"] == "2"


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
    assert loop.variants_for(settings["lenet"]) == ("xla", "matmul")
    assert loop.variants_for(settings["logreg"]) == ("auto",)


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


# -- environments -----------------------------------------------------------------------------


@pytest.fixture
def pip(parts, tmp_path, monkeypatch):
    """An environment whose Python says which versions it has, and a pip that is only recorded."""
    environments = parts["environments"]
    monkeypatch.setitem(environments.REQUIREMENTS, "some", ("torch==2.1", "some[extra]==3.0"))
    monkeypatch.setattr(
        environments.venv, "create", lambda root, with_pip: (root / "bin").mkdir(parents=True)
    )

    class Done:
        returncode, stderr, stdout = 0, "", "{}"

    calls = []

    def run(command, **options):
        calls.append(command)
        return Done

    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(environments.sys, "platform", "linux")
    return environments, calls, Done, tmp_path


def test_pinned_versions_are_installed_once(pip):
    environments, calls, done, folder = pip
    python = environments.prepare("some", folder)
    assert python == folder / "some" / "bin" / "python"
    assert [command[-2:] for command in calls] == [["torch==2.1", "some[extra]==3.0"]]
    python.touch()
    done.stdout = json.dumps({"Torch": "2.1+cpu", "some": "3.0", "python": "3.11"})
    environments.prepare("some", folder)
    assert sum("pip" in command for command in calls) == 1
    done.stdout = json.dumps({"torch": "2.1", "some": "2.9"})
    environments.prepare("some", folder)
    assert sum("pip" in command for command in calls) == 2


def test_pips_reason_is_handed_on(pip):
    environments, _, done, folder = pip
    done.returncode, done.stderr = 1, "WARNING: x\nERROR: No matching distribution\nhint"
    with pytest.raises(environments.CannotInstall, match=r"^ERROR: No matching distribution$"):
        environments.prepare("some", folder)


# -- targets and flags ------------------------------------------------------------------------


def row(system, ratio, **more):
    return {"system": system, "ratio": {"median": ratio}, **more}


def test_targets_are_judged_at_their_bounds(peers, capsys):
    bounds = {("pfl-cnn", "pfl"): 1.5, ("pfl-cnn", "flwr"): 2, ("pfl-cnn", "loop"): 2.5}
    bounds |= {("logreg", "pfl"): 6, ("logreg", "flwr"): 60, ("lognormal", "padded"): 8}

    def results(factor):
        found = {}
        for (workload, system), bound in bounds.items():
            rows = found.setdefault(workload, {"rows": []})["rows"]
            rows.append(row(system, factor * bound))
        return found

    met, missed = (peers.targets(results(factor)) for factor in (1.0, 0.99))
    assert [target["passed"] for target in met] == [True] * 6
    assert [target["passed"] for target in missed] == [False] * 6
    unjudged = peers.targets(results(1.0), judge=False)
    assert [target["passed"] for target in unjudged] == [None] * 6
    assert all(target["measured"] is None for target in peers.targets({}))
    peers.print_targets([*met[:2], missed[0]], smoke=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[-3:]] == ["PASS", "PASS", "FAIL"]


def test_disagreement_and_a_failed_check_are_failures(peers):
    rows = [
        row("pfl", 2.0, agreement=1e-9, largest_change=1e-2, agrees=True),
        row("flwr", 2.0, agreement=1e-3, largest_change=1e-2, agrees=False),
        row("loop", 2.0, agreement_error="the worker ended"),
    ]
    found = peers.targets({"lenet": {"rows": rows}}, judge=False)[6:]
    assert [target["passed"] for target in found] == [True, False, False]
    assert [target["measured"] for target in found] == [pytest.approx(1e-7), 0.1, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workloads": ("mnist",)}, "--workloads must be among"),
        ({"workloads": ()}, "--workloads"),
        ({"systems": ("tff",)}, "tff"),
        ({"repeats": 0}, "--repeats"),
        ({"rounds_per_turn": 0}, "--rounds-per-turn"),
    ],
)
def test_bad_flags(peers, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        peers.main(peers.Flags(output=tmp_path / "new" / "peers.json", **change))
    assert not (tmp_path / "new").exists()


def test_a_report_is_not_overwritten(peers, tmp_path):
    path = tmp_path / "peers.json"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        peers.main(peers.Flags(output=path))
    assert path.read_text() == "precious"


def test_models_are_compared_leaf_by_leaf(parts):
    difference = parts["compare"].largest_difference
    model = {"a": np.zeros(2), "b": np.array([1.0, -1.0])}
    assert difference(model, model | {"b": np.array([1.0, -3.0])}) == 2.0
    with pytest.raises(ValueError, match="differ in form"):
        difference(model, model | {"b": np.zeros(3)})


# -- the real programs ------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke_with_our_own_programs(peers, tmp_path):
    flags = peers.Flags(
        workloads=("lognormal",),
        systems=("ours", "padded", "loop"),
        repeats=2,
        output=tmp_path / "new" / "peers.json",
        smoke=True,
    )
    returned = peers.main(flags)
    report = json.loads(flags.output.read_text())
    assert report == json.loads(json.dumps(returned))
    assert [path.name for path in flags.output.parent.iterdir()] == ["peers.json"]
    rows = {row["system"]: row for row in report["workloads"]["lognormal"]["rows"]}
    assert list(rows) == ["ours", "padded", "loop"]
    for row in rows.values():
        assert row["cold_seconds"] > row["ms_per_round"]["median"] / 1e3 > 0
        assert len(row["ms_per_round"]["all"]) == 2
        assert row["versions"]["jax"] == jax.__version__
        assert row["versions"]["optax"] == optax.__version__
    assert rows["loop"]["agrees"] is rows["padded"]["agrees"] is True
    assert rows["loop"]["largest_change"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pfl", "flwr"])
def test_a_peer_reaches_our_model(peers, parts, tmp_path, name):
    environments = parts["environments"]
    folder = environments.default_folder()
    python = folder / name / "bin" / "python"
    if not python.exists() or not environments.has_pins(
        environments.installed(python), environments.REQUIREMENTS[name]
    ):
        pytest.skip(f"peers.py has not made the environment {python}")
    rows = [{"system": name, "variant": "1"}]
    bench = parts["compare"].Bench(tmp_path, folder, repeats=1, num_threads=2)
    bench.agree("logreg", parts["exports"].SETTINGS["logreg"].smoke(), rows)
    assert rows[0]["agrees"] is True
    assert rows[0]["largest_change"] > 1e-4
