"""FedBABU: the body is trained under a head that stays at random, until clients fine-tune."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.frozen_leaves import frozen_leaves
from fedjax_lite.algorithms.personal.heads import IsHead, head_mask
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import FederatedAlgorithm, Sampler


@made
def fedbabu(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_head: IsHead | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of the body under one head that nobody trains.

    .. math::
        \phi_i \leftarrow \phi_i - \eta\,\nabla_\phi f_i(\phi_i, h_0), \quad \phi_i^0 = x, \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, \phi_i, \qquad h_0 \text{ as } \texttt{init}
        \text{ drew it.}

    Clients know `h_0` from the start, so neither way does it cost a bit. Personal models come
    afterwards, by fine-tuning ``state.server.params`` on a client's own data, when they are scored:
    `fedjax_lite.fine_tuned`. It is `frozen_leaves` with a frozen head; without a head it is
    `fedavg`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the body; an optax optimizer, or ``(round) -> optimizer``.
      is_head: ``(params) -> bools``, a prefix of the parameters, True for the head; None: what is
        called "head", as in every model of `fedjax_lite.models`.
      plan: local work.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the body only.

    Returns:
      A `FederatedAlgorithm`; ``state.server.params`` is the whole model, with the initial head.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if nothing is called "head".

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> loss = lambda w, e, key: 0.5 * (w["body"] * w["head"] - e["c"]) ** 2
      >>> algo = fedbabu(loss, optax.sgd(0.5), plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(0.0), "head": jnp.array(1.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> {name: float(leaf) for name, leaf in state.server.params.items()}
      {'body': 1.5, 'head': 1.0}
      >>> tune = fl.fine_tuned(loss, optax.sgd(0.5), data, plan=fl.Plan(batch_size=1, steps=1))
      >>> tune(state).models()["head"].tolist()  # 1 - .5 * 1.5 (1.5 - c)
      [1.375, 2.875]

    Reference: Oh, Kim, Yun, "FedBABU: Towards Enhanced Representation for Federated Image
    Classification", 2022, arXiv:2106.06042.
    """
    return frozen_leaves(
        loss,
        client_optimizer,
        is_frozen=head_mask(is_head),
        plan=plan,
        sampler=sampler,
        server_optimizer=server_optimizer,
        weighting=weighting,
        **slots,
    )
