"""What slots and cohorts demand of the population is asked before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import aggregation as agg
from fedjax_lite.aggregation.conditions import in_population, known_population, need_one_a_client
from fedjax_lite.attacks import ipm, mimic, min_sum
from fedjax_lite.round.cohort_checks import check_cohort

KEY = jax.random.key(0)
N = 6
DATA = fl.data.from_arrays({"b": np.arange(12.0, dtype=np.float32)}, np.arange(12) % N)
OTHER = fl.data.from_arrays({"b": np.arange(12.0, dtype=np.float32)}, np.arange(12) % (N - 1))


def loss(w, examples, key):
    return 0.5 * (w - examples["b"]) ** 2


def algorithm(**options):
    options = {"sampler": fl.uniform(3), "plan": fl.Plan(batch_size=2, epochs=1), **options}
    return fl.fedavg(loss, optax.sgd(0.1), **options)


def start(algo, data=DATA):
    return algo.init(KEY, jnp.float32(0), data)


def all_wraps(rule):
    """A rule by itself and inside whatever hands rounds on to it."""
    return {
        "alone": rule,
        "diagnosed": agg.diagnosed(rule),
        "bounded": agg.norm_bound(10.0, inner=rule),
        "attacked": fl.byzantine(fl.sign_flip(), fraction=0.2, inner=rule),
        "twice": agg.diagnosed(agg.norm_bound(1.0, inner=rule)),
    }


WRONG = {
    "byzantine id": (fl.byzantine(ipm(), clients=[1, 9]), r"clients .* \[0, 6\), got 9"),
    "byzantine number": (
        fl.byzantine(ipm(), fraction=0.3, num_clients=4),
        "num_clients must be the population's size 6, got 4",
    ),
    "mimic": (fl.byzantine(mimic(client=6), clients=[0]), r"client .* \[0, 6\), got 6"),
    "edges": (agg.hierarchical([0, 1, 0], num_edges=2), "edges must be .* got 3 for .* of 6"),
    "edges too many": (agg.hierarchical([0, 1] * 4), "edges must be .* got 8 for .* of 6"),
    "groups": (agg.redundancy([0, 0, 0]), "groups must be .* got 3 for .* of 6"),
    "edge attackers": (
        agg.hierarchical([0, 1] * 3, inner=fl.byzantine(ipm(), clients=[2])),
        r"clients .* \[0, 2\), got 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_of_the_population_are_checked_by_init(name):
    rule, match = WRONG[name]
    for wrapped in all_wraps(rule).values():
        with pytest.raises(ValueError, match=match):
            start(algorithm(aggregator=wrapped))


def test_weights_of_the_population_are_checked_by_init():
    for length in (3, 7):
        weighting = agg.inverse_variance(np.ones(length), floor=0.1)
        algo = algorithm(weighting=weighting)
        with pytest.raises(ValueError, match=f"variances must be .* got {length} for .* of 6"):
            start(algo)
    fits = algorithm(weighting=agg.inverse_variance(np.ones(N), floor=0.1))
    state, metrics = fits.round(KEY, start(fits), DATA)
    assert int(metrics["num_clients"]) == 3
    # The same algorithm on other data, and the same state: neither is let through by a cache.
    with pytest.raises(ValueError, match=r"variances must be .* got 6 for .* of 5"):
        start(fits, OTHER)
    with pytest.raises(ValueError, match=r"variances must be .* got 6 for .* of 5"):
        fits.round(KEY, state, OTHER)


def test_a_state_of_other_data_is_checked_by_the_round():
    edges = agg.hierarchical([0, 1] * 3)
    algo = algorithm(aggregator=agg.diagnosed(edges))
    state = start(algo)
    algo.round(KEY, state, DATA)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"edges must be .* got 6 for .* of 5"):
            algo.round(KEY, state, OTHER)


def test_what_fits_is_let_through():
    """Inside a wrapper ids are edges or buckets, of which there are other numbers."""
    inner = fl.byzantine(ipm(), clients=[1])
    for rule in (
        agg.hierarchical([0, 1] * 3, inner=inner),
        agg.bucketing(2, inner=fl.byzantine(ipm(), clients=[1])),
        fl.byzantine(ipm(), clients=[], inner=agg.redundancy([0, 0, 0, 1, 1, 1])),
        fl.byzantine(ipm(), fraction=0.5, num_clients=N),
        fl.byzantine(ipm(), clients=np.array([5])),
    ):
        algo = algorithm(aggregator=rule)
        jax.eval_shape(algo.round, KEY, start(algo), DATA)
    algo = algorithm(aggregator=agg.bucketing(2, inner=fl.byzantine(ipm(), clients=[2])))
    state = start(algo)
    with pytest.raises(ValueError, match=r"clients .* \[0, 2\), got 2"):
        algo.round(KEY, state, DATA)  # ceil(3 / 2) buckets


def test_a_threshold_above_the_cohort_is_refused():
    for rule in all_wraps(fl.secure_mean(max_abs=1.0, threshold=4)).values():
        algo = algorithm(aggregator=rule)
        with pytest.raises(ValueError, match=r"threshold must be .* cohort's size, got 4 of 3"):
            algo.round(KEY, start(algo), DATA)
    with pytest.raises(ValueError, match=r"threshold must be .* got 4 of 3"):
        fl.secure_mean(max_abs=1.0, threshold=4, cohort_size=3)
    exact = algorithm(aggregator=fl.secure_mean(max_abs=1.0, threshold=3))
    _, metrics = exact.round(KEY, start(exact), DATA)
    assert float(metrics["secure_aborted"]) == 0


@pytest.mark.parametrize(
    ("clients", "error", "match"),
    [
        ([-1], ValueError, "got -1 to -1"),
        ([0, 2, 0], ValueError, "got 0 more than once"),
        ([0.5], TypeError, "clients must be .*integer"),
        (["a"], TypeError, "clients must be .*integer"),
        ([True, False], TypeError, "clients must be .*integer"),
        ([[0, 1]], TypeError, "clients must be .*integer"),
        ([2**31], ValueError, "clients must be ids"),
    ],
)
def test_hostile_ids_are_different_clients(clients, error, match):
    with pytest.raises(error, match=match):
        fl.byzantine(ipm(), clients=clients)


def test_traced_hostile_ids_pass():
    """A sweep over who is hostile: -1 is padding."""
    stack = jnp.array([[1.0], [1.0], [1.0], [1.0]])

    def aggregate(ids):
        return agg.aggregate_stack(fl.byzantine(fl.sign_flip(), clients=ids), stack)

    got = jax.vmap(aggregate)(jnp.array([[0, -1], [0, 1], [-1, -1]]))
    np.testing.assert_allclose(got[:, 0], [0.5, 0.0, 1.0])


# -- explicit cohorts -------------------------------------------------------------------------


def cohort(ids, mask=None):
    ids = jnp.asarray(ids)
    return fl.Cohort(ids, jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (cohort([0, 2, 0]), ValueError, "got id 0 in 2 slots"),
        (cohort([0, 2], [1, 2]), TypeError, "cohort.mask must be bool .* got int32; mask > 0"),
        (cohort([0, 2], [1.0, 0.0]), TypeError, "cohort.mask must be bool .* got float32"),
        (cohort([0.0, 2.0]), TypeError, "cohort.ids must be integers .* got float32"),
        (cohort([True, False]), TypeError, "cohort.ids must be integers .* got bool"),
        (cohort([0, 2], [True]), ValueError, r"got \[2\] and \[1\]"),
        (cohort([[0, 2]]), ValueError, r"got \[1, 2\] and \[1, 2\]"),
        (fl.Cohort(jnp.zeros(0, int), jnp.zeros(0, bool)), ValueError, "one slot at least"),
        (fl.Cohort([0, 1], [True, True]), TypeError, "cohort.ids must be an array"),
        (([0, 1], [True, True]), TypeError, "cohort must be a Cohort"),
    ],
)
def test_cohorts_are_checked_before_the_round(given, error, match):
    algo = fl.scaffold(loss, 0.1, plan=fl.Plan(batch_size=2, epochs=1), sampler=fl.uniform(3))
    with pytest.raises(error, match=match):
        algo.round(KEY, start(algo), DATA, given)


def test_rows_of_the_uplink_have_one_writer_too():
    feedback = algorithm(uplink=fl.error_feedback(fl.scaled_sign()))
    with pytest.raises(ValueError, match="got id 4 in 3 slots: its row would be written twice"):
        feedback.round(KEY, start(feedback), DATA, cohort([4, 4, 4, 1]))


def test_empty_slots_may_repeat():
    """Outside the population and masked ids are nobody: the round is that of client 1 alone."""
    algo = algorithm()
    state = start(algo)
    one, _ = algo.round(KEY, state, DATA, cohort([1]))
    same, metrics = algo.round(
        KEY, state, DATA, cohort([1, 99, 99, -5, 2, 2], [True] * 4 + [False] * 2)
    )
    assert int(metrics["num_clients"]) == 1
    assert float(one.server.params) == float(same.server.params)


def test_cohorts_that_nobody_can_read_pass():
    """Traced ones have no values, and without rows nobody writes twice."""
    twice, rows = cohort([1, 1]), np.zeros(N)
    jax.jit(lambda c: check_cohort(c, DATA, rows) or c.ids)(twice)
    check_cohort(twice, DATA)
    with pytest.raises(ValueError, match="id 1 in 2 slots: its row"):
        check_cohort(fl.Cohort(np.array([1, 1]), np.ones(2, bool)), DATA, rows)


def test_conditions_end_with_their_block():
    with pytest.raises(ValueError, match="edges"), in_population(3):
        need_one_a_client(2, "edges")
    assert known_population() is None
    with in_population(3), in_population(None):
        need_one_a_client(2, "edges")


# -- the two bounds of min_sum ------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "choose"), [("max", np.max), ("min", np.min)])
def test_min_sum_goes_as_far_as_one_honest_client(bound, choose):
    """sum_j |u_i - u_j|^2 = n |u_i - mu|^2 + const: along a unit vector gamma is |u_i - mu|."""
    honest = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    stack = jnp.asarray(np.concatenate([honest, np.zeros((2, 3), np.float32)]))
    rule = fl.byzantine(min_sum(bound=bound), clients=[5, 6])
    mean = honest.mean(0)
    gamma = choose(np.linalg.norm(honest - mean, axis=1))
    sent = mean - gamma * mean / np.linalg.norm(mean)
    expected = (5 * mean + 2 * sent) / 7
    np.testing.assert_allclose(agg.aggregate_stack(rule, stack), expected, rtol=2e-4, atol=1e-5)
    with pytest.raises(ValueError, match="bound must be 'max' or 'min', got 'mean'"):
        min_sum(bound="mean")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: agg.geometric_median(weighted="no"), "weighted .* got 'no'"),
        (lambda: agg.inverse_variance([1.0], floor=0.1, per_example="yes"), "per_example .* 'yes'"),
        (lambda: fl.secure_mean(max_abs=1.0, exact_zero="no"), "exact_zero .* got 'no'"),
        (
            lambda: fl.crypto.encode(np.zeros(2), max_abs=1.0, bits=8, exact_zero=1),
            "exact_zero .* 1",
        ),
        (lambda: fl.alie("1.0"), "z must be a number"),
        (lambda: fl.byzantine(ipm(), fraction=0.1, seed="a"), "seed must be an int"),
    ],
)
def test_switches_and_numbers_are_not_strings(call, match):
    with pytest.raises(TypeError, match=match):
        call()
