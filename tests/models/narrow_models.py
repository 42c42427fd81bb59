"""Models, examples and norms that tests of precision share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import fedjax_lite as fl

U = 2.0**-8
"""Unit roundoff of bfloat16: 8 significant bits."""


class Net(linen.Module):
    norm: bool = False

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(8, (3, 3))(x)
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.relu(x)
        return linen.Dense(4)(x.reshape(x.shape[0], -1))


class Both(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.hidden(x.reshape(x.shape[0], -1)))
        return self.head(nnx.relu(x))


IMAGE = (8, 8, 1)
IMAGES = jnp.zeros((1, *IMAGE))
MODELS = {
    "linear": lambda: fl.models.linear(4, IMAGE, init="lecun"),
    "mlp": lambda: fl.models.mlp((16,), num_classes=4, input_shape=IMAGE),
    "cnn": lambda: fl.models.cnn(4, IMAGE, widths=(16, 16)),
    "cnn xla": lambda: fl.models.cnn(4, IMAGE, widths=(8, 8), form="xla"),
    "conv_net": lambda: fl.models.conv_net((4, 8), (8,), num_classes=4, input_shape=IMAGE),
    "char_lstm": lambda: fl.models.char_lstm(4, embedding_size=4, hidden_size=8),
    "linen": lambda: fl.models.from_linen(Net(), IMAGES),
    "linen norm": lambda: fl.models.from_linen(Net(norm=True), IMAGES, statistics="averaged"),
    "nnx norm": lambda: fl.models.from_nnx(lambda rngs: Both(rngs), statistics="averaged"),
    "augmented": lambda: fl.models.augmented(fl.models.linear(4, IMAGE, init="lecun"), crop=1),
}


def examples(name, size=16):
    rng = np.random.default_rng(0)
    if name == "char_lstm":
        return {"x": rng.integers(0, 4, (size, 5)), "y": rng.integers(0, 4, (size, 5))}
    x = rng.integers(0, 256, (size, *IMAGE)).astype(np.uint8)
    return {"x": x, "y": rng.integers(0, 4, size)}


def mean_of(model, batch):
    return lambda params: model.loss(params, batch, jax.random.key(1)).mean()


def norm(tree):
    return float(np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def apart(tree, other):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), tree, other)


def start(model):
    """Parameters by one program, where the initialisers alone would be dozens."""
    return jax.jit(model.init)(jax.random.key(0))
