"""DP-SGD on clients: every example is hidden, also from the server; clients are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.checks.arguments import (
    check_count,
    check_fraction,
    check_non_negative,
    check_one,
    check_positive,
)
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.privacy.accounting import poisson as accounting
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_epsilon
from fedjax_lite.privacy.arguments import check_delta, check_noise_multiplier
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.gaussian import add_rows, noise_stddev
from fedjax_lite.privacy.participation import DRAWS
from fedjax_lite.round.local import LocalCarry, LossFn, check_loss, no_loss
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
)


@made
def dp_sgd(
    loss: LossFn,
    learning_rate: float | Array | Callable[[Array], Any],
    *,
    clip: float | Array,
    noise_multiplier: float | Array,
    sampling_rate: float | None = None,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    r"""Local training with per-example clipped gradients and noise in every step.

    .. math::
        y \leftarrow y - \frac{\eta}{b} \Big( \sum_{j \in B} \mathrm{clip}_S(\nabla \ell(y; \xi_j))
                     + \mathcal N(0, (z S)^2 I) \Big)

    Two ways to batch, with two bounds (`dp_sgd_epsilon`):

    * ``Plan(batch_size=None, steps=K)`` and `sampling_rate` = `q`: each step draws every example
      of the client with probability `q`, independently, and ``b = q n_i``: Poisson sampling,
      amplified.
    * ordinary batches, `sampling_rate` None: ``b`` is the number of real examples in the batch;
      an example comes up once an epoch, and nothing is gained from its being drawn at random. One
      example more would change all batches: this bound compares data sets of equal size only.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example that depends on it alone (no
        batch normalisation).
      learning_rate: `eta`; a float, a traced scalar or a function of the round.
      clip: `S` > 0, the largest norm of an example's gradient; may be traced.
      noise_multiplier: `z` >= 0; may be traced.
      sampling_rate: `q` in `(0, 1]`, or None.
      weighting: of the messages; see `weight_by`.

    Returns:
      A `ClientUpdate` for `federated_algorithm`. Per-example gradients of a batch are held at
      once: memory ``B x model`` a lane. ``train_loss`` is the mean over the batches' examples,
      exact and for the experimenter only.

    Raises:
      TypeError: if `loss` is not a function.
      ValueError: if an amount is out of range.

    Guarantees:
      `dp_sgd_epsilon`, towards everybody who sees the client's messages, for zeroing out one
      example of a client: its gradients count as zero, and the number of the client's examples,
      which `b` and the weights depend on, is fixed and public. With Poisson batches adding or
      removing an example is the same, but for that number; with ordinary batches it is not covered.
      An example whose gradient is not finite contributes nothing. The method has no accountant, so
      that `run` shows no epsilon and stops at no budget: ask `dp_sgd_epsilon`. The key must be
      secret and serve one run only (see `fedjax_lite.privacy`).

    Example:
      >>> client = dp_sgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 1.0, clip=1.0,
      ...                 noise_multiplier=0.0)
      >>> info = ClientInfo(*map(jnp.int32, (0, 2, 1, 0)))
      >>> carry = client.start(None, (), jnp.array(0.0), info)
      >>> batch = Batch({"b": jnp.array([0.5, 9.0])}, jnp.ones(2, bool), jax.random.key(0))
      >>> float(client.step(0.0, carry, batch).params)  # (0.5 + 1) / 2: the second is clipped
      0.75

    Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv:1607.00133.
    """
    check_loss(loss)
    check_positive(clip, "clip")
    check_non_negative(noise_multiplier, "noise_multiplier")
    if not callable(learning_rate):
        check_non_negative(learning_rate, "learning_rate")
    drawn = None
    if sampling_rate is not None:
        check_fraction(sampling_rate, "sampling_rate")
        check_positive(sampling_rate, "sampling_rate")
        # Rounded down to what float32 draws can realise: never more than accounted for.
        drawn = 1.0 if sampling_rate == 1 else math.floor(sampling_rate * DRAWS) / DRAWS
    weight = weight_by(weighting)

    def one_example(params: Params, example: PyTree, key: Key) -> tuple[Array, Params]:
        def value(params: Params) -> Array:
            losses = loss(params, jax.tree.map(lambda leaf: leaf[None], example), key)
            if jnp.shape(losses) != (1,):
                raise ValueError(
                    f"loss must return one value per example, got shape {list(jnp.shape(losses))} "
                    "for one example"
                )
            return losses[0]

        return jax.value_and_grad(value)(params)

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> LocalCarry:
        return LocalCarry(broadcast, (), no_loss(), info)

    def step(broadcast: Params, carry: LocalCarry, batch: Batch) -> LocalCarry:
        key_draw, key_noise, key_loss = jax.random.split(batch.key, 3)
        size = batch.mask.shape[0]
        counts, params = batch.mask, carry.params
        if drawn is None:
            denominator = jnp.maximum(counts.sum(), 1).astype(jnp.float32)
        else:
            counts = counts & (jax.random.uniform(key_draw, (size,), jnp.float32) < drawn)
            denominator = jnp.maximum(sampling_rate * carry.info.size, 1e-30).astype(jnp.float32)
        keys = jax.random.split(key_loss, size)
        losses, grads = jax.vmap(one_example, in_axes=(None, 0, 0))(params, batch.examples, keys)
        total = add_rows(trees.wide_zeros(params), clip_clients(grads, clip), counts)
        noise = gaussian_like(key_noise, total, noise_stddev(noise_multiplier, clip))
        rate = learning_rate(carry.info.round) if callable(learning_rate) else learning_rate

        def move(leaf: Array, total: Array, noise: Array) -> Array:
            return (leaf - rate * ((total + noise) / denominator)).astype(leaf.dtype)

        seen = carry.loss + Mean(
            jnp.where(counts, losses, 0).sum().astype(jnp.float32),
            counts.sum().astype(jnp.float32),
        )
        return LocalCarry(jax.tree.map(move, params, total, noise), (), seen, carry.info)

    def finish(broadcast: Params, carry: LocalCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        update = trees.subtract(broadcast, carry.params)
        return (), Message(update, weight(carry.info)), {"train_loss": carry.loss}

    return ClientUpdate(lambda params: (), start, step, finish, counts_of(loss))


def dp_sgd_epsilon(
    *,
    noise_multiplier: float,
    delta: float,
    steps: int,
    num_rounds: int,
    sampling_rate: float | None = None,
    size: int | None = None,
    batch_size: int | None = None,
) -> float:
    """Epsilon of one example after its client took part in `num_rounds` rounds of `dp_sgd`.

    Neighbours differ in one example that is zeroed out, at a fixed number of examples; with Poisson
    batches that is adding or removing it, apart from the public number. `run` does not show this
    figure: it depends on the client.

    Args:
      noise_multiplier: `z`.
      delta: in `(0, 1)`.
      steps: local steps a round, `K`.
      num_rounds: rounds that this client took part in (at most the run's).
      sampling_rate: `q` of Poisson batches: ``K * num_rounds`` subsampled steps.
      size: examples of the client, with ordinary batches.
      batch_size: of ordinary batches (None: all at once): an example is in one batch of each of
        ``ceil(K / ceil(size / batch_size))`` epochs a round, with no amplification.

    Returns:
      epsilon; infinity without noise.

    Raises:
      ValueError: if an amount is out of range, or both or neither way of batching is described.

    Example:
      >>> round(dp_sgd_epsilon(noise_multiplier=2.0, delta=1e-5, steps=10, num_rounds=2, size=50,
      ...                      batch_size=10), 6)  # 2 epochs a round, 4 in all: mu = 1
      4.377178
    """
    if batch_size is not None:
        check_count(batch_size, "batch_size", minimum=1)
    check_delta(delta)
    check_noise_multiplier(noise_multiplier)
    check_count(steps, "steps", minimum=0)
    check_count(num_rounds, "num_rounds", minimum=0)
    check_one(sampling_rate=sampling_rate, size=size)  # of Poisson batches, of ordinary ones
    if sampling_rate is not None:
        return accounting.epsilon(
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            num_rounds=steps * num_rounds,
            delta=delta,
        )
    assert size is not None
    check_count(size, "size", minimum=0)
    per_epoch = 1 if batch_size is None else max(-(-size // batch_size), 1)
    times = -(-steps // per_epoch) * num_rounds
    if times == 0 or size == 0:
        return 0.0
    return gdp_epsilon(delta, math.sqrt(times) / noise_multiplier if noise_multiplier else math.inf)
