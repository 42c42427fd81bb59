"""Methods beyond one mean of one network, and beyond one cohort at a time: caches of updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.algorithms import fedgan, fedma, precision_weighted
from fedjax_lite.arrivals import ca2fl, exponential, latency
from fedjax_lite.checks.made import signed
from fedjax_lite.engine import Plan
from fedjax_lite.models.gan import Gan
from fedjax_lite.parties import Part, cut_layers, splitfed
from fedjax_lite.parties.cut import At
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.types import Array, FederatedAlgorithm, Key, Params

PLAN = Plan(batch_size=2, epochs=2)


def beyond() -> dict[str, Make]:
    """Entries of the registry.

    Example:
      >>> sorted(beyond())[:4]
      ['ca2fl', 'fedgan', 'fedgan generator', 'fedgan private']
    """
    return {
        "ca2fl": _calibrated,
        "precision weighted": _precise(),
        "precision weighted by labels": _precise(measure=lambda params, e, key: e["y"]),
        "fedgan": _paired(),
        "fedgan generator": _paired(share="generator"),
        "fedgan private": _paired(clip=1.0, noise_multiplier=0.1),
        "fedma": _matched(),
        "fedma own starts": _matched(init=_hidden),
        "splitfed": _cut(at=1),
        "splitfed labels stay": _cut(at=(1, 2)),
    }


def _calibrated(learning_rate, sampler, strategy) -> FederatedAlgorithm:
    """Who takes part is not the laws' to choose."""
    return ca2fl(
        loss,
        optax.sgd(learning_rate),
        plan=PLAN,
        concurrency=4,
        buffer=2,
        latency=latency(overhead=exponential(1.0)),
        strategy=strategy,
    )


def _precise(**options: Any) -> Make:
    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        return precision_weighted(
            loss,
            optax.sgd(learning_rate),
            floor=0.1,
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

    return make


def _hidden(key: Key) -> Params:
    """A network of three hidden units."""
    kernel = jax.random.normal(key, (3, 3))
    return {
        "dense1": {"kernel": kernel, "bias": jnp.zeros(3)},
        "head": {"kernel": jnp.ones((3, 1))},
    }


def _matched(**options: Any) -> Make:
    """The problem's regression by such a network, which its own parameters begin."""

    def network_loss(params: Params, examples: Any, key: Any) -> jax.Array:
        layer = params["dense1"]
        hidden = jnp.tanh(examples["x"] @ layer["kernel"] + layer["bias"])
        linear = {"w": params["head"]["kernel"][:, 0], "b": jnp.zeros(())}
        return loss(linear, {"x": hidden, "y": examples["y"]}, key)

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = fedma(
            network_loss,
            optax.sgd(learning_rate),
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

        def init(key, params, data):
            net = _hidden(jax.random.key(1))
            kernel = net["dense1"]["kernel"] + params["w"]
            net["dense1"] = {"kernel": kernel, "bias": params["b"] + net["dense1"]["bias"]}
            return algo.init(key, net, data)

        return signed(algo._replace(init=init), algo.made)

    return make


def _cut(at: At) -> Make:
    """A network whose last layer is at the server, or with the clients."""

    def dense(size: int, out: int) -> Part:
        def init(key: Key) -> Params:
            return jax.random.normal(key, (size, out)) / 2

        return Part(init, lambda kernel, x, key: jnp.tanh(x @ kernel))

    def squares(outputs: Array, y: Array) -> Array:
        return 0.5 * (outputs[:, 0] - y) ** 2

    cut = cut_layers([dense(3, 4), dense(4, 4), dense(4, 1)], at=at, loss=squares)

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        optimizer = optax.sgd(learning_rate)
        algo = splitfed(cut, optimizer, plan=PLAN, sampler=sampler, strategy=strategy)

        def init(key, params, data):
            first, *others = cut.model.init(jax.random.key(1))
            return algo.init(key, (first + params["w"][:, None], *others), data)

        return signed(algo._replace(init=init), algo.made)

    return make


def _paired(**options: Any) -> Make:
    """A generator of three numbers, and a linear judge."""
    gan = Gan(
        init=lambda key: {"generator": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.ones(3)}},
        generate=lambda params, z: z * params["w"],
        judge=lambda params, x: x @ params["w"],
        latent_size=3,
    )

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = fedgan(
            gan,
            optax.sgd(learning_rate),
            optax.sgd(learning_rate),
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

        def init(key, params, data):
            both = {"generator": {"w": params["w"] + 1}, "discriminator": {"w": params["w"]}}
            return algo.init(key, both, data)

        return signed(algo._replace(init=init), algo.made)

    return make
