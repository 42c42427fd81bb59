"""Drift of clients: their loss before and after local training, and where their optima lie.

What the updates of a round say is measured by `fedjax_lite.aggregation.diagnosed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.calls import check_calls
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counted
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.round.local import LossFn, check_loss, mean_loss
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
)


class Measured(NamedTuple):
    """The carry of a measured client: its own, and the losses on the batch seen last."""

    inner: PyTree
    before: Array
    after: Array
    count: Array


@made
def with_client_losses(
    client: ClientUpdate,
    loss: LossFn,
    *,
    params_of: Callable[[Any], Params] | None = None,
    global_of: Callable[[Any], Params] | None = None,
) -> ClientUpdate:
    r"""Adds what local training did to a client's own loss, and changes nothing else.

    Two metrics, both on the client's *last* batch `B` of the round:

    .. math::  \text{client\_loss\_before} = \ell(x; B), \qquad
               \text{client\_loss\_after} = \ell(y_K; B)

    for the broadcast model `x` and the local model `y_K` after the last step. The batch is the
    same in both, so they are comparable; with ``Plan(batch_size=None)`` it is the client's whole
    data set, and they are exactly `f_i(x)` and `f_i(y_K)`. The round reports their means over
    the examples of these batches. The loss is called with key None, so without dropout. Costs
    two forward passes a step: only the last step's count, but no step knows that it is the last.

    Args:
      client: e.g. ``local_sgd(loss, optax.sgd(0.1))``.
      loss: ``(params, examples, key) -> [B]``.
      params_of: the local model in the client's carry; default ``carry.params``.
      global_of: the model in the broadcast; default the broadcast itself.

    Returns:
      A `ClientUpdate` with the two metrics beside its own.

    Raises:
      TypeError: if `client` is not a `ClientUpdate` or `loss` not a function.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> client = with_client_losses(fl.local_sgd(square, optax.sgd(0.5)), square)
      >>> data = fl.data.from_arrays({"b": jnp.array([2.0])}, [0])
      >>> algo = fl.federated_algorithm(client, plan=fl.Plan(batch_size=None),
      ...     sampler=fl.everyone(), server=fl.optimizer_server(optax.sgd(1.0)))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> metrics = algo.round(jax.random.key(0), state, data)[1]
      >>> float(metrics["client_loss_before"]), float(metrics["client_loss_after"])
      (2.0, 0.5)
    """
    if not isinstance(client, ClientUpdate):
        raise TypeError(f"client must be a ClientUpdate, got {client!r}; e.g. local_sgd(...)")
    check_loss(loss)
    local = (lambda carry: carry.params) if params_of is None else params_of
    shared = (lambda broadcast: broadcast) if global_of is None else global_of

    def start(key: Key, row: PyTree, broadcast: PyTree, info: ClientInfo) -> Measured:
        nothing = jnp.float32(0)
        return Measured(client.start(key, row, broadcast, info), nothing, nothing, nothing)

    def measured(inner_step: Step) -> Step:
        def step(broadcast: PyTree, carry: Measured, batch: Batch) -> Measured:
            inner = inner_step(broadcast, carry.inner, batch)
            silent = batch._replace(key=None)
            before = mean_loss(loss, shared(broadcast), silent)
            after = mean_loss(loss, local(inner), silent)
            count = counted(loss, batch.examples, batch.mask).sum()  # as mean_loss divides
            return Measured(inner, *(x.astype(jnp.float32) for x in (before, after, count)))

        return step

    def finish(broadcast: PyTree, carry: Measured) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = client.finish(broadcast, carry.inner)
        losses = {
            "client_loss_before": Mean(carry.before * carry.count, carry.count),
            "client_loss_after": Mean(carry.after * carry.count, carry.count),
        }
        return row, message, {**metrics, **losses}

    return ClientUpdate(client.init, start, around(client.step, measured), finish, client.counts)


def distance_to_optima(params: Params, optima: PyTree, *, weights: Any = None) -> dict[str, Array]:
    r"""Where a model lies between the clients' own optima.

    With shares `p_i` of the weights and :math:`\bar x^* = \sum_i p_i x_i^*`:

    .. math::
        \text{distance\_to\_mean\_of\_optima} = \lVert x - \bar x^* \rVert, \qquad
        \text{spread\_of\_optima} = \sqrt{\textstyle\sum_i p_i \lVert x_i^* - \bar x^* \rVert^2}

    Averaging many local steps drives `x` to the mean of the local optima, which is not the
    optimum of the mean: a falling distance beside a rising global loss is client drift.

    Args:
      params: the model `x`.
      optima: the clients' optima, leaves `[N, ...]`; of `quadratics` see `quadratic_optima`.
      weights: `[N]`, e.g. ``data.sizes``; default equal.

    Returns:
      The two scalars by name.

    Raises:
      ValueError: if shapes do not fit or the weights have no positive sum.

    Example:
      >>> figures = distance_to_optima(jnp.array(0.0), jnp.array([-1.0, 2.0]), weights=[30, 10])
      >>> float(figures["distance_to_mean_of_optima"])
      0.25
    """
    leaves = jax.tree.leaves(optima)
    num_clients = jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 0
    expected = jax.tree.map(lambda leaf: (num_clients, *jnp.shape(leaf)), params)
    got = jax.tree.map(jnp.shape, optima)
    if not num_clients or expected != got:
        raise ValueError(
            f"optima must have the shapes of params with a leading axis of clients, got {got} "
            f"beside {jax.tree.map(jnp.shape, params)}"
        )
    weights = jnp.ones(num_clients) if weights is None else jnp.asarray(weights)
    if weights.shape != (num_clients,):
        raise ValueError(
            f"weights must be [{num_clients}], got shape {list(weights.shape)}; give one a client"
        )
    if not isinstance(weights, jax.core.Tracer) and not float(weights.sum()) > 0:
        raise ValueError(f"weights must have a positive sum, got {weights}")
    shares = weights / weights.sum()
    center = jax.tree.map(lambda leaf: jnp.tensordot(shares, jnp.asarray(leaf), 1), optima)
    apart = jax.tree.map(lambda leaf, c: leaf - c, optima, center)
    spread = jax.vmap(trees.global_norm)(apart)
    return {
        "distance_to_mean_of_optima": trees.global_norm(trees.subtract(params, center)),
        "spread_of_optima": jnp.sqrt((shares * spread**2).sum()),
    }


def quadratic_optima(data: FederatedDataset) -> np.ndarray:
    """The clients' optima in data of `quadratics` or `quadratic_forms`: their centres.

    Args:
      data: a population whose examples hold ``"b"`` (`quadratics`) or ``"w"``
        (`quadratic_forms`); every client has examples.

    Returns:
      `[N]` or `[N, D]`, the centre of each client.

    Raises:
      ValueError: if there are no centres, or a client has no data.

    Example:
      >>> import fedjax_lite as fl
      >>> examples = fl.data.quadratics([1.0, 4.0], [-1.0, 2.0], [3, 1])
      >>> quadratic_optima(fl.data.partition(examples, fl.data.by_key("client"))).tolist()
      [-1.0, 2.0]
    """
    examples = data.examples if isinstance(data.examples, dict) else {}
    name = next((name for name in ("b", "w") if name in examples), None)
    if name is None:
        raise ValueError(
            f"data must hold 'b' of quadratics or 'w' of quadratic_forms, got {sorted(examples)}"
        )
    offsets = np.asarray(data.offsets)
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if len(empty):
        raise ValueError(f"client {empty[0]} has no data, so no optimum; drop empty clients")
    first = offsets[:-1] if data.order is None else np.asarray(data.order)[offsets[:-1]]
    return np.asarray(examples[name])[first]


check_calls(globals())
