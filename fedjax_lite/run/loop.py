"""run: the only host loop. Between compiled calls of many rounds it evaluates, logs and saves."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.hosts import distributed
from fedjax_lite.round.private_runs import begin, with_ledger
from fedjax_lite.run.arguments import check_arguments, check_names, check_split, check_total
from fedjax_lite.run.calls import Calls
from fedjax_lite.run.checkpoint import as_folder
from fedjax_lite.run.divergence import Watch
from fedjax_lite.run.folder import writing
from fedjax_lite.run.history import Row
from fedjax_lite.run.interrupt import Interrupt, RunInterrupted, stopped
from fedjax_lite.run.progress import Progress
from fedjax_lite.run.record import Record
from fedjax_lite.run.reporter import Reporter
from fedjax_lite.run.resuming import start_of
from fedjax_lite.run.rounds import rounds_of
from fedjax_lite.run.schedule import Schedule
from fedjax_lite.run.settings import MAY_CHANGE, make_settings
from fedjax_lite.types import FederatedAlgorithm, Key, PyTree, RoundState


def run(
    algo: FederatedAlgorithm,
    key: Key,
    state: RoundState,
    data: PyTree = None,
    *,
    num_rounds: int,
    evaluate: Callable[[RoundState], Mapping[str, Any]] | None = None,
    every: int = 10,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    config: Mapping[str, Any] | None = None,
    config_may_change: Sequence[str] = MAY_CHANGE,
    checkpoint_every: int | None = None,
    keep: int = 2,
    stop_if_diverged: bool = True,
) -> tuple[RoundState, list[Row]]:
    """Runs rounds until `num_rounds` of them are done, and records them.

    One program is compiled: a loop of at most `every` rounds whose number is an argument. Every
    round runs in the same program however rounds are grouped into calls, so ``run(100)`` and then
    ``run(200)`` on its state, or a run killed and resumed, gives ``run(200)`` byte for byte.
    Calls end at multiples of `every`; between them the host evaluates, logs and saves. The
    state is donated from call to call; the caller's own is copied once and stays usable.

    A first SIGINT or SIGTERM finishes the running call, saves, tells how to resume and then
    raises; a second SIGINT ends the process at once (in IPython: raises at once). Signals are
    seen while the device computes, but not while XLA compiles.

    Several processes (see `distributed.initialize`) call it alike, with state and data placed by
    `init_state` and `replicate` or `shard_population`. Process 0 prints and writes;
    `evaluate` runs in every process, on its own copy of the state (`distributed.local`); a
    signal to one of them stops all after the same call. `output_dir` is a folder that all see.
    A checkpoint may be resumed on another number of devices. An exception in one of them must end
    that process, not be caught: the others wait for it in the next round.

    Args:
      algo: what a round does; every round is given the same `key`.
      key: a typed key; with ``state.round`` and the clients' ids it fixes all randomness.
      state: from ``algo.init``, or the state that an earlier run returned.
      data: arrays handed to ``algo.round``, as a rule a `FederatedDataset`; or a data set that
        streams and has a method `rounds`.
      num_rounds: the total to reach, counting those that ``state.round`` says are done.
      evaluate: ``(state) -> {name: number}``, such as ``evaluator(model, test)``; called on the
        initial state, after every multiple of `every`, and after the last round.
      every: rounds per call.
      output_dir: folder for ``metrics.jsonl``, ``metrics.csv``, ``config.json`` (with `config`),
        ``checkpoints/`` and ``tensorboard/``. None writes nothing.
      resume: go on from the newest checkpoint; `state` then gives only the structure. Starts
        anew, with a notice, where there is none.
      overwrite: replace an earlier run's files; files of other names are left alone.
      progress: show a bar or plain lines.
      tensorboard: also write TensorBoard event files.
      config: JSON-like settings of the run, kept in ``config.json`` beside the key and the
        versions; a resumed run must agree with them. Without it settings are not compared.
      config_may_change: top-level keys of `config` that may differ on resume.
      checkpoint_every: save at the first end of a call that reaches each multiple of this many
        rounds; None for `every`. The last round is always saved.
      keep: how many checkpoints stay.
      stop_if_diverged: end with an error where the model became NaN or infinite: the server's, or
        one of clients that keep their own; it is looked at after every call of rounds.

    Returns:
      The state, and the history: one dict a round with ``round``, the round's metrics, the
      evaluation's where there was one, running totals of what was sent (``uplink_bits_total``
      ..., over the rows of this history), what a private algorithm has spent, and ``seconds``,
      wall-clock from the run's start to the end of the call that did the round, compiling
      included, added up over resumes. An evaluation of the initial state is row 0.
      What was spent: of mechanisms over Poisson cohorts ``epsilon``, by privacy loss
      distributions, which takes up to half a second, so that only row 0 and the last row of a call
      have it (``[r["epsilon"] for r in history if "epsilon" in r]``, or ``every=1``), and
      ``epsilon_rdp``, the looser bound by Rényi divergences, in every row. Of all others, and
      with ``method="rdp"`` or every client in every round, ``epsilon`` is in every row.
      It is of all rounds of the state, under whatever mechanisms they were done (its ledger,
      ``state.privacy``), infinite where some had none; where there were several, only the last
      row of a call has it. The budget counts them all.

    Raises:
      TypeError, ValueError: if an argument cannot be right, before anything is compiled; if what
        the state has spent exceeds the budget or cannot be composed with this mechanism.
      FileExistsError: if `output_dir` holds a run and neither `resume` nor `overwrite` is given, or
        `resume` and its checkpoints are lost.
      FolderInUse: (an OSError) if another run writes into `output_dir`; the message names its
        process. The lock ends with the process that holds it, however that ends.
      OSError: if `output_dir` cannot be written.
      RunDiverged: (a FloatingPointError) with the round, the likely cause and the remedy; what was
        recorded is on disk, and the last checkpoint is from before.
      RunInterrupted: (a KeyboardInterrupt) after SIGINT; SystemExit(143) after SIGTERM.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def init(key, params, data):
      ...     return RoundState(jnp.int32(0), params, (), (), (), ())
      >>> def one_round(key, state, data, cohort=None):
      ...     loss = jnp.mean((state.server - data) ** 2)
      ...     server = state.server + 0.5 * (data.mean() - state.server)
      ...     return state._replace(round=state.round + 1, server=server), {"train_loss": loss}
      >>> algo, data = FederatedAlgorithm(init, one_round), jnp.array([1.0, 3.0])
      >>> key = jax.random.key(0)
      >>> state = algo.init(key, jnp.float32(0.0), data)
      >>> state, history = run(algo, key, state, data, num_rounds=3, progress=False)
      >>> float(state.server), history[-1]["train_loss"]
      (1.75, 1.25)
    """
    began = time.perf_counter()
    check_arguments(
        algo,
        key,
        state,
        data,
        evaluate=evaluate,
        resume=resume,
        overwrite=overwrite,
        tensorboard=tensorboard,
        output_dir=output_dir,
    )
    check_split(evaluate, data)
    check_count(num_rounds, "num_rounds", minimum=0)
    check_count(every, "every", minimum=1)
    check_count(keep, "keep", minimum=1)
    checkpoint_every = every if checkpoint_every is None else checkpoint_every
    check_count(checkpoint_every, "checkpoint_every", minimum=1)
    folder = None if output_dir is None else as_folder(output_dir, "output_dir")
    accountant = getattr(algo, "accountant", None)
    if accountant is not None:  # a run goes on with the mechanism that it began with, or not at all
        config = {"privacy": accountant.description, **(config or {})}
    settings = make_settings(config, key)
    schedule = Schedule(num_rounds, every, checkpoint_every)
    num_clients = getattr(data, "num_clients", None)
    notices: list[str] = []
    with writing(folder, notices):
        start = start_of(
            folder,
            with_ledger(accountant, state),
            settings,
            resume=resume,
            overwrite=overwrite,
            may_change=config_may_change,
            first_saved=schedule.first_saved(int(state.round)),
            num_clients=num_clients,
            notices=notices,
        )
        rounds = rounds_of(algo, key, data, capacity=every)
        # Its own copy: donation would destroy the caller's arrays.
        state = rounds.start(with_ledger(accountant, start.state))
        done = int(state.round)
        check_total(num_rounds, done, restored=start.restored)
        if accountant is not None:
            num_rounds = begin(accountant, state, data, num_rounds, notices)
            schedule = schedule._replace(num_rounds=num_rounds)
        earlier = start.rows[-1].get("seconds", 0.0) if start.rows else 0.0
        reporter = Reporter(evaluate, accountant, began=began, earlier=earlier)
        watch, interrupt = Watch(data, stop=stop_if_diverged), Interrupt()
        with interrupt:  # what refuses the run comes before a file is made or replaced
            watch.begin(state)
            begun, known = reporter.begin(state, fresh=done == 0 and not start.rows)
            if known and done < num_rounds and not interrupt.agreed():
                names = None if rounds.names is None else rounds.names(state)
                check_names(known, names, private=accountant is not None)
        record = Record(
            folder,
            settings,
            rows=start.rows,
            restored=done if start.restored else None,
            tensorboard=tensorboard,
            keep=keep,
            num_clients=num_clients,
        )
        shows = distributed.is_coordinator()
        bar = Progress(num_rounds, done, enabled=progress and shows, notices=shows)
        for text in notices:
            bar.notice(text)
        calls = Calls(rounds, schedule, reporter, record, watch, bar, interrupt)
        with record, contextlib.closing(bar), interrupt:
            state = calls.do(state, begun)
        number = interrupt.agreed()
        if number:
            message = stopped(number, int(state.round), num_rounds, folder)
            bar.notice(message)
            if number == signal.SIGTERM:
                raise SystemExit(143)
            raise RunInterrupted(message, state, record.rows)
        return state, record.rows
