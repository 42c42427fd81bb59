"""What an attacker knows of a client's training, and what it sees of a round."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_key, check_non_negative, check_tree
from fedjax_lite.round.local import LossFn, check_loss, mean_loss
from fedjax_lite.types import (
    Array,
    Batch,
    Cohort,
    FederatedAlgorithm,
    Key,
    Params,
    PyTree,
    RoundState,
)

Simulation = Callable[[Params, PyTree], PyTree]
"""``(params, examples) -> update``: a client's training as a differentiable function."""


def gradient_of(loss: LossFn) -> Simulation:
    """A client that sends the gradient of its mean loss (FedSGD, or one local step of any rate).

    Args:
      loss: ``(params, examples, key) -> [B]``; it is given the key None: no dropout.

    Returns:
      A `Simulation`.

    Example:
      >>> simulate = gradient_of(lambda w, e, key: 0.5 * (w - e["x"]) ** 2)
      >>> float(simulate(jnp.array(1.0), {"x": jnp.array([0.0, 3.0])}))
      -0.5

    Reference: Zhu, Liu, Han, "Deep Leakage from Gradients", 2019, arXiv:1906.08935.
    """
    check_loss(loss)

    def mean(params: Params, examples: PyTree) -> Array:  # over what counts, as a client does
        everything = jnp.ones(jax.tree.leaves(examples)[0].shape[0], bool)
        return mean_loss(loss, params, Batch(examples, everything, None))  # type: ignore[arg-type]

    return jax.grad(mean)


def local_steps(loss: LossFn, learning_rate: float | Array, *, num_steps: int) -> Simulation:
    r"""A client that sends ``x - y_K`` after `K` full-batch SGD steps.

    Args:
      loss: ``(params, examples, key) -> [B]``; it is given the key None.
      learning_rate: of the local steps, which the attacker knows.
      num_steps: `K`, at least 1.

    Returns:
      A `Simulation`; the attack differentiates through all steps.

    Raises:
      ValueError: if `num_steps` is below 1.

    Example:
      >>> simulate = local_steps(lambda w, e, key: 0.5 * (w - e["x"]) ** 2, 0.5, num_steps=2)
      >>> float(simulate(jnp.array(0.0), {"x": jnp.array([4.0])}))
      -3.0

    Reference: Geiping et al., "Inverting Gradients - How Easy Is It to Break Privacy in Federated
    Learning?", 2020, arXiv:2003.14053.
    """
    check_count(num_steps, "num_steps", minimum=1)
    check_non_negative(learning_rate, "learning_rate")
    gradient = gradient_of(loss)

    def simulate(params: Params, examples: PyTree) -> PyTree:
        def step(y: Params, _: None) -> tuple[Params, None]:
            grads = gradient(y, examples)
            return jax.tree.map(lambda p, g: p - learning_rate * g, y, grads), None

        return trees.subtract(params, jax.lax.scan(step, params, None, length=num_steps)[0])

    return simulate


def where_sent(simulate: Simulation, update: PyTree) -> Simulation:
    """The simulation of a client that sends the nonzero entries of `update` only (top-k, masks).

    Without this a sparse update looks like a defence: the attacker would try to make zeros.

    Args:
      simulate: of the client before its uplink.
      update: what was observed.

    Returns:
      A `Simulation` whose other entries are zero.

    Example:
      >>> simulate = gradient_of(lambda w, e, key: 0.5 * ((w - e["x"]) ** 2).sum(-1))
      >>> sent = where_sent(simulate, jnp.array([0.0, -3.0]))
      >>> sent(jnp.zeros(2), {"x": jnp.array([[1.0, 2.0]])}).tolist()
      [0.0, -2.0]
    """
    check_tree(update, "update")

    def sent(params: Params, examples: PyTree) -> PyTree:
        whole = simulate(params, examples)
        return jax.tree.map(lambda a, b: jnp.where(b != 0, a, jnp.zeros_like(a)), whole, update)

    return sent


def observe(
    algo: FederatedAlgorithm,
    state: RoundState,
    *,
    data: PyTree,
    clients: Sequence[int],
    key: Key,
) -> tuple[PyTree, RoundState]:
    """What a round with exactly these clients gives away: the model before minus after.

    Whatever the method does in between (local steps, clip, noise, compression, the sum over
    several clients) is in it, so an attack on this measures the method's own defence. With a server
    optimizer other than ``sgd(1.0)`` it is that optimizer's step.

    Args:
      algo: any method whose rounds take a cohort.
      state: before the round, e.g. from `algo.init`.
      data: the population.
      clients: ids; one client is what a server without secure aggregation sees of it.
      key: of the round.

    Returns:
      ``(update, state after the round)``.

    Raises:
      ValueError: if a client does not exist or is named twice.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(observe(algo, state, data=data, clients=[1], key=jax.random.key(0))[0])
      -1.0
    """
    check_key(key)
    ids = [int(i) for i in clients]
    if not ids or len(set(ids)) < len(ids) or not all(0 <= i < data.num_clients for i in ids):
        raise ValueError(
            f"clients must be distinct ids in [0, {data.num_clients}), at least one, got {ids}"
        )
    before = jax.tree.map(jnp.copy, state.server.params)
    cohort = Cohort(jnp.array(ids, jnp.int32), jnp.ones(len(ids), bool))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "an explicit cohort is not", UserWarning)
        state, _ = algo.round(key, state, data, cohort)
    return trees.subtract(before, state.server.params), state
