"""Reference models: exact parameter counts, shapes, dropout, padding of sequences."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite import models

KEY = jax.random.key(0)


def start(model):
    """Parameters by one program, where the initialisers alone would be dozens."""
    return jax.jit(model.init)(KEY)


def num_parameters(model):
    shapes = jax.eval_shape(model.init, KEY)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def images(input_shape, batch_size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.integers(0, 256, (batch_size, *input_shape)), jnp.uint8),
        "y": jnp.asarray(rng.integers(0, 10, batch_size), jnp.int32),
    }


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (models.linear(), 7_850),
        (models.mlp(), 199_210),
        (models.mcmahan_cnn(), 1_663_370),
        (models.cifar_cnn24(), 1_068_298),
        (models.pfl_cnn(), 1_626_442),
        (models.lenet(), 62_006),
        (models.lenet(input_shape=(28, 28, 1)), 44_426),
        (models.char_lstm(), 820_522),
        (models.cnn(), 46_874),
        # FedDyn, FedRep, PFLlib and bucketing, from the same builder.
        (
            models.conv_net((64, 64), (384, 192), padding="VALID", input_shape=(32, 32, 3)),
            797_962,
        ),
        (models.conv_net((64, 64), (120, 64), padding="VALID", input_shape=(32, 32, 3)), 307_842),
        (models.conv_net((32, 64), (512,), padding="VALID"), 582_026),
        (
            models.conv_net(
                (32, 64), (128,), kernel_size=3, padding="VALID", pool_after=(False, True)
            ),
            1_199_882,
        ),
    ],
)
def test_parameter_counts(model, count):
    assert num_parameters(model) == count


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("model", "input_shape"),
    [
        (models.linear(input_shape=(8, 8, 1)), (8, 8, 1)),
        (models.mlp((16,), input_shape=(8, 8, 1)), (8, 8, 1)),
        (models.lenet(), (32, 32, 3)),
        (models.cnn(widths=(8, 8, 8)), (32, 32, 3)),
        (models.cnn(widths=(8, 8), input_shape=(28, 28, 1)), (28, 28, 1)),
        (models.cnn(widths=(8, 16), input_shape=(8, 8, 1)), (8, 8, 1)),
        (models.conv_net((4,), (8,), input_shape=(8, 8, 1), pool_size=3), (8, 8, 1)),
    ],
)
def test_losses_are_per_example_and_agree_with_predict(model, input_shape):
    examples = images(input_shape)
    # Another example's content changes no loss but its own.
    other = dict(examples, x=examples["x"].at[2].set(7))

    @jax.jit
    def outputs(key):
        params = model.init(key)
        # Away from the zero start of some models.
        params["head"]["kernel"] += 0.1 * jax.random.normal(key, params["head"]["kernel"].shape)

        def total(params):
            losses = model.loss(params, examples, None)
            return losses.sum(), losses

        slopes, losses = jax.grad(total, has_aux=True)(params)
        changed = model.loss(params, other, None)
        return params, slopes, losses, changed, model.predict(params, examples)

    params, slopes, losses, changed, logits = outputs(KEY)
    assert logits.shape == (4, 10)
    np.testing.assert_allclose(losses, models.cross_entropy(logits, examples["y"]), rtol=1e-5)
    differs = np.abs(np.asarray(changed - losses)) > 1e-4
    assert differs.tolist() == [False, False, True, False]
    assert jax.tree.structure(slopes) == jax.tree.structure(params)
    chex.assert_tree_all_finite(slopes)
    for leaf in jax.tree.leaves(slopes):
        assert np.abs(leaf).max() > 0


def test_linear_starts_at_zero_and_is_affine():
    model = models.linear(3, (2,))
    params = start(model)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(params))
    params = {"head": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([1.0, 0, -1])}}
    x = jnp.array([[1.0, 2.0]])
    np.testing.assert_allclose(model.predict(params, {"x": x}), [[7.0, 9.0, 11.0]])
    squashed = models.linear(3, (2,), sigmoid_outputs=True)
    expected = 1 / (1 + np.exp(-np.array([[7.0, 9.0, 11.0]])))
    np.testing.assert_allclose(squashed.predict(params, {"x": x}), expected, rtol=1e-6)
    losses = squashed.loss(params, {"x": x, "y": jnp.array([0])}, None)
    negative_log = -np.log(np.exp(expected[:, 0]) / np.exp(expected).sum())
    np.testing.assert_allclose(losses, negative_log, rtol=1e-5)


@pytest.mark.parametrize(
    ("init", "variance"),
    [("he", 2 / 400), ("lecun", 1 / 400), ("glorot", 2 / 600), ("torch", 1 / 1200)],
)
def test_initialisers_have_their_variance(init, variance):
    params = start(models.mlp((200,), input_shape=(400,), init=init))["dense1"]
    # 80,000 draws: the relative standard error of the variance is below 0.6 %.
    np.testing.assert_allclose(np.asarray(params["kernel"]).var(), variance, rtol=0.03)
    assert (np.abs(params["bias"]).max() > 0) == (init == "torch")


def test_dropout_follows_the_key():
    model = models.conv_net(
        (4,), (16,), input_shape=(8, 8, 1), conv_dropout=0.25, dense_dropout=0.5
    )
    examples, params = images((8, 8, 1)), start(model)
    loss, keys = jax.jit(model.loss), jax.random.split(KEY, 2)
    losses = [loss(params, examples, key) for key in keys]
    assert (np.abs(losses[0] - losses[1]) > 1e-6).all()
    np.testing.assert_array_equal(loss(params, examples, keys[0]), losses[0])
    still = loss(params, examples, None)
    logits = jax.jit(model.predict)(params, examples)
    np.testing.assert_allclose(still, models.cross_entropy(logits, examples["y"]), rtol=1e-6)


def test_dropout_keeps_the_mean():
    from fedjax_lite.models.layers import dropout

    out = dropout(KEY, jnp.ones(100_000), rate=0.25)
    np.testing.assert_allclose(np.unique(out), [0.0, 4 / 3], rtol=1e-6)
    # Standard error of the mean: sqrt(.25 / .75 / 1e5) = .0018; five of them.
    assert abs(float(out.mean()) - 1) < 0.0092


def test_group_norm_standardises_each_example_and_group():
    from fedjax_lite.models.layers import group_norm, init_group_norm

    x = np.random.default_rng(0).normal(3, 2, size=(2, 3, 4, 6))
    norm = jax.jit(lambda params, x: group_norm(params, x, num_groups=2))
    got = np.asarray(norm(init_group_norm(6), x.astype(np.float32)))
    for b in range(2):
        for g in (slice(0, 3), slice(3, 6)):
            part = x[b, :, :, g]
            expected = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            np.testing.assert_allclose(got[b, :, :, g], expected, atol=1e-5)


def test_conv_forms_give_the_same_model():
    examples = images((28, 28, 1))
    options = dict(widths=(8, 8), input_shape=(28, 28, 1))
    params = jax.jit(models.cnn(**options).init)(KEY)
    logits = [
        jax.jit(models.cnn(**options, form=form).predict)(params, examples)
        for form in ("matmul", "xla")
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_cnn_learns():
    model = models.cnn(4, (8, 8, 1), widths=(8, 8))
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, (4, 8, 8, 1))
    y = rng.integers(0, 4, 64)
    x = np.clip(prototypes[y] + rng.normal(0, 40, (64, 8, 8, 1)), 0, 255).astype(np.uint8)
    examples = {"x": jnp.asarray(x), "y": jnp.asarray(y)}

    @jax.jit
    def step(params):
        slopes = jax.grad(lambda p: model.loss(p, examples, None).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes)

    params = start(model)
    for _ in range(30):
        params = step(params)
    logits = jax.jit(model.predict)(params, examples)
    assert float(models.accuracy(logits, examples["y"]).mean()) > 0.95


# -- sequences --------------------------------------------------------------------------------


def small_lstm():
    model = models.char_lstm(7, embedding_size=3, hidden_size=5)
    return model, start(model)


def test_lstm_is_the_textbook_recurrence():
    from fedjax_lite.models.recurrent import init_lstm, lstm

    params = jax.jit(lambda key: init_lstm(key, 3, 5))(KEY)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    w, u, b = (np.asarray(params[name]) for name in ("input", "recurrent", "bias"))
    assert b.reshape(4, 5).tolist() == [[0.0] * 5, [1.0] * 5, [0.0] * 5, [0.0] * 5]
    h = c = np.zeros((2, 5))
    got = jax.jit(lstm)(params, x)
    for t in range(4):
        i, f, g, o = np.split(x[:, t] @ w + h @ u + b, 4, axis=-1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        np.testing.assert_allclose(got[:, t], h, atol=1e-5)


def test_lstm_ignores_padding():
    model, params = small_lstm()
    loss = jax.jit(lambda params, x, y: model.loss(params, {"x": x, "y": y}, None))
    x = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    y = np.array([[2, 3, 4, -1, -1, -1], [5, 4, 3, 2, 1, 0]])
    losses = loss(params, x, y)
    assert losses.shape == (2,)
    for filler in (0, -1):
        padded = x.copy()
        padded[0, 3:] = filler
        np.testing.assert_allclose(loss(params, padded, y), losses, rtol=1e-6)
    np.testing.assert_allclose(loss(params, x[:1, :3], y[:1, :3])[0], losses[0], rtol=1e-6)
    assert jax.eval_shape(model.predict, params, {"x": x}).shape == (2, 6, 7)
    slopes = jax.jit(jax.grad(lambda params: loss(params, x, np.full_like(y, -1)).sum()))(params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slopes))


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: models.mlp((0,)), "hidden"),
        (lambda: models.mlp(init="kaiming"), "init"),
        (lambda: models.mlp(input_shape=()), "input_shape"),
        (lambda: models.conv_net(input_shape=(28, 28)), "input_shape"),
        (lambda: models.conv_net(pool_after=(True,)), "pool_after"),
        (lambda: models.conv_net(conv_dropout=1.0), "conv_dropout"),
        (lambda: models.lenet(input_shape=(8, 8, 1)), "window|too small"),
        (lambda: models.cnn(widths=(12,), num_groups=8), "num_groups"),
        (lambda: models.pfl_cnn(input_shape=(4, 4, 1)), "window|too small"),
        (lambda: models.cnn(input_shape=(64,)), "input_shape"),
        (lambda: models.char_lstm(0), "vocab_size"),
    ],
)
def test_bad_options(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_lstm_refuses_what_is_not_symbols():
    model, params = small_lstm()
    with pytest.raises(ValueError, match="symbols"):
        model.predict(params, {"x": jnp.zeros((2, 3))})
