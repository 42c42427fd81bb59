"""An optimizer in words: by the note of its factory, else by what it does to known gradients."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.checks.made import Made, maker_of
from fedjax_lite.checks.optimizer_arguments import as_transformation
from fedjax_lite.checks.tried import tried
from fedjax_lite.describe.families import ADAPTIVE, FAMILIES, Family, Reading
from fedjax_lite.describe.notes import called, is_ours
from fedjax_lite.describe.numbers import LIBRARIES, figure, function_words, measured, rounded
from fedjax_lite.describe.schedules import NEAR, TIMES, curve_words, rate_words
from fedjax_lite.describe.stages import PROXIMAL, Arrangement, Stage, arrangements, pull
from fedjax_lite.describe.trials import (
    CHECKS,
    PROBES,
    STEPS,
    Trial,
    found_in,
    replaced_in_state,
    trial_of,
)
from fedjax_lite.round import server

TRACED = float("nan")
"""Stands in a reading for a number that is traced."""
HOLDING = (
    *(optax.MaskedState, optax.InjectStatefulHyperparamsState),
    optax.transforms.PartitionState,
)
KEPT = (optax.EmptyState, optax.ScaleByScheduleState, optax.ZeroNansState, *ADAPTIVE)
TWO = jax.ShapeDtypeStruct((2,), np.float32)


class Optimizer(NamedTuple):
    """An optimizer, read."""

    words: str
    names: tuple[str, ...] = ()
    """What citations know its stages by: "scale_by_adam", "fedjax_lite.round.server.yogi" ..."""
    momentum: bool = False
    """SGD with momentum, apart from `aside`."""
    plain: bool = False
    """SGD without momentum, apart from `aside`."""
    core: str = ""
    """Its only step, if citations know it, apart from `aside`."""
    aside: tuple[str, ...] = ()
    """What it does beside its step, such as "a clipped pseudo-gradient"."""


_known: weakref.WeakKeyDictionary[Any, Optimizer] = weakref.WeakKeyDictionary()
"""By update function, for as long as that lives: a trial takes some hundredths of a second."""


def read_optimizer(optimizer: Any) -> Optimizer:
    """Names an optimizer and its settings.

    One of optax carries no note: it is tried on known gradients, and called what does the same. One
    that is like nothing known is told by the number of its transformations and by its states.

    Args:
      optimizer: an optax optimizer.

    Returns:
      An `Optimizer`.

    Example:
      >>> read_optimizer(optax.sgd(0.1)).words
      'SGD with learning rate 0.1'
      >>> read_optimizer(optax.adamw(0.001)).words
      'AdamW (b1 0.9, b2 0.999, eps 1e-08, weight decay 0.0001) with learning rate 0.001'
      >>> read_optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))).words
      'optax.clip_by_global_norm(max_norm 1), then SGD with learning rate 0.1'
      >>> read_optimizer(optax.lion(0.1)).words
      'an optax chain of 3 transformations with ScaleByLionState'
    """
    optimizer = as_transformation(optimizer)
    note = maker_of(optimizer)
    if note is not None and (signed := _signed(note)) is not None:
        return signed
    function = optimizer.update
    kept = inspect.isfunction(function)  # what else there is may have no hash
    if kept and function in _known:
        return _known[function]
    found, traced = _tried(optimizer)
    if found is None:
        found = _unknown(optimizer)
    if kept and not traced:
        _known[function] = found
    return found


def is_optimizer(value: Any) -> bool:
    """Whether this is an optax optimizer.

    Example:
      >>> is_optimizer(optax.sgd(0.1)), is_optimizer(0.1)
      (True, False)
    """
    return isinstance(value, optax.GradientTransformation | optax.MultiSteps)


def of_the_round(chosen: Any) -> Optimizer:
    """A client's optimizer, or a function of the round that gives one.

    Example:
      >>> from textwrap import dedent  # a function from elsewhere
      >>> of_the_round(dedent).words
      'an optimizer that depends on the round: your own `dedent` (textwrap)'
    """
    if is_optimizer(chosen):
        return read_optimizer(chosen)
    note = maker_of(chosen)
    if note is not None and (signed := _signed(note)) is not None:
        return signed
    words = f"an optimizer that depends on the round: {function_words(chosen)}"
    try:
        first = read_optimizer(chosen(np.int32(0))).words
    except Exception:  # whatever a user's function raises: it is left untold
        return Optimizer(words)
    return Optimizer(f"{words}, in round 0 {first}")


def _signed(note: Made) -> Optimizer | None:
    """An optimizer of the package, or of a factory of the user's that signs."""
    given = note.arguments
    key = f"{note.module}.{note.name}"
    inner = given.get("client_optimizer", given.get("optimizer", given.get("server_optimizer")))
    if not is_ours(note.module):
        settings = [f"{k} {figure(v)}" for k, v in given.items() if not is_optimizer(v)]
        around = [read_optimizer(v).words for v in given.values() if is_optimizer(v)]
        words = f"your own `{note.name}` ({note.module})"
        words += f" with {', '.join(settings)}" if settings else ""
        return Optimizer(words + (f" around ({'; '.join(around)})" if around else ""))
    if note.module == server.__name__:
        family = next(family for family in FAMILIES if key in family.keys)
        shown = [f"{k} {figure(given[k])}" for k in ("b1", "b2", "tau") if k in given]
        rate = f"with learning rate {rate_words(given['learning_rate'])}"
        return Optimizer(f"{family.name} ({', '.join(shown)}) {rate}", (key,), core=key)
    if key == PROXIMAL:
        return Optimizer(pull(given["mu"]).words, (PROXIMAL,))
    if note.name == "pulled":
        rest = of_the_round(inner)
        return Optimizer(f"{pull(given['mu']).words}, then {rest.words}", (PROXIMAL, *rest.names))
    if inner is not None:  # with_statistics, with_averaged_statistics
        rest = of_the_round(inner)
        return rest._replace(words=f"{rest.words}, then running statistics averaged apart")
    return None


def _tried(optimizer: Any) -> tuple[Optimizer | None, bool]:
    """What an optimizer is by its behaviour, and whether traced numbers have a part in it."""
    state = _state(optimizer)
    if not _is_open(state) or len(_labels(state)) > 1:
        return None, False  # a few steps do not tell
    found, traced = _hypothesis(optimizer, stand_in=0.5)
    sign = 1 if found is not None or not traced else -1  # a rate may have been turned before
    if sign < 0:
        found, _ = _hypothesis(optimizer, stand_in=-0.5)
    if found is None or not traced:
        return (None if found is None else _told(optimizer, *found)), traced
    other, _ = _hypothesis(optimizer, stand_in=0.75 * sign)
    if other is None:
        return None, True
    return _told(optimizer, *_merged(found, other)), True


def _merged(found: Any, other: Any) -> tuple[Family, Reading, Arrangement, Any]:
    """What two stand-ins have in common: what differs is traced."""
    family, reading, around, curve = found
    _, reading2, around2, curve2 = other
    numbers = {k: _same(v, reading2.numbers.get(k)) for k, v in reading.numbers.items()}
    rate = _same(reading.rate, reading2.rate)
    if curve is not None and not np.allclose(curve, curve2, rtol=1e-4, atol=0):
        rate = TRACED
    stages = [
        tuple(one._replace(number=_same(one.number, two.number)) for one, two in zip(*both))
        for both in zip(around, around2)
    ]
    return family, Reading(rate, numbers, None), Arrangement(*stages), curve


def _same(one: Any, other: Any) -> Any:
    return TRACED if other is None or abs(one - other) > 1e-4 * abs(one) else one


def _is_open(state: Any) -> bool:
    """Whether everything kept is of a class of which it is known what it is for.

    Counters of another kind may turn what an optimizer does after any number of steps.
    """
    if isinstance(state, HOLDING):
        inner = getattr(state, "inner_state", None) or getattr(state, "inner_states", None)
        return _is_open(inner)
    if type(state) in (tuple, list):
        return all(map(_is_open, state))
    if type(state) is dict:
        return all(map(_is_open, state.values()))
    return state is None or isinstance(state, KEPT)


def _labels(state: Any) -> list[str]:
    parts = found_in(state, optax.transforms.PartitionState)
    return sorted(map(str, parts[0].inner_states)) if parts else []


def _hypothesis(optimizer: Any, *, stand_in: float) -> tuple[Any, bool]:
    """Family, reading, arrangement and learning rates of the first that does the same."""
    start, rates = 0, None
    try:
        rates, varies = _rates(optimizer, stand_in)
        if varies:
            start = int(np.argmax(np.abs(rates[: NEAR - 4])))
        at = lambda state: _later(state, start)  # noqa: E731
        trial, traced = trial_of(optimizer, stand_in=stand_in, at=at)
        if varies and rates[start + 1]:  # as if the rate had stayed
            stayed = np.array([[1.0], [rates[start] / rates[start + 1]]])
            trial = trial._replace(updates=trial.updates * stayed)
        original, _ = trial_of(optimizer, CHECKS, stand_in=stand_in, at=at)
    except Exception:  # masks of another model, a loss that is asked for, a user's own error
        return None, False
    for family in FAMILIES:
        reading = family.read(trial)
        if reading is None or not np.isfinite([reading.rate, *reading.numbers.values()]).all():
            continue
        curve = rounded(reading.rate) * rates / rates[start] if varies else None
        rate = reading.rate if curve is None else _table(curve)
        core = family.factory(rate, **reading.numbers)
        for arrangement in _likely_first(list(arrangements(reading, trial)), core, optimizer):
            same, _ = trial_of(arrangement.around(core), CHECKS, stand_in=stand_in, at=at)
            if _agree(same, original):
                return (family, reading, arrangement, curve), traced
    return None, traced


def _rates(optimizer: Any, stand_in: float) -> tuple[np.ndarray, bool]:
    """Updates at `TIMES`, in proportion to the learning rates, and whether they differ."""
    takes = optax.with_extra_args_support(optimizer)
    gradient, params, anchor = PROBES.gradients[STEPS, 0], PROBES.params[STEPS], PROBES.anchors[0]

    def at(time: Any) -> Any:
        state = _later(takes.init(params), time)
        return takes.update(gradient, state, params, anchor=anchor)[0][0]

    if _later(state := _state(optimizer), 1) is state:
        return np.ones(len(TIMES)), False
    rates, _ = tried(jax.vmap(at), TIMES, stand_in=stand_in)
    rates = np.asarray(rates, np.float64)
    return rates, not np.allclose(rates, rates[0], rtol=1e-6, atol=0)


COUNTED = (optax.ScaleByScheduleState, server.AdaptiveState, optax.InjectStatefulHyperparamsState)
"""States whose counters learning rates may follow."""


def _later(state: Any, time: Any) -> Any:
    """A fresh state whose learning rates are those of a later step."""

    def counts(one: Any) -> Any:
        if not isinstance(one, optax.InjectStatefulHyperparamsState):
            return one._replace(count=jnp.asarray(time, jnp.int32))
        states = jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, time, leaf.dtype), one.hyperparams_states
        )
        return one._replace(hyperparams_states=states)

    kinds = [kind for kind in COUNTED if found_in(state, kind)]
    for kind in kinds:
        state = replaced_in_state(state, kind, counts)
    return state


def _table(curve: np.ndarray) -> Callable[[Any], Any]:
    early = np.asarray(curve[:NEAR], np.float32)
    return lambda count: jnp.where(jnp.arange(NEAR) == count, early, 0).sum()


def _likely_first(found: list[Arrangement], core: Any, optimizer: Any) -> list[Arrangement]:
    """Those before the others whose states have the structure of the original's."""
    wanted = jax.tree.structure(_state(optimizer))
    return sorted(found, key=lambda one: jax.tree.structure(_state(one.around(core))) != wanted)


def _state(optimizer: Any) -> Any:
    """What an optimizer keeps of a model of two numbers, as shapes; () where it keeps another's."""
    try:
        return jax.eval_shape(optimizer.init, TWO)
    except Exception:
        return ()


def _agree(one: Trial, other: Trial) -> bool:
    scale = np.abs(other.updates).max(axis=(1, 2), keepdims=True)
    near = np.abs(one.updates - other.updates) <= 1e-4 * np.abs(other.updates) + 1e-6 * scale
    return bool(near.all())


def _told(
    optimizer: Any, family: Family, reading: Reading, around: Arrangement, curve: Any
) -> Optimizer:
    """An optimizer that was recognised."""
    plain = family.factory is optax.sgd
    momentum = plain and bool(reading.numbers)
    rate = measured(reading.rate)
    if curve is not None:
        rate = "by a schedule" + ("" if np.isnan(reading.rate) else f": {curve_words(curve)}")
    if plain and reading.rate == -1 and not momentum:
        step = ""  # what is before it is all
    elif momentum:
        kind = "Nesterov momentum" if reading.numbers["nesterov"] else "momentum"
        step = f"SGD with {kind} {measured(reading.numbers['momentum'])} and learning rate {rate}"
    else:
        later = reading.numbers.get("momentum")
        given = {k: v for k, v in reading.numbers.items() if k != "momentum"}
        shown = [f"{k.replace('_', ' ') if k == 'weight_decay' else k} {measured(v)}"
                 for k, v in given.items() if v]  # fmt: skip
        step = family.name + (f" ({', '.join(shown)})" if shown else "")
        step += f" with learning rate {rate}"
        step += "" if later is None else f", then momentum {measured(later)}"
    before: tuple[Stage, ...] = around.before
    told = [*(s.words for s in before), *([step] if step else []), *(s.words for s in around.after)]
    words = ", then ".join(told) or "the gradient as it is"
    state = _state(optimizer)
    if labels := _labels(state):
        words = f"optax.partition by the label {labels[0]} around ({words})"
    elif found_in(state, optax.MaskedState):
        words += " (it has a mask; so it treats a single leaf of two numbers)"
    if found_in(state, optax.InjectStatefulHyperparamsState):
        words += ", its settings injected into its state"
    stages = (*before, *around.after)
    whole = all(s.aside for s in stages) and not found_in(state, optax.MaskedState)
    return Optimizer(
        words=words,
        names=(*(s.key for s in before), *family.keys, *(s.key for s in around.after)),
        momentum=momentum and whole,
        plain=plain and not momentum and bool(step) and whole,
        core=family.keys[0] if family.keys and whole else "",
        aside=tuple(dict.fromkeys(s.aside for s in stages if s.aside)),
    )


def _unknown(optimizer: Any) -> Optimizer:
    """An optimizer that is like nothing known."""
    name, module = called(optimizer.update)
    if not is_ours(module) and module.split(".")[0] not in LIBRARIES:
        return Optimizer(f"your own `{name}` ({module})" if name else f"your own ({module})")
    state = _state(optimizer)
    if labels := _labels(state):
        return Optimizer(f"optax.partition by the labels {', '.join(labels)}", _moments(state))
    kinds = list(dict.fromkeys(_classes(state)))
    keeping = f" with {', '.join(kinds)}" if kinds else ""
    if type(state) is tuple and state:
        plural = "" if len(state) == 1 else "s"
        return Optimizer(
            f"an optax chain of {len(state)} transformation{plural}{keeping}", _moments(state)
        )
    return Optimizer(f"an optax transformation{keeping}", _moments(state))


def _moments(state: Any) -> tuple[str, ...]:
    return ("scale_by_adam",) if found_in(state, optax.ScaleByAdamState) else ()


def _classes(state: Any) -> list[str]:
    """Names of the public classes of a state, in its order, but for the empty one."""
    if isinstance(state, optax.EmptyState):
        return []
    if hasattr(state, "_fields"):
        inner = [name for field in state for name in _classes(field)]
        return [type(state).__name__, *inner]
    if isinstance(state, tuple | list):
        return [name for one in state for name in _classes(one)]
    if isinstance(state, dict):
        return [name for one in state.values() for name in _classes(one)]
    return []
