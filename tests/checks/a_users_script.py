"""What a new user writes: arrays, a model, a run; and how tests ask what is said to it."""

import re

import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
X = np.random.default_rng(0).random((12, 4, 4, 1)).astype(np.float32)
Y = np.arange(12) % 3
OWNERS = np.arange(12) % 4
MODEL = fl.models.linear(3, (4, 4, 1))
W = MODEL.init(KEY)


def train(examples, loss=MODEL.loss, *, learning_rate=0.1, rounds=1, params=W, test=None, **slots):
    """What a user's script does, from arrays to the history."""
    data = fl.data.from_arrays(examples, OWNERS)
    slots = {"plan": fl.Plan(batch_size=3), "sampler": fl.everyone(), **slots}
    algo = fl.fedavg(loss, optax.sgd(learning_rate), **slots)
    state = algo.init(KEY, params, data)
    evaluate = None if test is None else fl.evaluator(MODEL, test)
    options = {"num_rounds": rounds, "every": 2, "evaluate": evaluate, "progress": False}
    return fl.run(algo, KEY, state, data, **options)[1]


def says(error, *words):
    """Expects an error whose text holds all words, in order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(word) for word in words))


def warns(*words):
    return pytest.warns(UserWarning, match="(?s)" + ".*".join(re.escape(word) for word in words))
