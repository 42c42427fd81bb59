"""The comparison with other simulators: what is exported, what is installed, what is judged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

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
    # Nobody scales pixels: compilers round that in float32 each in its own way.
    assert (task["net"]["mean"], task["net"]["std"]) == (None, None)
    assert arrays["x"].dtype == arrays["x_float"].dtype == np.float64
    np.testing.assert_array_equal(arrays["x"].transpose(0, 3, 1, 2), arrays["x_float"])
    np.testing.assert_allclose(arrays["x"].std(), 12**-0.5 / 0.29, rtol=0.01)  # of a uniform one
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


def test_an_environment_may_need_another_python(pip, monkeypatch):
    environments, _, _, folder = pip
    names = ("python-of-tomorrow", "python-of-today")
    monkeypatch.setitem(environments.PYTHONS, "some", names)
    started = []

    def run(command, **options):
        started.append(command)
        if "of-tomorrow" in str(command[0]):
            raise FileNotFoundError(command[0])
        return type("Done", (), {"returncode": 0, "stderr": "", "stdout": "{}"})

    monkeypatch.setattr(environments.subprocess, "run", run)
    environments.prepare("some", folder)
    assert ["python-of-today", "-m", "venv", str(folder / "some")] in started
    monkeypatch.setitem(environments.PYTHONS, "some", names[:1])
    with pytest.raises(environments.CannotInstall, match="some needs one of python-of-tomorrow"):
        environments.prepare("some", folder / "again")


# -- parts of the programs ----------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("form", ["matmul", "xla"])
@pytest.mark.parametrize("name", ["pfl-cnn", "logreg", "lenet", "lognormal"])
def test_the_plain_network_is_ours(parts, name, form):
    """Written anew for a peer whose JAX is too old for ours: loss and gradient without dropout."""
    net = dataclasses.asdict(parts["exports"].SETTINGS[name].net)
    net |= {"conv_dropout": 0.0, "dense_dropout": 0.0}
    model, key = parts["jax_models"].build(net), jax.random.key(0)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 256, (2, *net["input_shape"]), dtype=np.uint8))
    batch = {"x": x, "y": jnp.asarray([3, 7])}
    params = jax.jit(model.init)(key)  # compiled whole: eagerly each operation is a program
    ours = jax.jit(jax.value_and_grad(lambda p: model.loss(p, batch, key).mean()))(params)
    plain = parts["plain_network"].loss
    theirs = jax.jit(jax.value_and_grad(lambda p: plain(net, p, batch, key, form=form)))(params)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["matmul", "xla"])
def test_networks_that_are_checked_for_agreement_differ_by_rounding_of_float64(
    parts, written, form
):
    """Three forms of one network, their gradients within the tolerance of the check."""
    _, arrays, task, folder = written("pfl-cnn", purpose="agree")
    net, rows = task["net"], slice(4)
    plain = parts["plain_network"].loss
    with jax.enable_x64(True), np.load(folder / "weights.npz") as weights:
        params = parts["jax_models"].unflatten(dict(weights))
        batch = {"x": jnp.asarray(arrays["x"][rows]), "y": jnp.asarray(arrays["y"][rows])}
        model, key = parts["jax_models"].build(net, form="matmul"), jax.random.key(0)
        ours = jax.jit(jax.grad(lambda p: model.loss(p, batch, None).mean()))(params)
        theirs = jax.jit(jax.grad(lambda p: plain(net, p, batch, key, form=form)))(params)
        ours, theirs = parts["jax_models"].flatten(ours), parts["jax_models"].flatten(theirs)
    largest = max(np.abs(leaf).max() for leaf in ours.values())
    difference = parts["compare"].largest_difference(ours, theirs)
    assert difference <= parts["compare"].AGREEMENT_TOLERANCE * largest


def test_the_plain_networks_dropout_keeps_the_mean(parts):
    x = jnp.ones((100, 100))
    kept = np.asarray(parts["plain_network"].dropped(jax.random.key(0), x, 0.25))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    # 10,000 draws: the mean is 1 with deviation sqrt(0.25 / 0.75) / 100.
    assert abs(kept.mean() - 1) < 5 * 0.0058


def test_work_is_dealt_to_the_least_loaded(parts):
    deal = parts["worker_protocol"].deal
    loads = np.random.default_rng(0).integers(1, 50, 40).tolist()
    hands = deal(loads, 3)
    assert sorted(place for hand in hands for place in hand) == list(range(40))
    totals = [sum(loads[place] for place in hand) for hand in hands]
    assert max(totals) - min(totals) <= max(loads)
    assert deal(loads, 1)[0] == sorted(range(40), key=lambda place: -loads[place])


# -- targets and flags ------------------------------------------------------------------------


def row(system, ratio, **more):
    return {"system": system, "ratio": {"median": ratio}, **more}


def test_targets_are_judged_at_their_bounds(peers, capsys):
    bounds = {("pfl-cnn", "pfl"): 1.3, ("pfl-cnn", "flwr"): 2.3}
    bounds |= {("logreg", "pfl"): 20, ("logreg", "flwr"): 120}
    bounds |= {("lognormal", "pfl"): 6, ("lognormal", "loop"): 2, ("lognormal", "padded"): 8}

    def results(factor):
        found = {}
        for (workload, system), bound in bounds.items():
            rows = found.setdefault(workload, {"rows": []})["rows"]
            rows.append(row(system, factor * bound))
        return found

    met, missed = (peers.targets(results(factor)) for factor in (1.0, 0.99))
    assert [target["passed"] for target in met] == [True] * 7
    assert [target["passed"] for target in missed] == [False] * 7
    unjudged = peers.targets(results(1.0), judge=False)
    assert [target["passed"] for target in unjudged] == [None] * 7
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
    found = peers.targets({"lenet": {"rows": rows}}, judge=False)[7:]
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


@pytest.mark.sample(1, of="smoke runs of benchmarks")
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
    assert rows["ours"]["variants_ms"].keys() == {"auto", "auto-cores"}
    for row in rows.values():
        assert row["cold_seconds"] > row["ms_per_round"]["median"] / 1e3 > 0
        assert len(row["ms_per_round"]["all"]) == 2
        assert row["versions"]["jax"] == jax.__version__
        assert row["versions"]["optax"] == optax.__version__
    assert rows["loop"]["agrees"] is rows["padded"]["agrees"] is True
    assert rows["loop"]["largest_change"] > 0


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "variant", "workload"),
    [
        ("pfl", "1", "logreg"),
        ("pfl", "2x1", "logreg"),
        ("flwr", "1", "logreg"),
        ("blazefl", "threads-2x1", "logreg"),
        ("blazefl", "processes-2x1", "logreg"),
        ("fedjax", "jit", "logreg"),
        ("fedjax", "pmap-matmul", "pfl-cnn"),  # equal sizes, so that it is pmap that trains
    ],
)
def test_a_peer_reaches_our_model(peers, parts, tmp_path, name, variant, workload):
    environments = parts["environments"]
    folder = environments.default_folder()
    python = folder / name / "bin" / "python"
    if not python.exists() or not environments.has_pins(
        environments.installed(python), environments.REQUIREMENTS[name]
    ):
        pytest.skip(f"peers.py has not made the environment {python}")
    rows = [{"system": name, "variant": variant}]
    bench = parts["compare"].Bench(tmp_path, folder, repeats=1, num_threads=2)
    bench.agree(workload, parts["exports"].SETTINGS[workload].smoke(), rows)
    assert rows[0]["agrees"] is True
    assert rows[0]["largest_change"] > 1e-4
