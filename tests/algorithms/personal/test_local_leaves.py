"""Local leaves stay with their client: FedBN and FedPer by closed form and by reduction."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.baselines import client_models, local_only
from fedjax_lite.algorithms.personal.local_leaves import (
    evaluate_personal,
    fedbn,
    local_leaves,
    personal_models,
)
from fedjax_lite.models import from_functions
from fedjax_lite.models.batch_norm import (
    batch_norm,
    from_moments,
    init_batch_norm,
    with_statistics,
)
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
M = 0.9


def fedper_loss(w, e, key):
    return 0.5 * (w["w"] * w["h"] - e["c"]) ** 2


def head_is_local(params):
    return {name: name == "h" for name in params}


def per(loss=fedper_loss, *, is_local=head_is_local, plan=None, rate=0.1, **slots):
    return local_leaves(
        fl.local_sgd(loss, optax.sgd(rate), weighting="uniform"),
        is_local=is_local,
        plan=fl.Plan(batch_size=None, steps=1) if plan is None else plan,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        **slots,
    )


def two():
    return fl.data.from_arrays({"c": np.array([2.0, 4.0])}, [0, 1])


def test_fedper_known_answer():
    """KNOWN_ANSWERS 8: from h = (1, 2), w = 1 to h = (1.1, 2.2) and w = 1.25."""
    with jax.enable_x64(True):
        algo = per()
        state = algo.init(KEY, {"w": jnp.array(1.0), "h": jnp.array(0.0)}, two())
        row = state.clients._replace(leaves={"w": None, "h": jnp.array([1.0, 2.0])})
        state, metrics = algo.round(KEY, state._replace(clients=row), two())
        np.testing.assert_allclose(state.clients.leaves["h"], [1.1, 2.2], rtol=1e-12)
        np.testing.assert_allclose(state.server.params["w"], 1.25, rtol=1e-12)
        assert float(metrics["uplink_bits"]) == 2 * 64  # one float64 each: no head on the wire
        assert state.server.params["h"] is None


def bn_loss(params, e, key):
    y = batch_norm(params["norm"], e["x"] + params["shift"], training=key is not None, momentum=M)
    return (y * jnp.arange(1.0, 3.0)).sum(-1) ** 2


def skewed():
    """Three clients of 4, 4 and 2 examples whose features lie apart."""
    x = np.random.default_rng(0).normal(size=(10, 2)) * [1.0, 3.0]
    owners = np.array([0] * 4 + [1] * 4 + [2] * 2)
    x = x + 10.0 * owners[:, None]
    return fl.data.from_arrays({"x": x, "y": np.zeros(10, int)}, owners), x, owners


def start_params():
    return {"norm": init_batch_norm(2, statistics="local"), "shift": jnp.zeros(2)}


def bn(rate=0.0, steps=3, **options):
    return fedbn(
        bn_loss, optax.sgd(rate), plan=fl.Plan(batch_size=None, steps=steps),
        sampler=fl.everyone(), **options,
    )  # fmt: skip


@pytest.mark.sample(1)
@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.sequential(), fl.chunked(2)])
def test_each_client_keeps_its_own_running_statistics(strategy):
    with jax.enable_x64(True):
        data, x, owners = skewed()
        algo = bn(strategy=strategy)
        state = algo.init(KEY, start_params(), data)
        for _ in range(2):
            state, _ = algo.round(KEY, state, data)
        means, variances = from_moments(personal_models(state)["norm"]["local_stats"])
        for i in range(3):
            own, mean, variance = x[owners == i], np.zeros(2), np.ones(2)
            for _ in range(6):
                mean = M * mean + (1 - M) * own.mean(0)
                variance = M * variance + (1 - M) * own.var(0)
            np.testing.assert_allclose(means[i], mean, rtol=1e-10)
            np.testing.assert_allclose(variances[i], variance, rtol=1e-9)


def test_rows_depend_on_neither_the_cohort_nor_the_slot():
    """Without shared leaves that move, a client's row is the same whoever else takes part."""
    data, _, _ = skewed()
    params = start_params()
    algo = local_leaves(
        fl.local_sgd(bn_loss, with_statistics(optax.sgd(0.01))),
        is_local=lambda p: True,
        plan=fl.Plan(batch_size=2),
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )
    state = algo.init(KEY, params, data)
    alone = fl.Cohort(jnp.array([1, 0, 2], jnp.int32), jnp.array([True, False, False]))
    last = fl.Cohort(jnp.array([2, 0, 1], jnp.int32), jnp.array([True, True, True]))
    one, _ = algo.round(KEY, state, data, alone)
    other, _ = algo.round(KEY, state, data, last)
    pairs = zip(*(jax.tree.leaves(s.clients) for s in (state, one, other)), strict=True)
    for before, a, b in pairs:
        np.testing.assert_array_equal(a[0], before[0])
        np.testing.assert_array_equal(a[2], before[2])
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-6)
    # The clients differ, but for "shift": the normalisation takes it out, its gradient is zero.
    for rows in jax.tree.leaves(other.clients.leaves["norm"]):
        assert (np.asarray(rows[0]) != np.asarray(rows[1])).any()
    assert jax.tree.leaves(one.server.params) == []


def test_the_other_clients_data_do_not_touch_local_statistics():
    data, x, owners = skewed()
    poisoned = np.where((owners == 2)[:, None], x + 1000.0, x)
    other = fl.data.from_arrays({"x": poisoned, "y": np.zeros(10, int)}, owners)
    rows = []
    for d in (data, other):
        algo = bn()
        state = algo.init(KEY, start_params(), d)
        for _ in range(2):
            state, _ = algo.round(KEY, state, d)
        rows.append(personal_models(state)["norm"]["local_stats"]["mean"])
    np.testing.assert_array_equal(rows[0][:2], rows[1][:2])
    assert (np.abs(rows[0][2] - rows[1][2]) > 100).all()


@pytest.mark.parametrize("scale_and_bias", [True, False])
def test_what_travels(scale_and_bias):
    data, _, _ = skewed()
    algo = bn(rate=0.01, scale_and_bias=scale_and_bias)
    state, metrics = algo.round(KEY, algo.init(KEY, start_params(), data), data)
    norm = state.server.params["norm"]
    assert norm["local_stats"] == {"mean": None, "square": None}
    assert (norm["scale"] is None) == (norm["bias"] is None) == scale_and_bias
    numbers = 2 if scale_and_bias else 6
    assert float(metrics["uplink_bits"]) == 3 * 32 * numbers


@pytest.mark.sample(5, of="reductions to another method")
def test_all_local_is_local_only():
    data = testing.population()
    params, plan = testing.init_params(KEY), fl.Plan(batch_size=2, epochs=2)
    client = fl.local_sgd(testing.loss, optax.sgd(0.05))
    ours = local_leaves(
        client, is_local=lambda p: True, plan=plan, sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )  # fmt: skip
    base = local_only(testing.loss, optax.sgd(0.05), plan=plan, sampler=fl.everyone())
    state, other = ours.init(KEY, params, data), base.init(KEY, params, data)
    for _ in range(3):
        state, _ = ours.round(KEY, state, data)
        other, _ = base.round(KEY, other, data)
    mine, theirs = personal_models(state), client_models(other)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(5, of="reductions to another method")
def test_nothing_local_is_fedavg_in_every_bit():
    """KNOWN_ANSWERS 12: FedPer without a personal leaf and FedBN without norm layers."""
    data = testing.population()
    params = testing.init_params(KEY)
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.uniform(4)}
    algo = fedbn(testing.loss, optax.sgd(0.05, momentum=0.9), **common)
    base = fl.fedavg(testing.loss, optax.sgd(0.05, momentum=0.9), **common)
    state, other = algo.init(KEY, params, data), base.init(KEY, params, data)
    for _ in range(3):
        state, _ = algo.round(KEY, state, data)
        other, _ = base.round(KEY, other, data)
    same(state.server, other.server, exact=True)
    with pytest.raises(ValueError, match="no local leaves"):
        personal_models(state)


LAWS = ("keys_are_used_once", "caller_keeps_its_arrays")
"""Those that test_laws.py leaves out for them."""


@pytest.mark.sample(1, of="laws that test_laws.py leaves out")
@pytest.mark.parametrize("law", LAWS)
def test_laws(law):
    testing.check_algorithm(testing.ALGORITHMS["local leaves"], laws=[law])


def test_evaluate_personal_equals_a_loop():
    rng = np.random.default_rng(1)
    owners = np.array([2, 0, 0, 2, 0, 0, 0])
    examples = {"x": rng.normal(size=(7, 3)).astype(np.float32), "y": rng.integers(0, 2, 7)}
    data = fl.data.from_arrays(examples, owners, num_clients=4)
    model = from_functions(lambda key: jnp.zeros((3, 2)), lambda w, x, key: x @ w)
    models = jnp.asarray(rng.normal(size=(4, 3, 2)), jnp.float32)
    got = evaluate_personal(model, models, data, batch_size=2)
    assert got["size"].tolist() == [5, 0, 2, 0]
    assert np.isnan(got["loss"][[1, 3]]).all()
    for i in (0, 2):
        x, y = examples["x"][owners == i], examples["y"][owners == i]
        logits = x @ np.asarray(models[i])
        loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
        np.testing.assert_allclose(got["loss"][i], loss.mean(), rtol=1e-5)
        assert got["accuracy"][i] == (logits.argmax(1) == y).mean()
    with pytest.raises(ValueError, match="one model per client"):
        evaluate_personal(model, models[:3], data)


@pytest.mark.sample(2, of="accuracy of an independent run")
def test_fedbn_learns_digits():
    """Clients of unlike brightness; each is scored with its own statistics."""
    train, _ = fl.data.load("digits")
    train = {name: leaf[:800] for name, leaf in train.items()}
    owners = np.random.default_rng(0).integers(0, 4, 800)
    shift = (np.arange(4.0) * 3.0)[owners][:, None, None, None]
    x = (train["x"] * (1 + shift) + shift).astype(np.float32)
    data = fl.data.from_arrays({"x": x, "y": train["y"]}, owners)

    def init(key):
        first, second = jax.random.split(key)
        return {
            "norm": init_batch_norm(64, statistics="local"),
            "first": init_affine(first, (64, 32)),
            "head": init_affine(second, (32, 10)),
        }

    def apply(params, x, key):
        x = batch_norm(params["norm"], x.reshape(x.shape[0], -1), training=key is not None)
        return dense(params["head"], jax.nn.relu(dense(params["first"], x)))

    model = from_functions(init, apply)
    plan = fl.Plan(batch_size=20, epochs=2)
    algo = fedbn(model.loss, optax.sgd(0.2), plan=plan, sampler=fl.everyone())
    state = algo.init(KEY, model.init(KEY), data)
    for _ in range(4):
        state, _ = algo.round(KEY, state, data)
    own = evaluate_personal(model, state, data)
    assert (own["accuracy"] > 0.8).all()  # chance is 0.1
    # With another client's statistics the same model is worse: they are the client's own.
    swapped = personal_models(state)
    swapped["norm"] = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), swapped["norm"])
    assert (evaluate_personal(model, swapped, data)["accuracy"] < own["accuracy"]).all()


def test_bad_arguments():
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.everyone()}
    server = fl.optimizer_server(optax.sgd(1.0))
    data, _, _ = skewed()
    averaged = start_params() | {"norm": init_batch_norm(2, statistics="averaged")}
    with pytest.raises(ValueError, match="declared averaged"):
        bn().init(KEY, averaged, data)
    forgetful = local_leaves(
        fl.local_sgd(bn_loss, with_statistics(optax.sgd(0.1))),
        is_local=lambda p: False,
        server=server,
        **common,
    )
    with pytest.raises(ValueError, match="declared local"):
        forgetful.init(KEY, start_params(), data)
    nothing: Any = None
    with pytest.raises(TypeError, match="is_local"):
        local_leaves(
            fl.local_sgd(bn_loss, optax.sgd(0.1)), is_local=nothing, server=server, **common
        )
    scaffold = fl.algorithms.scaffold
    from fedjax_lite.algorithms.scaffold import scaffold_client, scaffold_server

    plan = fl.Plan(batch_size=2)
    controlled = local_leaves(
        scaffold_client(bn_loss, 0.1, plan=plan), plan=plan,
        is_local=lambda params: {name: name == "norm" for name in params},
        sampler=fl.everyone(), server=scaffold_server(),
    )  # fmt: skip
    plain = start_params() | {"norm": init_batch_norm(2, statistics="batch")}
    with pytest.raises(ValueError, match="broadcasts the model itself"):
        controlled.init(KEY, plain, data)
    base = scaffold(bn_loss, 0.1, **common)
    with pytest.raises(TypeError, match="local_leaves or fedbn"):
        personal_models(base.init(KEY, plain, data))


def test_one_model_for_all_is_refused_where_there_is_none():
    algo = per()
    state = algo.init(KEY, {"w": jnp.array(1.0), "h": jnp.array(0.0)}, two())
    model = from_functions(lambda key: None, lambda w, x, key: jnp.zeros((len(x), 2)))
    score = fl.evaluator(model, {"x": np.zeros(2), "y": np.zeros(2, np.int32)})
    with pytest.raises(TypeError, match="evaluate_personal"):
        score(state)
