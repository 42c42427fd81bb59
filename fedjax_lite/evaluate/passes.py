"""Passes over a population: with one model for all, or with a model for each client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.evaluate.blocks import Population, blocks_of, pooled_blocks
from fedjax_lite.evaluate.fine_tuned import FineTuned, model_bytes
from fedjax_lite.evaluate.groups import Groups
from fedjax_lite.evaluate.metric_shapes import unit_bytes
from fedjax_lite.evaluate.over_cores import (
    deal_clients,
    in_order,
    on_cores,
    on_their_cores,
    over_cores,
)
from fedjax_lite.evaluate.own_program import score_own
from fedjax_lite.evaluate.programs import score_examples
from fedjax_lite.evaluate.totals import Examples, Part, as_table, first_of
from fedjax_lite.evaluate.what_counts import check_labels_fit, loss_looking, scoring_of
from fedjax_lite.metrics.metric import HostMetric, Named
from fedjax_lite.models.model import Model
from fedjax_lite.round.own_models import BLOCK, is_table, models_of, row_bytes
from fedjax_lite.types import Params, PyTree, RoundState

MOST = 4096
"""Clients with models of their own that are scored in one call at most, where they are fetched."""
SUMS = 2**28
"""Bytes of clients' sums of metrics on the device at a time."""


class Asked(NamedTuple):
    """What an evaluation measures."""

    metrics: Named
    groups: Groups | None
    shapes: dict[str, PyTree]
    """Of the quantities of metrics; see `metric_shapes`."""

    @property
    def by_key(self) -> bool:
        """Whether examples tell the groups."""
        return self.groups is not None and self.groups.key is not None


def pooled_parts(
    model: Model,
    params: Params,
    data: Population,
    batch_size: int,
    asked: Asked,
) -> Iterator[Part]:
    """One model on everybody's examples: each is scored once, so uneven sizes cost nothing.

    Where the sums of metrics of all clients are larger than 256 MiB, there are several passes.
    """
    for pool in pooled_blocks(data):
        ids, examples, owners = pool.ids, pool.examples, pool.owners
        count = int((owners >= 0).sum())
        if not count:
            yield Part(ids, np.zeros((5, len(ids))), {})
            continue
        if pool.device is not None:
            params = jax.device_put(params, pool.device)
        size, mesh = min(batch_size, len(owners)), None
        if pool.device is None:
            examples, mesh = over_cores(examples, len(owners), size)
        scoring = scoring_of(model, params, examples, size)
        check_labels_fit(examples["y"], scoring)
        step = min(len(ids), max(1, SUMS // max(unit_bytes(asked.shapes), 1)))
        groups, num_groups = _groups(asked, examples, pool.rows, count)
        for low in range(0, len(ids), step):
            mine = ids[low : low + step]
            units, num_units = (), ()
            if asked.shapes:  # ids of a block follow each other
                inside = (owners >= mine[0]) & (owners <= mine[-1])
                units = (np.where(inside, owners - mine[0], -1).astype(np.int32),)
                num_units = (_rounded(step),)
                if groups is not None and low == 0:
                    padded = np.full(len(owners), -1, np.int32)
                    padded[:count] = groups
                    units, num_units = (*units, padded), (*num_units, num_groups)
            with loss_looking(model, params, examples):
                found = jax.device_get(
                    score_examples(
                        on_cores(params, mesh),
                        examples,
                        pool.rows,
                        units,
                        num_units,
                        model,
                        scoring.kind,
                        size,
                        asked.metrics,
                        mesh,
                    )
                )
            scores, kept = first_of(found[:2], count)
            place = owners[:count] - ids[0]
            by_client = [np.bincount(place, one, len(ids)) for one in as_table(scores)]
            yield Part(
                mine,
                np.stack(by_client)[:, low : low + step],
                first_of(found[2][0], len(mine)) if units else {},
                Examples(owners[:count], groups, scores, kept) if low == 0 else None,
                found[2][1] if len(units) > 1 else {},
            )


def own_parts(
    model: Model,
    models: Params | RoundState | FineTuned,
    data: Population,
    batch_size: int,
    asked: Asked,
) -> Iterator[Part]:
    """Every client's own model on its own examples."""
    num_clients = data.num_clients
    if isinstance(models, FineTuned):
        one, bound = model_bytes(models), True
    elif isinstance(models, RoundState):
        one, bound = row_bytes(models), is_table(models.clients)
    else:
        one = sum(leaf.nbytes for leaf in jax.tree.leaves(models)) // num_clients
        bound = False
    whole = None
    if not bound:  # the models lie on the device already
        whole = models_of(models) if isinstance(models, RoundState) else models
    at_once = whole is not None and isinstance(data, FederatedDataset)
    step = num_clients if at_once else min(MOST, max(1, BLOCK // max(one, 1)))
    step = min(step, max(1, SUMS // max(unit_bytes(asked.shapes), 1)))
    keep = asked.by_key or any(isinstance(metric, HostMetric) for _, metric in asked.metrics)
    for block in blocks_of(data, step):
        ids = block.ids
        if whole is None:
            assert isinstance(models, RoundState | FineTuned)
            made = isinstance(models, FineTuned)
            mine = models.models(ids) if made else models_of(models, ids)
        elif len(ids) == num_clients:
            mine = jax.tree.map(lambda leaf: leaf[:num_clients], whole)
        else:
            mine = jax.tree.map(lambda leaf, ids=ids: leaf[ids], whole)
        if block.device is not None:
            mine = jax.device_put(mine, block.device)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), mine)
        scoring = scoring_of(model, shapes, block.examples, batch_size)
        check_labels_fit(block.examples["y"], scoring)
        sizes = np.asarray(block.sizes)
        rows, of_examples, of_rows, num_groups = None, None, None, 0
        if asked.by_key:
            rows = np.asarray(block.starts)[0] + np.arange(sizes.sum())
            rows = rows if block.order is None else np.asarray(block.order)[rows]
            of_examples, num_groups = _groups(asked, block.examples, rows, len(rows))
            assert asked.groups is not None
            of_rows = asked.groups.of_rows(block.examples).astype(np.int32)
        examples, starts, mesh, dealt = block.examples, np.asarray(block.starts), None, None
        if block.device is None and len(ids) > 1:
            examples, mesh = over_cores(examples, int(sizes.sum()), batch_size)
        clients = mine, starts, sizes
        if mesh is not None:
            dealt = deal_clients(-(-sizes // batch_size), mesh.size)
            clients = on_their_cores(*clients, dealt, mesh)
        with loss_looking(model, mine, block.examples):
            found = jax.device_get(
                score_own(
                    clients[0],
                    examples,
                    block.order,
                    *clients[1:],
                    of_rows,
                    starts[0],
                    model,
                    scoring.kind,
                    batch_size,
                    asked.metrics,
                    num_groups,
                    keep,
                    mesh,
                )
            )
        if dealt is not None:
            found = found._replace(
                scores=in_order(found.scores, dealt), sums=in_order(found.sums, dealt)
            )
        real = ids[: block.count]
        examples = None
        if keep:
            owners = np.repeat(ids, sizes)
            scores, kept = first_of(found.examples, len(owners))
            examples = Examples(owners, of_examples, scores, kept)
        yield Part(
            real,
            as_table(found.scores)[:, : block.count],
            first_of(found.sums, block.count),
            examples,
            found.group_sums,
        )


def _groups(
    asked: Asked, examples: Mapping[str, Any], rows: Any, count: int
) -> tuple[np.ndarray | None, int]:
    """The groups of the owned examples, int64 `[P]`, and a size for a table of them."""
    if not asked.by_key:
        return None, 0
    assert asked.groups is not None
    groups = asked.groups.of_rows(examples, rows)[:count]
    return groups, _rounded(int(groups.max(initial=0)) + 1)


def _rounded(number: int) -> int:
    """The next power of two: few sizes, few programs."""
    return 1 << (number - 1).bit_length()
