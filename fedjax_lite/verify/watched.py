"""What an algorithm's rounds on Q2 do to every model in it: the server's, and each client's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.round.own_models import models_of, server_model
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array, FederatedAlgorithm, RoundState
from fedjax_lite.verify.testbeds import ETA, q2, quadratic, whole

Factory = Callable[..., FederatedAlgorithm]
"""``(loss, learning_rate, *, plan, sampler, strategy=...) -> FederatedAlgorithm``."""

PAIR = ("w", "b")

START = 0.0
"""Where every model begins."""


class Path(NamedTuple):
    """What was there after each of `R` rounds with `n` clients."""

    server: Any
    """The server's model, `[R]`; NaN where nobody trains one."""
    models: Any
    """The model that each client would use, `[R, n]`."""
    rows_finite: Any
    """Whether all that is kept of clients is finite, bool `[R]`."""

    @property
    def shared(self) -> bool:
        """The server's model is trained, or became NaN by itself."""
        return not np.isnan(self.server).all() or bool(np.isnan(self.models).all())

    @property
    def personal(self) -> bool:
        """Clients would use models other than the server's."""
        return not np.array_equal(
            self.models, np.broadcast_to(self.server[:, None], self.models.shape), equal_nan=True
        )


def leaves(factory: Factory) -> tuple[str | None, ...]:
    """What to look at: the one scalar, ``(None,)``, or each of two leaves, ``("w", "b")``.

    Two are taken where the algorithm cannot start from a scalar: it keeps a leaf on the client
    that it calls by name. Each leaf has a Q2 of its own then, with the names of the laws' problem.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> leaves(lambda loss, rate, **slots: fl.fedavg(loss, optax.sgd(rate), **slots))
      (None,)
    """
    for found in ((None,), PAIR):
        try:
            algo = factory(_loss(found[0]), ETA, plan=whole(), sampler=everyone())
            jax.eval_shape(algo.init, jax.random.key(0), _params(found[0]), q2())
        except Exception:  # what it says is reported by the checks
            continue
        return found
    return (None,)


def watch(
    factory: Factory, num_rounds: int, data: FederatedDataset, leaf: str | None, **slots: Any
) -> Path:
    """The path of one leaf's models from `START`; to be traced.

    Args:
      factory: see `check`.
      num_rounds: `R`.
      data: of `n` clients.
      leaf: one of `leaves`.
      **slots: `plan` and `strategy`; everyone takes part.

    Returns:
      A `Path`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> fedsgd = lambda loss, rate, plan, **slots: fl.fedsgd(loss, optax.sgd(0.5), **slots)
      >>> path = watch(fedsgd, 2, q2(), None, plan=None)  # x - 0.5 * 1.75 (x - 5/7)
      >>> [f"{x:.4f}" for x in path.server]
      ['0.6250', '0.7031']
    """
    algo = factory(_loss(leaf), ETA, sampler=everyone(), **slots)
    ids, key = np.arange(data.num_clients), jax.random.key(0)

    def pick(params: Any) -> Any:
        return params if leaf is None or params is None else params[leaf]

    def one(state: RoundState, _: Any) -> tuple[RoundState, Path]:
        state, _ = algo.round(key, state, data)
        trained = getattr(state.server, "trained", True) is not False
        server = pick(server_model(state)) if trained else None
        models = pick((algo.models or models_of)(state, ids))
        if server is None:  # it stays with the clients
            server = jnp.full((), jnp.nan, models.dtype)
        return state, Path(server, models, _finite(state.clients))

    return jax.lax.scan(one, algo.init(key, _params(leaf), data), None, length=num_rounds)[1]


def _loss(leaf: str | None) -> Any:
    if leaf is None:
        return quadratic
    return lambda params, examples, key: sum(quadratic(params[n], examples, key) for n in PAIR)


def _params(leaf: str | None) -> Any:
    zero = jnp.asarray(START, jnp.result_type(float))
    return zero if leaf is None else dict.fromkeys(PAIR, zero)


def _finite(tree: Any) -> Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in floats] + [True]).all()
