"""unroll(): several rounds as one pure function, for gradients of what comes out."""

from __future__ import annotations

from typing import Any

import jax

from fedjax_lite.checks.arguments import check_count, check_key
from fedjax_lite.types import Array, FederatedAlgorithm, Key, RoundState


def unroll(
    algo: FederatedAlgorithm,
    key: Key,
    state: RoundState,
    data: Any,
    *,
    num_rounds: int,
    remat: bool = True,
) -> tuple[RoundState, dict[str, Array]]:
    r"""Runs `num_rounds` rounds as one ``lax.scan``, to be differentiated.

    .. math::
        \theta \mapsto x_T(\theta), \qquad
        \nabla_\theta L(x_T) = \text{jax.grad}(\theta \mapsto L(\text{unroll}(\ldots)))

    for learning rates, `mu`, weights of clients, initial parameters: build `algo` (or `state`)
    inside the function that is differentiated, with ``strategy=differentiable()``. It gives what
    `run` gives with the same key, but compiles nothing itself: wrap the whole in ``jax.jit``.
    Forward mode (``jax.jvp``) works with every strategy.

    With `remat`, the backward pass computes each round again from its first state; memory is
    then `T` states and what one round takes, in place of `T` rounds.

    Args:
      algo: the algorithm; for reverse mode its strategy must be `differentiable`.
      key: a typed key, the same in every round, as in `run`.
      state: from ``algo.init``, or from an earlier call.
      data: the population.
      num_rounds: `T`, rounds from `state` on.
      remat: compute rounds again in the backward pass instead of keeping all of them.

    Returns:
      The state, and the rounds' metrics, leaves `[T]`.

    Raises:
      TypeError: if `algo` is no algorithm or `key` no typed key.
      ValueError: if `num_rounds` is below 1.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_lite as fl
      >>> from fedjax_lite.engine.differentiable import differentiable
      >>> data, key = fl.data.from_arrays({"b": jnp.array([1.0, 3.0])}, [0, 1]), jax.random.key(0)
      >>> def final(learning_rate):  # x_T = 2 - 2 (1 - learning_rate)^T
      ...     algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(learning_rate),
      ...                      plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                      strategy=differentiable())
      ...     state, _ = unroll(algo, key, algo.init(key, jnp.array(0.0), data), data, num_rounds=3)
      ...     return state.server.params
      >>> float(jax.grad(final)(0.5))  # 2 T (1 - learning_rate)^(T - 1)
      1.5

    Reference: Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through
    Reversible Learning", 2015, arXiv:1502.03492.
    """
    if not callable(getattr(algo, "round", None)):
        raise TypeError(f"algo must be a FederatedAlgorithm, got {type(algo).__name__}")
    check_key(key)
    check_count(num_rounds, "num_rounds", minimum=1)

    def one_round(state: RoundState, _: None) -> tuple[RoundState, dict[str, Array]]:
        return algo.round(key, state, data)

    body = jax.checkpoint(one_round, prevent_cse=False) if remat else one_round
    return jax.lax.scan(body, state, None, length=num_rounds)
