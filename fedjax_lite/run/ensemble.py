"""ensemble(): one algorithm trained from several seeds, as one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.round.own_models import one_model, server_model
from fedjax_lite.run.sweep import Sweep, sweep
from fedjax_lite.types import FederatedAlgorithm, Key, Params, PyTree, RoundState


class Ensemble(NamedTuple):
    """What `ensemble` gives."""

    members: Params
    """The final models side by side, leaves `[M, ...]`, in the order of the seeds."""
    runs: Sweep
    """Histories and whole states of the members."""


def ensemble(
    algo: FederatedAlgorithm,
    *,
    init: Callable[[Key], Params],
    data: PyTree,
    num_rounds: int,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    evaluate: Callable[[RoundState], Mapping[str, Any]] | None = None,
    every: int | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Ensemble:
    r"""Trains a deep ensemble: whole federated runs that differ by their seed, side by side.

    .. math::
        \theta_m = \mathrm{run}(\mathrm{key}_m,\ \mathrm{init}(\mathrm{key}_m)), \qquad
        p(y \mid x) = \frac1M \sum_m p(y \mid x; \theta_m)

    Initial weights, cohorts and batches are the seed's; a member is the plain run of that seed up
    to rounding. It is `fedjax_lite.sweep` over seeds alone, so one program is compiled for all.

    Args:
      algo: any algorithm that trains one model of the server; so do
        `ditto` and `apfl` beside the clients' own, but not `local_only` and `fedrep`.
      init: ``(key) -> params``, such as ``model.init``.
      data: the population, shared by all members.
      num_rounds: rounds of each member.
      seeds: one a member, all different.
      evaluate: as in `fedjax_lite.run`, called member by member.
      every: rounds between evaluations; default `num_rounds`.
      chunk_size: members at a time; default as many as memory holds.
      mesh: with an axis ``clients``: members are dealt to its devices.
      progress: show a bar or plain lines.

    Returns:
      An `Ensemble`; see `fedjax_lite.uncertainty` for what it says and how sure it is.

    Raises:
      TypeError: if `algo` is no algorithm, or its state holds no one model for all clients; before
        anything is trained.
      ValueError: as `fedjax_lite.sweep`.

    Example:
      >>> import jax.numpy as jnp, optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> found = ensemble(algo, init=lambda key: jnp.float32(0), data=data, num_rounds=1,
      ...                  seeds=[3, 4], progress=False)
      >>> found.members.tolist()
      [1.0, 1.0]

    Reference: Lakshminarayanan, Pritzel, Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles", 2017, arXiv:1612.01474.
    """
    check_slot(algo, "algo", FederatedAlgorithm)
    if callable(init):
        # Before anything is trained, and of one member: side by side rows look like other shapes.
        key = jax.random.key(0)
        one_model(jax.eval_shape(lambda data: algo.init(key, init(key), data), data))
    runs = sweep(
        lambda: algo,
        {},
        init=init,
        data=data,
        num_rounds=num_rounds,
        seeds=seeds,
        evaluate=evaluate,
        every=every,
        chunk_size=chunk_size,
        mesh=mesh,
        progress=progress,
    )
    return Ensemble(server_model(runs.states), runs)
