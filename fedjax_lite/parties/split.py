"""Split learning and SplitFed: clients compute the first layers, a server the others."""

from __future__ import annotations

from typing import Literal

from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.parties.cut import CutModel
from fedjax_lite.parties.split_parallel import parallel_split
from fedjax_lite.parties.split_turns import split_in_turn
from fedjax_lite.parties.wires import check_wire
from fedjax_lite.round.local import ClientOptimizer
from fedjax_lite.types import FederatedAlgorithm, Sampler, Transform


@made
def split_learning(
    cut: CutModel,
    optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler,
    server_optimizer: ClientOptimizer | None = None,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
) -> FederatedAlgorithm:
    r"""Split learning: clients in turn train the first layers, and hand them on.

    .. math::  \theta_c \leftarrow \theta_c + \mathrm{update}(\nabla_c), \quad
               \theta_s \leftarrow \theta_s + \mathrm{update}(\nabla_s) \quad
               \text{after every batch of client } i_1, \text{ then } i_2, \dots

    Nothing is averaged: it is SGD on one network whose batches come from client after client, in an
    order drawn anew every round. Where `cut` has three parts (a U) no label leaves a client.

    **No guarantee of privacy** comes with the cut, nor with noise on it. What
    ``uplink=fl.chain(fl.clip(C), fl.gaussian_noise(sigma))`` does guarantee is local and of one
    message: whoever sees one noised activation tells its example from any other no better than
    :math:`\mu`-Gaussian DP allows, :math:`\mu = 2C / \sigma`, weights held fixed. Without the clip
    not even that. It does *not* cover: the same example in the next epoch (`T` messages have
    :math:`\mu \sqrt T`); its label, which crosses in the clear unless the cut is a U, and there the
    gradients that go up; the clients' half of the network, which has seen the example without noise
    and is handed on in the clear; who took part, and with how many examples. Nothing here is
    accounted for you: examples or clients are hidden by a proof where a whole network is trained,
    with `fedjax_lite.privacy.dp_sgd` or a mechanism of that package.

    Args:
      cut: the network: `cut_layers`, `cut_linen`, `cut_nnx`.
      optimizer: of the clients' half; a client begins anew, only weights are handed on. A pull of
        `fedjax_lite.proximal` is towards the half as this client received it, at the
        server towards its half at the beginning of the round.
      plan: a client's batches in its turn.
      sampler: whose turn it is in a round; one without a clock.
      server_optimizer: of the server's half, whose state lasts; default as `optimizer`.
      uplink: what happens to each example's activation on its way up (noised, quantised ...), and
        in a U to the gradient that goes up; memoryless ones only.
      downlink: the same for what comes down.

    Returns:
      A `FederatedAlgorithm` on a population of clients; ``state.server.params`` are those of the
      whole ``cut.model``. ``uplink_bits`` and ``downlink_bits`` are activations, gradients, labels
      and, for every client, its half of the network down and up again;
      ``activation_bits`` and ``gradient_bits`` are what crossed the cut up and down.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: if a transform remembers one message for the next, or the sampler learns or has a
        clock.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_lite as fl
      >>> dense = lambda i, o: fl.parties.Part(
      ...     lambda key: jax.random.normal(key, (i, o)), lambda w, x, key: jnp.tanh(x @ w))
      >>> cut = fl.parties.cut_layers([dense(3, 4), dense(4, 2)], at=1)
      >>> data = fl.data.from_arrays({"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 1, 0])},
      ...                            [0, 0, 1, 1])
      >>> algo = split_learning(cut, optax.sgd(0.1), plan=fl.Plan(batch_size=2),
      ...                       sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), cut.model.init(jax.random.key(0)), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(metrics["activation_bits"])  # four floats and a label for four examples
      640.0

    Reference: Gupta, Raskar, "Distributed learning of deep neural network over multiple agents",
    2018, arXiv:1810.06060; Vepakomma, Gupta, Swedish, Raskar, "Split learning for health", 2018,
    arXiv:1812.00564.
    """
    _check(cut, plan, sampler, uplink, downlink)
    return split_in_turn(
        cut,
        optimizer,
        optimizer if server_optimizer is None else server_optimizer,
        plan=plan,
        sampler=sampler,
        uplink=uplink,
        downlink=downlink,
        handed_on=True,
    )


@made
def splitfed(
    cut: CutModel,
    optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler,
    version: Literal[1, 2] = 1,
    server_optimizer: ClientOptimizer | None = None,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""SplitFed: split learning whose clients work side by side, their halves averaged.

    .. math::  \theta_c \leftarrow \sum_i p_i\, \theta_c^{(i)}; \qquad
        \theta_s \leftarrow \sum_i p_i\, \theta_s^{(i)} \;(\text{version 1}), \quad
        \theta_s \text{ trained by client after client} \;(\text{version 2})

    Version 1 keeps a copy of the server's half for every client: for optimizers that work
    coordinate by coordinate (SGD, momentum, Adam, a proximal pull; not clipping by the norm of
    all) it is FedAvg of the uncut network, over another wire. Version 2 has one, which sees the
    activations of one client after the other, in an order drawn anew every round.
    Noise at the cut guarantees as little as in `split_learning`, where it is said what.

    Args:
      cut: the network: `cut_layers`, `cut_linen`, `cut_nnx`.
      optimizer: of the clients' half, begun anew every round.
      plan: a client's batches in a round.
      sampler: who takes part.
      version: 1 or 2.
      server_optimizer: of the server's half; default as `optimizer`. Of version 1 begun anew with
        every copy, of version 2 lasting.
      uplink: see `split_learning`.
      downlink: see `split_learning`.
      strategy: how the cohort is executed, of version 1; default `auto()`.

    Returns:
      A `FederatedAlgorithm`; see `split_learning`. Clients weigh their numbers of examples.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: if `version` is another; if version 2 is given a strategy; else as
        `split_learning`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_lite as fl
      >>> dense = lambda i, o: fl.parties.Part(
      ...     lambda key: jax.random.normal(key, (i, o)), lambda w, x, key: jnp.tanh(x @ w))
      >>> cut = fl.parties.cut_layers([dense(3, 4), dense(4, 4), dense(4, 2)], at=(1, 2))
      >>> data = fl.data.from_arrays({"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 1, 0])},
      ...                            [0, 0, 1, 1])
      >>> algo = splitfed(cut, optax.sgd(0.1), plan=fl.Plan(batch_size=2), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), cut.model.init(jax.random.key(0)), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(metrics["activation_bits"])  # four floats up, four gradients up; no labels
      1024.0

    Reference: Thapa, Chamikara, Camtepe, Sun, "SplitFed: When Federated Learning Meets Split
    Learning", 2020, arXiv:2004.12088.
    """
    _check(cut, plan, sampler, uplink, downlink)
    server_optimizer = optimizer if server_optimizer is None else server_optimizer
    if version not in (1, 2) or isinstance(version, bool):
        raise ValueError(f"version must be 1 or 2, got {version!r}; give 1")
    if version == 1:
        return parallel_split(
            cut,
            optimizer,
            server_optimizer,
            plan=plan,
            sampler=sampler,
            uplink=uplink,
            downlink=downlink,
            strategy=strategy,
        )
    if strategy is not None:
        raise ValueError(
            f"strategy must be left out with version=2, got {strategy.name}: the server's half is "
            "trained by client after client; version=1 has copies"
        )
    return split_in_turn(
        cut,
        optimizer,
        server_optimizer,
        plan=plan,
        sampler=sampler,
        uplink=uplink,
        downlink=downlink,
        handed_on=False,
    )


def _check(
    cut: CutModel,
    plan: Plan,
    sampler: Sampler,
    uplink: Transform | None,
    downlink: Transform | None,
) -> None:
    check_slot(cut, "cut", CutModel)
    check_slot(plan, "plan", Plan)
    check_slot(sampler, "sampler", Sampler)
    check_wire(uplink, "uplink")
    check_wire(downlink, "downlink")
