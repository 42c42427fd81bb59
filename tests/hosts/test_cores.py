"""One device a core: counts of cores, equal results, examples in the memory of all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cores_program
import jax
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.hosts import cores

PROGRAM = Path(__file__).parent / "cores_program.py"
PINNED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_a_process(*command, **environment):
    known = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=known | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def results():
    """Of one device, which this process has, and of four, in a process of their own."""
    flags = os.environ.get("XLA_FLAGS", "")  # tests/conftest.py's, which compile quickly
    four = in_a_process(PROGRAM, 4, XLA_FLAGS=flags).stdout.splitlines()[-1]
    one = {"cores": jax.device_count(), **cores_program.everything()}
    return json.loads(json.dumps([{**one, "addresses": cores_program.memory()}, json.loads(four)]))


def test_a_run_dealt_to_cores_is_the_run_of_one(results):
    one, four = results
    assert (one["cores"], four["cores"]) == (1, 4)
    assert (one["devices"], four["devices"]) == (1, 4)
    assert (one["dealt"], four["dealt"]) == (False, True)
    np.testing.assert_allclose(one["loss"], four["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["members"], four["members"], rtol=1e-5)
    for part, other in zip(one["params"], four["params"], strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-6)
    for name, scores in one["clients"].items():
        np.testing.assert_allclose(scores, four["clients"][name], rtol=1e-5)
    for scores, other in zip(one["own"], four["own"], strict=True):
        np.testing.assert_allclose(scores, other, rtol=1e-5)
    assert len(one["rows"]) == 3
    for row, other in zip(one["rows"], four["rows"], strict=True):
        assert row.keys() == other.keys()
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)


def test_explain_knows_the_cores(results):
    one, four = (found["explained"].splitlines()[0] for found in results)
    assert one.startswith("strategy: 1 of 6 clients in lanes (cpu: ")
    assert four.startswith("strategy: 1 of 2 clients in lanes a core (cpu: ")
    assert four.endswith(", dealt to 4 cores")


def test_all_cores_read_the_same_memory(results):
    assert [found["addresses"] for found in results] == [0, 1]


@pytest.mark.parametrize(
    ("files", "cores_of_it"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),  # half a core is one
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, files, cores_of_it):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.usable_cores(tmp_path) == min(PINNED, cores_of_it or PINNED)


def test_too_late_says_what_to_do():
    started = fl.engine.client_mesh().size  # the backend starts at the latest here
    with pytest.warns(UserWarning, match=r"too late.*JAX_NUM_CPU_DEVICES=512"):
        found = cores.use_cores(512)
    assert found == started
    cores._asked = False


FORCED = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
FORKS = f"""
import os, jax, fedjax_lite as fl
for asked, found in ((64, {{}}), (64, {FORCED}), (None, {{"JAX_NUM_PROCESSES": "2"}})):
    if os.fork() == 0:
        os.environ.update(found)
        print(fl.use_cores(asked), jax.device_count(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
"""Processes forked from one that has imported JAX and started nothing of it."""


@pytest.fixture(scope="module")
def of_forks():
    return in_a_process("-W", "ignore", "-c", FORKS).stdout.splitlines()


def test_many_cores_and_environments_that_chose_already(of_forks):
    assert of_forks[:2] == ["64 64", "3 3"]
    code = "import fedjax_lite as fl, jax; print(fl.use_cores(), jax.device_count())"
    assert in_a_process("-c", code, JAX_NUM_CPU_DEVICES="5").stdout.split() == ["5", "5"]


def test_one_of_several_processes_keeps_its_devices(of_forks):
    assert of_forks[2] == "1 1"


def test_bad_numbers():
    with pytest.raises(ValueError, match="num_cores must be at least 1, got 0"):
        fl.use_cores(0)
    with pytest.raises(TypeError, match="num_cores"):
        fl.use_cores("all")
