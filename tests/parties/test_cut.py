"""Networks cut anywhere: over the wire, both halves' gradients are those of the whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import fedjax_lite as fl
from fedjax_lite.parties import Part, cut_layers, cut_linen, cut_nnx
from fedjax_lite.parties.split_step import split_gradients
from fedjax_lite.round.local import mean_loss

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
EXAMPLES = {"x": jnp.asarray(X), "y": jnp.array([0, 1, 2, 2, -1, 1])}  # one without a label
BATCH = fl.Batch(EXAMPLES, jnp.arange(6) < 5, KEY)  # and one that is padding


def dense(size, out):
    def apply(params, x, key):
        if key is not None:  # what draws must draw the same, cut or not
            x = x * jax.random.bernoulli(key, 0.7, x.shape)
        return jnp.tanh(x @ params)

    return Part(lambda key: jax.random.normal(key, (size, out)), apply)


def layers(at):
    return cut_layers([dense(4, 5), dense(5, 3), dense(3, 3), dense(3, 3)], at=at)


def in_linen(at):
    net = linen.Sequential(
        [linen.Dense(5), linen.tanh, linen.Dense(4), linen.LayerNorm(), linen.Dense(3)]
    )
    return cut_linen(net, X, at=at)


class Net(nnx.Module):
    """No Sequential: stages say what comes after what."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(5, 4, rngs=rngs)
        self.third = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return functools.reduce(lambda x, stage: stage(self, x), STAGES, x)


STAGES = [
    lambda m, x: jnp.tanh(m.first(x)),
    lambda m, x: m.drop(x),
    lambda m, x: jnp.tanh(m.second(x)),
    lambda m, x: m.third(x),
]


def in_nnx(at):
    return cut_nnx(lambda rngs: Net(rngs), X, at=at, stages=STAGES)


ANYTHING: Any = [len]
CUTS = [
    (layers, 1), (layers, 2), (layers, 3), (layers, (1, 3)),
    (in_linen, 3), (in_linen, (2, 4)), (in_nnx, 1), (in_nnx, (2, 3)),
]  # fmt: skip


@pytest.mark.sample(5)
@pytest.mark.parametrize(("make", "at"), CUTS, ids=lambda value: getattr(value, "__name__", value))
def test_gradients_are_those_of_the_whole(make, at):
    cut = make(at)
    params = jax.jit(cut.model.init)(jax.random.key(1))

    @jax.jit
    def both(params):
        halves = cut.halves(params)
        whole = jax.value_and_grad(functools.partial(mean_loss, cut.model.loss))(params, BATCH)
        return split_gradients(cut, halves[0], halves[1], BATCH), whole

    found, (loss, gradient) = both(params)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    mine = cut.whole(found.client, found.server)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mine, gradient
    )
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 0
    client, server = (len(jax.tree.leaves(half)) for half in cut.halves(params))
    assert client >= 1
    assert server >= 1
    assert client + server == len(jax.tree.leaves(params))
    width = found.smashed.shape[1]
    floats = 32 * 5 * width  # five examples are sent
    if cut.labels_stay:
        middle = jax.eval_shape(cut.stages[1], params, found.smashed, None).shape[1]
        assert found.up.bits == found.down.bits == floats + 32 * 5 * middle
    else:
        assert (found.up.bits, found.down.bits) == (floats + 32 * 5, floats)


def test_the_whole_is_the_uncut_network():
    """With flax's own parameters, so that trained ones can be taken over; here in linen and nnx."""
    for cut, model in (
        (in_linen(2), fl.models.from_linen(in_linen_net(), X)),
        (in_nnx(2), fl.models.from_nnx(lambda rngs: Net(rngs))),
    ):
        params = model.init(KEY)
        shapes = jax.tree.map(jnp.shape, cut.model.init(KEY))
        assert shapes == jax.tree.map(jnp.shape, params)
        np.testing.assert_allclose(
            cut.model.predict(params, EXAMPLES), model.predict(params, EXAMPLES), rtol=1e-5
        )


def in_linen_net():
    return linen.Sequential(
        [linen.Dense(5), linen.tanh, linen.Dense(4), linen.LayerNorm(), linen.Dense(3)]
    )


def test_images_in_bytes():
    """Pixels are scaled before the first layer, on either way."""
    conv = linen.Sequential([linen.Conv(2, (3, 3)), linen.relu, lambda x: x.reshape(len(x), -1),
                             linen.Dense(3)])  # fmt: skip
    x = RNG.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    cut = cut_linen(conv, x, at=2)
    params = jax.jit(cut.model.init)(KEY)
    batch = fl.Batch({**EXAMPLES, "x": jnp.asarray(x)}, BATCH.mask, KEY)

    @jax.jit
    def both(params):
        found = split_gradients(cut, *cut.halves(params), batch)
        return found, mean_loss(cut.model.loss, params, batch)

    found, loss = both(params)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-6)
    assert found.smashed.shape == (6, 4, 4, 2)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: layers(4), ValueError, "at must leave layers on both sides .*, got 4 of 4"),
        (lambda: layers(0), ValueError, "got 0 of 4 layers; give 1 to 3"),
        (lambda: layers((1, 4)), ValueError, r"got \(1, 4\) of 4 layers; 0 < at\[0\] < at"),
        (lambda: layers(1.5), TypeError, "at must be an int.*got 1.5"),
        (lambda: cut_layers(ANYTHING, at=1), TypeError, "layers must be a sequence of Part"),
        (lambda: cut_linen(linen.Dense(3), X, at=1), TypeError, "stages must be given for a Dense"),
        (lambda: cut_nnx(Net, X, at=1), TypeError, "stages must be given for a Net, got None"),
        (lambda: cut_nnx(Net, X, at=1, stages=[STAGES[0], lambda m, x: m.first(x[:, :4])]),
         ValueError, r"(?s)at=1 must cut between layers that share nothing.*\['first'\]"),
        (lambda: cut_linen(linen.Sequential([linen.BatchNorm(False), linen.Dense(2)]), X, at=1),
         ValueError, "statistics"),
    ],
)  # fmt: skip
def test_refusals(call, kind, message: Any):
    with pytest.raises(kind, match=message):
        call()
