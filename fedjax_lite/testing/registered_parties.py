"""Methods of parties that must pass their laws: over columns, and of cut networks; tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms import fedavg
from fedjax_lite.data.population.dataset import from_arrays
from fedjax_lite.engine import Plan, sequential
from fedjax_lite.models import linear
from fedjax_lite.parties import (
    CutModel,
    Part,
    VerticalModel,
    cut_layers,
    cut_linen,
    cut_nnx,
    fedbcd,
    from_columns,
    joint,
    regression,
    split_learning,
    splitfed,
    vertical_model,
    vertical_sgd,
)
from fedjax_lite.round.sampling import everyone
from fedjax_lite.testing.party_laws import PartyCase
from fedjax_lite.types import Array, FederatedAlgorithm, Key, Params

N = 8
WIDTHS = {"a": 2, "b": 3, "c": 1}
SIZES = (4, 2, 0, 2)
"""Examples a client, all of full batches but one client's, who has none."""
HALF, THIRD = 3 * 4, 4 * 2
"""Numbers in the first and in the last of the three layers."""


def parties() -> dict[str, PartyCase]:
    """Entries of the registry; flax is imported here.

    Example:
      >>> sorted(parties())[:3]
      ['fedbcd', 'fedbcd one step', 'split learning']
    """
    network = vertical_model(
        {party: _dense(width, 2) for party, width in WIDTHS.items()}, linear(2, (6,)), holder="b"
    )
    one = optax.adam
    cases = {
        f"vertical {kind}": _vertical(vertical_sgd, *_regression(kind), Plan(batch_size=None))
        for kind in ("linear", "logistic", "poisson", "cox")
    }
    cases |= {
        "vertical network": _vertical(vertical_sgd, network, _columns(), Plan(4, epochs=2)),
        "vertical network adam": _vertical(vertical_sgd, network, _columns(), Plan(4), rule=one),
        "fedbcd one step": _vertical(fedbcd, network, _columns(), Plan(4), local_steps=1),
        # Steps on stale messages are not those of the network in one place, by design.
        "fedbcd": _vertical(fedbcd, network, _columns(), Plan(4), whole=False, local_steps=3),
    }
    two, u = cut_layers(_layers(), at=1), cut_layers(_layers(), at=(1, 2))
    cases |= {
        "splitfed 1": _cut(splitfed, two, strategy=sequential()),
        "splitfed 1 labels stay": _cut(splitfed, u, strategy=sequential()),
        "splitfed 1 nnx": _cut(splitfed, _nnx(), strategy=sequential()),
        "splitfed 2": _cut(splitfed, two, version=2),
        "splitfed 2 labels stay": _cut(splitfed, u, version=2),
        "split learning": _cut(split_learning, two),
        "split learning labels stay": _cut(split_learning, u),
        "split learning linen": _cut(split_learning, _linen()),
    }
    return cases


def in_turn() -> dict[str, Callable[..., FederatedAlgorithm]]:
    """Methods without strategies, for those laws of algorithms that need none and no order.

    Example:
      >>> sorted(in_turn())
      ['split learning', 'splitfed 2']
    """
    return {
        "split learning": _trains_by_turns(split_learning),
        "splitfed 2": _trains_by_turns(splitfed, version=2),
    }


def _dense(size: int, out: int) -> Part:
    def init(key: Key) -> Params:
        return jax.random.normal(key, (size, out)) / 2

    return Part(init, lambda kernel, x, key: jnp.tanh(x @ kernel))


def _layers(out: int = 2) -> list[Part]:
    return [_dense(3, 4), _dense(4, 4), _dense(4, out)]


def _features(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _columns(labels: Any = None) -> Any:
    x = {party: _features(i, N, width) for i, (party, width) in enumerate(WIDTHS.items())}
    return from_columns(x, {"b": np.arange(N) % 2 if labels is None else labels})


def _regression(kind: Any) -> tuple[VerticalModel, Any]:
    y = (np.arange(N) % 2).astype(np.float32)
    labels = {"time": np.arange(N, dtype=np.float32), "event": y} if kind == "cox" else y
    data = _columns(labels)
    return regression(kind, data), data


def _begun(params: Params) -> Params:
    """Parameters none of which is zero: a head of zeros would return no gradient."""
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )


def _vertical(
    factory: Any, model: VerticalModel, data: Any, plan: Plan, *, rule: Any = optax.sgd,
    whole: bool = True, **options: Any,
) -> PartyCase:  # fmt: skip
    def make(rate: Any, up: Any, down: Any) -> FederatedAlgorithm:
        return factory(model, rule(rate), plan=plan, uplink=up, downlink=down, **options)

    params, one_client = _begun(model.init(jax.random.key(5))), np.zeros(N, int)
    pooled = from_arrays(data.examples_of(), one_client, num_clients=1)

    def trained(rate: Array) -> Params:
        """FedAvg with one client that holds the pooled table."""
        algo = fedavg(joint(model).loss, rule(rate), plan=plan, sampler=everyone())
        state = algo.init(jax.random.key(0), params, pooled)
        after = algo.round(jax.random.key(0), state, pooled)[0].server.params
        return after.bottoms, after.heads

    return PartyCase(
        make, params, data, trained if whole else None,
        read=lambda server: (server.params.bottoms, server.params.heads),
    )  # fmt: skip


def _cut(factory: Any, cut: CutModel, **options: Any) -> PartyCase:
    """Version 1 is FedAvg of the uncut network; others are, where one client takes part."""
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = _features(3, len(owners), 3)
    examples = {"x": x, "y": (np.arange(len(owners)) % 2).astype(np.int32)}
    parallel = factory is splitfed and options.get("version", 1) == 1
    # In turn only one client's order is known beforehand: then the population is that client.
    data = (
        from_arrays(examples, owners, num_clients=len(SIZES))
        if parallel
        else from_arrays(examples, np.zeros(len(owners), int), num_clients=1)
    )
    plan, params = Plan(batch_size=2), _begun(cut.model.init(jax.random.key(5)))

    def make(rate: Any, up: Any, down: Any) -> FederatedAlgorithm:
        return factory(
            cut, optax.sgd(rate), plan=plan, sampler=everyone(), uplink=up, downlink=down, **options
        )

    def trained(rate: Array) -> Params:
        algo = fedavg(cut.model.loss, optax.sgd(rate), plan=plan, sampler=everyone())
        state = algo.init(jax.random.key(0), params, data)
        return algo.round(jax.random.key(0), state, data)[0].server.params

    half = 32 * sum(leaf.size for leaf in jax.tree.leaves(cut.halves(params)[0]))
    clients, trainers = (len(SIZES), 3) if parallel else (1, 1)
    labels = 0 if cut.labels_stay else 32 * len(owners)
    tells = 0.5 if cut.labels_stay else 0.0
    return PartyCase(make, params, data, trained, (half * trainers + labels, half * clients), tells)


def _linen() -> CutModel:
    from flax import linen

    net = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)])
    return cut_linen(net, np.ones((1, 3), np.float32), at=2)


def _nnx() -> CutModel:
    from flax import nnx

    def net(rngs: Any) -> Any:
        return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jnp.tanh, nnx.Linear(4, 2, rngs=rngs))

    return cut_nnx(net, np.ones((1, 3), np.float32), at=2)


def _trains_by_turns(factory: Any, **options: Any) -> Callable[..., FederatedAlgorithm]:
    def squares(outputs: Array, y: Array) -> Array:
        return 0.5 * (outputs[:, 0] - y) ** 2

    cut = cut_layers(_layers(1), at=1, loss=squares)

    def make(learning_rate: Any, sampler: Any, strategy: Any) -> FederatedAlgorithm:
        algo = factory(
            cut, optax.sgd(learning_rate), plan=Plan(batch_size=2, epochs=2), sampler=sampler,
            **options,
        )  # fmt: skip

        def init(key: Key, params: Params, data: Any) -> Any:
            first, *others = cut.model.init(jax.random.key(1))
            return algo.init(key, (first + params["w"][:, None], *others), data)

        return algo._replace(init=init)

    return make


PARTIES: dict[str, PartyCase] = parties()
