"""Methods of several models, or of several parts of one, that must pass the laws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.algorithms import debiasing, fedem, ifca, mixture_of_experts
from fedjax_lite.checks.made import signed
from fedjax_lite.engine import Plan
from fedjax_lite.models import Model, adversarial
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.types import Array, FederatedAlgorithm, Key, Params, PyTree

PLAN = Plan(batch_size=2, epochs=2)


def clusters() -> dict[str, Make]:
    """Entries of the registry.

    Example:
      >>> len(clusters()), sorted(clusters())[2:]
      (6, ['fedem', 'ifca', 'ifca gradient', 'mixture of experts'])
    """
    return {
        "debiasing": against(strength=0.5),
        "debiasing own adversary": against(strength=0.5, adversary="client"),
        "fedem": of_two(fedem, optax.sgd, num_models=2),
        "ifca": of_two(ifca, optax.sgd, num_clusters=2),
        "ifca gradient": of_two(ifca, optax.adam, num_clusters=2, averaging="gradient"),
        "mixture of experts": routed,
    }


def of_two(method: Any, client: Any, **options: Any) -> Make:
    """Two models: the problem's own, and one on its other side."""

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = method(
            loss,
            client(learning_rate),
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

        def init(key, params, data):
            both = jax.tree.map(lambda leaf: jnp.stack([leaf, -0.5 - leaf]), params)
            return algo.init(key, both, data)

        return signed(algo._replace(init=init), algo.made)

    return make


def routed_loss(params: Params, examples: PyTree, key: Key) -> Array:
    """The problem's loss, each of two experts' by what a router of two numbers says."""
    first, second = (jax.tree.map(lambda leaf, k=k: leaf[k], params["experts"]) for k in range(2))
    gates = jax.nn.softmax(params["router"])
    one, other = loss(first, examples, key), loss(second, examples, None)  # type: ignore[arg-type]
    return gates[0] * one + gates[1] * other


def routed(learning_rate: Any, sampler: Any, strategy: Any) -> FederatedAlgorithm:
    """Two experts, and a router for each client."""
    algo = mixture_of_experts(
        routed_loss, optax.sgd(learning_rate), plan=PLAN, sampler=sampler, strategy=strategy
    )

    def init(key: Key, params: Params, data: Any) -> Any:
        both = jax.tree.map(lambda leaf: jnp.stack([leaf, -0.5 - leaf]), params)
        return algo.init(key, {"experts": both, "router": jnp.zeros(2)}, data)

    return signed(algo._replace(init=init), algo.made)


def against(**options: Any) -> Make:
    """The problem's model as the predictor, on inputs that an encoder scales; an adversary."""

    def features(scale: Array, e: PyTree) -> Array:
        return scale * e["x"]

    def guess(tilt: Array, e: PyTree) -> Array:
        return jnp.stack([e["x"] @ tilt, jnp.zeros(len(e["x"]))], axis=-1)

    def fooled(tilt: Array, e: PyTree, key: Key | None) -> Array:
        return 0.5 * (e["x"] @ tilt - jnp.sign(e["y"])) ** 2

    parts = adversarial(
        Model(lambda key: jnp.ones(3), None, features),  # type: ignore[arg-type]
        Model(lambda key: (), loss, lambda params, e: e["x"] @ params["w"] + params["b"]),  # type: ignore[arg-type]
        Model(lambda key: jnp.zeros(3), fooled, guess),
        group="y",
    )

    def make(learning_rate: Any, sampler: Any, strategy: Any) -> FederatedAlgorithm:
        algo = debiasing(
            parts, optax.sgd(learning_rate), plan=PLAN, sampler=sampler, strategy=strategy,
            **options,
        )  # fmt: skip

        def init(key: Key, params: Params, data: Any) -> Any:
            whole = {"encoder": jnp.ones(3), "predictor": params, "adversary": 0.1 * jnp.ones(3)}
            return algo.init(key, whole, data)

        return signed(algo._replace(init=init), algo.made)

    return make
