"""The pieces that `run` is made of, each alone."""

import itertools
import math
import time

import jax.numpy as jnp
import pytest

from fedjax_lite.hosts import distributed
from fedjax_lite.run import checkpoint
from fedjax_lite.run.calls import Calls
from fedjax_lite.run.divergence import Watch
from fedjax_lite.run.history import read_rows
from fedjax_lite.run.interrupt import Interrupt, stopped
from fedjax_lite.run.progress import Progress
from fedjax_lite.run.record import Record
from fedjax_lite.run.reporter import Reporter
from fedjax_lite.run.resuming import start_of
from fedjax_lite.run.rounds import Rounds
from fedjax_lite.run.schedule import Schedule
from fedjax_lite.types import Accountant, RoundState

NONE = {"config": None, "key": [0, 1], "versions": {}}


def at(round_, server=0.0):
    return RoundState(jnp.int32(round_), jnp.float32(server), (), (), (), ())


# -- schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "checkpoint_every", "begin"), itertools.product([1, 4, 10], [1, 3, 10, 25], [0, 7])
)
def test_calls_end_at_multiples_and_save_at_the_first_end_that_reaches_one(
    every, checkpoint_every, begin
):
    schedule = Schedule(53, every, checkpoint_every)
    done, last, ends, saved = begin, -1, [], []
    while done < 53:
        done += schedule.length(done)
        ends.append(done)
        if schedule.saves(done, last):
            saved.append(done)
            last = done
    assert ends == [end for end in range(begin + 1, 54) if end % every == 0 or end == 53]
    assert [end for end in ends if not schedule.evaluates(end)] == []
    due = {min(e for e in ends if e >= m) for m in range(checkpoint_every, 54, checkpoint_every)}
    assert set(saved) == due | {53}
    assert saved[0] == min(schedule.first_saved(begin), 53)


# -- rows -----------------------------------------------------------------------------------


def test_rows_of_a_call_hold_totals_what_was_spent_and_the_score_of_the_last():
    accountant = Accountant(lambda rounds: {"epsilon": 0.5 * rounds}, None, "made up")
    score = lambda state: {"test_loss": state.server}  # noqa: E731
    reporter = Reporter(score, accountant, began=time.perf_counter() - 3, earlier=40.0)
    rows = reporter.rows(
        {"uplink_bits": jnp.array([8.0, 16.0, 0.0])}, at(6, 2.5),
        done=4, length=2, last={"round": 4, "uplink_bits_total": 100.0}, evaluated=True,
    )  # fmt: skip
    seconds = [row.pop("seconds") for row in rows]
    assert rows == [
        {"round": 5, "uplink_bits": 8.0, "uplink_bits_total": 108.0},
        {"round": 6, "uplink_bits": 16.0, "uplink_bits_total": 124.0, "epsilon": 3.0}
        | {"test_loss": 2.5},
    ]
    assert all(43 <= one < 100 for one in seconds)


def test_a_run_that_goes_on_has_no_row_of_its_initial_state():
    reporter = Reporter(lambda state: {"test_loss": 1.0}, None, began=time.perf_counter())
    rows, known = reporter.begin(at(0), fresh=True)
    assert [(row["round"], row["test_loss"]) for row in rows] == [(0, 1.0)]
    assert known == {"test_loss"}
    assert reporter.begin(at(0), fresh=False) == ([], set())


# -- what is on disk ------------------------------------------------------------------------


def test_a_record_replaces_an_earlier_run_and_goes_on_with_one_that_is_restored(tmp_path):
    settings = NONE | {"config": {"alpha": 0.1}}
    with Record(tmp_path, settings) as record:
        assert record.saved == -1
        record.add([{"round": 1, "train_loss": 0.5}])
        record.save(at(1), 1)
        assert record.saved == 1
    assert (tmp_path / "config.json").exists()
    with Record(tmp_path, settings, rows=record.rows, restored=1) as again:
        assert again.saved == 1
        again.add([{"round": 2, "train_loss": 0.25}])
    assert [row["train_loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0.5, 0.25]
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]
    with Record(tmp_path, settings):
        assert checkpoint.steps(tmp_path / "checkpoints") == []
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("error", "on_disk", "told"),
    [(OSError, True, True), (ValueError, True, False), (OSError, False, False)],
)
def test_an_error_of_the_disk_tells_what_is_saved(tmp_path, error, on_disk, told):
    def fail():
        with Record(tmp_path if on_disk else None, NONE) as record:
            record.save(at(7), 7)
            raise error("lost")

    with pytest.raises(error) as caught:
        fail()
    assert ("round 7 is saved" in "".join(getattr(caught.value, "__notes__", []))) == told


def test_a_folder_that_some_processes_do_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "agree", lambda number: max(number, 1))  # another has one
    with pytest.raises(ValueError, match="all processes see"):
        start_of(
            tmp_path, at(0), NONE, resume=True, overwrite=False, may_change=(), first_saved=10,
            num_clients=None, notices=[],
        )  # fmt: skip


# -- calls ----------------------------------------------------------------------------------


class Stopping(Interrupt):
    """A signal comes when it was asked for so many times."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def agreed(self):
        self.left -= 1
        return 2 if self.left < 0 else 0


def calls(interrupt, record, step=1):
    def advance(state, length):
        done = int(state.round)
        losses = jnp.array([0.5 ** (done + i + 1) for i in range(length)])
        return at(done + step * length, losses[-1]), {"train_loss": losses}

    return Calls(
        Rounds(lambda state: state, advance),
        Schedule(7, 2, 100),
        Reporter(None, None, began=0.0),
        record,
        Watch(None, stop=True),
        Progress(7, enabled=False),
        interrupt,
    )


@pytest.mark.parametrize(("asked", "done"), [(math.inf, 7), (0, 0), (1, 2), (2, 2), (3, 4)])
def test_calls_go_on_until_all_rounds_are_done_or_a_signal_was_seen(tmp_path, asked, done):
    """It is asked for before every call, and after it."""
    with Record(tmp_path, NONE) as record:
        state = calls(Stopping(asked), record).do(at(0), [])
    assert int(state.round) == done == record.saved
    assert [row["train_loss"] for row in record.rows] == [0.5**i for i in range(1, done + 1)]
    assert checkpoint.steps(tmp_path / "checkpoints") == [done]


def test_rounds_that_do_not_count_themselves_are_an_error():
    with pytest.raises(RuntimeError, match=r"after round 2 state\.round is 4"):
        calls(Stopping(9), Record(None, NONE), step=2).do(at(0), [])


def test_what_is_told_of_a_stopped_run_says_how_to_go_on(tmp_path):
    told = stopped(15, 20, 40, tmp_path)
    assert told.startswith("stopped by SIGTERM after round 20 of 40")
    assert f"output_dir={tmp_path}" in told
    assert "give output_dir" in stopped(2, 20, 40, None)
