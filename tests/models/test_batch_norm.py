"""Batch statistics: by hand in numpy, averaged, local and of the batch; undecided is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batch_statistics import RNG, LinenNet, M, NnxNet, X, ema, one_round

import fedjax_lite as fl
from fedjax_lite.models import from_linen, from_nnx
from fedjax_lite.models.batch_norm import (
    batch_norm,
    batch_norm_mask,
    check_no_local_statistics,
    from_moments,
    init_batch_norm,
    statistics_mask,
    to_moments,
    with_averaged_statistics,
    with_statistics,
)
from fedjax_lite.models.layers import init_affine

KEY = jax.random.key(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def loss_of(momentum=M):
    def loss(params, e, key):
        y = batch_norm(params, e["x"], training=key is not None, momentum=momentum)
        return (y * jnp.arange(1.0, 4.0)).sum(-1) ** 2

    return loss


def formula(scale, bias, x, epsilon=1e-5):
    mean = x.sum(0) / x.shape[0]
    variance = (x**2).sum(0) / x.shape[0] - mean**2
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


@pytest.mark.parametrize("policy", ["averaged", "local", "batch"])
def test_output_and_gradients_equal_the_formula(float64, policy):
    x, scale, bias = jnp.asarray(X), jnp.array([0.5, 1.0, 2.0]), jnp.array([1.0, -1.0, 0.0])
    params = init_batch_norm(3, statistics=policy) | {"scale": scale, "bias": bias}
    head = lambda y: jnp.sum(jnp.sin(y) * jnp.arange(18.0).reshape(6, 3))  # noqa: E731
    slope = jax.grad(lambda p, x: head(batch_norm(p, x, training=True)), argnums=(0, 1))
    by_formula = jax.grad(lambda s, b, x: head(formula(s, b, x)), argnums=(0, 1, 2))
    got, want = jax.jit(slope)(params, x), jax.jit(by_formula)(scale, bias, x)
    for a, b in zip((got[0]["scale"], got[0]["bias"], got[1]), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    still = jax.jit(lambda p, x: batch_norm(p, x, training=False))(params, x)
    if policy == "batch":
        np.testing.assert_allclose(still, jax.jit(formula)(scale, bias, x), atol=1e-12)
    else:  # running mean 0 and variance 1 at the start
        np.testing.assert_allclose(still, X / np.sqrt(1 + 1e-5) * scale + bias, atol=1e-12)


def test_images_are_reduced_over_positions_too(float64):
    x = RNG.normal(size=(4, 2, 2, 3))
    got = batch_norm(init_batch_norm(3, statistics="batch"), jnp.asarray(x), training=True)
    flat = formula(1.0, 0.0, jnp.asarray(x.reshape(16, 3)))
    np.testing.assert_allclose(got.reshape(16, 3), flat, atol=1e-10)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.3),
        optax.adam(0.1),
        optax.chain(
            optax.clip_by_global_norm(1e-3), optax.add_decayed_weights(0.5), optax.sgd(9.0)
        ),
    ],
)
def test_running_statistics_follow_the_forward_pass_whatever_the_optimizer(float64, optimizer):
    tx, loss = with_statistics(optimizer), loss_of()
    params = init_batch_norm(3, statistics="averaged")
    state, batches = tx.init(params), [X + i for i in range(5)]

    @jax.jit
    def step(params, state, x):
        _, grad = fl.mean_grad(loss)(params, fl.Batch({"x": x}, jnp.ones(6, bool), KEY))
        move, state = tx.update(grad, state, params)
        return optax.apply_updates(params, move), state

    for x in batches:
        params, state = step(params, state, x)
    mean, variance = ema(batches, np.zeros(3), np.ones(3))
    np.testing.assert_allclose(from_moments(params["batch_stats"])[0], mean, rtol=1e-10)
    np.testing.assert_allclose(from_moments(params["batch_stats"])[1], variance, rtol=1e-10)
    evaluated = jax.jit(lambda params: batch_norm(params, X, training=False))(params)
    params = jax.tree.map(np.asarray, params)
    expected = (X - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(evaluated, expected, rtol=1e-9)


def test_the_optimizer_sees_no_statistic():
    """Clipping by the global norm is that of the parameters alone."""
    w = {"w": jnp.array([3.0, 4.0]), "batch_stats": {"mean": jnp.array([100.0])}}
    tx = with_statistics(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    step, _ = tx.update(w, tx.init(w), w)
    np.testing.assert_allclose(step["w"], [-0.6, -0.8], rtol=1e-6)


def test_the_proximal_pull_leaves_statistics_alone(float64):
    params = init_batch_norm(3, statistics="averaged")
    anchor = jax.tree.map(lambda leaf: leaf + 5.0, params)
    clip = optax.clip_by_global_norm(1.0)
    tx = with_statistics(optax.chain(fl.proximal(2.0), clip, optax.sgd(0.1)))
    grad = jax.jit(jax.grad(lambda p: loss_of()(p, {"x": X}, KEY).mean()))(params)
    step, _ = jax.jit(lambda: tx.update(grad, tx.init(params), params, anchor=anchor))()
    mean, _ = ema([X], np.zeros(3), np.ones(3))
    np.testing.assert_allclose(step["batch_stats"]["mean"], mean, rtol=1e-10)
    pulled = {name: grad[name] - 10.0 for name in ("scale", "bias")}
    norm = np.sqrt(sum((leaf**2).sum() for leaf in pulled.values()))
    np.testing.assert_allclose(step["bias"], -0.1 * pulled["bias"] / norm, rtol=1e-10)


def two_clients():
    x = np.concatenate([X, X[:3] * 2.0 + 7.0])
    owners = np.array([0] * 6 + [1] * 3)
    return fl.data.from_arrays({"x": x, "y": np.zeros(9, int)}, owners), (x[:6], x[6:])


@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.sequential()])
def test_averaged_is_the_pooled_mean_of_the_clients_running_statistics(float64, strategy):
    data, clients = two_clients()
    algo = fl.fedavg(
        loss_of(),
        with_statistics(optax.sgd(0.05)),
        plan=fl.Plan(batch_size=None, steps=np.array([3, 2])),
        sampler=fl.everyone(),
        strategy=strategy,
    )
    # A client of 3 in a whole-data batch of 6: its examples twice each, so the same moments.
    state = one_round(algo, init_batch_norm(3, statistics="averaged"), data)
    means, variances = zip(
        *(ema([x] * k, np.zeros(3), np.ones(3)) for x, k in zip(clients, (3, 2), strict=True)),
        strict=True,
    )
    p, means, variances = np.array([[6.0], [3.0]]) / 9, np.array(means), np.array(variances)
    mean = (p * means).sum(0)
    pooled = (p * (variances + (means - mean) ** 2)).sum(0)
    got = from_moments(state.server.params["batch_stats"])
    np.testing.assert_allclose(got[0], mean, rtol=1e-9)
    np.testing.assert_allclose(got[1], pooled, rtol=1e-9)


def test_known_answer_of_pooling():
    """KNOWN_ANSWERS 10: means 0 and 10, variances 1: pooled 26, where the naive mean is 1."""
    pair = [to_moments(jnp.array(m), jnp.array(1.0)) for m in (0.0, 10.0)]
    mean, variance = from_moments(jax.tree.map(lambda a, b: (a + b) / 2, *pair))
    assert (float(mean), float(variance)) == (5.0, 26.0)


def test_fedprox_pulls_no_statistic_towards_the_server(float64):
    """At rate 0 only statistics move, and a mu of 5 must not hold them."""
    data, _ = two_clients()
    common = {"plan": fl.Plan(batch_size=None, steps=3), "sampler": fl.everyone()}
    start, still = init_batch_norm(3, statistics="averaged"), with_statistics(optax.sgd(0.0))
    prox = one_round(fl.fedprox(loss_of(), still, mu=5.0, **common), start, data, 2)
    plain = one_round(fl.fedavg(loss_of(), still, **common), start, data, 2)
    for name in ("mean", "square"):
        a, b = (s.server.params["batch_stats"][name] for s in (prox, plain))
        np.testing.assert_allclose(a, b, rtol=1e-9)
        assert not np.allclose(b, start["batch_stats"][name])


def test_fedsgd_takes_it_around_the_servers_optimizer(float64):
    data, (a, b) = two_clients()
    algo = fl.fedsgd(loss_of(), with_statistics(optax.sgd(0.1)), sampler=fl.everyone())
    state = one_round(algo, init_batch_norm(3, statistics="averaged"), data)
    want = (6 * ema([a], np.zeros(3), 1.0)[0] + 3 * ema([b], np.zeros(3), 1.0)[0]) / 9
    np.testing.assert_allclose(state.server.params["batch_stats"]["mean"], want, rtol=1e-9)


def test_a_server_optimizer_leaves_plain_averages_of_statistics(float64):
    data, _ = two_clients()
    plan = fl.Plan(batch_size=None, steps=2)
    common = {"plan": plan, "sampler": fl.everyone()}
    start = init_batch_norm(3, statistics="averaged")
    client = with_statistics(optax.sgd(0.05))
    plain = one_round(fl.fedavg(loss_of(), client, **common), start, data)
    adam = with_averaged_statistics(fl.server.adam(0.1))
    other = one_round(fl.fedavg(loss_of(), client, server_optimizer=adam, **common), start, data)
    for name in ("mean", "square"):
        a, b = (s.server.params["batch_stats"][name] for s in (plain, other))
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert not np.allclose(plain.server.params["scale"], other.server.params["scale"], rtol=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.05),
        optax.adam(0.05),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05)),
        optax.chain(with_statistics(optax.sgd(0.05)), optax.scale(0.5)),
        lambda r: optax.sgd(0.05),
    ],
    ids=["sgd", "adam", "clipped", "not outermost", "schedule"],
)
def test_forgetting_with_statistics_is_refused(optimizer):
    data, _ = two_clients()
    start = init_batch_norm(3, statistics="averaged")
    algo = fl.fedavg(loss_of(), optimizer, plan=fl.Plan(batch_size=2), sampler=fl.everyone())
    with pytest.raises(ValueError, match="with_statistics"):
        algo.init(KEY, start, data)
    if not isinstance(optimizer, optax.GradientTransformation):
        optimizer = optimizer(0)
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.everyone()}
    fl.fedavg(loss_of(), with_statistics(optimizer), **common).init(KEY, start, data)
    prox = fl.fedprox(loss_of(), with_statistics(optimizer), mu=0.1, **common)
    prox.init(KEY, start, data)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "mime", "mimelite", "feddyn"])
def test_methods_that_would_correct_statistics_refuse_them(name):
    data, _ = two_clients()
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.everyone()}
    make = getattr(fl, name)
    if name == "feddyn":
        algo = make(loss_of(), with_statistics(optax.sgd(0.1)), alpha=0.1, **common)
    else:
        algo = make(loss_of(), 0.1, **common)
    with pytest.raises(ValueError, match="statistics='batch'"):
        algo.init(KEY, init_batch_norm(3, statistics="averaged"), data)
    algo.init(KEY, init_batch_norm(3, statistics="batch"), data)


def test_float16_statistics_are_refused():
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float16), init_batch_norm(1, statistics="averaged")
    )
    with pytest.raises(TypeError, match="float16"):
        jax.grad(lambda p: batch_norm(p, jnp.ones((2, 1)), training=True).sum())(params)


def test_a_schedule_over_rounds_and_an_uncalled_optimizer():
    data, _ = two_clients()
    plan = fl.Plan(batch_size=None, steps=1)
    common = {"plan": plan, "sampler": fl.everyone()}
    rates = with_statistics(lambda r: optax.sgd(jnp.where(r < 1, 0.0, 1e-3)))
    algo = fl.fedavg(loss_of(), rates, **common)
    start = init_batch_norm(3, statistics="averaged")
    first, second = (one_round(algo, start, data, n).server.params for n in (1, 2))
    np.testing.assert_array_equal(first["scale"], start["scale"])
    assert (first["batch_stats"]["mean"] != 0).all()
    assert (second["scale"] != start["scale"]).any()
    with pytest.raises(TypeError, match=r"nor optax\.sgd"):
        fl.fedavg(loss_of(), with_statistics(optax.sgd), **common)
    with pytest.raises(TypeError, match=r"not 0\.1"):
        with_statistics(0.1)
    with pytest.raises(TypeError, match="server_optimizer"):
        with_averaged_statistics(0.1)


def test_masks():
    params = {"a": init_affine(KEY, (3, 2)), "n": [init_batch_norm(2, statistics="local")]}
    moments = {"mean": True, "square": True}
    neither = {"kernel": False, "bias": False}
    assert statistics_mask(params) == {
        "a": neither,
        "n": [{"scale": False, "bias": False, "local_stats": moments}],
    }
    assert batch_norm_mask(params) == {
        "a": neither,
        "n": [{"scale": True, "bias": True, "local_stats": moments}],
    }
    with pytest.raises(ValueError, match="declared local"):
        check_no_local_statistics(params)


@pytest.mark.parametrize("choice", [None, "mean", 3])
def test_an_undecided_use_names_the_choices(choice):
    names = r"(?s)'averaged'.*'local'.*'batch'.*group or instance"
    with pytest.raises(ValueError, match=names):
        init_batch_norm(3, statistics=choice)
    with pytest.raises(ValueError, match=names):
        from_linen(LinenNet(), jnp.zeros((1, 3)), statistics=choice)
    with pytest.raises(ValueError, match=names):
        from_nnx(NnxNet, statistics=choice)


def test_bad_arguments():
    params = init_batch_norm(3, statistics="batch")
    with pytest.raises(ValueError, match=r"x must be \[B, ..., 3\]"):
        batch_norm(params, jnp.zeros((2, 4)), training=True)
    with pytest.raises(ValueError, match="momentum"):
        batch_norm(params, jnp.zeros((2, 3)), training=True, momentum=1.5)
