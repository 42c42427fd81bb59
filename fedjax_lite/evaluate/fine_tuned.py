"""fine_tuned(): clients' models after a few steps of their own, made when they are scored."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.arguments import check_count, check_key, check_slot, shown
from fedjax_lite.data.population.dataset import ClientData, FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.counted import count_work
from fedjax_lite.engine.one_pass import work_list
from fedjax_lite.engine.program import Job, Program, Table, train_lanes
from fedjax_lite.engine.round_keys import clients_key
from fedjax_lite.evaluate.blocks import Streamed, is_streamed
from fedjax_lite.evaluate.device_blocks import (
    DeviceBlock,
    at_hand,
    device_blocks,
    on_its_device,
)
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.own_models import (
    check_state,
    kept,
    models_of,
    num_clients_of,
    one_model,
    one_of,
)
from fedjax_lite.transforms.chain import identity
from fedjax_lite.types import Array, ClientUpdate, Cohort, Key, Message, Params, PyTree, RoundState

Train = Callable[..., Params]


class FineTuned:
    """Models of a population that exist only while they are used; `fine_tuned` makes it.

    Evaluators take it in place of a state: `evaluate_personal`, `evaluate_clients`.
    """

    def __init__(
        self, train: Train, key: Key, start: Params | RoundState, data: Any, num_lanes: int
    ) -> None:
        self._train, self._key, self._data, self._num_lanes = train, key, data, num_lanes
        self._state = start if isinstance(start, RoundState) and kept(start).personal else None
        whole = self._state is None
        self._shared = jax.tree.map(jnp.asarray, one_model(start)) if whole else None
        self._round = start.round if isinstance(start, RoundState) else jnp.int32(0)
        self._sizes = np.asarray(data.sizes)

    @property
    def num_clients(self) -> int:
        """`N`."""
        return len(self._sizes)

    @property
    def one(self) -> PyTree:
        """The shapes of one client's model."""
        if self._state is not None:
            return one_of(self._state)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._shared)

    def models(self, ids: Any = None) -> Params:
        """Trains some clients; leaves `[n, ...]`.

        Args:
          ids: integers `[n]`, which may repeat; None: all clients, memory O(N x model).

        Raises:
          ValueError: if an id is of no client.
        """
        ids = np.arange(self.num_clients) if ids is None else np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers [n], got {ids.dtype}{list(ids.shape)}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_clients):
            raise ValueError(
                f"ids must lie in the population, [0, {self.num_clients}), got "
                f"{ids.min()}..{ids.max()}; of new clients give their data to fine_tuned"
            )
        if isinstance(self._data, ShardedDataset) and ids.size:
            return self._where_they_lie(ids)
        return self._trained(ids)

    def _trained(self, ids: np.ndarray, device: DeviceBlock | None = None) -> Params:
        # The longest first, so that lanes wait for their like; the last lanes are empty.
        order = np.argsort(-self._sizes[ids], kind="stable")
        lanes = min(self._num_lanes, max(len(ids), 1))
        padded = -len(ids) % lanes
        asked = np.pad(ids[order], (0, padded), mode="edge" if len(ids) else "constant")
        real = np.arange(len(asked)) < len(ids)
        start = self._shared if self._state is None else models_of(self._state, asked)
        own = self._state is not None
        data = self._data.cohort(asked, real) if is_streamed(self._data) else self._data
        given = self._key, start, asked, real, self._round
        if device is not None:
            data = on_its_device(self._data, device)
            given = jax.device_put(given, device.device)
        found = self._train(*given, data, lanes, own)
        return jax.tree.map(lambda leaf: leaf[np.argsort(order)], found)

    def _where_they_lie(self, ids: np.ndarray) -> Params:
        """Each client on the device that has its examples; on the host, where several have."""
        parts, places = [], []
        for block in device_blocks(self._data):
            mine = np.flatnonzero((ids >= block.ids[0]) & (ids <= block.ids[-1]))
            if len(mine):
                parts.append(self._trained(ids[mine], block))
                places.append(mine)
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(places))
        return jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[back], *map(jax.device_get, parts)
        )


def fine_tuned(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    data: FederatedDataset | ShardedDataset | Streamed,
    *,
    plan: Plan,
    key: Key | None = None,
    num_lanes: int = 8,
) -> Callable[[RoundState | Params], FineTuned]:
    r"""Fine-tune, then score: makes a function that gives every client a model of its own.

    .. math::  z_i = \text{local SGD on } f_i \text{ from } x
               \quad (\text{or from client } i\text{'s own model, where it has one})

    Nothing is kept: models are trained a few clients at a time, when an evaluator asks for them,
    from the server's model; of a state whose clients have models of their own from those. So memory
    is O(lanes x training) and 64 MiB of models, whatever the population, also where it lies on
    disk. *New* clients, who never took part, are the clients of another data set: give theirs here
    and to the evaluator. The same key gives the same models; a client without data keeps the
    model that it starts from.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      data: what clients fine-tune on, `N` clients, as a rule the train part of
        `fedjax_lite.data.split_clients`; the other part is for scoring. A `StreamedDataset` is read
        a few clients at a time; of a `ShardedDataset` each device trains the clients it has.
      plan: the steps of fine-tuning.
      key: of batches and dropout; default ``jax.random.key(0)``.
      num_lanes: clients that train at the same time.

    Returns:
      ``(state or params) -> FineTuned``, for `evaluate_personal` and `evaluate_clients`, and for
      ``client_evaluator(..., adapt=...)`` in a run. Its ``models(ids)`` are the models themselves.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: from the function, if clients have models of their own and are not as many.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"y": jnp.array([-1.0, 3.0, 3.0])}, [0, 1, 1])
      >>> loss = lambda w, e, key: 0.5 * (w - e["y"]) ** 2
      >>> tuned = fine_tuned(loss, optax.sgd(0.5), data, plan=fl.Plan(batch_size=None, steps=1))
      >>> tuned(jnp.array(1.0)).models().tolist()
      [0.0, 2.0]

    Reference: Wang et al., "Federated Evaluation of On-device Personalization", 2019,
    arXiv:1910.10252.
    """
    check_slot(plan, "plan", Plan)
    check_count(num_lanes, "num_lanes", minimum=1)
    if key is not None:
        check_key(key)
    known = isinstance(data, FederatedDataset | ShardedDataset) or is_streamed(data)
    if not known or (isinstance(data, ShardedDataset) and not at_hand(data)):
        raise TypeError(
            "data must be a FederatedDataset, a StreamedDataset or a ShardedDataset on devices of "
            f"this process, got {shown(data)}; of a population that is split over several "
            "processes give the data set that it was made of"
        )
    plan.check_population(len(np.asarray(data.sizes)))
    training = local_sgd(loss, client_optimizer)

    def finish(broadcast: Params, carry: Any) -> tuple[PyTree, Message, dict[str, Any]]:
        return carry.params, Message((), ()), {}

    client = ClientUpdate(lambda params: (), training.start, training.step, finish, training.counts)
    train = jax.jit(
        functools.partial(_train, Program(client, plan, identity(), mean())),
        static_argnames=("num_lanes", "own"),
    )

    def tune(state: RoundState | Params) -> FineTuned:
        check_state(state)
        chosen = jax.random.key(0) if key is None else key
        models = FineTuned(train, chosen, state, data, num_lanes)
        rows = {models.num_clients, getattr(data, "num_rows", models.num_clients)}
        if models._state is not None and num_clients_of(models._state) not in rows:
            raise ValueError(
                f"state must have models of the {models.num_clients} clients of data, got rows of "
                f"{num_clients_of(models._state)}; new clients start from a model that all share: "
                "give state.server.params"
            )
        training.init(models.one)
        return models

    return tune


def _train(
    program: Program,
    key: Key,
    start: Params,
    ids: Array,
    mask: Array,
    round: Array,
    data: ClientData,
    num_lanes: int,
    own: bool,
) -> Params:
    """Models `[n, ...]`, lanes after lanes; `start` is one model or, where `own`, one a client."""
    key = clients_key(key, round)
    work = work_list(program.phases, key, Cohort(ids, mask), data, round)
    work = count_work(program.client.counts, data, work)

    def by_lanes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, num_lanes, *leaf.shape[1:]), tree)

    def lanes(chunk: tuple[Any, Params]) -> Params:
        work, models = chunk
        job = Job(program, key, models if own else start, round, data, work)
        return train_lanes(job, Table((), ()), own_broadcast=own).row.clients

    found = jax.lax.map(lanes, (by_lanes(work), by_lanes(start) if own else ()))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


def model_bytes(models: FineTuned) -> int:
    """Bytes of one client's model."""
    return trees.num_bits(models.one) // 8
