"""Examples and running means that tests of batch normalisation share."""

import jax
import numpy as np
from flax import linen, nnx

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)) * [1.0, 2.0, 3.0] + [0.0, 1.0, -2.0]
M = 0.8


def ema(batches, mean, variance, momentum=M):
    """Running mean and population variance after these batches, by hand."""
    for x in batches:
        x = x.reshape(-1, x.shape[-1])
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        variance = momentum * variance + (1 - momentum) * x.var(0)
    return mean, variance


def one_round(algo, params, data, num_rounds=1, cohort=None):
    state = algo.init(KEY, params, data)
    for _ in range(num_rounds):
        state, _ = algo.round(KEY, state, data, cohort)
    return state


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        norm = linen.BatchNorm(use_running_average=not train, momentum=M, use_scale=False)
        return norm(linen.Dense(4)(x))


class LinenNet(linen.Module):
    rate: float = 0.0

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train, momentum=M)(x)
        x = linen.relu(Block()(x, train))
        return linen.Dense(2)(linen.Dropout(self.rate, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.BatchNorm(3, momentum=M, rngs=rngs)
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(4, momentum=M, use_scale=False, rngs=rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.dense(self.first(x))))
        return self.head(self.dropout(x))
