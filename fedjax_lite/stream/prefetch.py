"""StreamedRounds: rounds whose data are fetched while the rounds before them compute."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_key
from fedjax_lite.checks.labels import outputs_of, seen_in, watching
from fedjax_lite.data.population.dataset import CohortDataset
from fedjax_lite.engine.peak_memory import check_fits
from fedjax_lite.run.rounds import own, wait
from fedjax_lite.stream.host_table import HostTable, TableEdit
from fedjax_lite.types import Array, Cohort, FederatedAlgorithm, Key, PyTree, RoundState

AHEAD = 2
"""Cohorts fetched or being fetched while a round computes."""
TABLES = ("clients", "uplink")


@dataclasses.dataclass
class Timings:
    """Wall-clock of streamed rounds, added up; compiling is included."""

    num_rounds: int = 0
    seconds: float = 0.0
    """In calls of `advance`."""
    waited: float = 0.0
    """Of these, the device had nothing to do because data were not there."""

    def clear(self) -> None:
        """Starts anew, as after the rounds that compile."""
        self.num_rounds, self.seconds, self.waited = 0, 0.0, 0.0


class Stream(Protocol):
    """What `StreamedRounds` needs of a data set."""

    @property
    def timings(self) -> Timings:
        """Where times are added up."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """int32 `[N]`."""
        ...

    def cohort(
        self, ids: Any, mask: Any, *, sharding: jax.sharding.Sharding | None = None
    ) -> CohortDataset:
        """The data of some clients."""
        ...


class Fetched(NamedTuple):
    """What a round needs, on the device."""

    ids: np.ndarray
    mask: np.ndarray
    """Slots of clients that take part."""
    late: np.ndarray | None
    """Slots of clients that came too late: no data are fetched for them."""
    data: CohortDataset
    rows: dict[str, PyTree]
    """Rows `[C, ...]` of tables that the host keeps."""


class Before(NamedTuple):
    """The round before: its rows may be newer than what was fetched."""

    ids: np.ndarray
    rows: dict[str, PyTree]


class StreamedRounds:
    """Does rounds one by one, each a compiled call, with a thread that fetches ahead.

    While round `r` computes, the data of `r + 1` lie on the device and those of `r + 2` are read:
    three cohorts at a time. Rows of a `HostTable` of round `r` are written back by the same thread
    before it reads those of `r + 2`; what round `r + 1` takes from round `r` never leaves the
    device. Jobs run in the order in which they were given, so nothing depends on timing.

    Errors of the thread are raised by `advance`; it has no jobs left then, and ends. After the
    last call it ends with the object.

    Args:
      algo: what a round does; it must have `sample`.
      key: a typed key; every round is given the same.
      stream: the data set.
      capacity: rounds that one call does at most.

    Raises:
      ValueError: if the algorithm has no `sample`; from `advance`, if a round cannot fit.
      TypeError: if the key is not typed.
    """

    def __init__(
        self, algo: FederatedAlgorithm, key: Key, stream: Stream, *, capacity: int
    ) -> None:
        check_key(key)
        check_count(capacity, "capacity", minimum=1)
        if algo.sample is None:
            raise ValueError(
                "algo must have `sample` to run on a streamed data set, got None: the host has to "
                "know whom the next rounds draw before they are run. Methods made by "
                "federated_algorithm have it; for others keep the data in memory (from_arrays)"
            )
        if algo.slots is not None and algo.slots.sampler.learn is not None:
            raise ValueError(
                "sampler of a streamed run must not learn from the rounds, got "
                f"{algo.slots.sampler.made}: the host draws cohorts before the rounds before them "
                "are done; take one that draws blind (fl.uniform ...), or keep the data in memory "
                "(from_arrays)"
            )
        self._algo, self._key, self._stream, self._capacity = algo, key, stream, capacity
        self._sample = algo.sample
        self._sizes = jnp.asarray(stream.sizes)
        self._edits: dict[str, TableEdit] = {}
        self._checked: set[tuple[int, ...]] = set()
        self._told = False  # of negative labels
        self._executor: ThreadPoolExecutor | None = None
        self._forget()

    def start(self, state: RoundState) -> RoundState:
        """A state of the run's own; the caller's, tables on the host included, stays usable."""
        self._stop()
        tables = {name: getattr(state, name) for name in TABLES}
        tables = {name: table for name, table in tables.items() if isinstance(table, HostTable)}
        rest = own(state._replace(**dict.fromkeys(tables, ())))
        self._edits = {name: TableEdit(table) for name, table in tables.items()}
        self._sharding = _replicated(rest)
        if self._sharding is not None and not self._sharding.is_fully_addressable:
            raise ValueError(
                "a streamed data set serves the devices of one process, got a state on those of "
                f"{jax.process_count()} processes; split the population instead (shard_population)"
            )
        self._round = self._sampled = int(rest.round)
        self._chain = rest.sampler
        return self._hand_out(rest, rest.sampler)

    def advance(self, state: RoundState, length: int) -> tuple[RoundState, PyTree]:
        """Does `length` rounds; metrics are numpy arrays `[capacity]`, zeros behind `length`."""
        handed = {name: getattr(state, name) for name in self._edits}
        if int(state.round) != self._round or handed != self._handed:
            raise ValueError(
                "advance must be given the state that start or the last advance returned, got "
                f"round {int(state.round)} instead of {self._round}; call start with it first"
            )
        began = time.perf_counter()
        for table in handed.values():
            table.spend()
        # The sampler's states are made apart from the rounds, so they are not donated with them.
        state = state._replace(sampler=(), **dict.fromkeys(handed, ()))
        rows = []
        try:
            for _ in range(length):
                state, metrics = self._one(state)
                rows.append(metrics)
            for write in self._writes:
                write.result()
            self._writes.clear()
            wait(state.round)
        except BaseException:
            self._stop()
            raise
        self._stream.timings.num_rounds += length
        self._stream.timings.seconds += time.perf_counter() - began
        return self._hand_out(state, self._now), _stack(jax.device_get(rows), self._capacity)

    def _one(self, state: RoundState) -> tuple[RoundState, dict[str, Array]]:
        self._sample_ahead(AHEAD + 1)
        self._fetch_ahead()
        fetched = self._await(self._fetching.popleft())
        # On a device with one queue a cohort drawn later would wait for this round to end.
        self._sample_ahead(AHEAD + 1)
        before = self._before or Before(np.zeros(0, np.int32), jax.tree.map(jnp.copy, fetched.rows))
        source = _find(fetched.ids, before.ids)
        cohort = Cohort(fetched.ids, fetched.mask, fetched.late)
        sampler = self._samplers.popleft()
        given = (self._key, state, fetched.rows, before.rows, source, fetched.data, cohort, sampler)
        outputs, examples = outputs_of(self._algo.round), fetched.data.examples
        with watching(outputs, state.server, examples, quiet=self._told):
            padded = fetched.data.num_padded, *(s.num_padded for s in fetched.data.splits.values())
            if padded not in self._checked:
                # Compiled once for each bucket: the call below finds this very program.
                check_fits(one_round.lower(*given, self._algo.round).compile(), None, len(source))
                self._checked.add(padded)
        self._told = self._told or _holds_negative(examples)
        state, rows, self._now, metrics, done = one_round(*given, self._algo.round)
        self._round += 1
        if rows:
            self._before = Before(np.where(fetched.mask, fetched.ids, -1), rows)
            job = self._submit(self._write, fetched.ids, fetched.mask, rows)
            self._writes.append(job)
        del fetched, before
        if self._running is not None:
            wait(self._running)  # from now on only three cohorts are on the device
        self._running = done
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()
        self._fetch_ahead()
        return state, metrics

    def _sample_ahead(self, count: int) -> None:
        """Draws cohorts until `count` wait for their round."""
        while len(self._fetching) + len(self._drawn) < count:
            self._chain, cohort = self._sample(
                self._key, np.int32(self._sampled), self._chain, self._sizes
            )
            self._sampled += 1
            self._samplers.append(self._chain)
            self._drawn.append(cohort)

    def _fetch_ahead(self) -> None:
        while len(self._fetching) < AHEAD:
            self._fetching.append(self._submit(self._fetch, self._drawn.popleft()))

    def _fetch(self, cohort: Cohort) -> Fetched:
        """In the thread: reads what a round needs and puts it on the device."""
        ids, mask = np.asarray(cohort.ids, np.int32), np.asarray(cohort.mask)
        data = self._stream.cohort(ids, mask, sharding=self._sharding)
        known = np.clip(ids, 0, len(self._stream.sizes) - 1)
        mask = mask & (ids == known)
        rows = {name: edit.gather(known) for name, edit in self._edits.items()}
        _holds_negative(data.examples)  # looked at here, so that the rounds need not wait for it
        late = None if cohort.late is None else np.asarray(cohort.late)
        rows = jax.device_put(rows, self._sharding)
        return jax.block_until_ready(Fetched(ids, mask, late, data, rows))

    def _write(self, ids: np.ndarray, mask: np.ndarray, rows: dict[str, PyTree]) -> None:
        """In the thread: waits for a round and writes its rows back."""
        for name, values in jax.device_get(rows).items():
            self._edits[name].scatter(ids, mask, values)

    def _await(self, job: Future[Fetched]) -> Fetched:
        """The result of a job; counts the time for which the device waits for it, too."""
        idle_since = None
        while True:
            if idle_since is None and (self._running is None or self._running.is_ready()):
                idle_since = time.perf_counter()
            try:
                result = job.result(timeout=5e-4 if idle_since is None else None)
                break
            except TimeoutError:
                if job.done():  # ended just after the wait, or raised this itself
                    result = job.result()
                    break
        if idle_since is not None:
            self._stream.timings.waited += time.perf_counter() - idle_since
        return result

    def _hand_out(self, state: RoundState, sampler: PyTree) -> RoundState:
        self._handed = {name: edit.freeze() for name, edit in self._edits.items()}
        return state._replace(sampler=sampler, **self._handed)

    def _submit(self, job: Callable[..., Any], *args: Any) -> Future[Any]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="fedjax_lite-stream")
        return self._executor.submit(job, *args)

    def _stop(self) -> None:
        """Waits for the job at hand, drops the others and ends the thread."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        self._forget()

    def _forget(self) -> None:
        self._drawn: deque[Cohort] = deque()
        self._samplers: deque[PyTree] = deque()
        self._fetching: deque[Future[Fetched]] = deque()
        self._writes: deque[Future[None]] = deque()
        self._before: Before | None = None
        self._running: Array | None = None
        self._handed: dict[str, HostTable] = {}
        self._now: PyTree = ()
        self._round = -1


@functools.partial(jax.jit, static_argnums=8, donate_argnums=(1, 2))
def one_round(
    key: Key,
    state: RoundState,
    rows: dict[str, PyTree],
    before: dict[str, PyTree],
    source: Array,
    data: CohortDataset,
    cohort: Cohort,
    sampler: PyTree,
    round_fn: Callable[..., Any],
) -> tuple[RoundState, dict[str, PyTree], PyTree, dict[str, Array], Array]:
    """One round on the data of its cohort.

    Args:
      key: of the run.
      state: tables that the host keeps are ``()`` in it.
      rows: of those tables, `[C, ...]`, as they were fetched.
      before: what the round before returned of them.
      source: int32 `[C]`: a client's slot in the round before, or -1 where `rows` is newest.
      data: of the cohort.
      cohort: who takes part; ids lie in the population.
      sampler: its state after it drew this cohort: it may know when they began, and of what model;
        not donated, for later cohorts are drawn from it.
      round_fn: ``algo.round``.

    Returns:
      ``(state, rows, sampler, metrics, done)``; `done` is ready when the round is.
    """
    newest = jax.tree.map(
        lambda old, new: trees.where(source >= 0, new[jnp.maximum(source, 0)], old), rows, before
    )
    tables = {name: getattr(state, name) for name in TABLES if name not in rows}
    local = trees.gather_rows(tables, cohort.ids)
    whole = state._replace(sampler=sampler, **local, **newest)
    new, metrics = round_fn(key, whole, data, cohort)
    local = {name: getattr(new, name) for name in tables}
    tables = trees.scatter_rows(tables, cohort.ids, cohort.mask, local)
    returned = {name: getattr(new, name) for name in rows}
    state = new._replace(sampler=(), **tables, **dict.fromkeys(rows, ()))
    return state, returned, new.sampler, metrics, jnp.copy(new.round)


def _holds_negative(examples: PyTree) -> bool:
    """Whether there are labels below 0; the array is read once."""
    seen = seen_in(examples.get("y")) if isinstance(examples, Mapping) else None
    return seen is not None and seen.low < 0


def _find(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """int32: where each id lies in `among`, -1 where it does not."""
    if not len(among):
        return np.full(len(ids), -1, np.int32)
    order = np.argsort(among)
    places = order[np.searchsorted(among, ids, sorter=order).clip(max=len(among) - 1)]
    return np.where(among[places] == ids, places, -1).astype(np.int32)


def _stack(rows: list[dict[str, Any]], capacity: int) -> PyTree:
    """Metrics of rounds, stacked and filled up with zeros to `[capacity, ...]`."""

    def stack(*values: Any) -> np.ndarray:
        first = np.asarray(values[0])
        table = np.zeros((capacity, *first.shape), first.dtype)
        table[: len(values)] = values
        return table

    return jax.tree.map(stack, *rows)


def _replicated(state: PyTree) -> NamedSharding | None:
    """Where data go: onto all devices of the mesh that the state lies on, if it is on one."""
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf.sharding, NamedSharding) and leaf.committed:
            return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None
