"""Sensitivity is a test: replace a client's data by anything, the pre-noise sum stays in bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite.types import Cohort

KEY = jax.random.key(0)
NUM_CLIENTS, CLIP, NUM_EXAMPLES = 6, 0.5, 60
ROUNDING = 1 + 1e-5
VICTIM = 2


def loss(params, examples, key):
    return 0.5 * (examples["x"] @ params["w"] + params["b"] - examples["y"]) ** 2


def population(x, y):
    """Five clients of three examples, of which one has these instead; any size.

    A sixth owns what is left of 60 examples and never takes part: one shape for all cases.
    """
    rng = np.random.default_rng(0)
    x, y = np.reshape(x, (-1, 2)), np.reshape(y, -1)
    owners = np.repeat(np.arange(NUM_CLIENTS - 1), 3)
    keep = owners != VICTIM
    rest = NUM_EXAMPLES - keep.sum() - len(y)
    xs = np.concatenate([rng.normal(size=(15, 2))[keep], x, np.ones((rest, 2))])
    ys = np.concatenate([rng.normal(size=15)[keep], y, np.ones(rest)])
    more = np.repeat([VICTIM, NUM_CLIENTS - 1], [len(y), rest])
    order = np.argsort(np.concatenate([owners[keep], more]), kind="stable")
    owners = np.concatenate([owners[keep], more])[order]
    examples = {"x": xs[order].astype(np.float32), "y": ys[order].astype(np.float32)}
    zeros = {name: np.zeros_like(leaf) for name, leaf in examples.items()}
    data = fl.data.from_arrays(zeros, owners, num_clients=NUM_CLIENTS)
    assert data.order is None
    # Afterwards: from_arrays refuses NaN, an attacker does not ask it.
    return dataclasses.replace(
        data, examples=jax.tree.map(jnp.asarray, examples), max_client_size=NUM_EXAMPLES
    )


HONEST = (np.ones((3, 2)), np.full(3, 5.0))
STRANGE = {
    "pulls the other way": (np.ones((3, 2)), np.full(3, -5.0)),
    "huge": (np.full((3, 2), 1e4), np.full(3, 1e9)),
    "overflows": (np.full((3, 2), 3e38), np.full(3, -3e38)),
    "nan": (np.full((3, 2), np.nan), np.ones(3)),
    "one nan": (np.ones((3, 2)), np.array([1.0, np.nan, 1.0])),
    "infinite": (np.full((3, 2), np.inf), np.ones(3)),
    "nobody": (np.zeros((0, 2)), np.zeros(0)),
    "one example": (np.ones((1, 2)), -np.ones(1)),
    "many": (np.full((40, 2), -2.0), np.full(40, 7.0)),
}
MECHANISMS = {
    "central": lambda: dp.central_gaussian(
        clip=CLIP, num_clients=NUM_CLIENTS, sampling_rate=1.0, noise_multiplier=0.0, delta=1e-5
    ),
    "per layer": lambda: dp.central_gaussian(
        clip=CLIP,
        num_clients=NUM_CLIENTS,
        sampling_rate=1.0,
        noise_multiplier=0.0,
        delta=1e-5,
        per_layer=True,
    ),
    "secure": lambda: dp.secure_gaussian(
        clip=CLIP, cohort_size=NUM_CLIENTS, noise_multiplier=0.0, delta=1e-5
    ),
    "adaptive": lambda: dp.adaptive_clipping(
        num_clients=NUM_CLIENTS,
        sampling_rate=1.0,
        noise_multiplier=0.0,
        initial_clip=CLIP,
        delta=1e-5,
    ),
    "tree": lambda: dp.tree_noise(
        clip=CLIP,
        num_clients=NUM_CLIENTS,
        cohort_size=NUM_CLIENTS,
        num_rounds=4,
        noise_multiplier=0.0,
        delta=1e-5,
    ),
    "matrix": lambda: dp.matrix_noise(
        clip=CLIP,
        num_clients=NUM_CLIENTS,
        cohort_size=NUM_CLIENTS,
        num_rounds=4,
        noise_multiplier=0.0,
        delta=1e-5,
        coefficients=[1.0, 0.5],
    ),
}


def released_sum(algo, data, mask):
    """``denominator * (x_0 - x_1)``: the sum of one real round of FedAvg without noise."""
    params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    state = algo.init(KEY, params, data)
    cohort = Cohort(jnp.arange(NUM_CLIENTS, dtype=jnp.int32), mask)
    state, _ = algo.round(KEY, state, data, cohort)
    moved = jax.tree.map(lambda leaf: -NUM_CLIENTS * np.asarray(leaf), state.server.params)
    return np.append(moved["w"], moved["b"]).astype(np.float64)


@pytest.mark.parametrize("name", MECHANISMS)
def test_one_client_moves_the_sum_by_at_most_the_declared_amount(name):
    algo = fl.fedavg(
        loss,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=2),
        privacy=MECHANISMS[name](),
        strategy=fl.chunked(2),
    )
    everyone = jnp.ones(NUM_CLIENTS, bool).at[-1].set(False)
    honest = population(*HONEST)
    base = released_sum(algo, honest, everyone)
    removed = released_sum(algo, honest, everyone.at[VICTIM].set(False))
    moves = {"removed": np.linalg.norm(base - removed)}
    assert 0.9 * CLIP < moves["removed"] <= CLIP * ROUNDING  # it is clipped: the bound is tight
    for case, data in STRANGE.items():
        spoiled = released_sum(algo, population(*data), everyone)
        assert np.isfinite(spoiled).all(), case
        assert np.linalg.norm(spoiled - removed) <= CLIP * ROUNDING, case
        moves[case] = np.linalg.norm(spoiled - base)
    assert max(moves.values()) <= 2 * CLIP * ROUNDING
    assert moves["pulls the other way"] > 1.8 * CLIP  # replacing really costs twice


def test_the_count_of_adaptive_clipping_moves_by_at_most_half():
    aggregator = MECHANISMS["adaptive"]().aggregator
    state = aggregator.init_state({"w": jnp.zeros(2)})
    now = aggregator.at(state)

    def count(rows, mask):
        message = fl.types.Message({"w": jnp.asarray(rows)}, jnp.ones(len(rows)))
        template = jax.tree.map(lambda leaf: leaf[0], message)
        acc = now.init(template, len(rows))
        return float(now.add(acc, message, jnp.arange(len(rows)), mask).count)

    for row in ([0.0, 0.0], [1e30, 0.0], [np.nan, 1.0], [0.5, 0.0], [-3e38, 3e38]):
        rows = np.array([[0.1, 0.1], row], np.float32)
        both, one = count(rows, jnp.ones(2, bool)), count(rows, jnp.array([True, False]))
        assert abs(both - one) == 0.5


def test_example_weights_would_break_the_bound():
    """KNOWN_ANSWERS 4, defect 4: with n = (990, 10) a weighted mean moves by .99 S, not S / 2."""
    clipped = np.array([[CLIP], [-CLIP]])
    weighted = np.array([0.99, 0.01]) @ clipped
    assert abs(weighted[0] - 0.01 * clipped[1, 0]) == pytest.approx(0.99 * CLIP)
    data = fl.data.from_arrays(
        {"b": np.append(np.full(990, 9.0), np.full(10, -9.0)).astype(np.float32)},
        np.append(np.zeros(990, int), np.ones(10, int)),
    )
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(1.0),
        plan=fl.Plan(batch_size=None),
        privacy=dp.central_gaussian(
            clip=CLIP, num_clients=2, sampling_rate=1.0, noise_multiplier=0.0, delta=1e-5
        ),
    )
    state = algo.init(KEY, jnp.zeros(()), data)
    moved = []
    for mask in ([True, True], [False, True]):
        cohort = Cohort(jnp.arange(2, dtype=jnp.int32), jnp.array(mask))
        moved.append(float(algo.round(KEY, state, data, cohort)[0].server.params))
    assert moved[0] == pytest.approx(0.0, abs=1e-6)  # +S and -S: weights do not count
    assert abs(moved[0] - moved[1]) == pytest.approx(CLIP / 2, rel=1e-6)
