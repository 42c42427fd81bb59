"""Robust rules, attacks, privacy, compression: equal results under strategies and devices.

A JAX process has the devices that it started with, so the last test of test_sharded.py runs this
file again in a process of several; there the tests compare `sharded` instead.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(3)
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2, 4])
SEVERAL = jax.device_count() >= 2
ON_SEVERAL = ("attacked centered clipping", "secure", "error feedback")
"""State in the aggregator, random words, rows: one of each; `at` is test_dp_adaptive.py's."""
ON_ONE = ("bucketed krum", "secure", "powersgd")
"""The others meet all strategies in the laws of algorithms, and in test_attacks_updates.py,
test_compression_feedback.py, test_downlink.py, test_dp_gaussian.py and test_dp_adaptive.py."""


def population():
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.normal(size=(len(owners), 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5]) + owners / 10).astype(np.float32)
    return fl.data.from_arrays({"x": x, "y": y}, owners, num_clients=len(SIZES))


def regression(w, e, key):
    return 0.5 * (e["x"] @ w["w"] + w["b"] - e["y"]) ** 2


SLOTS = {
    "bucketed krum": lambda: {"aggregator": fl.bucketing(2, inner=fl.krum(0))},
    "attacked centered clipping": lambda: {
        "aggregator": fl.attacks.byzantine(
            fl.attacks.alie(), clients=[3, 6], inner=fl.aggregation.centered_clipping(1.0)
        )
    },
    "secure": lambda: {
        "aggregator": fl.aggregation.secure_mean(max_abs=1.0, bits=20, masks="pairwise")
    },
    "error feedback": lambda: {
        "uplink": fl.chain(fl.clip(1.0), fl.error_feedback(fl.transforms.top_k(2)))
    },
    "qsgd": lambda: {"uplink": fl.transforms.qsgd(3), "downlink": fl.transforms.qsgd(15)},
    "powersgd": lambda: {"uplink": fl.error_feedback(fl.transforms.powersgd(1))},
    "adaptive clipping": lambda: {
        "privacy": fl.privacy.adaptive_clipping(
            num_clients=len(SIZES), expected_cohort_size=6, noise_multiplier=0.3, delta=1e-3
        )
    },
}


def end(slots, strategy, mesh=None, num_rounds=2):
    data = population()
    if "privacy" not in slots:
        slots = {"sampler": fl.dropout(fl.uniform(7), 0.2), **slots}
    algo = fl.fedavg(
        regression, optax.sgd(0.05), plan=fl.Plan(batch_size=2), strategy=strategy, **slots
    )
    state = algo.init(KEY, {"w": jnp.zeros(3), "b": jnp.zeros(())}, data)
    if mesh is not None:  # a state of one device would cost a second program: its first round's
        state, data = fl.replicate((state, data), mesh=mesh)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


@pytest.mark.sample(1 if SEVERAL else 2, of="equal under all strategies")
@pytest.mark.parametrize("name", ON_SEVERAL if SEVERAL else ON_ONE)
def test_equal_under_strategies(name):
    slots = SLOTS[name]()
    expected = end(slots, fl.vmapped())
    chex.assert_tree_all_finite(expected[0])
    mesh = fl.client_mesh() if SEVERAL else None
    strategy = fl.chunked(2) if mesh is None else fl.sharded(mesh, fl.chunked(2))
    got = end(slots, strategy, mesh)
    chex.assert_trees_all_close(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.skipif(SEVERAL, reason="needs one device")
@pytest.mark.parametrize("name", ["secure", "adaptive clipping", "qsgd"])
def test_a_fresh_state_can_be_donated(name):
    """No array stands in two places of it."""
    slots = SLOTS[name]()
    if "privacy" not in slots:
        slots = {"sampler": fl.everyone(), **slots}
    algo = fl.fedavg(regression, optax.sgd(0.05), plan=fl.Plan(batch_size=2), **slots)
    state = algo.init(KEY, {"w": jnp.zeros(3), "b": jnp.zeros(())}, population())
    leaves = jax.tree.leaves(state)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
