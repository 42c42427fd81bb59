"""Examples that do not count: a run with them is the run without them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.population.counting import counted, counts_of
from fedjax_lite.engine.counted import counted_sizes
from fedjax_lite.models import from_functions, with_counts

KEY = jax.random.key(2)
OWNERS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3])  # client 2 has nothing
RNG = np.random.default_rng(5)
X = RNG.normal(size=(9, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 9)
WHOLE = fl.Plan(batch_size=None, steps=2)
MODEL = from_functions(lambda key: {"w": jnp.full((3, 3), 0.1)}, lambda p, x, key: x @ p["w"])


def population(extra=()):
    """The labelled examples, with unlabelled ones of these owners dealt in between."""
    extra = np.asarray(extra, int)
    place = np.random.default_rng(1).permutation(len(OWNERS) + len(extra))
    x = np.concatenate([X, RNG.normal(size=(len(extra), 3)).astype(np.float32)])[place]
    y = np.concatenate([Y, np.full(len(extra), -1)])[place]
    owners = np.concatenate([OWNERS, extra])[place]
    return fl.data.from_arrays({"x": x, "y": y}, owners, num_clients=4)


PLAIN, MIXED = population(), population([0, 1, 1, 1, 1, 1, 2, 2, 3])


def two_rounds(algo, data):
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)
        state = algo.init(KEY, MODEL.init(KEY), data)
        for _ in range(2):
            state, metrics = algo.round(KEY, state, data)
    return (state.server, state.clients), metrics


def own_dp(loss, **slots):
    client = fl.privacy.dp_sgd(loss, 0.3, clip=0.5, noise_multiplier=0.0)
    return fl.federated_algorithm(client, server=fl.optimizer_server(optax.sgd(1.0)), **slots)


FACTORIES = {
    "fedavg": lambda loss, **s: fl.fedavg(loss, optax.adam(0.1), **s),
    "fedprox": lambda loss, **s: fl.fedprox(
        loss, optax.sgd(0.3), mu=0.1, adaptive=True, weighting="examples", **s
    ),
    "scaffold": lambda loss, **s: fl.scaffold(loss, 0.3, option=1, weighting="examples", **s),
    "fednova": lambda loss, **s: fl.fednova(loss, 0.3, momentum=0.5, **s),
    "feddyn": lambda loss, **s: fl.feddyn(
        loss, optax.sgd(0.3), alpha=0.1, weighting="examples", **s
    ),
    "mime": lambda loss, **s: fl.mime(loss, 0.3, weighting="examples", **s),
    "dp_sgd": own_dp,
    "apfl": lambda loss, **s: fl.apfl(loss, optax.sgd(0.3), mixing_rate=0.1, **s),
    "pfedme": lambda loss, **s: fl.pfedme(
        loss, optax.sgd(0.3), learning_rate=0.1, weighting="examples", **s
    ),
    "fedrep": lambda loss, **s: fl.fedrep(
        loss, optax.sgd(0.3), is_head=lambda p: {"w": False}, **s
    ),
    "fedbabu": lambda loss, **s: fl.fedbabu(
        loss, optax.sgd(0.3), is_head=lambda p: {"w": False}, **s
    ),
    "ditto": lambda loss, **s: fl.ditto(loss, optax.sgd(0.3), pull=0.5, **s),
    "local_only": lambda loss, **s: fl.local_only(loss, optax.sgd(0.3), **s),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", FACTORIES)
def test_unlabelled_examples_change_nothing(name):
    def run(data):
        return two_rounds(FACTORIES[name](MODEL.loss, plan=WHOLE, sampler=fl.everyone()), data)

    (plain, metrics), (mixed, more) = run(PLAIN), run(MIXED)
    chex.assert_trees_all_close(plain, mixed, rtol=2e-5, atol=1e-6)
    assert metrics.keys() == more.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(value, more[key], rtol=1e-5, err_msg=key)
    assert more["num_clients"] == 3


def test_the_baseline_of_the_union():
    (plain, metrics), (mixed, more) = (
        two_rounds(fl.centralised(MODEL.loss, optax.sgd(0.3), plan=WHOLE), data)
        for data in (PLAIN, MIXED)
    )
    chex.assert_trees_all_close(plain[0], mixed[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["train_loss"], more["train_loss"], rtol=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "strategy", [fl.vmapped(), fl.chunked(2), fl.sequential(), fl.engine.differentiable()]
)
def test_weights_are_numbers_of_examples_that_count_in_any_plan(strategy):
    """One short batch says little of a client; its weight is exact all the same."""
    client = fl.local_sgd(MODEL.loss, optax.sgd(0.1))

    def finish(broadcast, carry):
        row, message, metrics = client.finish(broadcast, carry)
        return row, message, {**metrics, "square": (carry.info.size * 1.0) ** 2}

    algo = fl.federated_algorithm(
        client._replace(finish=finish), plan=fl.Plan(batch_size=1, steps=1),
        sampler=fl.everyone(), server=fl.optimizer_server(optax.sgd(1.0)), strategy=strategy,
    )  # fmt: skip
    _, metrics = two_rounds(algo, MIXED)
    sizes = np.bincount(OWNERS, minlength=4)
    assert metrics["square"] == pytest.approx((sizes**2).sum() / 3)
    assert metrics["num_steps"] == 3
    assert counted_sizes(client.counts, MIXED).tolist() == sizes.tolist()


def test_a_loss_that_says_nothing_counts_every_example():
    """-1 may be a label like any other."""
    loss = lambda w, e, key: 0.5 * (w - e["y"]) ** 2  # noqa: E731
    data = fl.data.from_arrays({"y": np.array([-1.0, -1.0, 1.0, 5.0])}, [0, 0, 0, 1])
    algo = fl.fedsgd(loss, optax.sgd(1.0), sampler=fl.everyone())
    state = algo.init(KEY, jnp.zeros(()), data)
    assert float(algo.round(KEY, state, data)[0].server.params) == pytest.approx(1.0)
    rated = with_counts(loss, lambda e: e["y"] != 5)  # a loss of one's own says it, too
    algo = fl.fedsgd(rated, optax.sgd(1.0), sampler=fl.everyone())
    new, metrics = algo.round(KEY, state, data)
    assert float(new.server.params) == pytest.approx(-1 / 3)
    assert metrics["num_clients"] == 1


def images(key):
    return {"x": jnp.ones((3, 8, 8, 1)), "y": jnp.array([1, -1, 0])}


WRAPPERS = {
    "plain": lambda: fl.models.linear(2, (8, 8, 1)),
    "augmented": lambda: fl.models.augmented(fl.models.linear(2, (8, 8, 1)), crop=1),
    "precision": lambda: fl.models.with_precision(fl.models.linear(2, (8, 8, 1))),
    "focal": lambda: from_functions(
        lambda key: jnp.zeros((64, 2)), lambda w, x, key: x.reshape(len(x), -1) @ w,
        loss=functools.partial(fl.models.focal_loss, gamma=1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_models_and_what_wraps_them_say_it(name):
    model, examples = WRAPPERS[name](), images(KEY)
    assert counted(model.loss, examples).tolist() == [True, False, True]
    batch = fl.Batch(examples, jnp.array([True, True, False]), KEY)
    params = model.init(KEY)
    # The mean over the one example that is real and has a label.
    np.testing.assert_allclose(
        fl.mean_loss(model.loss, params, batch), model.loss(params, examples, KEY)[0], rtol=1e-6
    )


def test_sequences_and_images_count_where_one_label_does():
    y = jnp.array([[[0, -1], [-1, -1]], [[-1, -1], [-1, -1]]])
    for loss in (fl.models.cross_entropy, fl.models.focal_loss, fl.models.sigmoid_focal_loss):
        assert counts_of(loss)(y).tolist() == [True, False]
        assert counts_of(loss)(y.astype(jnp.float32)).tolist() == [True, False]
    assert counts_of(fl.models.cross_entropy)(jnp.array([[255], [0]], jnp.uint8)).all()


def test_what_counts_is_checked():
    loss = with_counts(MODEL.loss, lambda e: e["y"])
    with pytest.raises(ValueError, match=r"one bool per example, shape \[2\], got int32\[2\]"):
        counted(loss, {"y": jnp.array([1, -1])})
    with pytest.raises(TypeError, match="counts must be a function"):
        with_counts(MODEL.loss, jnp.ones(2))
    with pytest.raises(TypeError, match="loss must be a function, got <class 'int'>"):
        with_counts(int, lambda e: e["y"])  # whose object would be taken for losses


def test_nothing_is_added_where_the_loss_says_nothing():
    """The program of a round is that of a loss without `counts` but for the masks."""

    def program(loss):
        algo = fl.fedavg(loss, optax.sgd(0.1), plan=fl.Plan(batch_size=2), sampler=fl.everyone())
        state = algo.init(KEY, MODEL.init(KEY), PLAIN)
        return jax.jit(algo.round).lower(KEY, state, PLAIN).as_text().count("\n")

    silent = program(lambda params, examples, key: MODEL.loss(params, examples, key))
    assert program(MODEL.loss) < 1.1 * silent
