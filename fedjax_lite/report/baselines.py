"""baselines(): global, local-only and centralised training beside methods, on clients' own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.algorithms import centralised, fedavg, local_only
from fedjax_lite.checks.arguments import check_count, check_key, check_slot, shown
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.evaluate import FineTuned, side_by_side
from fedjax_lite.models.model import Model
from fedjax_lite.round.local import ClientOptimizer
from fedjax_lite.round.sampling import everyone
from fedjax_lite.run.loop import run
from fedjax_lite.types import Cohort, FederatedAlgorithm, Key, Params, RoundState, Sampler

NAMES = ("global", "local only", "centralised")
Method = FederatedAlgorithm | Callable[[RoundState], RoundState | Params | FineTuned]


class Beside(NamedTuple):
    """What `baselines` gives, by name: the three baselines, then the methods."""

    scores: dict[str, dict[str, Any]]
    """As `side_by_side`, held against the global model."""
    models: dict[str, Any]
    """States of runs, and what functions of the global state gave."""
    num_rounds: dict[str, int]
    """Of each run; 0 for functions of the global state."""


def baselines(
    model: Model,
    client_optimizer: ClientOptimizer,
    train: FederatedDataset,
    test: FederatedDataset,
    *,
    plan: Plan,
    num_rounds: int,
    methods: Mapping[str, Method] | None = None,
    sampler: Sampler | None = None,
    params: Params | None = None,
    key: Key | None = None,
    metric: str = "accuracy",
    worst: float = 0.1,
    batch_size: int = 1000,
) -> Beside:
    r"""Trains what a personal method has to beat, and scores all on every client's own data.

    Three runs with one loss, optimizer, plan, start and key: *global*, `fedavg`; *local only*, each
    client by itself in the rounds in which it would have been sampled; *centralised*, the union of
    all data. Centralised training gets as many passes over examples as the clients together: with
    `C` of `N` clients a round it runs

    .. math::  T' = \max\bigl(1, \mathrm{round}(T\, C / N)\bigr)

    rounds, each with the plan's epochs over the union (``steps=K`` of minibatches become `K N`
    steps; `K` steps of whole data sets stay `K`).

    Args:
      model: its loss is trained on, and it is scored, as in `evaluator`.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      train: what clients train on, `N` clients.
      test: the clients' held-out data, in the same order; both are parts of
        `fedjax_lite.data.split_clients`.
      plan: local work in a round; epochs or steps are the same for all clients.
      num_rounds: `T`.
      methods: by name, algorithms to train in the same rounds; or functions of the global run's
        state, as `fine_tuned` makes them.
      sampler: of the global and the local-only run; default `everyone()`.
      params: where all start; default ``model.init(key)``.
      key: of the runs; default ``jax.random.key(0)``.
      metric: "accuracy" or "loss", see `side_by_side`.
      worst: share of the clients that count as the worst, in (0, 1].
      batch_size: examples scored at a time.

    Returns:
      `Beside`: scores, models and rounds by name. `plot_side_by_side` draws the scores.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `train` and `test` have other clients, amounts of work differ by client, or a
        method has the name of a baseline.

    Example:
      >>> import optax, fedjax_lite as fl, jax.numpy as jnp
      >>> model = fl.models.Model(lambda key: jnp.float32(0), lambda w, e, key: (w - e["y"]) ** 2,
      ...                         lambda w, e: w - e["y"])
      >>> data = fl.data.from_arrays({"y": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> found = baselines(model, optax.sgd(0.5), data, data, metric="loss", num_rounds=1,
      ...                   plan=fl.Plan(batch_size=None))
      >>> {name: row["scores"].tolist() for name, row in found.scores.items()}
      {'global': [4.0, 4.0], 'local only': [0.0, 0.0], 'centralised': [4.0, 4.0]}
    """
    check_slot(plan, "plan", Plan)
    check_count(num_rounds, "num_rounds", minimum=1)
    methods = {} if methods is None else methods
    _check(train, test, methods)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    sampler = everyone() if sampler is None else sampler
    params = model.init(key) if params is None else params
    loss, num_clients = model.loss, train.num_clients
    slots: dict[str, Any] = {"plan": plan, "sampler": sampler}
    whole = centralised(loss, client_optimizer, plan=of_union(plan, num_clients))
    share = _cohort_size(sampler, num_clients) / num_clients
    algorithms: dict[str, tuple[FederatedAlgorithm, int]] = {
        "global": (fedavg(loss, client_optimizer, **slots), num_rounds),
        "local only": (local_only(loss, client_optimizer, **slots), num_rounds),
        "centralised": (whole, max(1, round(num_rounds * share))),
    }
    models, lengths = {}, {}
    for name, method in methods.items():
        if isinstance(method, FederatedAlgorithm):
            algorithms[name] = (method, num_rounds)
    for name, (algo, length) in algorithms.items():
        state = algo.init(key, params, train)
        models[name], _ = run(
            algo, key, state, train, num_rounds=length, every=length, progress=False
        )
        lengths[name] = length
    for name, method in methods.items():
        if not isinstance(method, FederatedAlgorithm):
            models[name], lengths[name] = method(models["global"]), 0
    models = {name: models[name] for name in (*NAMES, *methods)}
    scores = side_by_side(model, models, test, metric=metric, worst=worst, batch_size=batch_size)
    return Beside(scores, models, {name: lengths[name] for name in models})


def _check(train: Any, test: Any, methods: Any) -> None:
    for name, data in (("train", train), ("test", test)):
        if not isinstance(data, FederatedDataset):
            raise TypeError(
                f"{name} must be a FederatedDataset, got {shown(data)}; "
                "train, test = fl.data.split_clients(data, 0.25, seed=0)"
            )
    if train.num_clients != test.num_clients:
        raise ValueError(
            f"train and test must have the same clients, got {train.num_clients} and "
            f"{test.num_clients}; both parts of fl.data.split_clients do"
        )
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods must be a dict by name, got {shown(methods)}")
    for name, method in methods.items():
        if name in NAMES:
            raise ValueError(f"methods must have names of their own, got {name!r}, a baseline")
        if not isinstance(method, FederatedAlgorithm) and not callable(method):
            raise TypeError(
                f"methods[{name!r}] must be an algorithm or a function of the global state, got "
                f"{shown(method)}; fl.ditto(...), or fl.fine_tuned(...)"
            )


def of_union(plan: Plan, num_clients: int) -> Plan:
    """The plan that passes as many examples on the union as everybody together.

    Args:
      plan: of one client.
      num_clients: `N`.

    Returns:
      Minibatch steps times `N`; epochs, and steps of whole data sets, as they are.

    Raises:
      ValueError: if amounts of work differ by client.

    Example:
      >>> of_union(Plan(batch_size=5, steps=2), 10).steps
      20
    """
    for name, amount in (("epochs", plan.epochs), ("steps", plan.steps)):
        if amount is not None and (callable(amount) or np.ndim(amount)):
            raise ValueError(
                f"plan must have the same {name} for all clients, got {shown(amount)}: the union "
                "has none of its own; train the three by fedavg, local_only and centralised"
            )
    if plan.steps is None or plan.batch_size is None:
        return plan
    return dataclasses.replace(plan, steps=int(np.asarray(plan.steps)) * num_clients)


def _cohort_size(sampler: Sampler, num_clients: int) -> int:
    """The slots of a cohort, `C`."""

    def draw() -> Cohort:
        sizes = jnp.ones(num_clients, jnp.int32)
        return sampler.sample(jax.random.key(0), sampler.init(num_clients), sizes)[1]

    return jax.eval_shape(draw).ids.shape[0]
