"""Client optimizers for which a round is too short, noticed on the host before the first round.

A client's optimizer starts anew in every round. What gathers gradients over more steps than a round
has never moves, and a schedule over more steps never leaves its beginning. Both are seen by running
the optimizer on a model of a few ones: for milliseconds, once for each amount of local work, and
only where its state counts steps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.checks.optimizer_arguments import loss_arguments, step_optimizer
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.choose import planned_steps
from fedjax_lite.types import Array, Params, PyTree

FACTOR = 10.0
"""Updates that would become so many times larger or smaller later on are worth a word."""
HORIZON = 4096
"""Steps within which an optimizer that gathers gradients is expected to move."""
_SCHEDULED = (
    *("ScaleByScheduleState", "WrappedScheduleState"),
    *("InjectHyperparamsState", "InjectStatefulHyperparamsState"),
)
_STEPS: ContextVar[np.ndarray | None] = ContextVar("local steps of the clients", default=None)


@contextlib.contextmanager
def local_steps(plan: Plan, data: Any) -> Iterator[None]:
    """In this context the host knows how many steps a client does in a round.

    Amounts of work that are functions, and sizes that are traced or not at hand, are not known.

    Args:
      plan: of the clients.
      data: the population.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> with local_steps(Plan(batch_size=2), from_arrays({"x": np.zeros(3)}, [0, 0, 0])):
      ...     _STEPS.get().tolist()
      [2]
    """
    steps: np.ndarray | None = None
    sizes: Any = getattr(data, "sizes", None)
    amount = plan.epochs if plan.steps is None else plan.steps
    known = not callable(amount) and not _traced((sizes, amount))
    if sizes is not None and known and getattr(sizes, "is_fully_addressable", True):
        steps = np.broadcast_to(planned_steps(plan, np.asarray(sizes)), np.shape(sizes))
    token = _STEPS.set(steps)
    try:
        yield
    finally:
        _STEPS.reset(token)


def watch(
    resolve: Callable[[Array], optax.GradientTransformationExtraArgs],
) -> Callable[[Params], None]:
    """A look at a client optimizer, for `ClientUpdate.init`; it is silent where it cannot tell.

    Args:
      resolve: ``(round) -> optimizer``, as `resolve_optimizer` gives it.

    Returns:
      ``(params) -> None``, which warns inside `local_steps`.

    Example:
      >>> watch(lambda round: optax.with_extra_args_support(optax.adam(0.1)))({"w": jnp.ones(3)})
    """
    seen: set[bytes] = set()

    def look(params: Params) -> None:
        steps = _STEPS.get()
        steps = np.zeros(0, int) if steps is None else np.unique(steps[steps > 0])
        if not len(steps) or _traced(params) or steps.tobytes() in seen:
            return
        seen.add(steps.tobytes())
        try:
            with jax.ensure_compile_time_eval():
                message = _finding(resolve, params, steps)
        except Exception:  # an optimizer that cannot be run on ones is none of our business here
            return
        if message:
            warnings.warn(message, stacklevel=6)

    return look


def _finding(resolve: Any, params: Params, steps: np.ndarray) -> str | None:
    model = jax.tree.map(
        lambda leaf: jnp.ones(
            [min(length, 2) for length in jnp.shape(leaf)], jnp.result_type(leaf)
        ),
        params,
    )
    optimizer = resolve(jnp.int32(0))
    state = optimizer.init(model)
    kinds = set(_counting(state))
    if not kinds or _traced(state):
        return None
    most = int(steps.max())
    value_fn = lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params))  # noqa: E731
    extra = {"anchor": model, **loss_arguments(value_fn, value_fn(model), model)}

    def one(state: PyTree, _: Any = None) -> tuple[PyTree, Array]:
        updates, state = step_optimizer(
            optimizer, model, state, model, extra, name="client_optimizer", remedy=""
        )
        return state, sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(updates))

    moved = one(state)[1]
    if isinstance(moved, jax.core.Tracer):  # a traced rate
        return None
    if float(moved) == 0:
        many = min(max(4 * most, HORIZON), 4 * HORIZON)
        sizes = np.asarray(jax.jit(lambda s: jax.lax.scan(one, s, length=many)[1])(state))
        first = int(np.argmax(sizes != 0)) + 1
        if not sizes.any():
            return None  # a rate of zero, or longer than we look
        if first > steps.min():
            return _gathers(first, steps)
    if kinds.isdisjoint(_SCHEDULED):
        return None
    inside = np.unique(np.linspace(0, most - 1, 64).astype(int))
    after = np.unique(most * 2 ** np.arange(21.0)).clip(max=2.0**30).astype(int)
    at = jax.vmap(lambda count: one(_at(state, count))[1])
    early, late = (np.asarray(at(jnp.asarray(counts, jnp.int32))) for counts in (inside, after))
    late = late[np.isfinite(late)]
    if not early.any() or not len(late):
        return None
    seen, whole = np.ptp(early), np.ptp(np.append(early, late))
    grows, shrinks = late.max() / early.max(), early[early > 0].min() / max(late.min(), 1e-30)
    if max(grows, shrinks) < FACTOR or seen >= whole / 2:
        return None
    times, word = (grows, "larger") if grows >= FACTOR else (min(shrinks, 1e6), "smaller")
    return (
        "client_optimizer has a schedule over steps, which starts anew in every round: the "
        f"{most} steps of a round see only its beginning, and updates would become {times:.3g} "
        f"times {word} later on; schedule over rounds instead: client_optimizer=lambda r: "
        "optax.sgd(rate(r))"
    )


def _gathers(first: int, steps: np.ndarray) -> str:
    most = int(steps.max())
    whom = (
        f"no client does more than {most} in a round: nobody ever trains"
        if first > most
        else f"some clients do no more than {int(steps.min())} in a round: these never train"
    )
    return (
        f"client_optimizer moves in its step {first} for the first time and starts anew in every "
        f"round, but {whom}; give them more local steps (plan=fl.Plan(...)), larger batches in "
        "place of accumulation, schedule over rounds (client_optimizer=lambda r: "
        "optax.sgd(rate(r))), or accumulate over rounds: server_optimizer=optax.MultiSteps(...)"
    )


def _counting(state: Any) -> Iterator[str]:
    """Names of the states that count steps, but for those that only correct a bias by it."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        name = type(state).__name__
        counts = any(
            jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
            for leaf in state
            if isinstance(leaf, jax.Array)
        )
        if counts and (name in _SCHEDULED or not name.startswith("ScaleBy")):
            yield name
    children = state.values() if isinstance(state, dict) else state
    if isinstance(state, tuple | list | dict):
        for child in children:
            yield from _counting(child)


def _at(state: Any, count: Array) -> Any:
    """The state in which schedules have come to a step, and all else is as it was."""
    if isinstance(state, dict):
        return {name: _at(child, count) for name, child in state.items()}
    fields: Any = getattr(state, "_fields", None)
    if fields is not None:
        new = state._replace(**{f: _at(getattr(state, f), count) for f in fields})
        return new._replace(count=count) if type(state).__name__ in _SCHEDULED else new
    if isinstance(state, tuple | list):
        return type(state)(_at(child, count) for child in state)
    return state


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
