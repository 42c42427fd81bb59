import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from toy_algorithm import DATA, raw, score, start, timeless, toy

from fedjax_lite.run import checkpoint, divergence, rounds
from fedjax_lite.run.interrupt import RunInterrupted
from fedjax_lite.run.loop import run
from fedjax_lite.types import FederatedAlgorithm


def go(algo, state, num_rounds, **options):
    options = {"every": 10, "progress": False} | options
    return run(algo, jax.random.key(5), state, DATA, num_rounds=num_rounds, **options)


def python_loop(num_rounds):
    algo = toy()
    key, state = start(algo)
    rows, step = [], jax.jit(algo.round)
    for _ in range(num_rounds):
        state, metrics = step(key, state, DATA)
        rows.append(float(metrics["train_loss"]))
    return state, rows


def test_agrees_with_a_python_loop_and_leaves_the_callers_state_alone():
    algo = toy()
    _, state = start(algo)
    before = raw(state)
    final, history = go(algo, state, 23, evaluate=score)
    assert raw(state) == before
    expected, losses = python_loop(23)
    assert jnp.allclose(final.server.params, expected.server.params, rtol=1e-6)
    assert [row["round"] for row in history] == list(range(24))
    assert [row["train_loss"] for row in history[1:]] == pytest.approx(losses, rel=1e-5)
    assert [row["round"] for row in history if "test_loss" in row] == [0, 10, 20, 23]
    assert history[-1]["test_loss"] == score(final)["test_loss"]
    seconds = [row["seconds"] for row in history]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


@pytest.mark.sample(2)
@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_grouping_into_calls_changes_no_bit(every):
    algo = toy()
    _, state = start(algo)
    whole, rows = go(algo, state, 20)
    other, other_rows = go(algo, state, 20, every=every)
    assert raw(other) == raw(whole)
    assert timeless(other_rows) == timeless(rows)


def test_two_runs_equal_one_also_from_a_round_between_multiples():
    algo = toy()
    _, state = start(algo)
    whole, rows = go(algo, state, 40)
    half, first = go(algo, state, 17)
    both, second = go(algo, half, 40)
    assert raw(both) == raw(whole)
    assert timeless(first + second) == timeless(rows)
    assert go(algo, whole, 40)[1] == []


def test_traced_once_whatever_the_lengths_of_the_calls():
    counter = []
    algo = toy(counter)
    _, state = start(algo)
    misses = rounds.many_rounds._cache_size()
    state, _ = go(algo, state, 23)
    assert len(counter) == 1
    go(algo, state, 48)  # head of 7, tens, tail of 8
    assert len(counter) == 1
    assert rounds.many_rounds._cache_size() == misses + 1


def test_weak_types_do_not_compile_again():
    counter = []

    def one_round(key, state, data, cohort=None):
        counter.append(1)
        return state._replace(round=state.round + 1, server=state.server + data.sum()), {}

    algo = FederatedAlgorithm(toy().init, one_round)
    _, state = start(toy())
    final, _ = go(algo, state._replace(server=jnp.asarray(0.0)), 30)
    assert float(final.server) == 30 * float(DATA.sum())
    assert len(counter) == 1


def test_warns_once_of_a_loss_that_is_not_finite_and_goes_on():
    algo = toy(diverge_at=4)
    _, state = start(algo)
    with pytest.warns(RuntimeWarning, match=r"round 4.*learning_rate") as caught:
        _, history = go(algo, state, 20)
    assert len(caught) == 1
    assert history[-1]["round"] == 20


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_rounds": -1}, ValueError, "num_rounds"),
        ({"num_rounds": 2.0}, TypeError, "num_rounds"),
        ({"every": 0}, ValueError, "every"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, r"jax.random.key"),
        ({"state": {}}, TypeError, "RoundState"),
        ({"evaluate": 3}, TypeError, "evaluate"),
        ({"resume": True}, ValueError, "output_dir"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
    ],
)
def test_bad_arguments_are_named_before_tracing(change, error, words):
    counter = []
    algo = toy(counter)
    key, state = start(algo)
    options = {"key": key, "state": state, "num_rounds": 2} | change
    with pytest.raises(error, match=words):
        run(algo, options.pop("key"), options.pop("state"), DATA, **options)
    assert not counter


def test_num_rounds_below_what_is_done_is_an_error():
    algo = toy()
    _, state = start(algo)
    state, _ = go(algo, state, 5)
    with pytest.raises(ValueError, match="total"):
        go(algo, state, 4)


def test_existing_run_needs_a_choice_and_overwrite_keeps_strange_files(tmp_path):
    counter = []
    algo = toy(counter)
    _, state = start(algo)
    go(algo, state, 20, output_dir=tmp_path)
    counter.clear()
    with pytest.raises(FileExistsError, match=r"resume=True.*overwrite=True"):
        go(toy(counter), state, 20, output_dir=tmp_path)
    assert not counter
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "checkpoints" / "mine.txt").write_text("keep")
    _, history = go(algo, state, 5, output_dir=tmp_path, overwrite=True)
    assert [row["round"] for row in history] == [1, 2, 3, 4, 5]
    assert (tmp_path / "mine.txt").exists()
    assert (tmp_path / "checkpoints" / "mine.txt").exists()
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]


def test_unwritable_directory_fails_before_tracing(tmp_path):
    counter = []
    algo = toy(counter)
    _, state = start(algo)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        go(algo, state, 5, output_dir=tmp_path / "file" / "run")
    assert not counter


def test_resume_is_byte_identical_and_drops_torn_and_later_rows(tmp_path):
    algo = toy()
    _, state = start(algo)
    whole, rows = go(algo, state, 30, evaluate=score, output_dir=tmp_path / "a")
    go(algo, state, 20, evaluate=score, output_dir=tmp_path / "b")
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 21, "train_loss": 1.0}\n{"round": 22, "tra')
    (tmp_path / "b" / "checkpoints" / "00000030.saving").mkdir()
    both, history = go(algo, state, 30, evaluate=score, output_dir=tmp_path / "b", resume=True)
    assert raw(both) == raw(whole)
    assert timeless(history) == timeless(rows)
    assert checkpoint.steps(tmp_path / "b" / "checkpoints") == [20, 30]
    again, same = go(algo, state, 30, evaluate=score, output_dir=tmp_path / "b", resume=True)
    assert raw(again) == raw(whole)
    assert same == history


def test_resume_of_nothing_starts_anew_with_a_notice(tmp_path, capsys):
    algo = toy()
    _, state = start(algo)
    _, history = go(algo, state, 5, output_dir=tmp_path, resume=True)
    assert len(history) == 5
    assert "nothing to resume" in capsys.readouterr().err


def test_resume_without_a_config_says_that_nothing_is_compared(tmp_path, capsys):
    algo = toy()
    _, state = start(algo)
    words = "without config= settings are not compared"
    go(algo, state, 5, output_dir=tmp_path / "a")
    go(algo, state, 6, output_dir=tmp_path / "a", resume=True)
    assert f"after round 5; {words}" in capsys.readouterr().err
    go(algo, state, 5, output_dir=tmp_path / "b", config={"learning_rate": 0.1})
    go(algo, state, 6, output_dir=tmp_path / "b", resume=True, config={"learning_rate": 0.1})
    assert words not in capsys.readouterr().err


def test_a_config_is_compared_also_where_checkpoints_are_gone(tmp_path):
    algo = toy()
    _, state = start(algo)
    go(algo, state, 5, output_dir=tmp_path, config={"alpha": 0.3})
    checkpoint.clear(tmp_path / "checkpoints")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"alpha: was 0.3, is 0.1"):
        go(algo, state, 5, output_dir=tmp_path, resume=True, config={"alpha": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_mean_loss_of_nobody_is_no_divergence(recwarn):
    rows = [{"round": 1, "train_loss": float("nan"), "num_clients": 0}]
    assert divergence.warn_if_not_finite(rows, None) is None
    assert not recwarn.list
    with pytest.warns(RuntimeWarning, match="round 2"):
        assert divergence.warn_if_not_finite([{**rows[0], "round": 2, "num_clients": 1}], None) == 2


def test_saving_a_lower_step_keeps_it(tmp_path):
    for step in (10, 20, 5):
        folder = checkpoint.save(tmp_path, {"w": jnp.float32(step)}, step=step, keep=2)
        assert folder.is_dir()
    assert float(checkpoint.restore(tmp_path, {"w": jnp.float32(0)}, step=5)["w"]) == 5
    assert not list(tmp_path.glob("*.deleting"))


def test_resume_with_another_config_lists_the_differences(tmp_path):
    algo = toy()
    _, state = start(algo)
    go(algo, state, 5, output_dir=tmp_path, config={"alpha": 0.3, "num_rounds": 5})
    config = {"alpha": 0.1, "num_rounds": 6}
    with pytest.raises(ValueError, match=r"alpha: was 0.3, is 0.1"):
        go(algo, state, 6, output_dir=tmp_path, resume=True, config=config)
    config = {"alpha": 0.3, "num_rounds": 6}
    with pytest.raises(ValueError, match="key: was"):
        run(
            algo, jax.random.key(6), state, DATA,
            num_rounds=6, output_dir=tmp_path, resume=True, config=config, progress=False,
        )  # fmt: skip
    _, history = go(algo, state, 6, output_dir=tmp_path, resume=True, config=config)
    assert history[-1]["round"] == 6


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signal_finishes_the_call_saves_and_resumes(tmp_path, capfd, number, error):
    algo = toy()
    _, state = start(algo)
    whole, rows = go(algo, state, 40, evaluate=score)
    before = signal.getsignal(number)

    def interrupting(state):
        if int(state.round) == 20:
            os.kill(os.getpid(), number)
        return score(state)

    with pytest.raises(error) as caught:
        go(algo, state, 40, evaluate=interrupting, output_dir=tmp_path, checkpoint_every=1000)
    assert signal.getsignal(number) is before
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    else:
        assert isinstance(caught.value, RunInterrupted)
        assert caught.value.history[-1]["round"] == 20
    assert "after round 20 of 40" in capfd.readouterr().err
    both, history = go(algo, state, 40, evaluate=score, output_dir=tmp_path, resume=True)
    assert raw(both) == raw(whole)
    assert timeless(history) == timeless(rows)


def test_runs_outside_the_main_thread_without_touching_signals():
    algo = toy()
    _, state = start(algo)
    found = []
    thread = threading.Thread(target=lambda: found.append(go(algo, state, 3)[1]))
    thread.start()
    thread.join()
    assert len(found[0]) == 3


@pytest.mark.slow
def test_a_second_sigint_kills_a_script_at_once():
    script = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
from toy_algorithm import DATA, start, toy
from fedjax_lite.run.loop import run
from fedjax_lite.types import FederatedAlgorithm
base = toy()
def slow(key, state, data, cohort=None):
    # Matrices, because XLA:CPU runs what it thinks cheap inside the dispatch, deaf to signals.
    x = jnp.full((128, 128), state.server.params[0])
    times = jnp.where(state.round == 0, 1, 10**6)
    x = jax.lax.fori_loop(0, times, lambda i, x: jnp.sin(x @ x), x)
    server = state.server._replace(params=x[0, :3])
    return base.round(key, state._replace(server=server), data)
def strike():
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.01)  # the run has not begun
    time.sleep(2)  # its round has: it is compiled
    os.kill(os.getpid(), signal.SIGINT)
    while signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        time.sleep(0.01)  # the first has not been seen
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
algo = FederatedAlgorithm(base.init, slow)
key, state = start(algo)
state, _ = run(algo, key, state, DATA, num_rounds=1, progress=False)  # compiles
threading.Thread(target=strike, daemon=True).start()
run(algo, key, state, DATA, num_rounds=2, progress=False)
"""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, timeout=200, text=True
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "finishing the running rounds" in done.stderr
