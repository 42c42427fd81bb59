"""Fair methods with the rest of the library: streams, devices, sweeps, compression; no privacy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.stream.dataset import StreamedDataset
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
DATA = testing.population()
STRENGTH: dict[str, dict[str, Any]] = {
    "q_fedavg": {"q": 0.5},
    "q_fedsgd": {"q": 0.5},
    "afl": {"mixture_rate": 0.1},
    "term": {"tilt": 0.5},
    "fedmgda": {"deviation": 0.5},
}


def method(name, **slots) -> Any:
    options: Any = {"sampler": fl.uniform(4), **STRENGTH[name], **slots}
    if name != "q_fedsgd":
        options = {"plan": fl.Plan(batch_size=3), **options}
    rate = 0.05 if name.startswith("q_") else optax.sgd(0.05)
    return getattr(fl, name)(testing.loss, rate, **options)


def run(name, data: Any = DATA, **slots):
    algo = method(name, **slots)
    state = algo.init(KEY, testing.init_params(jax.random.key(7)), data)
    return fl.run(algo, KEY, state, data, num_rounds=2, progress=False)


plain = functools.cache(run)


@pytest.mark.sample(2, of="fair methods composed")
@pytest.mark.parametrize("name", STRENGTH)
def test_streamed_and_sharded(name):
    order, sizes = np.asarray(DATA.order), np.asarray(DATA.sizes)
    examples = {key: np.asarray(leaf)[order] for key, leaf in DATA.examples.items()}
    streamed, _ = run(name, StreamedDataset(fl.data.ArrayStore(examples, sizes), "host"))
    same(streamed.server, plain(name)[0].server)
    over_devices, _ = run(name, strategy=fl.sharded(fl.client_mesh()))
    same(over_devices.server, plain(name)[0].server)


@pytest.mark.sample(2, of="fair methods composed")
@pytest.mark.parametrize("name", STRENGTH)
def test_compressed(name):
    """Fewer bits, another model; weights are not compressed, so it still learns."""
    state, rows = run(name, uplink=fl.error_feedback(fl.top_k(2)))
    _, all_rows = plain(name)
    assert rows[-1]["uplink_bits"] < all_rows[-1]["uplink_bits"]
    assert np.isfinite(np.asarray(state.server.params["w"])).all()


def test_lambda_is_not_billed():
    """The server multiplies: neither the mixture nor the level of the tilt is sent."""
    bits = {name: plain(name)[1][-1] for name in ("afl", "term")}
    rows = plain("fedmgda")[1][-1]  # which sends models, and nothing else
    for name, row in bits.items():
        for direction in ("uplink_bits", "downlink_bits"):
            assert row[direction] == rows[direction], (name, direction)


def test_swept():
    init = lambda key: testing.init_params(jax.random.key(7))  # noqa: E731
    swept = fl.sweep(
        lambda q: method("q_fedavg", q=q), {"q": [0.0, 0.5]},
        init=init, data=DATA, num_rounds=2, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(
        swept.states.server.params["w"][1], plain("q_fedavg")[0].server.params["w"], rtol=1e-5
    )


@pytest.mark.parametrize("name", STRENGTH)
def test_privacy_is_refused_with_the_reason(name):
    mechanism = fl.privacy.central_gaussian(
        clip=1.0, num_clients=7, sampling_rate=0.5, noise_multiplier=1.0, delta=1e-2
    )
    with pytest.raises(ValueError, match=f"privacy does not cover {name}.*; use fedavg"):
        method(name, sampler=None, privacy=mechanism)


def test_robust_rules_are_refused_where_weights_are_the_method():
    with pytest.raises(ValueError, match="needs one weight per client"):
        run("afl", aggregator=fl.median())
    state, _ = run("q_fedavg", aggregator=fl.median())
    assert np.isfinite(np.asarray(state.server.params["w"])).all()


def test_history_has_the_mixture():
    _, rows = plain("afl")
    assert 1 / 7 <= rows[-1]["mixture_largest"] <= 1
    assert 1 <= rows[-1]["mixture_spread"] <= 6.01  # clients that hold examples
    assert rows[0]["loss_steps"] > 0


def test_rounds_of_nobody_leave_the_mixture():
    algo = method("afl")
    state = algo.init(KEY, testing.init_params(KEY), DATA)
    nobody = fl.Cohort(jnp.arange(4), jnp.zeros(4, bool))
    after, _ = algo.round(KEY, state, DATA, nobody)
    same(after.server, state.server, exact=True)
