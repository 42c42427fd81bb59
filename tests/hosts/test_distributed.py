"""Several processes: equal results, one writer, checkpoints between device counts, deaths, resume.

Each test starts processes of `distributed_program.py`; all have hard time limits.
"""

import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import chex
import distributed_program as program
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.engine import init_state, shard_population
from fedjax_lite.hosts import distributed
from fedjax_lite.hosts.launch import free_port
from fedjax_lite.run import checkpoint

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parent / "distributed_program.py")
SECONDS = 240
"""Nothing here may take longer; the machine may be slow and busy."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """CPU processes that share what they compile, with all other tests where those do."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tmp_path_factory.mktemp("compiled")
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


# `python -m fedjax_lite.hosts.launch`, without the package's __init__, which imports jax.
LAUNCHER = f"""
import sys, types
package = sys.modules["fedjax_lite"] = types.ModuleType("fedjax_lite")
package.__path__ = [{str(ROOT / "fedjax_lite")!r}]
from fedjax_lite.hosts.launch import main
sys.exit(main())
"""


def launch(environment, *arguments, script=PROGRAM, as_users_do=False):
    """Runs a script as two processes; returns code, output and errors.

    The heartbeat is set beyond this file's patience: where a process dies it is the launcher that
    ends the others, and not their own heartbeat.
    """
    launcher = ["-m", "fedjax_lite.hosts.launch"] if as_users_do else ["-c", LAUNCHER]
    options = ["--heartbeat-seconds", str(2 * SECONDS)]
    process = subprocess.Popen(
        [sys.executable, *launcher, *options, script, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its processes die with it
        raise
    return process.returncode, output, errors


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows]


def final_state(folder):
    with np.load(folder / "state.npz") as file:
        return [file[name] for name in file.files]


def same_bits(one, two):
    assert [leaf.dtype for leaf in one] == [leaf.dtype for leaf in two]
    assert [leaf.tobytes() for leaf in one] == [leaf.tobytes() for leaf in two]


close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


def whole_data():
    owners = np.repeat(np.arange(len(program.SIZES)), program.SIZES)
    return fl.data.from_arrays(program.examples(), owners, num_clients=len(program.SIZES))


def one_process(num_rounds=program.NUM_ROUNDS, **more):
    algo, data = program.algorithm(fl.sequential()), whole_data()
    state = algo.init(jax.random.key(0), jnp.zeros(3), data)
    key = jax.random.key(0)
    more = {"every": 2, "progress": False, **more}
    return fl.run(algo, key, state, data, num_rounds=num_rounds, **more)


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    """Two processes with half of the population each, start to end."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, output, errors = launch(environment, folder, "--split", as_users_do=True)
    assert code == 0, output + errors
    return folder, output


@pytest.mark.slow
def test_two_processes_equal_one(uninterrupted):
    folder, output = uninterrupted
    state, history = one_process()
    close(final_state(folder), program.real_rows(state))
    rows = [json.loads(line) for line in metrics(folder)][1:]
    assert [row["num_steps"] for row in rows] == [row["num_steps"] for row in history]
    losses = [[row["train_loss"] for row in r] for r in (rows, history)]
    np.testing.assert_allclose(*losses, rtol=2e-5)
    # Only process 0 prints, and both took part in what is agreed.
    assert output.count("round 6/6") == 1
    assert "DONE 1" not in output
    facts = [json.loads((folder / f"facts{process}.json").read_text()) for process in range(2)]
    for process in range(2):
        assert facts[process]["several"]
        assert facts[process]["agreed"] == [11, "0é"]
        assert facts[process]["rounds"] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_each_process_loads_and_holds_its_part(uninterrupted):
    folder, _ = uninterrupted
    sizes = program.SIZES
    block, middle = 6, int(sizes[:6].sum())
    largest = max(middle, int(sizes[6:].sum()))
    for process, part in enumerate([[0, middle], [middle, int(sizes.sum())]]):
        facts = json.loads((folder / f"facts{process}.json").read_text())
        assert facts["asked"] == [[0, 1], part]  # one example tells shapes and dtypes
        x, y, offsets, whole_sizes, rows = facts["shards"]
        assert (x, y) == (3 * 4 * largest, 4 * largest)
        assert (offsets, whole_sizes) == (4 * (block + 1), 4 * len(sizes))
        assert rows == 3 * 4 * block


@pytest.mark.slow
def test_checkpoint_of_two_processes_comes_back_in_one(uninterrupted):
    folder, _ = uninterrupted
    algo, data = program.algorithm(fl.sequential()), whole_data()
    key, size = jax.random.key(0), len(program.SIZES)
    mesh = fl.client_mesh(jax.devices()[:1])
    split = shard_population(data, mesh=mesh)
    whole = algo.init(key, jnp.zeros(3), data)
    for template in (whole, init_state(algo, key, jnp.zeros(3), split, mesh=mesh)):
        back = checkpoint.restore(folder / "checkpoints", template, num_clients=size)
        same_bits(program.real_rows(back), final_state(folder))


@pytest.mark.sample(1, of="what else two processes run")
@pytest.mark.slow
def test_checkpoint_of_one_process_is_resumed_by_two(environment, tmp_path):
    one_process(num_rounds=2, output_dir=tmp_path)
    code, output, errors = launch(environment, tmp_path, "--resume")
    assert code == 0, output + errors
    assert f"resuming {tmp_path} after round 2" in errors
    close(final_state(tmp_path), program.real_rows(one_process()[0]))
    assert [json.loads(line)["round"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_killed_then_terminated_then_resumed_is_byte_identical(
    environment, uninterrupted, tmp_path
):
    """SIGKILL to process 1 in round 4, resume, SIGTERM to process 1 alone, resume to the end."""
    split = (tmp_path, "--split")
    code, output, errors = launch(environment, *split, "--signal", 9)
    assert code == 128 + 9, output + errors
    assert "process 1 was killed by SIGKILL" in errors
    assert "--resume" in errors
    assert re.search(r"all others were stopped after [\d.]+ s", errors)  # and not by a heartbeat
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]

    code, output, errors = launch(environment, *split, "--resume", "--signal", 15)
    assert code == 128 + 15, output + errors
    assert "stopped by SIGTERM after round 4 of 6" in errors
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 4]

    code, output, errors = launch(environment, *split, "--resume")
    assert code == 0, output + errors
    folder, _ = uninterrupted
    same_bits(final_state(tmp_path), final_state(folder))
    assert metrics(tmp_path) == metrics(folder)


@pytest.mark.slow
def test_without_a_launcher_the_heartbeat_ends_the_others(environment, tmp_path):
    """Process 0 computes on its host, in no collective that could break, while process 1 dies.

    It would sleep for 600 s, longer than the time that is waited for it.
    """
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-u", PROGRAM, str(tmp_path), "--sleep"],
            cwd=ROOT,
            env={
                **environment,
                **joined,
                "JAX_PROCESS_ID": str(index),
                "FEDJAX_LITE_HEARTBEAT_SECONDS": "6",
            },
            stdout=subprocess.PIPE if index == 0 else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for index in range(2)
    ]
    output = processes[0].stdout
    assert output is not None
    try:
        before = []
        for line in output:
            before.append(line)
            if "SLEEPING" in line:
                break
        else:
            raise AssertionError("".join(before))
        processes[1].kill()
        text, _ = processes[0].communicate(timeout=SECONDS)
        assert processes[0].returncode != 0
        assert "heartbeat" in text
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.sample(1, of="what else two processes run")
@pytest.mark.slow
def test_the_cifar_script_under_the_launcher(environment, tmp_path, alone):
    script = str(ROOT / "experiments" / "fedavg_cifar.py")
    flags = ["--dataset", "digits", "--smoke", "--model", "linear"]
    code, output, errors = launch(
        environment, *flags, "--output-dir", tmp_path / "two", script=script
    )
    assert code == 0, output + errors
    assert "2 devices, each:" in output
    alone.syspath_prepend(str(ROOT / "experiments"))
    cifar = importlib.import_module("fedavg_cifar")
    # Pictures are drawn by the processes, and here only named.
    pictures = ("clients.png", "curves.png", "partition.png")
    draw = lambda folder, *_: [(folder / name).touch() for name in pictures]  # noqa: E731
    alone.setattr(cifar, "plots", draw)
    flags += ["--devices", "1", "--output-dir", str(tmp_path / "one")]
    cifar.main(importlib.import_module("shared.script").parse(cifar.Flags, cifar.__doc__, flags))
    one, two = ([json.loads(row) for row in metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in a], [b[k] for k in a], rtol=1e-4, err_msg=str(a))
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]


# -- a single process -----------------------------------------------------------------------

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "SLURM_JOB_ID",
    "OMPI_MCA_orte_hnp_uri",
)


@pytest.fixture
def alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_nothing_to_join(alone):
    assert not distributed.initialize()
    alone.setenv("JAX_NUM_PROCESSES", "1")
    alone.setenv("JAX_PROCESS_ID", "0")
    alone.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    assert not distributed.initialize()
    assert not jax.distributed.is_initialized()


def test_a_slurm_job_of_one_task_is_alone(alone):
    for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID", "NTASKS"):
        alone.setenv(f"SLURM_{name}", "1")
    assert not distributed.initialize()


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "1"}
            | {"SLURM_LOCALID": "0", "SLURM_NTASKS": "2"},
            {},
        ),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"cluster_detection_method": "deactivate", "process_id": 1, "num_processes": 2},
        ),
    ],
)
def test_where_several_processes_are_found(alone, variables, arguments):
    """JAX is called where it has something to detect, and with what we know where we know it."""
    called = {}

    def initialize(shutdown_timeout_seconds=1, **given):
        called.update(given, shutdown=shutdown_timeout_seconds)

    alone.setattr(jax.distributed, "initialize", initialize)
    alone.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    for name, value in variables.items():
        alone.setenv(name, value)
    distributed.initialize(heartbeat_seconds=9, shutdown_seconds=8, start_seconds=7)
    expected = {"cluster_detection_method": None, "process_id": None, "num_processes": None}
    expected |= {"heartbeat_timeout_seconds": 9, "initialization_timeout": 7, "shutdown": 8}
    assert called.items() >= (expected | arguments).items()


def test_halves_of_an_address_are_named(alone):
    with pytest.raises(ValueError, match=r"num_processes, process_id must be given"):
        distributed.initialize("127.0.0.1:1234")
    with pytest.raises(ValueError, match="heartbeat_seconds"):
        distributed.initialize(heartbeat_seconds=0)
    alone.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES"):
        distributed.initialize()


def test_the_end_of_a_script(alone):
    with pytest.raises(SystemExit, match="error: --alpha"):
        distributed.fail("error: --alpha must be positive")
