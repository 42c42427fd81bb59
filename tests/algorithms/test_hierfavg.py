"""HierFAVG: closed forms on quadratics, reductions to FedAvg, who meets when, and the traffic."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
# Clients of losses a / 2 (w - b)^2, n examples each.
A, B, SIZES = np.array([1.0, 4, 2, 3]), np.array([-1.0, 2, 0, 3]), np.array([30, 10, 20, 40])
RATE, STEPS, EDGES = 0.05, 2, (0, 0, 1, 1)
OWNERS = np.repeat(np.arange(4), SIZES)
DATA = fl.data.from_arrays(
    {"a": A[OWNERS].astype(np.float32), "b": B[OWNERS].astype(np.float32)}, OWNERS
)


def loss(w, examples, key):
    return 0.5 * examples["a"] * (w - examples["b"]) ** 2


def make(edge_rounds, edges=EDGES, *, steps=STEPS, sampler=None, **options):
    return fl.hierfavg(
        loss,
        optax.sgd(RATE),
        plan=fl.Plan(batch_size=None, steps=steps),
        sampler=fl.everyone() if sampler is None else sampler,
        edges=list(edges),
        edge_rounds=edge_rounds,
        **options,
    )


def flat(*, steps=STEPS, sampler=None):
    return fl.fedavg(
        loss,
        optax.sgd(RATE),
        plan=fl.Plan(batch_size=None, steps=steps),
        sampler=fl.everyone() if sampler is None else sampler,
    )


def start(algo, data=DATA):
    return algo.init(KEY, jnp.float32(0), data)


def play(algo, num_rounds, cohorts=None, data=DATA):
    """All states and metrics of some rounds."""
    state, states, rows = start(algo, data), [], []
    for i in range(num_rounds):
        state, metrics = algo.round(KEY, state, data, None if cohorts is None else cohorts[i])
        states.append(state.server)
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def one_meeting(edge_rounds):
    """The affine map w -> slope w + offset of a meeting, by hand: clients, edges, cloud.

    K steps of gradient descent are w -> q w + (1 - q) b with q = (1 - rate a)^K.
    """
    q = (1 - RATE * A) ** STEPS
    places = np.array(EDGES)

    def image(w):
        models = np.full(2, w)
        for _ in range(edge_rounds):
            ends = q * models[places] + (1 - q) * B
            models = np.array(
                [np.average(ends[places == e], weights=SIZES[places == e]) for e in (0, 1)]
            )
        return np.average(models, weights=[SIZES[places == e].sum() for e in (0, 1)])

    return image(1.0) - image(0.0), image(0.0)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("edge_rounds", "first", "fixed"),
    [(1, 0.37575, 1.7537922987), (3, 0.8799177112, 1.7228347359)],
)
def test_meetings_are_the_affine_map(edge_rounds, first, fixed):
    slope, offset = one_meeting(edge_rounds)
    np.testing.assert_allclose([offset, offset / (1 - slope)], [first, fixed], rtol=1e-9)
    states, _ = play(make(edge_rounds), 2 * edge_rounds)
    got = [float(s.params) for s in states]
    # The cloud's model moves where edges meet, and nowhere else.
    expected = [0.0] * (edge_rounds - 1) + [offset] * edge_rounds + [slope * offset + offset]
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    algo = make(edge_rounds)
    state, _ = fl.run(
        algo, KEY, start(algo), DATA, num_rounds=80 * edge_rounds, every=80, progress=False
    )
    np.testing.assert_allclose(float(state.server.params), fixed, rtol=2e-6)
    np.testing.assert_array_equal(state.server.edges, jnp.full(2, state.server.params))


@pytest.mark.sample(5, of="reductions to another method")
def test_one_edge_round_is_fedavg():
    """Also where only some take part: an edge weighs as much as the clients that it heard."""
    for sampler in (fl.everyone(), fl.uniform(2), fl.dropout(fl.uniform(3), 0.4)):
        states, rows = play(make(1, sampler=sampler), 5)
        others, flat_rows = play(flat(sampler=sampler), 5)
        np.testing.assert_allclose(
            [float(s.params) for s in states], [float(s.params) for s in others], rtol=3e-6
        )
        for row, other in zip(rows, flat_rows, strict=True):
            assert {name: row[name] for name in other if "bits" in name} == {
                name: value for name, value in other.items() if "bits" in name
            }


def test_one_edge_is_fedavg_with_a_cloud_that_looks_on():
    states, _ = play(make(3, edges=[0] * 4, sampler=fl.uniform(2)), 6)
    others, _ = play(flat(sampler=fl.uniform(2)), 6)
    models = [float(s.params) for s in others]
    np.testing.assert_allclose([float(s.edges[0]) for s in states], models, rtol=3e-6)
    np.testing.assert_allclose(
        [float(s.params) for s in states], [0, 0, *[models[2]] * 3, models[5]], rtol=3e-6
    )


def test_one_client_an_edge_is_more_local_work():
    states, _ = play(make(3, edges=range(4)), 6)
    others, _ = play(flat(steps=3 * STEPS), 2)
    got = [float(states[i].params) for i in (2, 5)]
    np.testing.assert_allclose(got, [float(s.params) for s in others], rtol=3e-6)


def cohort(*ids):
    return fl.Cohort(jnp.array([*ids, *[-1] * (4 - len(ids))]), jnp.arange(4) < len(ids))


def test_who_meets_when_and_what_it_costs():
    """Two edge rounds a meeting; a round of nobody changes nothing and is not counted.

    A model of one float32 is 32 bits: down to each client, up from edges that heard one, and down
    to both edges.
    """
    q = (1 - RATE * A) ** STEPS
    cohorts = [cohort(0), cohort(), cohort(1), cohort(2, 3)]
    states, rows = play(make(2), 4, cohorts)
    first = (1 - q[0]) * B[0]
    second = q[1] * first + (1 - q[1]) * B[1]
    np.testing.assert_allclose(states[0].edges, [first, 0], rtol=1e-6)
    chex.assert_trees_all_equal(states[1], states[0])
    # The second edge heard nobody: the cloud's mean is the first edge's model, for both.
    np.testing.assert_allclose([states[2].params, *states[2].edges], [second] * 3, rtol=1e-6)
    ends = q[2:] * second + (1 - q[2:]) * B[2:]
    np.testing.assert_allclose(
        states[3].edges, [second, np.average(ends, weights=SIZES[2:])], rtol=1e-6
    )
    assert float(states[3].params) == float(states[2].params)
    traffic = ("uplink_bits", "downlink_bits", "cloud_uplink_bits", "cloud_downlink_bits")
    assert [[row[name] for name in traffic] for row in rows] == [
        [32, 32, 0, 0],
        [0, 0, 0, 0],
        [32, 32, 32, 64],
        [64, 64, 0, 0],
    ]


@pytest.mark.sample(2, of="equal under all strategies")
def test_strategies_agree():
    models = []
    for strategy in (fl.vmapped(), fl.chunked(3), fl.sequential()):
        states, _ = play(make(2, edges=(1, 0, 1, 0), strategy=strategy), 4)
        models.append([*map(float, states[-1].edges), float(states[-1].params)])
    np.testing.assert_allclose(models[1:], [models[0]] * 2, rtol=1e-6)


def test_rounds_do_not_compile_again():
    algo = make(2)
    state = start(algo)
    run = jax.jit(algo.round)
    for _ in range(4):
        state, _ = run(KEY, state, DATA)
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"edges": [0, 0.5, 1, 1]}, TypeError, "edges must be integers"),
        ({"edges": [0, -1, 1, 1]}, ValueError, "edges must lie in"),
        ({"num_edges": 1}, ValueError, "edges must lie in"),
        ({"num_edges": 2.0}, TypeError, "num_edges must be an int"),
    ],
)
def test_bad_edges_are_named(options, error, match):
    with pytest.raises(error, match=match):
        make(2, **options)


def test_bad_amounts_are_named():
    with pytest.raises(ValueError, match="edge_rounds must be at least 1, got 0"):
        make(0)
    with pytest.raises(TypeError, match=r"edge_rounds must be an int, got 1\.5"):
        make(1.5)
    with pytest.raises(ValueError, match=r"edges must be .* got 3 for a population of 4; give 4"):
        start(make(2, edges=[0, 1, 0]))


def test_an_edge_and_the_cloud_may_have_rules_of_their_own():
    """By hand: the median of an edge's clients, then the trimmed change of the edges."""
    edges = [0, 0, 0, 1]
    q = (1 - RATE * A) ** STEPS
    states, _ = play(make(2, edges, edge_aggregator=fl.median(), cloud_aggregator=fl.median()), 2)
    models = np.zeros(2)
    for i in range(2):
        ends = q * models[edges] + (1 - q) * B
        models = np.array([np.median(ends[:3]), ends[3]])
        if i == 0:
            np.testing.assert_allclose(states[0].edges, models, rtol=1e-5)
    np.testing.assert_allclose(float(states[1].params), np.median(models), rtol=1e-5)
    np.testing.assert_array_equal(states[1].edges, np.full(2, states[1].params))


def test_means_given_as_rules_change_nothing_and_noise_comes_where_edges_meet():
    plain, _ = play(make(2, sampler=fl.uniform(2)), 4)
    given, _ = play(
        make(2, sampler=fl.uniform(2), edge_aggregator=fl.mean(), cloud_aggregator=fl.mean()), 4
    )
    np.testing.assert_allclose(
        [float(s.params) for s in given], [float(s.params) for s in plain], rtol=1e-5
    )
    clipped = fl.privacy.gaussian_sum(clip=0.01, noise_multiplier=0.0, denominator=2.0)
    states, _ = play(make(2, cloud_aggregator=clipped), 4)
    moves = np.diff([0.0, *(float(s.params) for s in states)])
    np.testing.assert_allclose(moves[[0, 2]], 0)
    assert np.abs(moves).max() <= 0.01 + 1e-6  # two edges, a clip each, over two
    noisy = fl.privacy.gaussian_sum(clip=0.01, noise_multiplier=100.0, denominator=2.0)
    states, _ = play(make(2, cloud_aggregator=noisy), 2)
    assert float(states[0].params) == 0
    assert float(states[1].params) not in (0.0, float(plain[1].params))


def test_each_edge_with_a_cohort_of_its_own():
    _, rows = play(make(1, sampler=fl.selection.stratified(EDGES, 1)), 3)
    assert [row["num_clients"] for row in rows] == [2, 2, 2]
    assert all(row["cloud_uplink_bits"] == 64 for row in rows)


def test_rules_with_a_state_are_refused():
    with pytest.raises(ValueError, match="edge_aggregator must keep nothing"):
        make(2, edge_aggregator=fl.centered_clipping(1.0))


def test_what_edges_send_to_the_cloud_may_be_compressed():
    """Identity changes nothing; a clip bounds each edge's change; a byte a number is billed less,
    and feedback is kept by edge and moves where edges meet only."""
    plain, rows = play(make(2), 4)
    same, _ = play(make(2, cloud_uplink=fl.identity()), 4)
    np.testing.assert_allclose(
        [float(s.params) for s in same], [float(s.params) for s in plain], rtol=1e-5
    )
    states, _ = play(make(2, cloud_uplink=fl.clip(0.01)), 2)
    shares = np.array([40, 60]) / 100  # both edges move up, by more than that
    assert float(states[1].params) == pytest.approx(shares @ [0.01, 0.01] * 1.0, rel=1e-5)
    kept, sent = play(make(2, cloud_uplink=fl.error_feedback(fl.scaled_sign())), 4)
    bits = [row["cloud_uplink_bits"] for row in sent]
    assert bits[0] == bits[2] == 0
    assert bits[1] == bits[3] == 2 * (1 + 32)  # a sign and a scale from either edge
    assert [row["cloud_uplink_bits"] for row in rows] == [0, 64, 0, 64]
    chex.assert_trees_all_equal(kept[2].uplink, kept[1].uplink)
