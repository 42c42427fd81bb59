"""An optax optimizer in words, from its closures."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_lite.anatomy.figures import figure, optax_words, within
from fedjax_lite.anatomy.pieces import PACKAGE, read, step_of, steps, unwrapped

NAMED = {
    "scale_by_adam": "Adam",
    "scale_by_yogi": "Yogi as optax has it",
    "scale_by_rss": "Adagrad as optax has it",
    "scale_by_rms": "RMSProp",
    "scale_by_lion": "Lion",
    "scale_by_amsgrad": "AMSGrad",
    "scale_by_adamax": "AdaMax",
    "scale_by_belief": "AdaBelief",
    "scale_by_sign": "sign SGD",
}
"""Optimizers by the stage that makes them."""
SHOWN = ("b1", "b2", "decay", "eps", "nesterov", "initial_accumulator_value")
OWN = {
    "adagrad": "FedAdagrad's server step",
    "adam": "FedAdam's server step",
    "yogi": "FedYogi's server step",
}
"""Those of `fedjax_lite.server`."""
PREPARING = ("add_decayed_weights", "centralize", "zero_nans", "proximal", "add_noise")
"""Stages after which a step along the result is still called SGD; those that clip are, too."""
ASIDE = {
    "add_decayed_weights": "weight decay",
    "centralize": "a centralised pseudo-gradient",
    "zero_nans": "NaNs set to zero",
    "add_noise": "noise on the pseudo-gradient",
}
"""What a server optimizer does beside its step, in a title; stages that clip are told by place."""
RATES = ("scale", "scale_by_schedule", "scale_by_learning_rate")
NOTHING = ("identity", "init_empty_state", "")
INJECTED = "inject_hyperparams"
INSIDE = {"adam": ("scale_by_adam",), "adamw": ("scale_by_adam", "add_decayed_weights")}
"""Stages of optax' optimizers that `inject_hyperparams` makes only when it is run."""


class Stage(NamedTuple):
    """One transformation of a chain."""

    name: str
    module: str
    cells: dict[str, Any]


class Optimizer(NamedTuple):
    """An optimizer, read."""

    words: str
    names: tuple[str, ...]
    """Names of its stages, such as "scale_by_adam", "proximal" or "fedjax_lite.server.yogi"."""
    momentum: bool
    """SGD with momentum, apart from `aside`."""
    plain: bool
    """SGD without momentum, apart from `aside`."""
    core: str
    """The name of its only stage, apart from `aside`; "" where there are more."""
    aside: tuple[str, ...]
    """What it does beside its step, such as "a clipped pseudo-gradient"."""


def read_optimizer(optimizer: Any) -> Optimizer:
    """Names an optimizer and its settings.

    Args:
      optimizer: an optax optimizer, or the update function of one.

    Returns:
      An `Optimizer`; stages that are not known are told by their factory's name.

    Example:
      >>> read_optimizer(optax.sgd(0.1)).words
      'SGD with learning rate 0.1'
      >>> read_optimizer(optax.adamw(0.001)).words
      'AdamW (b1 0.9, b2 0.999, eps 1e-08, weight decay 0.0001) with learning rate 0.001'
      >>> read_optimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))).words
      'optax.clip_by_global_norm(max_norm 1), then SGD with learning rate 0.1'
    """
    flat = [stage for stage in stages(optimizer) if stage.name not in NOTHING]
    words: list[str] = []
    rest = list(flat)
    while rest:
        rate = _rate(rest[0])
        if rate is not None:
            before = flat[: len(flat) - len(rest)]
            plainly = all(s.name in PREPARING or "clip" in s.name for s in before)
            words.append(f"{'SGD with' if plainly else 'times the'} learning rate {rate}")
            rest = rest[1:]
            continue
        used, phrase = _known(rest, after=flat[: len(flat) - len(rest)])
        words.append(phrase if used else stage_words(rest[0]))
        rest = rest[max(used, 1) :]
    names = tuple(name for stage in flat for name in _names(stage))
    core = [stage for stage in flat if not _beside(stage)]
    kinds = [_kind(stage) for stage in core]
    plain = set(kinds) == {"rate"}
    momentum = bool(kinds) and kinds[0] == "momentum" and set(kinds[1:]) <= {"rate"}
    only = _names(core[0]) if len(core) == 1 else []
    return Optimizer(
        words=", then ".join(words) or "no change",
        names=names,
        momentum=momentum,
        plain=plain,
        core=only[0] if only else "",
        aside=tuple(dict.fromkeys(_aside(flat, core))),
    )


def stages(optimizer: Any) -> list[Stage]:
    """The chain laid flat: every transformation with what its closure holds.

    Example:
      >>> [stage.name for stage in stages(optax.sgd(0.1, momentum=0.9))]
      ['trace', 'scale']
    """
    function = unwrapped(getattr(optimizer, "update", optimizer))
    if not hasattr(function, "__code__"):
        return [Stage(type(function).__name__, type(function).__module__, {})]
    step = step_of(function)
    if step.factory == "with_extra_args_support" and "tx" in step.cells:
        return stages(step.cells["tx"])
    if step.factory == "chain" and "update_fns" in step.cells:
        updates = step.cells["update_fns"]
        inits = step_of(optimizer.init).cells.get("init_fns") if is_optimizer(optimizer) else None
        pairs = [optax.GradientTransformation(*pair) for pair in zip(inits or (), updates)]
        return [stage for inner in pairs or updates for stage in stages(inner)]
    if step.module.split(".")[0] == PACKAGE:
        if step.factory == "_apart" and "inner" in step.cells:
            return [*stages(step.cells["inner"]), Stage("with_statistics", step.module, {})]
        piece = read(function)
        if piece.own:  # a schedule of the user's inside one of ours
            ours = (s.factory for s in steps([function]) if s.module == step.module)
            name = next((name for name in ours if name in OWN), piece.name)
            return [Stage(name, step.module, piece.found)]
        return [Stage(piece.name, piece.module, piece.found)]
    if step.factory == INJECTED and hasattr(optimizer, "init"):  # init alone holds the numbers
        return [Stage(INJECTED, step.module, {**step_of(optimizer.init).cells, **step.cells})]
    name = step.factory or function.__qualname__.split(".")[0]
    return [Stage(name, step.module, step.cells)]


def _beside(stage: Stage) -> bool:
    """Whether a stage prepares or bounds a step rather than makes one."""
    return stage.name in ASIDE or (stage.module.split(".")[0] == "optax" and "clip" in stage.name)


def _aside(flat: list[Stage], core: list[Stage]) -> list[str]:
    """The stages beside the core, in words; a decay of 0 is none."""
    last = max((flat.index(stage) for stage in core), default=len(flat))
    found = []
    for position, stage in enumerate(flat):
        if stage.name in ASIDE:
            nothing = stage.name not in _names(stage)
            found += [] if nothing else [ASIDE[stage.name]]
        elif _beside(stage):
            found.append("a clipped " + ("pseudo-gradient" if position < last else "server step"))
    return found


def _kind(stage: Stage) -> str:
    """The word "rate" or "momentum" for what plain SGD is made of."""
    if stage.name == INJECTED and stage.cells.get("inner_factory") is optax.sgd:
        given = {**stage.cells.get("sched_hps", {}), **stage.cells.get("numeric_hps", {})}
        given |= stage.cells.get("other_hps", {})
        return "rate" if given.get("momentum") is None else "momentum"
    if stage.module.split(".")[0] != "optax":
        return ""
    return "rate" if stage.name in RATES else "momentum" if stage.name == "trace" else ""


def stage_words(stage: Stage) -> str:
    """A stage that is no optimizer by itself.

    Example:
      >>> from fedjax_lite.proximal import proximal
      >>> stage_words(stages(proximal(0.1))[0])
      "a pull towards the server's model (mu 0.1)"
    """
    top = stage.module.split(".")[0]
    if stage.module == f"{PACKAGE}.proximal":
        return f"a pull towards the server's model (mu {figure(stage.cells.get('mu'))})"
    if stage.module == f"{PACKAGE}.server":
        settings = [
            f"{k} {figure(stage.cells[k])}" for k in ("b1", "b2", "tau") if k in stage.cells
        ]
        rate = stage.cells.get("learning_rate")
        tail = "" if rate is None else f" with learning rate {rate_words(rate)}"
        return f"{OWN.get(stage.name, stage.name)} ({', '.join(settings)}){tail}"
    if top == "optax":
        if stage.name == INJECTED:
            return _injected(stage.cells)
        inner = [read_optimizer(v).words for v in _inner(stage)]
        plain = {k: v for k, v in stage.cells.items() if not isinstance(v, tuple)}
        around = f" around ({'; '.join(inner)})" if inner else ""
        return optax_words(stage.name, plain) + around
    if top == PACKAGE:
        apart = stage.name == "with_statistics"
        return "running statistics averaged apart" if apart else stage.name
    inner = [read_optimizer(v).words for v in stage.cells.values() if is_optimizer(v)]
    around = f" around ({'; '.join(inner)})" if inner else ""
    return f"your own `{stage.name.strip('<>')}` ({stage.module}){around}"


def _inner(stage: Stage) -> list[Any]:
    """Optimizers that a stage was given, alone or by label."""
    groups = [v.values() if isinstance(v, dict) else [v] for v in stage.cells.values()]
    return [value for group in groups for value in group if is_optimizer(value)]


def _names(stage: Stage) -> list[str]:
    """A stage's name, and the names inside it; a decay of 0 is none."""
    if stage.module.startswith(PACKAGE):
        return [f"{stage.module}.{stage.name}"]
    if stage.name == "add_decayed_weights" and _is_zero(stage.cells.get("weight_decay")):
        return []
    names = [name for inner in _inner(stage) for name in read_optimizer(inner).names]
    if stage.name == INJECTED:
        names += INSIDE.get(getattr(stage.cells.get("inner_factory"), "__name__", ""), ())
    return [stage.name, *names]


def _injected(cells: dict[str, Any]) -> str:
    """An optimizer whose hyper-parameters are part of its state."""
    factory = cells.get("inner_factory")
    values = {**cells.get("sched_hps", {}), **cells.get("numeric_hps", {})}
    values |= {k: v for k, v in cells.get("other_hps", {}).items() if v is not None}
    values = {k: getattr(v, "schedule_fn", v) for k, v in values.items() if v is not False}
    shown = ", ".join(f"{name} {rate_words(value)}" for name, value in values.items())
    name = getattr(factory, "__name__", "a function")
    ours = getattr(factory, "__module__", "").split(".")[0] == "optax"
    called = f"optax.{name}" if ours else f"your own `{name}`"
    return f"{called}{f' ({shown})' if shown else ''}, its settings injected into its state"


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _is_set(value: Any) -> bool:
    """Whether a setting says something; a traced one does, whatever it will be."""
    if isinstance(value, jax.core.Tracer) or np.ndim(value):
        return True
    return value is not None and bool(value)


def _known(rest: list[Stage], *, after: list[Stage]) -> tuple[int, str]:
    """How many stages from the first make an optimizer with a name, and its words."""
    first = rest[0]
    settings = [f"{k} {figure(first.cells[k])}" for k in SHOWN if _is_set(first.cells.get(k))]
    name, used = NAMED.get(first.name, ""), 1
    if first.name == "trace":
        kind = "Nesterov momentum" if first.cells.get("nesterov") else "momentum"
        # Behind an adaptive step or a rate it is no SGD any more.
        lead = "SGD with " if all(s.name in PREPARING or "clip" in s.name for s in after) else ""
        name, settings = f"{lead}{kind} {figure(first.cells.get('decay'))}", []
    if not name:
        return 0, ""
    if len(rest) > used and rest[used].name == "add_decayed_weights":
        decay = rest[used].cells.get("weight_decay")
        used += 1
        if not _is_zero(decay):
            settings.append(f"weight decay {figure(decay)}")
            name = "AdamW" if name == "Adam" else name
    phrase = f"{name} ({', '.join(settings)})" if settings else name
    if len(rest) > used and (rate := _rate(rest[used])) is not None:
        joint = " and" if first.name == "trace" else " with"
        return used + 1, f"{phrase}{joint} learning rate {rate}"
    return used, phrase


def _rate(stage: Stage) -> str | None:
    """The learning rate that a stage multiplies with, in words."""
    if stage.name == "scale" and "step_size" in stage.cells:
        size = stage.cells["step_size"]
        if isinstance(size, jax.core.Tracer):
            return "a traced value"
        if (
            isinstance(size, int | float | np.ndarray | np.generic | jax.Array)
            and np.ndim(size) == 0
        ):
            return figure(-float(size)) if float(size) <= 0 else None
        return None
    if stage.name == "scale_by_schedule" and "step_size_fn" in stage.cells:
        function = unwrapped(stage.cells["step_size_fn"])
        cells = step_of(function).cells if hasattr(function, "__code__") else {}
        return rate_words(cells.get("learning_rate", function))
    return None


def rate_words(rate: Any) -> str:
    """A learning rate in words.

    Example:
      >>> rate_words(0.1), rate_words(optax.linear_schedule(1.0, 0.5, 10))
      ('0.1', 'by the schedule optax.linear_schedule(init_value 1, end_value 0.5, \
transition_steps 10)')
    """
    return f"by the schedule {figure(rate)}{within(rate)}" if callable(rate) else figure(rate)


def is_optimizer(value: Any) -> bool:
    """Whether this is an optax optimizer.

    Example:
      >>> is_optimizer(optax.sgd(0.1)), is_optimizer(0.1)
      (True, False)
    """
    return isinstance(value, optax.GradientTransformation)
