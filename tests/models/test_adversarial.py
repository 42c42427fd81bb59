"""Encoder, predictor and adversary: whose key is whose, and what one output of log-odds guesses."""

import jax
import jax.numpy as jnp

from fedjax_lite.models import Model, adversarial
from fedjax_lite.models.adversarial import PARTS

NOTHING = dict.fromkeys(PARTS, ())
SAME = Model(lambda key: (), lambda w, e, key: 0 * e["x"][:, 0], lambda w, e: e["x"])


def test_no_key_is_used_twice():
    """Whatever predictor and adversary split their keys into, they draw apart."""
    keys = []

    def told(params, examples, key):
        keys.append(key)
        return jnp.zeros(2)

    part = SAME._replace(loss=told)
    examples = {"x": jnp.ones((2, 1)), "group": jnp.zeros(2, int)}
    adversarial(SAME, part, part).loss(NOTHING, examples, jax.random.key(3), 1.0)
    assert len(keys) == 2
    used = keys + [one for key in keys for one in jax.random.split(key, 3)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in used}) == 2 + 2 * 3


def test_one_output_is_the_log_odds_of_group_one():
    x, group = jnp.array([[2.0], [-1.0], [3.0], [-2.0]]), jnp.array([1, 0, 0, -1])
    right, known = adversarial(SAME, SAME, SAME).hits(NOTHING, {"x": x, "group": group})
    assert right.tolist() == [True, True, False, False]
    assert known.tolist() == [True, True, True, False]
