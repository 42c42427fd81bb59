"""Every client's score on its own data: of one model, or of the model that it uses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks import check_count, shown
from fedjax_lite.data.dataset import FederatedDataset
from fedjax_lite.data.sharded import ShardedDataset
from fedjax_lite.evaluate.blocks import Streamed, blocks_of, is_streamed, pooled_blocks
from fedjax_lite.evaluate.own_models import (
    BLOCK,
    check_state,
    is_table,
    kept,
    models_of,
    num_clients_of,
    one_model,
    row_bytes,
)
from fedjax_lite.evaluate.programs import Scores, score_examples, score_own
from fedjax_lite.evaluate.what_counts import (
    check_has_labels,
    check_labelled,
    check_labels_fit,
    check_model,
    loss_looking,
    scoring_of,
)
from fedjax_lite.models.model import Model
from fedjax_lite.types import Params, PyTree, RoundState

MOST = 4096
"""Clients with models of their own that are scored in one call at most, where they are fetched."""


def evaluate_clients(
    model: Model,
    params: Params | RoundState,
    data: FederatedDataset | Streamed,
    *,
    batch_size: int = 1000,
) -> dict[str, np.ndarray]:
    """Scores every client's data: with one model, or with the models that the clients use.

    Of parameters, and of a state whose clients share the server's model, the pooled examples are
    scored once and summed by owner, so uneven sizes cost nothing. Of a state whose clients use
    models of their own (`local_only`, `local_leaves`, `fedbn`) it is `evaluate_personal`: what
    each client gets from the run. What counts, and where there is an accuracy, says `evaluator`.

    Args:
      model: as in `evaluator`.
      params: the parameters of one model, such as ``state.server.params``; or a `RoundState`.
      data: the population, perhaps with held-out examples; a dict with ``"y"``. A
        `StreamedDataset` is read a few clients at a time.
      batch_size: examples at a time.

    Returns:
      ``loss`` float64 `[N]`, ``accuracy`` float64 `[N]` (where labels are classes) and ``size``
      int64 `[N]`, the examples that count; loss and accuracy of a client without any are NaN.

    Raises:
      TypeError, ValueError: as `evaluator`.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.data.dataset import from_arrays
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["x"]) ** 2,
      ...               predict=lambda w, b: jnp.stack([w - b["x"], b["x"] - w], axis=-1))
      >>> examples = {"x": np.array([0.0, 3.0]), "y": np.array([0, 0])}
      >>> data = from_arrays(examples, [0, 2], num_clients=3)
      >>> evaluate_clients(model, jnp.float32(1.0), data)["loss"].tolist()
      [1.0, nan, 4.0]
    """
    _check(model, params, data, batch_size, "evaluate_clients(model, params, data)")
    if isinstance(params, RoundState) and kept(params).personal:
        return evaluate_personal(model, params, data, batch_size=min(batch_size, 100))
    params = one_model(params)
    sums = [np.zeros(data.num_clients) for _ in Scores._fields]
    kind = None
    for examples, owners in pooled_blocks(data):
        if not len(owners):
            continue
        size = min(batch_size, examples["y"].shape[0])  # padding behind the owners' is cut off
        scoring = scoring_of(model, params, examples, size)
        check_labels_fit(examples["y"], scoring)
        kind = scoring.kind
        with loss_looking(model, params, examples):
            found = jax.device_get(score_examples(params, examples, model, kind, size))
        for total, values in zip(sums, found, strict=True):
            values = np.asarray(values[: len(owners)], np.float64)
            total += np.bincount(owners, values, minlength=data.num_clients)
    return _result(sums, kind is not None)


def evaluate_personal(
    model: Model,
    models: Params | RoundState,
    data: FederatedDataset | Streamed,
    *,
    batch_size: int = 100,
) -> dict[str, np.ndarray]:
    """Scores every client's own model on that client's data.

    Models whose rows lie on the host or on disk, and streamed data, are fetched a few clients at a
    time: the device holds at most 64 MiB of each, or one client. What counts, and where there is
    an accuracy, says `evaluator`.

    Args:
      model: its `loss` is called with key None.
      models: the state of a run, of any algorithm: every client is scored with the model that it
        uses, its own or the server's. Or models, leaves `[N, ...]`, such as
        ``personal_models(state)``.
      data: the population, `N` clients, in the order of the rows; a dict with ``"y"``.
      batch_size: examples at a time.

    Returns:
      ``loss`` `[N]`, ``accuracy`` `[N]` (where labels are classes; those below 0 do not count)
      and ``size`` int64 `[N]`, as `evaluate_clients`; NaN for a client without data.

    Raises:
      TypeError: if `data` is not a population of examples with ``"y"``.
      ValueError: if there is not one model per client, or labels do not fit the model.

    Example:
      >>> import fedjax_lite as fl
      >>> model = Model(init=lambda key: None, loss=lambda w, b, key: (w - b["y"]) ** 2,
      ...               predict=lambda w, b: b["y"])
      >>> data = fl.data.from_arrays({"y": jnp.array([1.0, 2.0, 4.0])}, [0, 1, 1])
      >>> evaluate_personal(model, jnp.array([1.0, 3.0]), data)["loss"].tolist()
      [0.0, 1.0]
    """
    _check(model, models, data, batch_size, "evaluate_personal(model, models, data)")
    num_clients = data.num_clients
    if isinstance(models, RoundState):
        if not kept(models).personal:
            return evaluate_clients(model, models, data, batch_size=max(batch_size, 1000))
        _check_population(models, num_clients)
        one, bound = row_bytes(models), is_table(models.clients)
    else:
        _check_one_each(models, num_clients)
        leaves = jax.tree.leaves(models)
        one, bound = sum(leaf.nbytes for leaf in leaves) // num_clients, False
    _check_at_hand(models)
    whole = None
    if not bound:  # the models lie on the device already
        whole = models_of(models) if isinstance(models, RoundState) else models
    at_once = whole is not None and isinstance(data, FederatedDataset)
    step = num_clients if at_once else min(MOST, max(1, BLOCK // max(one, 1)))
    sums = [np.zeros(num_clients) for _ in Scores._fields]
    kind = None
    for block in blocks_of(data, step):
        ids = block.ids
        if whole is None:
            assert isinstance(models, RoundState)
            mine = models_of(models, ids)
        elif len(ids) == num_clients:
            mine = jax.tree.map(lambda leaf: leaf[:num_clients], whole)
        else:
            mine = jax.tree.map(lambda leaf, ids=ids: leaf[ids], whole)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), mine)
        scoring = scoring_of(model, shapes, block.examples, batch_size)
        check_labels_fit(block.examples["y"], scoring)
        kind = scoring.kind
        own = (block.examples, block.order, block.starts, block.sizes)
        with loss_looking(model, mine, block.examples):
            found = jax.device_get(score_own(mine, *own, model, kind, batch_size))
        for total, values in zip(sums, found, strict=True):
            total[ids[: block.count]] = np.asarray(values, np.float64)[: block.count]
    return _result(sums, kind is not None)


def _result(sums: list[np.ndarray], has_accuracy: bool) -> dict[str, np.ndarray]:
    loss, counted, hits, labels, unknown = sums
    result = {"loss": _ratio(loss, counted)}
    if has_accuracy:
        result["accuracy"] = np.where(unknown > 0, np.nan, _ratio(hits, labels))
    return result | {"size": counted.astype(np.int64)}


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``total / count``, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _check(model: Any, params: Any, data: Any, batch_size: Any, order: str) -> None:
    check_count(batch_size, "batch_size", minimum=1)
    check_model(model)
    if isinstance(data, ShardedDataset):
        raise TypeError(
            f"data must be a FederatedDataset, got {shown(data)}; score the data set that "
            "shard_population was given: it has the same clients"
        )
    known = isinstance(data, FederatedDataset) or is_streamed(data)
    if not known or hasattr(params, "examples"):
        raise TypeError(f"data must be a FederatedDataset, got {shown(data)}; the order is {order}")
    if isinstance(data, FederatedDataset):
        check_labelled(data.examples)
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
