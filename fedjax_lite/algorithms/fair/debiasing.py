"""Adversarial debiasing: an encoder learns its task and to keep the group to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.algorithms.personal.local_leaves import local_leaves
from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.checks.kinds import is_number
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of, with_counts
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.adversarial import PARTS, Adversarial
from fedjax_lite.models.reversal import check_strength
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd, resolve_optimizer
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
)

Strength = float | Array | Callable[[Array], Any]
Side = Literal["server", "client"]


class DebiasingCarry(NamedTuple):
    """Local training, and how often the adversary was right."""

    local: PyTree
    hits: Mean
    strength: Array


@made
def debiasing(
    parts: Adversarial,
    client_optimizer: ClientOptimizer,
    *,
    strength: Strength,
    adversary_optimizer: ClientOptimizer | None = None,
    adversary: Side = "server",
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of an encoder and a predictor against an adversary that guesses a sensitive group.

    .. math::
        \theta_e &\leftarrow \theta_e - \eta\, \nabla_e (\ell_{\text{task}}
            - \lambda_r\, \ell_{\text{group}}), \\
        \theta_h &\leftarrow \theta_h - \eta\, \nabla_h\, \ell_{\text{task}}, \qquad
        \theta_a \leftarrow \theta_a - \eta_a\, \nabla_a\, \ell_{\text{group}},

    all three on one batch, from the values before the step. The mean of
    :math:`\ell_{\text{group}}` is over the examples whose group is known. It takes no group to
    *use* the model, only to train it. ``strength=0`` is `fedavg` of encoder and predictor. Where
    features tell nothing of the group, the adversary is right as often as the largest group is
    large; a high strength without success may also only have blinded this adversary: train a new
    one on the features to see. The step of Zhang et al. further takes the projection on the
    adversary's gradient away and lets their adversary see the answer instead of features; neither
    is done here.

    Args:
      parts: of `fedjax_lite.models.adversarial`.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      strength: `lambda`, at least 0, which may be traced; or ``(round) -> lambda``, such as
        ``ramped_strength(1.0, num_rounds)``.
      adversary_optimizer: of the adversary, often with a larger rate; None: as `client_optimizer`,
        one for all. With it, neither is given the broadcast model (`proximal`).
      adversary: "server": one for all, averaged as the rest is; "client": each client keeps its
        own, which never leaves it.
      plan: local work.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`. Its parameters are those of ``parts.init(key)``; ``parts.model`` is
      scored, by group with ``groups=parts.group``. Metrics ``train_loss``, the sum of both losses;
      ``adversary_accuracy``, of examples whose group is known, before each step;
      ``adversary_strength``, `lambda`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `strength` is negative or a name unknown.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
      >>> data = fl.data.from_arrays({"x": x, "y": jnp.array([1, 0, 1, 0]),
      ...                             "group": jnp.array([0, 1, 1, 0])}, [0, 0, 1, 1])
      >>> linear = fl.models.linear(2, (2,))
      >>> parts = fl.models.adversarial(linear, linear, linear)
      >>> algo = debiasing(parts, optax.sgd(0.1), strength=1.0, plan=fl.Plan(2),
      ...                  sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), parts.init(jax.random.key(0)), data)
      >>> float(algo.round(jax.random.key(0), state, data)[1]["adversary_accuracy"])
      0.5

    Reference: Zhang, Lemoine, Mitchell, "Mitigating Unwanted Biases with Adversarial Learning",
    2018, arXiv:1801.07593; Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016,
    arXiv:1505.07818.
    """
    check_slot(parts, "parts", Adversarial)
    if not callable(strength):
        check_strength(strength)
    if adversary not in get_args(Side):
        raise ValueError(
            f"adversary must be one of {get_args(Side)}, got {shown(adversary)}; 'server'"
        )
    if adversary_optimizer is not None:
        client_optimizer = apart(client_optimizer, adversary_optimizer)
    client = against_adversary(parts, client_optimizer, strength, weighting=weighting)
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    if adversary == "client":
        return local_leaves(
            client, is_local=of_adversary, plan=plan, sampler=sampler, server=server, **slots
        )
    return federated_algorithm(client, plan=plan, sampler=sampler, server=server, **slots)


def of_adversary(params: Params) -> PyTree:
    """Which leaves are the adversary's.

    Example:
      >>> of_adversary({"encoder": 1.0, "predictor": 1.0, "adversary": 1.0})
      {'adversary': True, 'encoder': False, 'predictor': False}
    """
    del params
    return {part: part == "adversary" for part in PARTS}


def apart(client_optimizer: ClientOptimizer, of_adversary: ClientOptimizer) -> ClientOptimizer:
    """One optimizer for encoder and predictor, another for the adversary.

    Example:
      >>> both, params = apart(optax.sgd(1.0), optax.sgd(3.0))(0), dict.fromkeys(PARTS, 1.0)
      >>> both.update(params, both.init(params))[0]
      {'adversary': -3.0, 'encoder': -1.0, 'predictor': -1.0}
    """
    first = resolve_optimizer(client_optimizer)
    second = resolve_optimizer(of_adversary, "adversary_optimizer")

    def optimizer(round: Array) -> optax.GradientTransformation:
        each = {"rest": first(round), "adversary": second(round)}
        names = {part: part if part == "adversary" else "rest" for part in PARTS}
        return optax.partition(each, names)

    return optimizer


@made
def against_adversary(
    parts: Adversarial,
    client_optimizer: ClientOptimizer,
    strength: Strength,
    *,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    """Local training of all three parts at once; sends ``server minus client`` of them.

    Args:
      parts: what is trained.
      client_optimizer: of all parameters.
      strength: of the reversal, or a function of the round.
      weighting: of messages.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> linear = fl.models.linear(2, (2,))
      >>> client = against_adversary(fl.models.adversarial(linear, linear, linear),
      ...                            optax.sgd(0.1), 1.0)
      >>> client.init(fl.models.adversarial(linear, linear, linear).init(jax.random.key(0)))
      ()
    """
    weight_by(weighting)

    def at(round: Array) -> Array:
        found = strength(round) if callable(strength) else strength
        if not is_number(found):
            raise TypeError(
                "strength, a function of the round, must return a number, got "
                f"{shown(found)}; for example fl.models.ramped_strength(1.0, num_rounds)"
            )
        return jnp.asarray(found, float)

    def trained_at(strength: Any, mask: Array | None = None) -> ClientUpdate:
        def loss(params: Params, examples: PyTree, key: Key) -> Array:
            return parts.loss(params, examples, key, strength, mask)

        return local_sgd(as_predictor(loss), client_optimizer, weighting=weighting)

    def as_predictor(loss: LossFn) -> LossFn:
        counts = counts_of(parts.predictor.loss)
        return loss if counts is None else with_counts(loss, counts)

    client = trained_at(0.0)  # all but its step is the same for any

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> DebiasingCarry:
        zero = jnp.zeros((), jnp.float32)
        local = client.start(key, row, broadcast, info)
        return DebiasingCarry(local, Mean(zero, zero), at(info.round))

    def step(broadcast: Params, carry: DebiasingCarry, batch: Batch) -> DebiasingCarry:
        right, known = parts.hits(carry.local.params, batch.examples)
        seen = Mean(*((part & batch.mask).sum().astype(jnp.float32) for part in (right, known)))
        train = step_of(trained_at(carry.strength, batch.mask))
        local = train(broadcast, carry.local, batch)
        return carry._replace(local=local, hits=carry.hits + seen)

    def finish(broadcast: Params, carry: DebiasingCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = client.finish(broadcast, carry.local)
        told = {"adversary_accuracy": carry.hits, "adversary_strength": carry.strength}
        return row, message, {**metrics, **told}

    return ClientUpdate(client.init, start, step, finish, client.counts)
