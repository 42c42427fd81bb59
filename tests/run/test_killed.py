"""A run that is SIGKILLed again and again ends like one that is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_algorithm import DATA, raw, score, start, timeless, toy

from fedjax_lite import checkpoint
from fedjax_lite.history import read_rows
from fedjax_lite.loop import run

ROUNDS = 120

SCRIPT = f"""
import sys, time
from toy_algorithm import DATA, score, start, toy
from fedjax_lite.loop import run
algo = toy()
key, state = start(algo)
def slow_score(state):
    time.sleep(0.01)
    return score(state)
run(algo, key, state, DATA, num_rounds={ROUNDS}, every=2, evaluate=slow_score,
    output_dir=sys.argv[1], resume=True, progress=False)
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_changes_no_byte(tmp_path):
    algo = toy()
    key, state = start(algo)
    options = {"num_rounds": ROUNDS, "every": 2, "evaluate": score, "progress": False}
    whole, rows = run(algo, key, state, DATA, output_dir=tmp_path / "whole", **options)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent.parent}"}
    output, rng = tmp_path / "killed", np.random.default_rng()
    moments = []

    def reached():
        return max(checkpoint.steps(output / "checkpoints"), default=0)

    def launch():
        command = [sys.executable, "-c", SCRIPT, str(output)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    for kind in ("saving", "random", "saving", "deleting", "random"):
        before, child = reached(), launch()
        while child.poll() is None and reached() < before + 6:
            time.sleep(0.002)
        if kind == "random":
            time.sleep(float(rng.uniform(0, 0.5)))
        else:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and child.poll() is None:
                if list((output / "checkpoints").glob(f"*.{kind}")):
                    break
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.communicate()[1]
        moments.append((kind, reached(), sorted(p.name for p in output.rglob("*.saving"))))
    assert reached() < ROUNDS, moments
    child = launch()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    final = checkpoint.restore(output / "checkpoints", state)
    assert raw(final) == raw(jax.tree.map(lambda x: x, whole)), moments
    found = read_rows(output / "metrics.jsonl")
    assert timeless(found) == timeless(rows), moments
    assert len(timeless(found)) == ROUNDS + 1
