"""fisher_information(): what a model knows of a data set, in one pass and in bounded memory."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.lanes import sequential
from fedjax_lite.engine.one_pass import one_pass
from fedjax_lite.engine.program import Program, Table
from fedjax_lite.engine.round_keys import pass_keys
from fedjax_lite.objectives.fisher import Fisher
from fedjax_lite.round.own_models import one_model
from fedjax_lite.transforms.chain import identity
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    RoundState,
)


class Squares(NamedTuple):
    """Sums over the examples of one client so far."""

    sums: PyTree
    count: Array
    """float32 scalar, how many they are."""

    @classmethod
    def none(cls, params: Params) -> Squares:
        """Of no example yet."""
        return cls(trees.zeros(params), jnp.float32(0))

    def seen(self, fisher: Fisher, params: Params, batch: Batch) -> Squares:
        """With a batch more; its mask says which of its examples count."""
        sums = jax.tree.map(jnp.add, self.sums, fisher(params, batch))
        return Squares(sums, self.count + batch.mask.sum())

    @property
    def mean(self) -> PyTree:
        """The diagonal of the Fisher information; 0 of a client without examples."""
        return jax.tree.map(lambda s: s / jnp.maximum(self.count, 1).astype(s.dtype), self.sums)


def fisher_information(
    fisher: Fisher,
    state: RoundState | Params,
    data: FederatedDataset,
    *,
    per_client: bool = False,
    batch_size: int = 32,
    key: Key | None = None,
) -> PyTree:
    r"""The diagonal of the Fisher information of a model on a federated data set.

    .. math::
        F_{i,j} = \frac{1}{n_i} \sum_{\xi \in D_i} s_j(\xi)^2, \qquad
        F_j = \sum_i \frac{n_i}{n} F_{i,j}

    with the scores `s` of `exact_fisher` or `empirical_fisher`. Each example is seen once, batch by
    batch and client by client, so memory is O(batch x model), and O(N x model) where the clients'
    own are asked for. Examples that do not count (see `fedjax_lite.models.with_counts`) are absent.

    Args:
      fisher: ``exact_fisher(model.predict)``, ``empirical_fisher(model.loss)``, or a function of
        your own ``(params, batch) -> sums of squares``. The same function does not compile twice.
      state: of a run whose clients share one model, or parameters.
      data: whose examples are seen.
      per_client: give `F_i` of each client, leaves `[N, ...]`, in place of `F`.
      batch_size: examples at a time.
      key: of the loss, if it draws; default ``jax.random.key(0)``.

    Returns:
      A tree like the parameters.

    Raises:
      TypeError: if `data` is no `FederatedDataset`, `fisher` no function, or clients have models of
        their own.
      ValueError: if `batch_size` is below 1.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0, 2.0])}, [0, 0, 1])
      >>> squares = fl.empirical_fisher(lambda w, e, key: 0.5 * (w - e["b"]) ** 2)
      >>> round(float(fisher_information(squares, jnp.array(0.0), data)), 4)  # (1 + 9 + 4) / 3
      4.6667
      >>> fisher_information(squares, jnp.array(0.0), data, per_client=True).tolist()
      [5.0, 4.0]

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796.
    """
    if not callable(fisher):
        raise TypeError(
            f"fisher must be a function, got {shown(fisher)}; fl.exact_fisher(model.predict) or "
            "fl.empirical_fisher(model.loss)"
        )
    if not isinstance(data, FederatedDataset):
        raise TypeError(
            f"data must be a FederatedDataset, got {shown(data)}; build one with "
            "fl.data.from_arrays(examples, client_ids)"
        )
    check_count(batch_size, "batch_size", minimum=1)
    params = jax.tree.map(jnp.asarray, one_model(state))
    key = jax.random.key(0) if key is None else key
    # No batch larger than the largest client: it would be padding.
    size = min(int(batch_size), data.max_client_size)
    with about("state", state, word="params"):
        return _of_all(key, params, data, fisher, size, bool(per_client))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _of_all(
    key: Key, params: Params, data: FederatedDataset, fisher: Fisher, size: int, per_client: bool
) -> PyTree:
    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> Squares:
        return Squares.none(broadcast)

    def step(broadcast: Params, carry: Squares, batch: Batch) -> Squares:
        return carry.seen(fisher, broadcast, batch)

    def finish(broadcast: Params, carry: Squares) -> tuple[PyTree, Message, dict[str, Any]]:
        found = carry.mean
        return (found if per_client else ()), Message(found, carry.count), {}

    client = ClientUpdate(lambda params: (), start, step, finish, counts_of(fisher))
    program = Program(client, Plan(batch_size=size, epochs=1), identity(), mean())
    ids = jnp.arange(data.num_clients, dtype=jnp.int32)
    rows = trees.repeat_rows(trees.zeros(params), data.num_clients) if per_client else ()
    done = one_pass(
        *(program, sequential(), pass_keys(key), Table(rows, ()), (), params),
        *(Cohort(ids, jnp.ones(ids.shape, bool)), jnp.int32(0), data),
    )
    if per_client:
        return done.table.clients
    return trees.cast_like(done.value, params)
