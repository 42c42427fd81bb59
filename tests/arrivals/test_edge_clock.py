"""Clocks of edges: a loop by hand, the traffic of both levels, nobody and the late."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import arrivals

KEY = jax.random.key(0)
EDGES = np.array([0, 0, 1, 1, 2, 2])
SECONDS = np.array([5.0, 7.0, 1.0, 2.0, 9.0, 3.0])
NAMES = ("simulated_seconds", "edge_seconds", "cloud_seconds", "waiting_seconds", "num_late")
CLOUD = np.array([1.0, 30.0, 4.0])


def by_id(table):
    return lambda key, info, traffic: jnp.asarray(table, float)[info.id]


def by_hand(masks, deadline, edge_rounds, idle):
    """Time shown, seconds at the edges, in the cloud, and waiting, after each edge round."""
    clocks, met, done, rows = np.zeros(3), 0.0, 0, []
    for there in masks:
        kept = there & (deadline >= SECONDS)
        took = np.minimum(SECONDS, deadline)
        lasted = [max((took[i] for i in np.flatnonzero(there & (e == EDGES))), default=0.0)
                  for e in range(3)]  # fmt: skip
        lasted = np.array(lasted) if there.any() else np.full(3, idle)
        clocks, done = clocks + lasted, done + kept.any()
        cloud = waiting = 0.0
        shown = met + clocks.max()
        if done >= edge_rounds:
            ready = clocks + CLOUD
            shown, cloud, waiting = met + ready.max(), CLOUD.max(), (ready.max() - ready).mean()
            met, clocks, done = shown, np.zeros(3), 0
        rows.append([shown, lasted.mean(), cloud, waiting, (there & ~kept).sum()])
    return np.array(rows)


@pytest.mark.parametrize(("deadline", "edge_rounds"), [(np.inf, 2), (6.0, 3), (4.0, 1)])
def test_levels_by_hand(deadline, edge_rounds):
    """Whole and partial cohorts, an edge of which nobody comes, and a round of nobody."""
    masks = np.array(
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1], [0] * 6, [0, 1, 1, 0, 1, 0], [1] * 6], bool
    )

    def drawn(key, state, sizes):
        return state + 1, fl.Cohort(jnp.arange(6, dtype=jnp.int32), jnp.asarray(masks)[state])

    turns = fl.Sampler(lambda num_clients: jnp.int32(0), drawn)
    sampler = arrivals.edge_clocked(
        turns, by_id(SECONDS), edges=EDGES, edge_rounds=edge_rounds, cloud=by_id(CLOUD),
        deadline=deadline, idle=10.0,
    )  # fmt: skip
    sample, state, found = jax.jit(sampler.sample), sampler.init(6), []
    for there in masks:
        state, cohort = sample(KEY, state, jnp.full(6, 5))
        found.append([float(state.metrics[name]) for name in NAMES])
        np.testing.assert_array_equal(cohort.mask, there & (deadline >= SECONDS))
        np.testing.assert_array_equal(cohort.late, there & (deadline < SECONDS))
    expected = by_hand(masks, deadline, edge_rounds, 10.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[:, 0].max() > 0


def test_bits_of_both_levels_take_time():
    """A model of one float: 32 bits a way; the cloud hears the edges' means, a half of them."""
    data = fl.data.from_arrays({"b": np.arange(4.0, dtype=np.float32)}, np.arange(4))
    line = arrivals.latency(download=arrivals.constant(16.0), upload=arrivals.constant(32.0))
    both = {"edges": [0, 0, 1, 1], "edge_rounds": 2}
    sampler = arrivals.edge_clocked(fl.everyone(), line, cloud=line, cloud_share=0.5, **both)
    algo = fl.hierfavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), plan=fl.Plan(1),
        sampler=sampler, **both,
    )  # fmt: skip
    state = algo.init(KEY, jnp.float32(0), data)
    for shown in (3.0, 3.0 + 3.0 + 2.5):  # 32 / 16 + 32 / 32 each; the cloud 2 + 1 / 2
        state, metrics = algo.round(KEY, state, data)
        assert float(metrics["simulated_seconds"]) == shown
    assert float(metrics["cloud_seconds"]) == 2.5
    assert float(metrics["cloud_uplink_bits"]) == 64
    words = fl.describe(algo)
    assert "HierFAVG" in words
    assert "each edge by its own clock" in words


def test_rounds_without_steps_are_counted_by_neither():
    """Clients 1 and 3 do nothing: the round in which only they come is no edge round."""
    data = fl.data.from_arrays({"b": np.arange(4.0, dtype=np.float32)}, np.arange(4))
    masks = jnp.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]], bool)

    def drawn(key, state, sizes):
        return state + 1, fl.Cohort(jnp.arange(4, dtype=jnp.int32), masks[state])

    both = {"edges": [0, 0, 1, 1], "edge_rounds": 2}
    turns = fl.Sampler(lambda num_clients: jnp.int32(0), drawn)
    sampler = arrivals.edge_clocked(turns, by_id(np.ones(4)), **both)
    algo = fl.hierfavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), sampler=sampler,
        plan=fl.Plan(1, steps=np.array([1, 0, 1, 0])), **both,
    )  # fmt: skip
    state = algo.init(KEY, jnp.float32(0), data)
    for done in (1, 1, 0):  # the third one is the second that counts: edges meet
        state, _ = algo.round(KEY, state, data)
        assert int(state.aggregator.done) == int(state.sampler.done) == done


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edges": [0, -1]}, "edges must lie in"),
        ({"edges": [0, 1], "num_edges": 1}, "edges must lie in"),
        ({"edges": [0, 1], "edge_rounds": 0}, "edge_rounds must be at least 1"),
        ({"edges": [0, 1], "cloud_share": 2.0}, "cloud_share must"),
        ({"edges": [0, 1], "deadline": 0.0}, "deadline must be positive"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(ValueError, match=said):
        arrivals.edge_clocked(fl.everyone(), by_id(SECONDS), **{"edge_rounds": 1, **options})


def test_one_edge_a_client():
    sampler = arrivals.edge_clocked(fl.everyone(), by_id(SECONDS), edges=[0, 1], edge_rounds=1)
    with pytest.raises(ValueError, match=r"edges must be .* got 2 for a population of 3"):
        sampler.init(3)
