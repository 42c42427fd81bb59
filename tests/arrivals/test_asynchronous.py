"""Asynchronous training: an independent event loop, hand numbers, FedAvg where nothing waits."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import arrivals, testing
from fedjax_lite.arrivals.versions import Broadcast, discounted
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
RATE, STEPS = 0.25, 2
SLOPES = np.array([1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 0.7])
OPTIMA = np.array([-1.0, 2.0, 0.5, 4.0, -3.0, 1.0, 2.5])


def by_id(seconds):
    return lambda key, info, traffic: jnp.asarray(seconds, float)[info.id]


def quadratic(x, example, key):
    return 0.5 * example["a"] * (x - example["b"]) ** 2


def trained(client, x):
    for _ in range(STEPS):
        x = x - RATE * SLOPES[client] * (x - OPTIMA[client])
    return x


@jax.jit
def drawn_in(r):
    places = jnp.arange(len(SLOPES), dtype=jnp.int32)
    return fl.shuffle_index(round_keys(KEY, r).sample, places, len(SLOPES))


def by_heap(seconds, concurrency, buffer, num_rounds, *, weigh, anchored, rate):
    """An event loop in plain Python: a heap, absolute times, models carried by those who train."""
    x, now, version, turn = 0.0, 0.0, 0, 0
    heap, idle, busy, log = [], concurrency, set(), []
    for r in range(num_rounds):
        drawn = iter(drawn_in(r).tolist())
        total, came, stale = 0.0, [], []
        while len(came) < buffer:
            if not heap or heap[0][0] > now:
                while (
                    idle
                    and (client := next((int(i) for i in drawn if int(i) not in busy), None))
                    is not None
                ):
                    heapq.heappush(heap, (now + seconds[client], turn, client, version, x))
                    idle, turn, busy = idle - 1, turn + 1, busy | {client}
            now, _, client, downloaded, model = heapq.heappop(heap)
            idle += 1
            came.append(client)
            stale.append(version - downloaded)
            change = (x if anchored else model) - trained(client, model)
            total += weigh(version - downloaded) * change
        x, version = x - rate * total / buffer, version + 1
        busy = {event[2] for event in heap}
        log.append((now, came, stale, x))
    return log


WHOLE = [0, 1, 2, 1, 3, 1, 2]
UNEVEN = [0.3, 1.7, 2.9, 0.11, 5.3, 0.77, 9.1]


BUFFERED = pytest.mark.sample(2, of="FedBuff by an event loop")
AT_ONCE = pytest.mark.sample(1, of="FedAsync by an event loop")


@pytest.mark.parametrize(
    ("seconds", "concurrency", "buffer", "anchored"),
    [
        pytest.param(WHOLE, 4, 3, False, marks=BUFFERED),
        pytest.param(WHOLE, 3, 1, True, marks=AT_ONCE),
        pytest.param(WHOLE, 7, 3, False, marks=BUFFERED),
        pytest.param(UNEVEN, 4, 3, False, marks=BUFFERED),
        pytest.param(UNEVEN, 5, 1, True, marks=AT_ONCE),
        pytest.param([1.0] * 7, 3, 2, False, marks=BUFFERED),
    ],
)
def test_an_independent_event_loop(seconds, concurrency, buffer, anchored):
    """Times, order, staleness and models, ties and instant arrivals among them."""
    with jax.enable_x64(True):
        data = fl.data.from_arrays({"a": SLOPES, "b": OPTIMA}, np.arange(7))
        options = {
            "plan": fl.Plan(batch_size=1, steps=STEPS),
            "concurrency": concurrency,
            "latency": by_id(seconds),
        }
        if anchored:
            algo = fl.fedasync(quadratic, optax.sgd(RATE), mixing=0.5, **options)
        else:
            server = optax.sgd(0.5)
            options |= {"buffer": buffer, "server_optimizer": server}
            algo = fl.fedbuff(quadratic, optax.sgd(RATE), **options)
        state = algo.init(KEY, jnp.array(0.0), data)
        expected = by_heap(
            seconds, concurrency, buffer, 12, weigh=lambda t: (1 + t) ** -0.5, anchored=anchored,
            rate=0.5,
        )  # fmt: skip
        for now, came, stale, x in expected:
            state, metrics = algo.round(KEY, state, data)
            arrived = state.sampler.arrived
            assert arrived.ids.tolist() == came
            assert arrived.staleness.tolist() == stale
            assert abs(float(metrics["simulated_seconds"]) - now) < 1e-9
            assert abs(float(state.server.params) - x) < 1e-9
        assert max(max(stale) for _, _, stale, _ in expected) >= (seconds[0] != seconds[1])


def step(x, messages, *, rate=1.0, anchored=False, held=7.0):
    """One flush of (value, staleness), by the weights, the mean and a step of the server."""
    values, stale = np.array(messages, float).T
    where = Broadcast(jnp.float32(x), [jnp.full(1, held)])
    count = len(values)
    sent = fl.Message(
        jnp.asarray(held - values if anchored else -values, jnp.float32), jnp.ones(count)
    )
    weights = arrivals.polynomial(0.5)(jnp.asarray(stale))
    rule = discounted(fl.mean(), weights, where, jnp.zeros(count, int), anchored=anchored)
    one = jax.tree.map(lambda leaf: leaf[0], sent)
    acc = rule.add(rule.init(one, count), sent, jnp.arange(count), jnp.ones(count, bool))
    return x - rate * float(rule.finish(KEY, (), acc, None)[1])


def test_fedbuff_by_hand():
    """K = 2, (change, staleness) = (1, 0), (-.5, 1), then (2, 3), (.25, 0)."""
    first = step(0.0, [(1, 0), (-0.5, 1)])
    second = step(first, [(2, 3), (0.25, 0)])
    assert abs(first - (1 - 0.5 / np.sqrt(2)) / 2) < 1e-6
    np.testing.assert_allclose((first, second), (0.3232233047, 0.9482233047), atol=1e-6)


def test_fedasync_by_hand():
    """alpha = .5, arrivals (model, staleness) = (1, 0), (3, 1), (-1, 3)."""
    x, found = 0.0, []
    for arrival in ((1, 0), (3, 1), (-1, 3)):
        x = step(x, [arrival], rate=0.5, anchored=True)
        found.append(x)
    np.testing.assert_allclose(found, (0.5, 1.3838834765, 0.7879126074), atol=1e-6)


def test_hinge_by_hand():
    found = arrivals.hinge(10.0, 4.0)(jnp.array([0, 4, 5, 6, 10]))
    np.testing.assert_allclose(found, [1, 1, 1 / 11, 1 / 21, 1 / 61], rtol=1e-6)
    assert arrivals.undiscounted()(jnp.arange(3)).tolist() == [1, 1, 1]


PLAN = fl.Plan(batch_size=2, epochs=2)
THIN = fl.chain(fl.clip(0.5), fl.error_feedback(fl.top_k(2)))


def test_without_delays_it_is_fedavg():
    """Bit for bit, with all that clients keep, and with what is sent."""
    shared = {"plan": PLAN, "uplink": THIN, "server_optimizer": optax.sgd(0.7, momentum=0.9)}
    local = testing.loss, optax.sgd(0.05)
    params = testing.init_params(jax.random.key(7))

    @jax.jit
    def run(data, seconds):
        if seconds is None:
            algo = fl.fedavg(*local, sampler=fl.uniform(4), weighting="uniform", **shared)
        else:
            latency = lambda key, info, traffic: jnp.full(info.id.shape, seconds)  # noqa: E731
            algo = fl.fedbuff(*local, concurrency=4, buffer=4, latency=latency, **shared)
        return fl.unroll(algo, KEY, algo.init(KEY, params, data), data, num_rounds=4)

    data = testing.population()
    state, expected = run(data, None)
    for seconds in (0.0, 3.0):
        other, metrics = run(data, seconds)
        same(other.server.inner, state.server, exact=True)
        same(other.uplink, state.uplink, exact=True)
        same({name: metrics[name] for name in expected}, expected, exact=True)
        assert metrics["simulated_seconds"].tolist() == [(r + 1) * seconds for r in range(4)]


def test_stateful_clients_keep_their_rows():
    plain = fl.scaffold(testing.loss, 0.05, plan=PLAN, sampler=fl.uniform(4))
    algo = fl.asynchronous(plain, concurrency=4, buffer=4, latency=by_id([1.0] * 7))
    data, params = testing.population(), testing.init_params(jax.random.key(7))
    run = jax.jit(
        lambda data, algo: fl.unroll(algo, KEY, algo.init(KEY, params, data), data, num_rounds=3)[
            0
        ],
        static_argnums=1,
    )
    state, other = (run(data, one) for one in (plain, algo))
    same((other.server.inner, other.clients), (state.server, state.clients), exact=True)


def uneven(**options):
    given = {"concurrency": 4, "buffer": 2, "latency": by_id(UNEVEN), **options}
    return fl.fedbuff(testing.loss, optax.sgd(0.05), plan=PLAN, **given)


@pytest.fixture(scope="module")
def world():
    return testing.population(), testing.init_params(jax.random.key(7))


RUN = {"progress": False, "every": 2}


@pytest.fixture(scope="module")
def run(world):
    data, params = world
    algo = uneven()
    return algo, *fl.run(algo, KEY, algo.init(KEY, params, data), data, num_rounds=6, **RUN)


def test_runs_go_on_where_they_were_stopped(world, run, tmp_path):
    data, params = world
    (algo, whole, history), options = run, RUN
    folder = {"output_dir": str(tmp_path / "run"), **options}
    state = algo.init(KEY, params, data)
    fl.run(algo, KEY, state, data, num_rounds=2, **folder)
    state = algo.init(KEY, params, data)
    resumed, _ = fl.run(algo, KEY, state, data, num_rounds=6, resume=True, **folder)
    same(resumed, whole, exact=True)
    again, other = fl.run(
        algo, KEY, algo.init(KEY, params, data), data, num_rounds=6, **options
    )  # the same log of events, and all that came of it, bit for bit
    same(again, whole, exact=True)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert drop(other) == drop(history)


def test_traffic_is_that_of_downloads_and_messages(run):
    bits = 32 * 4
    for r, metrics in enumerate(run[2][:3]):
        assert int(metrics["num_sent"]) == (5 if r == 0 else 2)  # refilled once before the flush
        assert float(metrics["downlink_bits"]) == bits * int(metrics["num_sent"])
        assert float(metrics["uplink_bits"]) == bits * int(metrics["num_clients"])


def test_nobody_comes(world):
    """Everybody sleeps, or is lost on the way."""
    data, params = world

    @jax.jit
    def one_round(data, awake, lost):
        latency = arrivals.failing(arrivals.latency(overhead=arrivals.constant(1.0)), lost)
        available = arrivals.day_and_night(awake=awake)
        algo = uneven(idle=5.0, available=available, latency=latency)
        state = algo.init(KEY, params, data)
        return state, *algo.round(KEY, state, data)

    for awake, lost in ((0.0, 0.0), (1.0, 1.0)):
        state, after, metrics = one_round(data, awake, lost)
        same(after.server, state.server, exact=True)
        assert float(metrics["simulated_seconds"]) == 5
        assert int(metrics["num_clients"]) == 0
        assert all(np.isfinite(metrics[name]) for name in ("staleness", "round_seconds"))


def test_the_lost_make_room_when_they_are_given_up(world):
    """Clients 4 and 6 would take 5.3 and 9.1 seconds: nobody waits longer than two."""
    data, params = world
    algo = uneven(timeout=2.0)
    state, lost, met = algo.init(KEY, params, data), 0, set()
    for _ in range(8):
        state, metrics = algo.round(KEY, state, data)
        lost += int(metrics["num_lost"])
        met |= set(state.sampler.arrived.ids.tolist())
        assert state.sampler.slots.left.max() <= 2
    assert lost > 0
    assert met == {0, 1, 3, 5}


def test_settings_are_swept(world):
    data, params = world

    def final(mixing):
        algo = fl.fedasync(
            testing.loss, optax.sgd(0.05), plan=PLAN, concurrency=3, latency=by_id(UNEVEN),
            mixing=mixing, staleness=arrivals.hinge(),
        )  # fmt: skip
        state = algo.init(KEY, params, data)
        return algo.round(KEY, state, data)[0].server.params

    many = jax.jit(jax.vmap(final))(jnp.array([0.0, 0.5]))
    same(jax.tree.map(lambda leaf: leaf[0], many), params)
    same(jax.tree.map(lambda leaf: leaf[1], many), jax.jit(final)(0.5))


def test_in_words():
    algo = uneven(latency=arrivals.latency(compute=arrivals.exponential(0.1)))
    words = fl.describe(algo)
    assert words.startswith("FedBuff (Nguyen et al., 2022)")
    assert "the next 2 to arrive of 4 clients in flight" in words
    assert "nguyen2022federated" in fl.citation(algo)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: uneven(concurrency=8), ValueError, "concurrency must be at most the population"),
        (lambda: uneven(buffer=8), ValueError, "buffer must be at most the population"),
        (lambda: uneven(buffer=0), ValueError, "buffer must be at least 1"),
        (lambda: uneven(timeout=0.0), ValueError, "timeout must be positive"),
        (lambda: uneven(staleness=0.5), TypeError, "staleness"),
        (lambda: wrapped(downlink=fl.drive()), ValueError, "must have no downlink"),
        (lambda: wrapped(privacy=private()), ValueError, "must have no privacy"),
        (
            lambda: wrapped(plan=fl.Plan(2, steps=lambda key, client: 1)),
            ValueError,
            "plan must fix each client's work",
        ),
        (lambda: in_flight(fl.fedma), ValueError, r"matching\(.*whole networks, which staleness"),
        (
            lambda: in_flight(fl.fedrep, head_data="held out"),
            ValueError,
            r"no phase that reads a split .* got the splits \['held out'\]",
        ),
    ],
)
def test_mistakes(world, make, error, said):
    with pytest.raises(error, match=said):
        make().init(KEY, world[1], world[0])


def private():
    return fl.privacy.central_gaussian(
        clip=1.0, noise_multiplier=1.0, num_clients=7, sampling_rate=0.5, delta=1e-5
    )


def wrapped(**options):
    sampler = None if "privacy" in options else fl.uniform(3)
    given = {"plan": PLAN, "sampler": sampler, **options}
    return in_flight(fl.fedavg, **given)


def in_flight(method, **options):
    given = {"plan": PLAN, "sampler": fl.uniform(3), **options}
    algo = method(testing.loss, optax.sgd(0.05), **given)
    return fl.asynchronous(algo, concurrency=3, buffer=2, latency=by_id(UNEVEN))
