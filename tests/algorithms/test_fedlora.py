"""FedLoRA and frozen leaves: exactness, what is billed, what stays, what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.models import Adapted, LowRank, merged

RATE, STEPS = 0.1, 3
N = np.array([6, 2, 4])
PLAN = fl.Plan(batch_size=None, steps=STEPS)
M, K = 3, 2
RNG = np.random.default_rng(0)
XS = [RNG.normal(size=(n, M)) for n in N]
YS = [RNG.normal(size=(n, K)) for n in N]
BASE = RNG.normal(size=(M, K))
A0, B0 = RNG.normal(size=(M, 1)), RNG.normal(size=(1, K))
SCALE = 0.5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def loss(w, e, key):
    return 0.5 * ((e["x"] @ w["kernel"] + w["bias"] - e["y"]) ** 2).sum(-1)


def adapted_loss(params, e, key):
    return loss(merged(params), e, key)


def data():
    owners = np.repeat(np.arange(3), N)
    examples = {"x": np.concatenate(XS), "y": np.concatenate(YS)}
    return fl.data.from_arrays(jax.tree.map(jnp.asarray, examples), owners)


def start(b=B0, scale=SCALE, a=A0):
    base = {"kernel": jnp.asarray(BASE), "bias": jnp.zeros(K)}
    adapters = {"kernel": LowRank(jnp.asarray(a), jnp.asarray(b)), "bias": None}
    return Adapted(base, adapters, jnp.asarray(scale))


def fedlora(averaging, **options):
    options = {"plan": PLAN, "sampler": fl.everyone(), **options}
    return fl.fedlora(adapted_loss, optax.sgd(RATE), averaging=averaging, **options)


def local(client, w0, a, b, *, frozen_a=False):
    """A client's factors after its steps, by numpy."""
    x, y = XS[client], YS[client]
    for _ in range(STEPS):
        grad = x.T @ (x @ (w0 + SCALE * a @ b) - y) / len(x)
        step_a = 0 if frozen_a else RATE * SCALE * grad @ b.T
        a, b = a - step_a, b - RATE * SCALE * a.T @ grad
    return a, b


P = N / N.sum()
mean = lambda values: np.einsum("c,cij->ij", P, np.stack(values))  # noqa: E731


@pytest.mark.sample(2)
@pytest.mark.parametrize("averaging", ["factors", "frozen_a", "residual", "stacked"])
def test_two_rounds_by_numpy(averaging):
    b0 = np.zeros_like(B0) if averaging == "stacked" else B0
    algo, population = fedlora(averaging), data()
    state = algo.init(jax.random.key(0), start(b0), population)
    w, a, b = BASE, A0, b0
    for _ in range(2):
        state, metrics = algo.round(jax.random.key(0), state, population)
        clients = [local(c, w, a, b, frozen_a=averaging == "frozen_a") for c in range(3)]
        truth = w + SCALE * mean([x @ y for x, y in clients])
        factors = [mean([pair[i] for pair in clients]) for i in range(2)]
        found = state.server.params
        pair = found.adapters["kernel"]
        whole = np.asarray(merged(found)["kernel"])
        if averaging == "stacked":
            assert not np.asarray(pair.b).any()
            a, b = np.asarray(pair.a), np.zeros_like(b)
            assert np.abs(a - A0).max() > 0.01  # drawn anew
        else:
            a, b = factors
            np.testing.assert_allclose(pair.a, a, atol=1e-12)
            np.testing.assert_allclose(pair.b, b, atol=1e-12)
        if averaging == "factors":
            assert np.abs(whole - truth).max() > 1e-4  # what averaging factors misses
            np.testing.assert_allclose(whole, w + SCALE * a @ b, atol=1e-12)
        else:
            np.testing.assert_allclose(whole, truth, atol=1e-12)
        w = np.asarray(found.base["kernel"])
        if averaging in ("factors", "frozen_a"):
            np.testing.assert_array_equal(w, BASE)
        np.testing.assert_array_equal(found.base["bias"], np.zeros(K))
    sent = (K if averaging == "frozen_a" else M + K) * 64 * 3
    assert float(metrics["uplink_bits"]) == sent
    kernel = 0 if averaging in ("factors", "frozen_a") else M * K * 64 * 3
    assert float(metrics["downlink_bits"]) == sent + kernel


def test_one_client_needs_no_correction():
    algo, population = fedlora("residual"), data()
    state = algo.init(jax.random.key(0), start(), population)
    alone = fl.Cohort(jnp.array([1]), jnp.array([True]))
    state, _ = algo.round(jax.random.key(0), state, population, alone)
    np.testing.assert_allclose(state.server.params.base["kernel"], BASE, atol=1e-14)


def test_whole_rank_with_a_the_identity_is_fedavg_on_the_kernel():
    """W0 + I B moves by B's gradient, which is W's: FFA-LoRA of full rank is full training."""
    population = data()
    algo = fedlora("frozen_a")
    state = algo.init(
        jax.random.key(0), start(np.zeros((M, K)), scale=1.0, a=np.eye(M)), population
    )
    full = fl.frozen_leaves(
        loss,
        optax.sgd(RATE),
        is_frozen=lambda params: {"kernel": False, "bias": True},
        plan=PLAN,
        sampler=fl.everyone(),
    )
    base = {"kernel": jnp.asarray(BASE), "bias": jnp.zeros(K)}
    other = full.init(jax.random.key(0), base, population)
    for _ in range(3):
        state, _ = algo.round(jax.random.key(0), state, population)
        other, _ = full.round(jax.random.key(0), other, population)
    mine, theirs = merged(state.server.params), other.server.params
    np.testing.assert_allclose(mine["kernel"], theirs["kernel"], atol=1e-13)
    assert np.abs(theirs["kernel"] - BASE).max() > 0.01


@pytest.mark.sample(5, of="reductions to another method")
def test_nothing_frozen_is_fedavg_to_the_bit():
    population = data()
    options = {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": fl.uniform(2)}
    base = {"kernel": jnp.asarray(BASE), "bias": jnp.zeros(K)}
    results = []
    for algo in (
        fl.frozen_leaves(loss, optax.adam(RATE), is_frozen=lambda params: False, **options),
        fl.fedavg(loss, optax.adam(RATE), **options),
    ):
        state = algo.init(jax.random.key(0), base, population)
        for _ in range(3):
            state, metrics = algo.round(jax.random.key(0), state, population)
        results.append((state.server.params, metrics))
    for mine, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_another_base_compiles_nothing_and_is_what_trains():
    algo, population = fedlora("factors"), data()
    state = algo.init(jax.random.key(0), start(), population)
    traces = []

    @jax.jit
    def one_round(state):
        traces.append(1)
        return algo.round(jax.random.key(0), state, population)[0]

    first = one_round(state)
    new = start()._replace(base={"kernel": jnp.zeros((M, K)), "bias": jnp.ones(K)})
    moved = fl.with_frozen(first, new)
    again = one_round(moved)
    assert len(traces) == 1
    np.testing.assert_array_equal(again.server.params.base["kernel"], np.zeros((M, K)))
    afresh = algo.init(
        jax.random.key(0), new._replace(adapters=first.server.params.adapters), population
    )
    expected, _ = algo.round(jax.random.key(0), afresh._replace(round=first.round), population)
    np.testing.assert_allclose(
        again.server.params.adapters["kernel"].b,
        expected.server.params.adapters["kernel"].b,
        atol=1e-14,
    )
    downlinked = fedlora("factors", downlink=fl.identity())
    kept = fl.with_frozen(downlinked.init(jax.random.key(0), start(), population), new)
    np.testing.assert_array_equal(kept.server.inner.params.base["bias"], np.ones(K))


def test_privacy_and_compression_see_adapters_only():
    private = fl.privacy.central_gaussian(
        clip=1.0, noise_multiplier=1.0, num_clients=3, sampling_rate=0.5, delta=1e-5
    )
    population = data()
    algo = fedlora("frozen_a", sampler=None, privacy=private, uplink=fl.clip(0.5))
    state = algo.init(jax.random.key(0), start(), population)
    state, metrics = algo.round(jax.random.key(0), state, population)
    np.testing.assert_array_equal(state.server.params.base["kernel"], BASE)
    np.testing.assert_array_equal(state.server.params.adapters["kernel"].a, A0)
    assert np.abs(state.server.params.adapters["kernel"].b - B0).max() > 0
    packed = fedlora("factors", uplink=fl.top_k(2, per_leaf=True))
    state = packed.init(jax.random.key(0), start(), population)
    state, metrics = packed.round(jax.random.key(0), state, population)
    assert float(metrics["uplink_bits"]) < (M + K) * 64 * 3


def test_evaluators_take_the_state():
    train, test = fl.data.load("digits")
    population = fl.data.partition(train, fl.data.iid(num_clients=4, seed=0))
    model = fl.models.linear(10, (8, 8, 1))
    adapted = fl.models.lora(model, model.init(jax.random.key(0)), rank=1)
    algo = fl.fedlora(
        adapted.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=50), sampler=fl.everyone()
    )
    state = algo.init(jax.random.key(0), adapted.init(jax.random.key(0)), population)
    score = fl.evaluator(adapted, test)
    plain = fl.evaluator(model, test)(merged(state.server.params))
    assert score(state) == pytest.approx(plain)


def test_wrong_input():
    for options, match in (
        ({"averaging": "naive"}, "averaging must be one of"),
        ({"averaging": "residual", "aggregator": fl.median()}, "aggregator does not go with"),
        ({"averaging": "stacked", "server_optimizer": optax.adam(0.1)}, "server_optimizer does"),
    ):
        with pytest.raises(ValueError, match=match):
            fedlora(**options)
    with pytest.raises(TypeError, match="params must be Adapted"):
        fedlora("factors").init(jax.random.key(0), start().base, data())
    options = {"plan": PLAN, "sampler": fl.everyone()}
    with pytest.raises(TypeError, match="is_frozen must be a function"):
        fl.frozen_leaves(loss, optax.sgd(0.1), is_frozen={"kernel": True}, **options)
    everything = fl.frozen_leaves(loss, optax.sgd(0.1), is_frozen=lambda params: True, **options)
    with pytest.raises(ValueError, match=r"^is_frozen .* must leave some leaves to train"):
        everything.init(jax.random.key(0), start().base, data())
    state = fedlora("factors").init(jax.random.key(0), start(), data())
    wrong = {"kernel": jnp.zeros((M, K + 1)), "bias": jnp.zeros(K)}
    with pytest.raises(ValueError, match="shapes and dtypes of the frozen leaves"):
        fl.with_frozen(state, start()._replace(base=wrong))
    with pytest.raises(ValueError, match="structure of the model"):
        fl.with_frozen(state, start().base)
    with pytest.raises(TypeError, match="state must come from frozen_leaves"):
        fl.with_frozen(state._replace(server=start()), start())
