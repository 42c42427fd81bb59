"""Streams that are killed, interrupted, fail or are asked for what they cannot do."""

import gc
import signal
import threading
import time

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streamed_pairs import bare, begin, examples, go, make, pair, raw

from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.run import checkpoint
from fedjax_lite.run.history import read_rows
from fedjax_lite.stream import StreamedDataset

KEY = jax.random.key(0)


def at_place(place, folder):
    return pair(state=place, **({"state_dir": folder} if place == "disk" else {}))[1]


def first_row(state):
    return {"first": float(state.clients.rows([0])["b"][0])}


def killed_run(place, folder, last):
    """What the processes do that are killed; from round `last` on they wait for it."""

    def slow(state):
        time.sleep(0.02)
        forked.hold(int(state.round), last)
        return first_row(state)

    data, algo = at_place(place, folder / "rows"), make("scaffold", "dropout")
    go(
        algo, begin(algo, data), data, num_rounds=80, every=2, evaluate=slow,
        output_dir=folder / "out", resume=True,
    )  # fmt: skip


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("place", ["host", "disk"])
def test_sigkill_at_any_moment_changes_no_byte(place, tmp_path):
    algo, rng = make("scaffold", "dropout"), np.random.default_rng()
    calm = at_place(place, tmp_path / "calm")
    expected, rows = go(algo, begin(algo, calm), calm, num_rounds=80, every=2, evaluate=first_row)
    checkpoints = tmp_path / "out" / "checkpoints"

    def reached():
        return max(checkpoint.steps(checkpoints), default=0)

    moments = []
    for _ in range(4):
        before = reached()
        child = forked.start(killed_run, place, tmp_path, before + 18)
        while child.is_alive() and reached() < before + 4:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.2)))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        moments.append(reached())
    assert moments[-1] < 80
    child = forked.start(killed_run, place, tmp_path, forked.FOREVER)
    child.join(timeout=300)
    assert child.exitcode == 0
    last = at_place(place, tmp_path / "rows")
    state = checkpoint.restore(checkpoints, begin(algo, last))
    assert raw(state) == raw(expected), moments
    assert bare(read_rows(tmp_path / "out" / "metrics.jsonl")) == bare(rows), moments


def stream_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fedjax_lite-stream")]


def assert_no_thread_stays():
    deadline = time.monotonic() + 60
    while stream_threads() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not stream_threads()


class Failing(ArrayStore):
    """A store that fails at its n-th read."""

    fail_at = 5

    def read(self, ids, out):
        self.fail_at -= 1
        if self.fail_at < 0:
            raise OSError("the disk is gone")
        super().read(ids, out)


def test_errors_of_the_thread_are_raised_and_nothing_stays():
    arrays, sizes = examples()
    data, algo = StreamedDataset(Failing(arrays, sizes)), make("fedavg")
    with pytest.raises(OSError, match="the disk is gone"):
        go(algo, begin(algo, data), data, num_rounds=20, every=10)
    assert_no_thread_stays()
    _, fine = pair()
    go(algo, begin(algo, fine), fine)
    assert_no_thread_stays()


def test_a_failing_round_and_an_interrupt_leave_nothing():
    _, data = pair()
    algo = make("fedavg")
    state = begin(algo, data)

    def broken(key, state, data, cohort=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(algo._replace(round=broken), state, data)
    assert_no_thread_stays()


def test_what_cannot_be_streamed_says_so():
    _, data = pair()
    algo = make("fedavg")
    state = begin(algo, data)
    with pytest.raises(ValueError, match="algo must have `sample`"):
        go(algo._replace(sample=None), state, data)
    with pytest.raises(ValueError, match="state must be"):
        pair(state="tape")
    with pytest.raises(ValueError, match="state_dir goes with"):
        pair(state="disk")
    rounds = data.rounds(algo, KEY, capacity=2)
    rounds.start(state)
    with pytest.raises(ValueError, match="the state that start"):
        rounds.advance(state._replace(round=jnp.int32(3)), 1)


def test_a_spent_table_says_so():
    _, data = pair(state="host")
    algo = make("scaffold")
    states = []

    def keep(state):
        states.append(state)
        return {}

    final, _ = go(algo, begin(algo, data), data, num_rounds=4, every=2, evaluate=keep)
    with pytest.raises(RuntimeError, match="was spent"):
        states[0].clients.rows([0])
    assert final.clients.rows([0, 1])["w"].shape == (2, 3)
