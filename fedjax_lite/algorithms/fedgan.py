"""FedGAN: clients train a generator and a discriminator in turns, and one or both are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.checks.arguments import check_non_negative, check_positive, shown
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import Extra, loss_arguments
from fedjax_lite.engine.batches import Plan
from fedjax_lite.models.gan import Gan, as_real
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.gaussian import add_rows, noise_stddev
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    add_loss,
    client_step,
    no_loss,
    resolve_optimizer,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.transforms.noise import gaussian_like
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
    ServerUpdate,
)


class OwnDiscriminator(NamedTuple):
    """What a client keeps where only generators are averaged."""

    discriminator: Params


class GanCarry(NamedTuple):
    """Both networks while a client trains them."""

    params: Params
    generator_state: PyTree
    discriminator_state: PyTree
    generator_loss: Mean
    discriminator_loss: Mean
    info: ClientInfo


class Found(NamedTuple):
    """Of a network on a batch: its loss, the gradient, and what its optimizer may ask for."""

    value: Array
    grad: Params
    extra: Extra


@made
def fedgan(
    gan: Gan,
    generator_optimizer: ClientOptimizer,
    discriminator_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    share: str = "both",
    clip: float | Array | None = None,
    noise_multiplier: float | Array = 0.0,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated generative adversarial networks: alternating steps at clients, averages of both.

    A local step moves the discriminator, then the generator, on one batch `x` with new noise `z`:

    .. math::
        \min_D\; -\ln \sigma(D(x)) - \ln \sigma(-D(G(z))), \qquad
        \min_G\; -\ln \sigma(D(G(z)))

    (the generator's is the one that does not saturate). One client is a plain GAN. Where the
    generator makes what the data are, the best discriminator says 1/2, and its loss is ``2 ln 2``.

    Args:
      gan: `fedjax_lite.models.dcgan`, `mlp_gan`, or your own; examples are ``{"x": [B, ...]}``.
      generator_optimizer: an optax optimizer, or ``(round) -> optimizer``; starts anew each round,
        and is given its broadcast network as the extra argument ``anchor`` (`proximal`), and the
        loss on the batch where it asks for it.
      discriminator_optimizer: likewise; but with `clip` it is given nothing of the loss, and a
        discriminator that stays with its client has no anchor.
      plan: local work.
      sampler: who takes part.
      share: "both", or "generator": discriminators then stay with their clients, memory O(N x
        discriminator), and nothing of them is sent.
      clip: `S`: the discriminator's gradients of single examples are clipped to this norm, and
        noise is added to their sum, DP-SGD on the only network that sees data; the generator
        follows from it. None: neither. Takes the memory of a discriminator an example of a batch.
        Without noise, `clip` alone hides nothing.
      noise_multiplier: `z`: the noise has the deviation ``z S``.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: as in `fedavg`, `privacy` included: a mechanism hides whole clients.

    Returns:
      A `FederatedAlgorithm` with ``state.server.params["generator"]``; metrics
      ``discriminator_loss`` and ``generator_loss``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `share` is none of the two, or `clip` is missing beside noise.

    Guarantees:
      With `clip` and noise `fedjax_lite.privacy.dp_sgd_epsilon` of ordinary batches (its `size` and
      `batch_size`), towards everybody who sees the client's messages, for zeroing out one example
      of a client: its gradients count as zero, and the number `n_i` of the client's examples, which
      batches and weights depend on, is fixed and public; adding or removing an example is not
      covered. An example whose gradient is not finite contributes nothing. Both losses among the
      metrics are exact, and for the experimenter only. The method has no accountant, so that `run`
      shows no epsilon and stops at no budget: ask `dp_sgd_epsilon`. The key must be secret and
      serve one run only (see `fedjax_lite.privacy`).

    Example:
      >>> import fedjax_lite as fl
      >>> pair = fl.models.mlp_gan(1, latent_size=1, hidden=(4,))
      >>> data = fl.data.from_arrays({"x": jnp.ones((4, 1))}, [0, 0, 1, 1])
      >>> slots = {"plan": fl.Plan(2), "sampler": fl.everyone()}
      >>> algo = fedgan(pair, optax.sgd(0.1), optax.sgd(0.1), **slots)
      >>> key = jax.random.key(0)
      >>> state, metrics = algo.round(key, algo.init(key, pair.init(key), data), data)
      >>> sorted(state.server.params)
      ['discriminator', 'generator']

    Reference: Rasouli, Sun, Rajagopal, "FedGAN: Federated Generative Adversarial Networks for
    Distributed Data", 2020, arXiv:2006.07228; with privacy: Augenstein et al., "Generative Models
    for Effective ML on Private, Decentralized Datasets", 2019, arXiv:1911.06679.
    """
    if not isinstance(gan, Gan):
        raise TypeError(f"gan must be a Gan, got {shown(gan)}; fl.models.dcgan((28, 28, 1))")
    if share not in ("both", "generator"):
        raise ValueError(f"share must be 'both' or 'generator', got {shown(share)}; share='both'")
    check_non_negative(noise_multiplier, "noise_multiplier")
    if clip is not None:
        check_positive(clip, "clip")
    elif isinstance(noise_multiplier, jax.core.Tracer) or noise_multiplier:
        raise ValueError(
            f"clip must be given beside noise_multiplier={shown(noise_multiplier)}, got None; "
            "noise hides a gradient only up to its norm: clip=1.0"
        )
    client = _client(
        gan,
        resolve_optimizer(generator_optimizer, "generator_optimizer"),
        resolve_optimizer(discriminator_optimizer, "discriminator_optimizer"),
        share,
        clip,
        noise_multiplier,
        weight_by(weighting),
    )
    inner = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        client,
        plan=plan,
        sampler=sampler,
        server=inner if share == "both" else generator_server(inner),
        **slots,
    )


@made
def generator_server(server: ServerUpdate) -> ServerUpdate:
    """The same server, of the generator alone.

    Args:
      server: any; its state has `params`.

    Example:
      >>> server = generator_server(optimizer_server(optax.sgd(1.0)))
      >>> sorted(server.init({"generator": jnp.ones(1), "discriminator": jnp.ones(2)}, None).params)
      ['generator']
    """
    return server._replace(
        init=lambda params, population: server.init({"generator": params["generator"]}, population)
    )


def discriminator_losses(gan: Gan, params: Params, x: Array, z: Array) -> Array:
    """``-ln sigma(D(x)) - ln sigma(-D(G(z)))`` of each example, `[B]`.

    Example:
      >>> half = Gan(lambda key: None, lambda g, z: z, lambda d, x: 0 * x[:, 0], 1)
      >>> params = {"generator": (), "discriminator": ()}
      >>> discriminator_losses(half, params, jnp.ones((1, 1)), jnp.ones((1, 1))).round(4).tolist()
      [1.386299967765808]
    """
    judged = params["discriminator"]
    fake = jax.lax.stop_gradient(gan.generate(params["generator"], z))
    return jax.nn.softplus(-gan.judge(judged, x)) + jax.nn.softplus(gan.judge(judged, fake))


def generator_losses(gan: Gan, params: Params, z: Array) -> Array:
    """``-ln sigma(D(G(z)))`` of each example, `[B]`."""
    fake = gan.generate(params["generator"], z)
    return jax.nn.softplus(-gan.judge(params["discriminator"], fake))


def _mean(losses: Array, mask: Array) -> Array:
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)


def _found(loss: Callable[[Params], Array], part: Params) -> Found:
    value, grad = jax.value_and_grad(loss)(part)
    return Found(value, grad, loss_arguments(loss, value, grad))


def _client(
    gan: Gan,
    generator_optimizer: Any,
    discriminator_optimizer: Any,
    share: str,
    clip: float | Array | None,
    noise_multiplier: float | Array,
    weight: Any,
) -> ClientUpdate:
    def with_part(params: Params, name: str, part: Params) -> Params:
        return {**params, name: part}

    def init(params: Params) -> PyTree:
        missing = {"generator", "discriminator"} - set(params if isinstance(params, dict) else ())
        if missing:
            raise ValueError(
                f"params must hold both networks, got {shown(params)} without {sorted(missing)}; "
                "give gan.init(key)"
            )
        return () if share == "both" else OwnDiscriminator(params["discriminator"])

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> GanCarry:
        params = broadcast if share == "both" else {**broadcast, **row._asdict()}
        return GanCarry(
            params,
            generator_optimizer(info.round).init(params["generator"]),
            discriminator_optimizer(info.round).init(params["discriminator"]),
            no_loss(),
            no_loss(),
            info,
        )

    def judged(params: Params, x: Array, z: Array, batch: Batch, key: Key) -> Found:
        """The discriminator's; clipped by example and noised where asked."""
        name = "discriminator"

        def losses(part: Params, x: Array, z: Array) -> Array:
            return discriminator_losses(gan, with_part(params, name, part), x, z)

        if clip is None:
            return _found(lambda part: _mean(losses(part, x, z), batch.mask), params[name])

        def alone(part: Params, x: Array, z: Array) -> Array:
            return losses(part, x[None], z[None])[0]

        values, grads = jax.vmap(jax.value_and_grad(alone), (None, 0, 0))(params[name], x, z)
        total = add_rows(trees.wide_zeros(params[name]), clip_clients(grads, clip), batch.mask)
        noise = gaussian_like(key, total, noise_stddev(noise_multiplier, clip))
        count = jnp.maximum(batch.mask.sum(), 1)
        grad = jax.tree.map(
            lambda leaf, total, noise: ((total + noise) / count).astype(leaf.dtype),
            *(params[name], total, noise),
        )
        return Found(_mean(values, batch.mask), grad, {})  # losses are not noised: none is told

    def made_up(params: Params, z: Array, batch: Batch) -> Found:
        """The generator's."""

        def loss(part: Params) -> Array:
            losses = generator_losses(gan, with_part(params, "generator", part), z)
            return _mean(losses, batch.mask)

        return _found(loss, params["generator"])

    def moved(
        optimizer: Any, name: str, params: Params, state: PyTree, found: Found, broadcast: Params
    ) -> tuple[Params, PyTree]:
        moves, state = client_step(
            *(optimizer, found.grad, state, params[name], found.extra),
            anchor=broadcast.get(name),
            name=f"{name}_optimizer",
        )
        return with_part(params, name, optax.apply_updates(params[name], moves)), state

    def step(broadcast: Params, carry: GanCarry, batch: Batch) -> GanCarry:
        key_judge, key_make, key_noise = jax.random.split(batch.key, 3)
        x = as_real(batch.examples["x"])
        size, params, round = batch.mask.shape[0], carry.params, carry.info.round
        of_judge = judged(params, x, gan.noise(key_judge, size), batch, key_noise)
        params, discriminator_state = moved(
            *(discriminator_optimizer(round), "discriminator", params),
            *(carry.discriminator_state, of_judge, broadcast),
        )
        of_maker = made_up(params, gan.noise(key_make, size), batch)
        params, generator_state = moved(
            *(generator_optimizer(round), "generator", params),
            *(carry.generator_state, of_maker, broadcast),
        )
        return carry._replace(
            params=params,
            generator_state=generator_state,
            discriminator_state=discriminator_state,
            generator_loss=add_loss(carry.generator_loss, of_maker.value, batch),
            discriminator_loss=add_loss(carry.discriminator_loss, of_judge.value, batch),
        )

    def finish(broadcast: Params, carry: GanCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        sent = {name: carry.params[name] for name in broadcast}
        row = () if share == "both" else OwnDiscriminator(carry.params["discriminator"])
        losses = {
            "discriminator_loss": carry.discriminator_loss,
            "generator_loss": carry.generator_loss,
        }
        return row, Message(trees.subtract(broadcast, sent), weight(carry.info)), losses

    return ClientUpdate(init, start, step, finish)
