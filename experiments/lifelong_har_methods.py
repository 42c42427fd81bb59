"""The methods of lifelong_har.py, and the whole life of one: stage after stage in one program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl

ALL_SEEN, FINE_TUNING, THREE_WAY = "FedAvg on all so far", "fine-tuning", "three-way"


class Method(NamedTuple):
    """One line of the table."""

    make: Callable[..., fl.FederatedAlgorithm]
    """``(**settings) -> algorithm``; settings may be traced."""
    grid: Mapping[str, Sequence[float]]
    """Settings to choose from."""
    remembers: bool = False
    """It is told what each stage taught, at the end of it."""

    def points(self) -> list[dict[str, float]]:
        """All combinations of the grid."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


def predictor(model: fl.models.Model, allowed: np.ndarray, *, told: bool) -> Any:
    """``(params, examples) -> logits``; where the stage is told, of its activities alone.

    Args:
      model: over all activities.
      allowed: bool `[T, K]`, the activities of each stage.
      told: whether a person says in which stage a window was recorded.
    """

    def predict(params: Any, examples: Any) -> jax.Array:
        logits = model.predict(params, examples)
        return within(logits, examples["stage"], allowed) if told else logits

    return predict


def within(logits: jax.Array, stage: jax.Array, allowed: np.ndarray) -> jax.Array:
    """Logits `[B, K]` with those of other stages' activities out of the question."""
    return jnp.where(jnp.asarray(allowed)[stage], logits, -1e9)


def methods(predict: Any, *, batch_size: int, steps: int) -> dict[str, Method]:
    """All methods by name, with the same local work.

    Args:
      predict: of `predictor`.
      batch_size: examples in a local step.
      steps: of a person in a round.
    """

    def loss(params: Any, examples: Any, key: Any) -> jax.Array:
        return fl.models.cross_entropy(predict(params, examples), examples["y"])

    plan = fl.Plan(batch_size, steps=steps)
    slots: dict[str, Any] = {"plan": plan, "strategy": fl.vmapped(), "sampler": fl.everyone()}

    def of(factory: Any, **more: Any) -> Callable[..., fl.FederatedAlgorithm]:
        return lambda rate, **own: factory(loss, optax.sgd(rate), **own, **more, **slots)

    rates, lams = {"rate": (0.03, 0.1, 0.3)}, (1.0, 10.0, 30.0, 100.0)
    curved = {**rates, "lam": (0.001, 0.01, 0.1)}  # of a sum over thirty people
    three = {**rates, "lam": lams, "mu": (0.1, 1.0)}
    plain = of(fl.fedavg)  # one program: only the data differ
    return {
        ALL_SEEN: Method(plain, rates),
        FINE_TUNING: Method(plain, rates),
        "EWC": Method(of(fl.ewc), {**rates, "lam": lams}, remembers=True),
        "FedCurv": Method(of(fl.fedcurv, fisher_plan=plan), curved),
        THREE_WAY: Method(of(fl.three_way), three, remembers=True),
    }


def life(
    model: fl.models.Model, method: Method, predict: Any, allowed: np.ndarray, num_rounds: int
) -> Callable[[dict[str, float], jax.Array, fl.data.TaskStream], np.ndarray]:
    """``(settings, keys [L], streams) -> right``: several lives at once, one program.

    Args:
      model: over all activities.
      method: of `methods`.
      predict: what it was made with.
      allowed: bool `[T, K]`.
      num_rounds: of each stage.

    Returns:
      The function; ``right`` is bool `[L, T, 2, E]`: after each stage, whether each window is told
      right among the activities of its stage, and among all. Where a model diverged none is.
    """
    fisher = fl.exact_fisher(predict)

    @jax.jit
    def run(settings: Any, keys: Any, streams: Any) -> jax.Array:
        def one(key: Any, stream: fl.data.TaskStream) -> jax.Array:
            algo = method.make(**settings)

            def stage(state: Any, _: None) -> tuple[Any, jax.Array]:
                step = lambda s, _: (algo.round(key, s, stream)[0], None)  # noqa: E731
                state, _ = jax.lax.scan(step, state, length=num_rounds)
                if method.remembers:
                    seen = stream.at_round(state.round - 1)
                    known = fl.fisher_information(fisher, state, seen)
                    old = fl.remember(state.server.old, known, state.server.params)
                    state = fl.with_old_tasks(state, old)
                return state, answers(state.server.params, stream.examples)

            state = algo.init(key, model.init(key), stream)
            return jax.lax.scan(stage, state, length=len(allowed))[1]

        return jax.vmap(one)(keys, streams)

    def answers(params: Any, examples: Any) -> jax.Array:
        logits = model.predict(params, examples)
        both = jnp.stack([within(logits, examples["stage"], allowed), logits])
        return (both.argmax(-1) == examples["y"]) & jnp.isfinite(logits).all(-1)

    def call(settings: dict[str, float], keys: Any, streams: Any) -> np.ndarray:
        method.make(**settings)  # the checks of factories see plain numbers
        traced = {name: jnp.float32(value) for name, value in settings.items()}
        return np.asarray(run(traced, keys, streams))

    return call
