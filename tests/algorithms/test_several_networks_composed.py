"""FedEM, experts, HypCluster, debiasing and FedGAN under compression, streams and sweeps."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.stream.dataset import StreamedDataset
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
SIZES = np.array([5, 2, 7, 4])
RNG = np.random.default_rng(0)
EXAMPLES = {
    "x": RNG.normal(size=(18, 3)).astype(np.float32),
    "y": RNG.integers(0, 2, 18).astype(np.int32),
    "group": RNG.integers(-1, 2, 18).astype(np.int32),
}
DATA = fl.data.from_arrays(EXAMPLES, np.repeat(np.arange(4), SIZES))
LINEAR = fl.models.linear(2, (3,), init="lecun")
MIXED = fl.models.gated_experts(LINEAR, LINEAR, 2)
FAIR = fl.models.adversarial(fl.models.linear(3, (3,), init="lecun"), LINEAR, LINEAR)
PAIR = fl.models.mlp_gan(3, hidden=(4,))


def two(key):
    return fl.several_models(LINEAR.init, key, 2)


def gan(tx, **slots):
    return fl.fedgan(PAIR, tx, tx, **slots)


METHODS: dict[str, tuple[Any, Any]] = {
    "fedem": (functools.partial(fl.fedem, LINEAR.loss, num_models=2), two),
    # HypCluster's rounds are those of IFCA.
    "hypcluster": (functools.partial(fl.ifca, LINEAR.loss, num_clusters=2), two),
    "experts": (functools.partial(fl.mixture_of_experts, MIXED.loss), MIXED.init),
    "debiasing": (functools.partial(fl.debiasing, FAIR, strength=0.5), FAIR.init),
    "adversaries at home": (
        functools.partial(fl.debiasing, FAIR, strength=0.5, adversary="client"), FAIR.init,
    ),
    "fedgan": (gan, PAIR.init),
    "discriminators at home": (functools.partial(gan, share="generator"), PAIR.init),
}  # fmt: skip
UPLINKS = {
    "plain": None,
    "top-k": fl.error_feedback(fl.top_k(3)),
    "qsgd": fl.error_feedback(fl.qsgd(16)),
}


def method(name, uplink, rate=0.2, **slots):
    plan = {"plan": fl.Plan(batch_size=3, epochs=2), "sampler": fl.uniform(3), **slots}
    return METHODS[name][0](optax.sgd(rate), uplink=UPLINKS[uplink], **plan)


@functools.cache
def rounds(name, uplink, data: Any = DATA, num_rounds=3, **slots):
    """Three of four clients in each of three rounds, so that rows and residuals come back."""
    algo = method(name, uplink, **slots)
    state = algo.init(KEY, METHODS[name][1](KEY), data)
    return fl.run(algo, KEY, state, data, num_rounds=num_rounds, progress=False)


@pytest.mark.sample(4, of="networks composed")
@pytest.mark.parametrize("uplink", UPLINKS)
@pytest.mark.parametrize("name", METHODS)
def test_streamed_from_the_host(name, uplink):
    """Rows and residuals lie on the host, and nothing else is learnt."""
    streamed = StreamedDataset(fl.data.ArrayStore(EXAMPLES, SIZES), "host")
    (there, told), (here, rows) = rounds(name, uplink, streamed), rounds(name, uplink)
    same(jax.device_get(there.server), jax.device_get(here.server))
    assert told[-1]["uplink_bits"] == rows[-1]["uplink_bits"]


@pytest.mark.sample(4, of="networks composed")
@pytest.mark.parametrize("uplink", UPLINKS)
@pytest.mark.parametrize("name", METHODS)
def test_swept(name, uplink):
    """A member of a sweep is the run by itself, its rows and residuals too."""
    swept = fl.sweep(
        lambda rate: method(name, uplink, rate), {"rate": [0.05, 0.2]},
        init=METHODS[name][1], data=DATA, num_rounds=3, seeds=[0], progress=False,
    )  # fmt: skip
    last = jax.tree.map(lambda leaf: leaf[1], swept.states)
    alone, _ = rounds(name, uplink)
    for mine, its in ((last.server, alone.server), (last.clients, alone.clients)):
        same(jax.device_get(mine), jax.device_get(its))
    same(jax.device_get(last.uplink), jax.device_get(alone.uplink))


@pytest.mark.sample(4, of="networks composed")
@pytest.mark.parametrize("uplink", ["top-k", "qsgd"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_held_back_is_what_the_server_lacks(name, uplink):
    """Of one round: plain less compressed is minus the mean of the residuals, by cluster."""
    once = {"num_rounds": 1, "sampler": fl.everyone()}
    (plain, full), (less, sent) = (rounds(name, which, **once) for which in ("plain", uplink))
    assert sent[-1]["uplink_bits"] < full[-1]["uplink_bits"]
    same(jax.device_get(less.clients), jax.device_get(plain.clients))  # which no uplink sees
    residual = jax.device_get(less.uplink)[0]
    weights = SIZES.astype(float)
    if name == "hypcluster":
        weights = weights[:, None] * np.eye(2)[fl.cluster_assignments(less)]

    def lacking(before, after, held):
        # A server steps against the mean message: less sent, less far.
        total = np.tensordot(weights.T, held, 1)
        count = weights.sum(0).reshape(weights.shape[1:] + (1,) * (held.ndim - 1))
        mean = np.where(count > 0, total / np.maximum(count, 1), 0)
        np.testing.assert_allclose(after - before, mean, atol=2e-6)

    params = [jax.device_get(state.server.params) for state in (plain, less)]
    jax.tree.map(lacking, *params, residual)
    held = [np.abs(leaf).max() for leaf in jax.tree.leaves(residual)]
    assert max(held) > 1e-3  # something was held back


@pytest.mark.parametrize("name", ["experts", "adversaries at home", "discriminators at home"])
def test_parts_that_stay_have_no_residual(name):
    """Neither a bit nor a row of feedback is spent on what is never sent."""
    algo = method(name, "top-k")
    state = algo.init(KEY, METHODS[name][1](KEY), DATA)
    after, _ = jax.eval_shape(algo.round, KEY, state, DATA)
    at_home = {"experts": "router", "adversaries at home": "adversary"}
    for part in (state.uplink[0], after.uplink[0]):
        assert not jax.tree.leaves(part.get(at_home.get(name, "discriminator"), ()))
        assert jax.tree.leaves(part)


def test_privacy_is_refused_where_a_cluster_is_told():
    mechanism = fl.privacy.central_gaussian(
        clip=1.0, num_clients=4, sampling_rate=0.5, noise_multiplier=1.0, delta=1e-2
    )
    with pytest.raises(ValueError, match="the number of a client's cluster"):
        method("hypcluster", "plain", sampler=None, privacy=mechanism)
