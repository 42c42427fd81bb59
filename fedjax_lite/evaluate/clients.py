"""Every client's score on its own data: of one model, or of the model that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.evaluate.blocks import Streamed, is_streamed
from fedjax_lite.evaluate.device_blocks import at_hand
from fedjax_lite.evaluate.fine_tuned import FineTuned
from fedjax_lite.evaluate.groups import groups_of
from fedjax_lite.evaluate.metric_shapes import metric_shapes
from fedjax_lite.evaluate.passes import Asked, own_parts, pooled_parts
from fedjax_lite.evaluate.totals import figures_of
from fedjax_lite.evaluate.what_counts import (
    check_has_labels,
    check_labelled,
    check_model,
    has_classes,
)
from fedjax_lite.metrics.metric import HostMetric, Metric, named
from fedjax_lite.models.model import Model
from fedjax_lite.round.own_models import check_state, kept, num_clients_of, one_model, one_of
from fedjax_lite.types import Params, PyTree, RoundState


def evaluate_clients(
    model: Model,
    params: Params | RoundState | FineTuned,
    data: FederatedDataset | ShardedDataset | Streamed,
    *,
    metrics: Mapping[str, Metric | HostMetric] | None = None,
    groups: Any = None,
    batch_size: int = 1000,
) -> dict[str, Any]:
    """Scores every client's data: with one model, or with the models that the clients use.

    Of parameters, and of a state whose clients share the server's model, the pooled examples are
    scored once and summed by owner, so uneven sizes cost nothing. Of a state whose clients use
    models of their own (`local_only`, `local_leaves`, `fedbn`) it is `evaluate_personal`: what
    each client gets from the run. What counts, and where there is an accuracy, says `evaluator`.

    Args:
      model: as in `evaluator`.
      params: the parameters of one model, such as ``state.server.params``; or a `RoundState`; or
        models made by `fine_tuned`.
      data: the population, as a rule the test part of `fedjax_lite.data.split_clients`, or test
        data that come with owners, `from_arrays` with the clients' numbers; a dict with ``"y"``. A
        `StreamedDataset` is read a few clients at a time, a `ShardedDataset` scored where it lies.
      metrics: what else to measure, ``{"f1": fl.metrics.f1(10)}``; see `fedjax_lite.metrics`.
      groups: whom to report together: integers `[N]`, the group of each client (-1: none), or the
        key of an integer array of the examples.
      batch_size: examples at a time.

    Returns:
      ``loss`` float64 `[N]`, ``accuracy`` float64 `[N]` (where labels are classes), each metric by
      its name, float64 `[N]` or `[N, K]`, and ``size`` int64 `[N]`, the examples that count;
      figures of a client without any are NaN, and those but the loss where a model answers NaN.
      ``all``: a dict of the same figures of all clients' examples together, plain floats or
      arrays `[K]`. With `groups` also ``groups``: a dict of them `[G]`, NaN for an empty group.

    Raises:
      TypeError, ValueError: as `evaluator`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> examples = {"x": jnp.array([0.0, 3.0]), "y": jnp.array([0, 0])}
      >>> data = from_arrays(examples, [0, 2], num_clients=3)
      >>> scores = evaluate_clients(model, jnp.float32(1.0), data, groups=[0, 0, 2])
      >>> scores["loss"].tolist(), scores["all"]["accuracy"]
      ([1.0, nan, 4.0], 0.5)
      >>> scores["groups"]["accuracy"].tolist()
      [1.0, nan, 0.0]
    """
    _check(model, params, data, batch_size, "evaluate_clients(model, params, data)")
    own = isinstance(params, FineTuned)
    if own or (isinstance(params, RoundState) and kept(params).personal):
        return evaluate_personal(
            model, params, data, metrics=metrics, groups=groups, batch_size=min(batch_size, 100)
        )
    params = one_model(params)
    asked = _asked(model, params, data, metrics, groups, batch_size)
    return _result(pooled_parts(model, params, data, batch_size, asked), data, asked)


def evaluate_personal(
    model: Model,
    models: Params | RoundState | FineTuned,
    data: FederatedDataset | ShardedDataset | Streamed,
    *,
    metrics: Mapping[str, Metric | HostMetric] | None = None,
    groups: Any = None,
    batch_size: int = 100,
) -> dict[str, Any]:
    """Scores every client's own model on that client's data.

    Models whose rows lie on the host or on disk, and streamed data, are fetched a few clients at a
    time: the device holds at most 64 MiB of each, or one client. What counts, and where there is
    an accuracy, says `evaluator`.

    Args:
      model: its `loss` is called with key None.
      models: the state of a run, of any algorithm: every client is scored with the model that it
        uses, its own or the server's. Or models, leaves `[N, ...]`, such as
        ``personal_models(state)``; or what `fine_tuned` gives.
      data: the population, `N` clients, in the order of the rows; a dict with ``"y"``. The test
        part of `fedjax_lite.data.split_clients` has them in the order of the train part.
      metrics: as in `evaluate_clients`.
      groups: as in `evaluate_clients`.
      batch_size: examples at a time.

    Returns:
      As `evaluate_clients`: ``loss`` `[N]`, ``accuracy`` `[N]` (where labels are classes; those
      below 0 do not count), metrics, ``size`` int64 `[N]`, ``all`` and ``groups``; NaN for a
      client without data.

    Raises:
      TypeError: if `data` is not a population of examples with ``"y"``.
      ValueError: if there is not one model per client, or labels do not fit the model.

    Example:
      >>> import fedjax_lite as fl
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["y"]) ** 2,
      ...               predict=lambda w, b: b["y"])
      >>> data = fl.data.from_arrays({"y": jnp.array([1.0, 2.0, 4.0])}, [0, 1, 1])
      >>> scores = evaluate_personal(model, jnp.array([1.0, 3.0]), data)
      >>> scores["loss"].tolist(), scores["size"].tolist()
      ([0.0, 1.0], [1, 2])
    """
    _check(model, models, data, batch_size, "evaluate_personal(model, models, data)")
    num_clients = data.num_clients
    if isinstance(models, RoundState):
        if not kept(models).personal:
            return evaluate_clients(
                model,
                models,
                data,
                metrics=metrics,
                groups=groups,
                batch_size=max(batch_size, 1000),
            )
        _check_population(models, num_clients)
    elif isinstance(models, FineTuned):
        if models.num_clients != num_clients:
            raise ValueError(
                f"models must be fine-tuned for the clients of data, got {models.num_clients} for "
                f"{num_clients}; give fine_tuned the train part of the clients that are scored"
            )
    else:
        _check_one_each(models, num_clients)
    _check_at_hand(models)
    asked = _asked(model, _one_of(models), data, metrics, groups, batch_size)
    return _result(own_parts(model, models, data, batch_size, asked), data, asked)


def check_population_of(model: Model, data: Any, groups: Any, batch_size: int) -> bool:
    """Checks what an evaluation of clients is given before there is a model to score.

    Returns:
      Whether labels are classes.

    Raises:
      TypeError, ValueError: as `evaluate_clients`.
    """
    _check(model, None, data, batch_size, "client_evaluator(model, data)")
    groups_of(groups, _leaves(data), data.num_clients, "client")
    return has_classes(_leaves(data)["y"].dtype)


def _asked(
    model: Model, one: PyTree, data: Any, metrics: Any, groups: Any, batch_size: int
) -> Asked:
    """What is measured, checked against the shapes of one model and of the examples."""
    metrics, leaves = named(metrics), _leaves(data)
    found = groups_of(groups, leaves, data.num_clients, "client")
    if is_streamed(data):  # a store leaves the axis of examples out
        leaves = {
            name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
            for name, leaf in leaves.items()
        }
    shapes = metric_shapes(model.predict, one, leaves, batch_size, metrics)
    return Asked(metrics, found, shapes)


def _leaves(data: Any) -> Mapping[str, Any]:
    return data.store.leaves if is_streamed(data) else data.examples


def _one_of(models: Params | RoundState | FineTuned) -> PyTree:
    """One client's model, shapes only."""
    if isinstance(models, FineTuned):
        return models.one
    if isinstance(models, RoundState):
        return one_of(models)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), models)


def _result(parts: Any, data: Any, asked: Asked) -> dict[str, Any]:
    classes = has_classes(_leaves(data)["y"].dtype)
    clients, total, groups = figures_of(parts, asked.shapes, asked.metrics, asked.groups, classes)
    result: dict[str, Any] = {
        **clients,
        "all": {name: value[0] if value[0].ndim else value[0].item()
                for name, value in total.items()},
    }  # fmt: skip
    return result if groups is None else result | {"groups": groups}


def _check(model: Any, params: Any, data: Any, batch_size: Any, order: str) -> None:
    check_count(batch_size, "batch_size", minimum=1)
    check_model(model)
    if isinstance(data, ShardedDataset) and not at_hand(data):
        raise TypeError(
            f"data must lie on devices of this process, got {shown(data)} of "
            f"{jax.process_count()} processes; score the data set that shard_population was given: "
            "it has the same clients"
        )
    known = isinstance(data, FederatedDataset | ShardedDataset) or is_streamed(data)
    if not known or hasattr(params, "examples"):
        raise TypeError(f"data must be a FederatedDataset, got {shown(data)}; the order is {order}")
    if isinstance(data, FederatedDataset):
        check_labelled(data.examples)
    elif isinstance(data, ShardedDataset):
        check_has_labels(data.examples)
    else:
        check_has_labels(data.store.leaves)
    check_state(params)


def _check_one_each(models: PyTree, num_clients: int) -> None:
    lengths = {leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(models)}
    if lengths != {num_clients}:
        raise ValueError(
            f"models must have leaves [N={num_clients}, ...], one model per client, got leading "
            f"sizes {sorted(lengths)}; one model for all is scored by evaluate_clients"
        )


def _check_at_hand(models: PyTree) -> None:
    for leaf in jax.tree.leaves(models):
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(
                "models must lie on the devices of this process, got rows that are split over "
                f"{jax.process_count()} processes; gather them first, all processes together: "
                "jax.experimental.multihost_utils.process_allgather(state.clients, tiled=True)"
            )


def _check_population(state: RoundState, num_clients: int) -> None:
    """Client `i` of the data must be client `i` of the rows."""
    rows = num_clients_of(state)
    if rows == num_clients:
        return
    for leaf in jax.tree.leaves(state.clients):
        spec = getattr(getattr(leaf, "sharding", None), "spec", (None,))
        if spec and spec[0] is not None:  # rows in blocks, one a device, the last ones of nobody
            blocks = leaf.shape[0] // leaf.addressable_shards[0].data.shape[0]
            if -(-num_clients // blocks) * blocks == rows:
                return
        break
    raise ValueError(
        f"state must have one model per client of data, got rows of {rows} clients and data of "
        f"{num_clients}; number the clients of both alike, e.g. fl.data.from_arrays(examples, ids, "
        f"num_clients={rows})"
    )
