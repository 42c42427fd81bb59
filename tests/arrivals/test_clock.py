"""The simulated clock: hand numbers, order statistics, deadlines, empty rounds, bits sent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import arrivals, testing
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
EXPONENTIAL = arrivals.latency(overhead=arrivals.exponential(1.0))


def by_id(*seconds):
    return lambda key, info, traffic: jnp.array(seconds)[info.id]


def one_round(sampler, num_clients=3, key=KEY):
    return sampler.sample(key, sampler.init(num_clients), jnp.full(num_clients, 5))


@pytest.mark.parametrize(
    ("options", "lasted", "kept"),
    [
        ({}, 7.0, [1, 1, 1]),
        ({"keep": 2}, 6.0, [1, 0, 1]),
        ({"keep": 2, "deadline": 5.5}, 5.5, [1, 0, 0]),
        ({"deadline": 5.5}, 5.5, [1, 0, 0]),
        ({"deadline": 6.0}, 6.0, [1, 0, 1]),
        ({"deadline": 4.0}, 4.0, [0, 0, 0]),
        ({"deadline": 9.0}, 7.0, [1, 1, 1]),
        ({"keep": 1, "deadline": 9.0}, 5.0, [1, 0, 0]),
    ],
)
def test_rounds_by_hand(options, lasted, kept):
    sampler = arrivals.clocked(fl.everyone(), by_id(5.0, 7.0, 6.0), **options)
    state, cohort = one_round(sampler)
    assert cohort.mask.tolist() == [bool(k) for k in kept]
    assert cohort.late.tolist() == [not k for k in kept]
    assert float(state.metrics["round_seconds"]) == lasted
    assert int(state.metrics["num_late"]) == 3 - sum(kept)
    again, _ = sampler.sample(KEY, state, jnp.full(3, 5))
    assert float(again.metrics["simulated_seconds"]) == 2 * lasted


def test_equal_times_go_by_their_slots():
    sampler = arrivals.clocked(fl.everyone(), by_id(5.0, 1.0, 5.0, 5.0), keep=3)
    _, cohort = jax.jit(lambda: one_round(sampler, 4))()
    assert cohort.mask.tolist() == [True, True, True, False]


def mean_of(asked, keep, deadline=jnp.inf, draws=2000):
    """Mean length of a round, and share of the cohort that is kept, with their standard errors."""
    sampler = arrivals.clocked(fl.uniform(asked), EXPONENTIAL, keep=keep, deadline=deadline)
    sizes, state = jnp.full(200, 10), sampler.init(200)

    @jax.jit
    @jax.vmap
    def draw(key):
        new, cohort = sampler.sample(key, state, sizes)
        return new.metrics["round_seconds"], cohort.mask.mean()

    values = np.asarray(draw(jax.random.split(KEY, draws)))
    return values.mean(1), values.std(1) / np.sqrt(draws)


def harmonic(n):
    return sum(1 / k for k in range(1, n + 1))


@pytest.mark.parametrize(("asked", "keep"), [(10, 10), (13, 10), (130, 100)])
def test_order_statistics(asked, keep):
    """The m-th of n exponential arrivals comes at H_n - H_(n-m): 2.9290, 1.3468, 1.4536."""
    (found, _), (error, _) = mean_of(asked, keep)
    expected = harmonic(asked) - harmonic(asked - keep)
    assert abs(found - expected) < 4 * error
    for wrong in (harmonic(asked) - harmonic(asked - keep + 1), expected * 1.1, expected / 1.1):
        assert abs(found - wrong) > 4 * error  # the test sees who waits for one less, or more


def test_a_deadline_keeps_whom_it_should():
    (_, share), (_, error) = mean_of(20, 20, 1.0)
    assert abs(share - (1 - np.exp(-1))) < 4 * error
    assert abs(share - (1 - np.exp(-1.1))) > 4 * error


def algorithm(sampler):
    return fl.scaffold(testing.loss, 0.05, plan=fl.Plan(batch_size=2, epochs=2), sampler=sampler)


def start(algo):
    data = testing.population()
    return algo.init(KEY, testing.init_params(jax.random.key(7)), data), data


def test_without_a_deadline_it_is_the_unclocked_run():
    plain, timed = (
        algorithm(sampler)
        for sampler in (fl.uniform(4), arrivals.clocked(fl.uniform(4), EXPONENTIAL))
    )
    state, data = start(plain)
    other, _ = start(timed)
    for _ in range(2):
        state, expected = plain.round(KEY, state, data)
        other, metrics = timed.round(KEY, other, data)
    for name in ("server", "clients"):
        same(getattr(other, name), getattr(state, name), exact=True)
    assert {name: metrics[name] for name in expected} == expected
    assert float(other.sampler.time.seconds) > 0


def test_late_clients_leave_no_trace_but_their_download():
    slow = by_id(1.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0)
    timed = algorithm(arrivals.clocked(fl.everyone(), slow, deadline=2.0))
    state, data = start(timed)
    after, metrics = timed.round(KEY, state, data)
    late = [1, 4]
    rows = [np.asarray(jax.tree.leaves(one.clients)[0]) for one in (state, after)]
    assert (rows[0][late] == rows[1][late]).all()
    survivors = fl.Cohort(jnp.arange(7), ~jnp.isin(jnp.arange(7), jnp.array(late)))
    expected, plain = algorithm(fl.everyone()).round(KEY, state, data, survivors)
    same(after.server, expected.server, exact=True)
    assert int(metrics["num_late"]) == 2
    assert metrics["downlink_bits"] == plain["downlink_bits"] * 7 / 5
    assert metrics["uplink_bits"] == plain["uplink_bits"]
    assert float(metrics["round_seconds"]) == 2


def test_bits_really_sent():
    """A compressed message takes its own time; the first model is sent whole, later ones not."""
    link = arrivals.latency(
        download=arrivals.constant(100.0),
        compute=arrivals.constant(0.5),
        upload=arrivals.constant(10.0),
    )
    sampler = arrivals.clocked(fl.everyone(), link, keep=6)
    algo = fl.fedavg(
        testing.loss,
        optax.sgd(0.05),
        plan=fl.Plan(batch_size=2, epochs=2),
        sampler=sampler,
        uplink=fl.top_k(2),
        downlink=fl.Downlink(fl.drive(), of="model"),
    )
    state, data = start(algo)
    steps = 2 * np.ceil(np.array([3, 5, 1, 0, 4, 7, 2]) / 2)
    for _ in range(2):
        state, metrics = algo.round(KEY, state, data)
        # Everybody, the late one too, was sent the model; client 3 is there at once, with nothing.
        down = float(metrics["downlink_bits"]) / 7
        up = float(metrics["uplink_bits"]) / 5
        seconds = np.sort(down / 100 + 0.5 * steps + up / 10)
        np.testing.assert_allclose(float(metrics["round_seconds"]), seconds[5], rtol=1e-5)
        late_since = seconds[5] - (seconds[6] - up / 10)
        wasted = up * np.clip(late_since / (up / 10), 0, 1)
        np.testing.assert_allclose(float(metrics["late_uplink_bits"]), wasted, rtol=1e-4)
    assert down < 128 < up + 128  # the second broadcast is smaller than four floats


def test_a_prologue_takes_its_time():
    """Mime's first pass is a step over all data, its gradient is sent, and the mean comes back."""
    link = arrivals.latency(download=arrivals.constant(1.0), compute=arrivals.constant(1000.0))
    algo = fl.mime(
        testing.loss,
        0.05,
        plan=fl.Plan(batch_size=None, steps=2),
        sampler=arrivals.clocked(fl.everyone(), link),
    )
    state, data = start(algo)
    _, metrics = algo.round(KEY, state, data)
    down = float(metrics["downlink_bits"]) / 7
    assert float(metrics["round_seconds"]) == 3 * 1000 + down


def nobody(**options):
    never = arrivals.day_and_night(awake=0.0)
    return arrivals.clocked(fl.uniform(4), EXPONENTIAL, available=never, **options)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("sampler", "seconds"),
    [
        (nobody(), 60.0),
        (nobody(idle=5.0, deadline=9.0), 5.0),
        (arrivals.clocked(fl.uniform(4), arrivals.failing(EXPONENTIAL, 1.0)), 60.0),
        (arrivals.clocked(fl.uniform(4), arrivals.failing(EXPONENTIAL, 1.0), deadline=9.0), 9.0),
        (arrivals.clocked(fl.uniform(4), EXPONENTIAL, deadline=1e-9), 1e-9),
        (arrivals.clocked(fl.dropout(fl.uniform(4), 1.0), EXPONENTIAL), 60.0),
    ],
)
def test_empty_rounds_move_the_clock(sampler, seconds):
    algo = fl.fedavg(
        testing.loss, optax.sgd(0.05, momentum=0.9), plan=fl.Plan(batch_size=2), sampler=sampler
    )
    state, data = start(algo)
    after, metrics = algo.round(KEY, state, data)
    same(after.server, state.server, exact=True)
    np.testing.assert_allclose(float(metrics["simulated_seconds"]), seconds, rtol=1e-6)
    assert np.isfinite(float(metrics["late_uplink_bits"]))
    assert int(metrics["num_clients"]) == 0


def test_the_lost_are_not_waited_for_for_ever():
    """Without a deadline a round ends with the last who does come."""
    lost = by_id(5.0, np.inf, 6.0)
    state, cohort = one_round(arrivals.clocked(fl.everyone(), lost))
    assert cohort.mask.tolist() == [True, False, True]
    assert float(state.metrics["round_seconds"]) == 6


def test_who_sleeps_is_not_late():
    zones = arrivals.day_and_night(awake=0.5, zones=2)
    sampler = arrivals.clocked(fl.everyone(), EXPONENTIAL, available=zones)
    _, cohort = jax.jit(lambda: one_round(sampler, 40))()
    there = zones.awake(jnp.arange(40), jnp.float32(0))
    assert (cohort.mask == there).all()
    assert 0 < int(there.sum()) < 40
    assert not cohort.late.any()


def test_the_inner_sampler_goes_on_learning():
    slow = by_id(1.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0)
    timed = arrivals.clocked(fl.selection.oort(4), slow, deadline=2.0)
    algo = fl.fedavg(testing.loss, optax.sgd(0.05), plan=fl.Plan(batch_size=2), sampler=timed)
    state, data = start(algo)
    after, _ = algo.round(KEY, state, data)
    drawn, cohort = jax.jit(timed.sample)(round_keys(KEY, 0).sample, state.sampler, data.sizes)
    learnt, unlearnt = (jax.tree.leaves(one.inner) for one in (after.sampler, drawn))
    assert cohort.late.any() or cohort.mask.any()
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(learnt, unlearnt))


def test_a_run_has_seconds_in_its_history():
    # Clients without data are never drawn.
    sampler = arrivals.clocked(fl.weighted(4), EXPONENTIAL, deadline=1.0)
    algo = fl.fedavg(testing.loss, optax.sgd(0.05), plan=fl.Plan(batch_size=2), sampler=sampler)
    state, data = start(algo)
    state, history = fl.run(algo, KEY, state, data, num_rounds=4, progress=False)
    total = np.cumsum([row["round_seconds"] for row in history])
    np.testing.assert_allclose([row["simulated_seconds"] for row in history], total, rtol=1e-6)
    assert sum(row["num_late"] + row["num_clients"] for row in history) == 16


def test_clocks_in_words():
    sampler = arrivals.clocked(
        fl.uniform(13), arrivals.latency(compute=arrivals.exponential(0.1)), keep=10, deadline=60.0
    )
    assert fl.describe(sampler) == (
        "13 clients, uniformly without replacement; the first 10 to arrive, those who are there "
        "after 60 seconds (simulated seconds; a local step takes exponential with mean 0.1)"
    )
    assert "inf" not in fl.describe(arrivals.clocked(fl.uniform(3), EXPONENTIAL))


def test_a_deadline_is_traced():
    @jax.jit
    def lasted(deadline):
        sampler = arrivals.clocked(fl.everyone(), by_id(5.0, 7.0, 6.0), deadline=deadline)
        return one_round(sampler)[0].metrics["round_seconds"]

    assert [float(lasted(d)) for d in (5.5, 8.0)] == [5.5, 7.0]
    assert lasted._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"keep": 5}, ValueError, "keep must be at most the cohort, got 5 of 3"),
        ({"keep": 0}, ValueError, "keep must be at least 1"),
        ({"deadline": 0.0}, ValueError, "deadline must be positive"),
        ({"idle": -1.0}, ValueError, "idle must be positive"),
        ({"available": 0.5}, TypeError, "available must be an Availability"),
        ({"latency": 1.0}, TypeError, "latency must be a Latency, or a function"),
        ({"sampler": 10}, TypeError, "sampler must be a Sampler"),
    ],
)
def test_mistakes(options, error, said):
    given = {"sampler": fl.uniform(3), "latency": EXPONENTIAL, **options}
    with pytest.raises(error, match=said):
        arrivals.clocked(given.pop("sampler"), given.pop("latency"), **given).init(7)
