"""A run that is SIGKILLed again and again ends like one that is left alone."""

import itertools
import os
import signal
import time

import forked
import jax
import numpy as np
import pytest
from toy_algorithm import DATA, raw, score, start, timeless, toy

from fedjax_lite.run import checkpoint
from fedjax_lite.run.history import read_rows
from fedjax_lite.run.loop import run

KILLS = int(os.environ.get("FEDJAX_LITE_KILLS", "3"))
"""20 for the whole test, which takes some minutes."""
PACE = 16
"""Rounds that a process does at most before it waits to be killed."""
ROUNDS = PACE * KILLS + 6
KINDS = ("saving", "random", "deleting", "random")


def killed_run(output, last):
    """What the processes do that are killed; from round `last` on they wait for it."""

    def slow_score(state):
        time.sleep(0.01)
        forked.hold(int(state.round), last)
        return score(state)

    algo = toy()
    key, state = start(algo)
    run(
        algo, key, state, DATA, num_rounds=ROUNDS, every=2, evaluate=slow_score,
        output_dir=output, resume=True, progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_sigkill_at_any_moment_changes_no_byte(tmp_path):
    algo = toy()
    key, state = start(algo)
    options = {"num_rounds": ROUNDS, "every": 2, "evaluate": score, "progress": False}
    whole, rows = run(algo, key, state, DATA, output_dir=tmp_path / "whole", **options)
    output, rng = tmp_path / "killed", np.random.default_rng()
    moments = []

    def reached():
        return max(checkpoint.steps(output / "checkpoints"), default=0)

    for kind in itertools.islice(itertools.cycle(KINDS), KILLS):
        before = reached()
        last = before + PACE
        child = forked.start(killed_run, output, last)
        while child.is_alive() and reached() < before + 4:
            time.sleep(0.002)
        if kind == "random":
            time.sleep(float(rng.uniform(0, 0.5)))
        else:  # within the save, if one is seen before the child holds
            while child.is_alive() and reached() < last - 2:
                if list((output / "checkpoints").glob(f"*.{kind}")):
                    break
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        left = sorted(p.name for p in (output / "checkpoints").glob("*.*ing"))
        moments.append((kind, reached(), left))
    assert reached() < ROUNDS, moments
    child = forked.start(killed_run, output, forked.FOREVER)
    child.join(timeout=300)
    assert child.exitcode == 0
    final = checkpoint.restore(output / "checkpoints", state)
    assert raw(final) == raw(jax.tree.map(lambda x: x, whole)), moments
    found = read_rows(output / "metrics.jsonl")
    assert timeless(found) == timeless(rows), moments
    assert len(timeless(found)) == ROUNDS + 1
    print(*moments, sep="\n")
