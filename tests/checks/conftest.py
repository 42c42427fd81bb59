"""A state that is ready for a round."""

import jax
import optax
import pytest
from a_users_script import MODEL, OWNERS, W, X, Y

import fedjax_lite as fl

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def ready():
    data = fl.data.from_arrays({"x": X, "y": Y}, OWNERS)
    plan, sampler = fl.Plan(batch_size=3), fl.everyone()
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.1), plan=plan, sampler=sampler)
    return algo, algo.init(KEY, W, data), data
