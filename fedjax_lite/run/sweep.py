"""sweep(): a grid of hyper-parameters and seeds as one compiled program."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.labels import Outputs, watching
from fedjax_lite.engine.mesh.cores import core_mesh, shared
from fedjax_lite.engine.mesh.sharded import AXIS, sharded
from fedjax_lite.engine.reuse import reusing
from fedjax_lite.engine.table_memory import available_bytes
from fedjax_lite.evaluate import results_of
from fedjax_lite.evaluate.finite import look_inside
from fedjax_lite.hosts.cores import on_one_core
from fedjax_lite.run.arguments import USUAL, check_names
from fedjax_lite.run.divergence import loss_is_finite, warn_of_members
from fedjax_lite.run.grid import points_of
from fedjax_lite.run.progress import Progress
from fedjax_lite.run.rounds import wait
from fedjax_lite.types import Accountant, FederatedAlgorithm, Key, Params, PyTree, RoundState

Row = dict[str, Any]
PAUSE = 10.0
"""Seconds between the plain lines of progress: rounds come in large steps, and quickly."""
COPIES = 6
"""States that a member is taken to need: its own, the new one, a lane's weights and gradient."""
PIECES = 10
"""Calls that the rounds of a chunk are split into, for the display; the program is the same."""

_CONVERSIONS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Sweep(NamedTuple):
    """What a sweep gives."""

    rows: list[Row]
    """One a member and evaluated round: the member's settings, ``round``, metrics, evaluation."""
    states: PyTree
    """The final `RoundState`s, leaves `[M, ...]`, members in the order of `points`; in host memory
    where they ran in chunks."""
    points: list[Row]
    """The settings of each member, ``seed`` included."""
    diverged: Sequence[Row] = ()
    """Settings of the members whose model or last training loss is not finite."""

    def best(self, metric: str, *, largest: bool = True) -> Row:
        """The settings with the best last value of a metric, in the mean over seeds.

        Args:
          metric: a column of `rows`.
          largest: whether more is better; False for losses.

        Returns:
          The settings without the seed, and the metric's ``mean`` and ``std`` over seeds. A
          setting of which a seed diverged, or has a NaN, is never the best.

        Raises:
          ValueError: if no row has the metric, or every setting diverged or has a NaN.
        """
        names = [name for name in self.points[0] if name != "seed"]
        lost = [[point[name] for name in names] for point in self.diverged]
        table = [row for row in self.table(metric) if [row[name] for name in names] not in lost]
        table = [row for row in table if np.isfinite(row["mean"])]
        if not table:
            raise ValueError(f"metric {metric!r} has no best setting: each diverged or has a NaN")
        return (max if largest else min)(table, key=lambda row: row["mean"])

    def table(self, metric: str) -> list[Row]:
        """Last value of a metric by setting: mean and standard deviation over seeds.

        Args:
          metric: a column of `rows`.

        Returns:
          One row a setting: its hyper-parameters, ``mean``, ``std`` (n - 1; NaN for one seed or
          where one is not finite) and ``num_seeds``.

        Raises:
          ValueError: if no row has the metric.
        """
        last: dict[tuple, float] = {}
        names = list(self.points[0])
        for row in self.rows:
            if metric in row:
                last[tuple(row[name] for name in names)] = row[metric]
        if not last:
            raise ValueError(f"metric must be a column of the rows, got {metric!r}")
        groups: dict[tuple, list[float]] = {}
        for settings, value in last.items():
            groups.setdefault(settings[:-1], []).append(value)  # the seed comes last
        return [
            {
                **dict(zip(names[:-1], settings, strict=True)),
                "mean": float(np.mean(values)),
                "std": _deviation(values),
                "num_seeds": len(values),
            }
            for settings, values in groups.items()
        ]


def sweep(
    make: Callable[..., FederatedAlgorithm],
    grid: Mapping[str, Sequence[float]],
    *,
    init: Callable[[Key], Params],
    data: PyTree,
    num_rounds: int,
    seeds: Sequence[int] = (0,),
    evaluate: Callable[[RoundState], Mapping[str, Any]] | None = None,
    every: int | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Sweep:
    """Runs every combination of a grid and every seed, side by side under `vmap`.

    Hyper-parameters are traced, so all members share one compiled program. A member is the run
    that ``run(make(**point), jax.random.key(seed), ...)`` would be with parameters
    ``init(jax.random.key(seed))``, up to rounding: a batched matrix product adds in another order.

    A call that asks for the same program as one of the last few (the same algorithm, shapes and
    number of members at a time; other values, seeds and rounds) traces it anew but compiles
    nothing. A member that diverges goes on, its rows show NaN, and a warning names it at the end.

    Args:
      make: ``(**point) -> algorithm``, e.g. ``lambda learning_rate, mu: fl.fedprox(...)``. The
        values that it gets are traced scalars: hand them on, never ``float()`` them. It is also
        called once a setting with plain numbers, so that bad ones are named. Traced scalars have
        a dtype of their own (float32; float64 under x64), so parameters should have it too.
      grid: values by name of the argument, numbers only; members are their product. A choice
        that changes shapes or code (a model, a batch size) belongs into a Python loop around.
      init: ``(key) -> params``, e.g. ``model.init``.
      data: the population, shared by all members.
      num_rounds: rounds of each member.
      seeds: of parameters, cohorts and batches.
      evaluate: as in `run`, e.g. ``evaluator(model, test)``; called member by member.
      every: rounds between evaluations; default `num_rounds`.
      chunk_size: members at a time; default as many as half of the device's free memory holds at
        six states each. Lanes and activations are not counted: with `vmapped` cohorts choose it.
      mesh: with an axis ``clients`` (`client_mesh`): members are dealt to its devices, which never
        wait for each other; `chunk_size` is rounded up to a multiple of them.
      progress: show a bar or plain lines, as `run` does, with the best loss and accuracy of the
        members that run; where they run in chunks, rounds of all chunks are counted.

    Returns:
      A `Sweep`; rows of private algorithms have what was spent. Members of one seed have the same
      noise, so only one of them may be published.

    Raises:
      TypeError: if `make` does not return an algorithm, `init` is not callable, or a value is not
        a number.
      ValueError: if the grid or the seeds are empty, a count is below 1, or `num_rounds` exceeds a
        privacy budget.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> def make(learning_rate):
      ...     return fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(learning_rate),
      ...                      plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> result = sweep(make, {"learning_rate": [0.5, 1.0]}, init=lambda key: jnp.float32(0),
      ...                data=data, num_rounds=1, progress=False)
      >>> result.states.server.params.tolist()
      [0.5, 1.0]
    """
    points = points_of(grid, seeds)
    check_names(results_of(evaluate), USUAL.union(points[0]))
    if not callable(init):
        raise TypeError(
            f"init must be callable, (key) -> params, got {type(init).__name__}: every seed has "
            "its own parameters; hand on the function itself, init=model.init"
        )
    if mesh is not None:
        sharded(mesh)  # refuses a mesh without the axis
    every = num_rounds if every is None else every
    check_count(num_rounds, "num_rounds", minimum=1)
    check_count(every, "every", minimum=1)
    data = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), data)
    if mesh is None and len(points) > 1 and (mesh := core_mesh()) is not None:
        data = shared(data, mesh)
    num_devices = 1 if mesh is None else mesh.shape[AXIS]
    table = {name: jnp.asarray([point[name] for point in points]) for name in points[0]}
    one = _Member(make, init)
    accountants: dict[tuple, Accountant | None] = {}
    for point in points:  # once with real numbers: the checks of factories cannot see traced ones
        if point["seed"] == points[0]["seed"]:
            accountants[_setting(point)] = one.algorithm(point)[0].accountant
            _check_budget(accountants[_setting(point)], point, num_rounds)
    if chunk_size is None:
        shapes = jax.eval_shape(one.start, {name: leaf[0] for name, leaf in table.items()}, data)
        chunk_size = fitting(shapes, available_bytes(jax.local_devices()[0])) * num_devices
    check_count(chunk_size, "chunk_size", minimum=1)
    chunk_size = -(-min(chunk_size, len(points)) // num_devices) * num_devices

    looking = watching(Outputs(), (), getattr(data, "examples", None))
    start, advance = map(looking, _programs(one, mesh))  # labels are compared at every call
    rows: list[Row] = []
    states = []
    seen: dict[int, int] = {}  # the round by which a member was not finite
    num_chunks = -(-len(points) // chunk_size)
    unit = "round" if num_chunks == 1 else f"round (of {num_chunks} chunks)"
    bar = Progress(num_chunks * num_rounds, enabled=progress, unit=unit, pause=PAUSE)
    piece = -(-num_rounds // PIECES)
    with contextlib.closing(bar):
        for first in range(0, len(points), chunk_size):
            # The last chunk is filled up with its last member, so that nothing is compiled again.
            ids = np.minimum(np.arange(first, first + chunk_size), len(points) - 1)
            chunk = {name: leaf[ids] for name, leaf in table.items()}
            here = points[first : first + chunk_size]
            state, done, before = start(chunk, data), 0, first // chunk_size * num_rounds
            while done < num_rounds:
                length = min(every - done % every, piece - done % piece, num_rounds - done)
                state, metrics, finite = advance(chunk, state, data, np.int32(length))
                wait(finite)  # where Ctrl-C is seen
                done += length
                host, finite = jax.device_get((metrics, finite))
                fresh = [{k: v[i].item() for k, v in host.items()} for i in range(len(here))]
                for index, row in enumerate(fresh):
                    if not (finite[index] and loss_is_finite({"round": done, **row})):
                        seen.setdefault(first + index, done)
                    else:
                        seen.pop(first + index, None)  # a loss may come back
                if done % every and done < num_rounds:
                    bar.update(before + done, _best(fresh), evaluated=True)
                    continue
                for index, point in enumerate(here):
                    row = _merge({**point, "round": done}, fresh[index])
                    accountant = accountants[_setting(point)]
                    if accountant is not None:
                        row = _merge(row, accountant.spent(done))
                    if evaluate is not None:
                        member = jax.tree.map(lambda leaf, i=index: leaf[i], state)
                        row = _merge(row, evaluate(member))
                    rows.append(row)
                bar.update(before + done, _best(rows[-len(here) :]), evaluated=True)
            count = len(here)
            kept = jax.tree.map(lambda leaf, n=count: leaf[:n], state)
            # On the host, or the chunks would pile up on the device that they were made for.
            states.append(kept if count == len(points) else jax.device_get(kept))
    diverged = [points[index] for index in sorted(seen)]
    warn_of_members(diverged, [seen[index] for index in sorted(seen)], num_members=len(points))
    state = states[0] if len(states) == 1 else jax.tree.map(_concatenate, *states)
    return Sweep(rows, state, points, diverged)


def _best(rows: list[Row]) -> Row:
    """The best finite loss and accuracy of some members, for the display."""
    best: Row = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        numbers = [v for v in values if isinstance(v, int | float) and np.isfinite(v)]
        if numbers and name.endswith("loss"):
            best[f"lowest {name}"] = min(numbers)
        elif numbers and name.endswith("accuracy"):
            best[f"highest {name}"] = max(numbers)
    return best


def _deviation(values: list[float]) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.std(values, ddof=1))


def _setting(point: Row) -> tuple:
    return tuple(sorted((name, value) for name, value in point.items() if name != "seed"))


def _check_budget(accountant: Accountant | None, point: Row, num_rounds: int) -> None:
    budget = None if accountant is None else accountant.max_rounds
    if budget is not None and budget < num_rounds:
        raise ValueError(
            f"num_rounds must be at most {budget}, where the privacy budget of {point} ends, got "
            f"{num_rounds}; `run` stops there by itself, members of a sweep go on together"
        )


def _concatenate(*parts: Any) -> Any:
    return (jnp if _is_key(parts[0]) else np).concatenate(parts)


def _merge(row: Row, more: Mapping[str, Any]) -> Row:
    """Both; a metric must not stand in a setting's place."""
    clash = sorted(set(row) & set(more))
    if clash:
        raise ValueError(
            f"names of the grid, of the round's metrics and of evaluate must differ, got {clash} "
            "twice; name the argument of make otherwise"
        )
    return {**row, **more}


def fitting(state: PyTree, available: int | None) -> int:
    """How many members half of the memory should hold, at least one.

    Example:
      >>> fitting(jax.ShapeDtypeStruct((1000,), jnp.float32), 480_000)
      10
    """
    if available is None:
        return 1
    arrays = [leaf for leaf in jax.tree.leaves(state) if not _is_key(leaf)]
    return max(available // 2 // max(COPIES * trees.num_bits(arrays) // 8, 1), 1)


class _Member(NamedTuple):
    """One run, as functions of its traced settings."""

    make: Callable[..., FederatedAlgorithm]
    init: Callable[[Key], Params]

    def algorithm(self, point: Row) -> tuple[FederatedAlgorithm, Key]:
        settings = dict(point)
        key = jax.random.key(settings.pop("seed"))
        try:
            algo = self.make(**settings)
        except _CONVERSIONS as error:
            error.add_note(
                f"sweep: make was called with traced values of {', '.join(settings)}: hand them "
                "on, do not convert them (float(...), if, numpy)"
            )
            raise
        if not isinstance(algo, FederatedAlgorithm):
            raise TypeError(
                f"make must return a FederatedAlgorithm, got {algo!r}; was a factory not called?"
            )
        return algo, key

    def start(self, point: Row, data: PyTree) -> RoundState:
        algo, key = self.algorithm(point)
        return algo.init(key, self.init(key), data)

    def advance(
        self, point: Row, state: RoundState, data: PyTree, length: Any
    ) -> tuple[RoundState, PyTree, jax.Array]:
        """`length` rounds, the metrics of the last of them, and whether the model is finite."""
        algo, key = self.algorithm(point)
        one_round = jax.jit(algo.round)  # traced once for both the shapes and the loop
        _, shapes = jax.eval_shape(one_round, key, state, data)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state, metrics = jax.lax.fori_loop(
            0, length, lambda _, carry: one_round(key, carry[0], data), (state, empty)
        )
        return state, metrics, look_inside(state).finite


def _programs(one: _Member, mesh: Mesh | None) -> tuple[Callable, Callable]:
    """``start(points, data)`` and ``advance(points, states, data, length)`` of a chunk."""
    start = jax.vmap(on_one_core()(one.start), (0, None))
    advance = jax.vmap(on_one_core()(one.advance), (0, 0, None, None))
    if mesh is not None:
        whole, part = PartitionSpec(), PartitionSpec(AXIS)
        over = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        start = over(start, in_specs=(part, whole), out_specs=part)
        advance = over(advance, in_specs=(part, part, whole, whole), out_specs=part)
    return reusing(start, place=mesh), reusing(advance, donate_argnums=1, place=mesh)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
