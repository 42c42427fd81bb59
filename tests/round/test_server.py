"""Server optimizers against the tables of the papers, and rounds in which nobody counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.round import server

FEED = (1.0, -0.5, 0.25)
SOMEBODY = fl.Cohort(jnp.arange(1), jnp.ones(1, bool))
NOBODY = fl.Cohort(jnp.arange(3), jnp.zeros(3, bool))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def feed(optimizer, deltas=FEED, x=0.0):
    """Server models after each mean update `Delta` (client minus server), sent negated."""
    update = fl.optimizer_server(optimizer)
    state = update.init(jnp.array(x), None)
    models = []
    for delta in deltas:
        state = update.update(jax.random.key(0), state, jnp.array(-delta), SOMEBODY, {})
        models.append(float(state.params))
    return np.array(models)


def adaptive(second, deltas=FEED, *, eta=0.1, b1=0.9, tau=1e-3, v0=None):
    """The FedOpt paper's loop, as written there."""
    x, m, v = 0.0, 0.0, tau**2 if v0 is None else v0
    models = []
    for delta in deltas:
        m = b1 * m + (1 - b1) * delta
        v = second(v, delta**2)
        x += eta * m / (np.sqrt(v) + tau)
        models.append(x)
    return np.array(models)


RULES = {
    "adagrad": lambda v, s: v + s,
    "adam": lambda v, s: 0.99 * v + 0.01 * s,
    "yogi": lambda v, s: v - 0.01 * s * np.sign(v - s),
}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.sgd(1.0), (1, 0.5, 0.75)),
        (optax.sgd(1.0, momentum=0.9), (1, 1.4, 2.01)),
        (optax.sgd(1.0, momentum=0.9, nesterov=True), (1.9, 1.76, 2.559)),
        (server.adagrad(0.1), (0.0999000500, 0.0552186726, 0.0770214223)),
        (server.yogi(0.1), (0.0990049999, 0.1344635186, 0.1872459502)),
        (server.adam(0.1), (0.0990050489, 0.1346050054, 0.1878397397)),
        (server.adam(0.1, initial_accumulator=0.0), (0.0990099010, 0.1346112518, 0.1878479705)),
    ],
    ids=["sgd", "avgm", "nesterov", "adagrad", "yogi", "adam", "adam_v0=0"],
)
def test_table(optimizer, expected):
    np.testing.assert_allclose(feed(optimizer), expected, rtol=0, atol=6e-11)


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
@pytest.mark.parametrize("v0", [None, 0.0, 0.3])
def test_rules_over_a_long_random_feed(name, v0):
    deltas = np.random.default_rng(0).normal(size=40)
    tx = getattr(server, name)(0.07, b1=0.6, tau=0.02, initial_accumulator=v0)
    expected = adaptive(RULES[name], deltas, eta=0.07, b1=0.6, tau=0.02, v0=v0)
    np.testing.assert_allclose(feed(tx, deltas), expected, rtol=1e-11)


def test_neither_optax_rule_is_the_papers():
    paper = feed(server.adam(0.1, initial_accumulator=0.0))
    corrected = feed(optax.adam(0.1, 0.9, 0.99, eps=1e-3))
    np.testing.assert_allclose(corrected, (0.0999000999, 0.1265362995, 0.1606379919), atol=6e-11)
    assert (abs(paper - corrected) > 5e-4).all()
    off_by_one = (0.0735108701, 0.0961511985, 0.1268802535)
    assert (abs(paper - off_by_one) > 5e-3).all()
    assert abs(feed(server.yogi(0.1)) - feed(optax.yogi(0.1, 0.9, 0.99, eps=1e-3))).max() > 1e-4
    inside = feed(optax.adagrad(0.1, initial_accumulator_value=1e-6, eps=1e-3))
    assert abs(feed(server.adagrad(0.1)) - inside).max() > 1e-5


def test_fedyogi_while_v_is_small_is_fedadagrad():
    grad = feed(server.adagrad(0.1, b1=0.9, tau=1e-3, initial_accumulator=0.0))
    yogi = feed(server.yogi(0.01, b1=0.9, b2=0.99, tau=1e-4, initial_accumulator=0.0))
    np.testing.assert_allclose(grad, yogi, rtol=1e-12)
    np.testing.assert_allclose(yogi, (0.0099900100, 0.0135645216, 0.0188843946), atol=6e-11)


def test_yogi_sign_at_equality_leaves_v_alone():
    """sign(0) = 0: with v = Delta^2 exactly, v stays."""
    tx = server.yogi(0.1, initial_accumulator=1.0)
    _, state = tx.update(jnp.array(1.0), tx.init(jnp.array(0.0)))
    assert float(state.second_moment) == 1.0


def test_schedules_count_rounds():
    rates = jnp.array([0.1, 0.2, 0.05])
    got = feed(server.adam(lambda r: rates[r]))
    x, m, v = 0.0, 0.0, 1e-6
    for rate, delta, model in zip((0.1, 0.2, 0.05), FEED, got, strict=True):
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        x += rate * m / (np.sqrt(v) + 1e-3)
        assert abs(model - x) < 1e-12


# -- rounds in which nobody counts ----------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(1.0, momentum=0.9),
        server.adam(0.1),
        server.yogi(lambda r: 0.1 / (r + 1)),
        optax.adam(0.1),
        optax.adamw(0.1, weight_decay=0.1),
    ],
    ids=["avgm", "adam", "yogi", "optax_adam", "adamw"],
)
def test_empty_cohort_changes_nothing(optimizer):
    update = server.standing_still(fl.optimizer_server(optimizer))
    state = update.init({"w": jnp.array([1.0, 2.0])}, None)
    state = update.update(jax.random.key(0), state, {"w": jnp.ones(2)}, SOMEBODY, {})
    for value in (0.0, jnp.nan):
        same = update.update(jax.random.key(0), state, {"w": jnp.full(2, value)}, NOBODY, {})
        chex.assert_trees_all_equal(state, same)


def small_population():
    """Client 2 of three has no data."""
    return fl.data.from_arrays({"b": np.array([-1.0, 2.0, 2.0])}, [0, 1, 1], num_clients=3)


def pull(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("ids", "mask"), [([0, 1], [False, False]), ([2], [True]), ([2, 0], [True, False])]
)
def test_a_round_without_data_leaves_momentum_and_counters(ids, mask):
    algo = fl.fedavg(
        pull,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=2),
        sampler=fl.everyone(),
        server_optimizer=server.adam(lambda r: 0.1 / (1 + r)),
    )
    data = small_population()
    key = jax.random.key(0)
    state = algo.init(key, jnp.array(0.0), data)
    state, _ = algo.round(key, state, data)
    cohort = fl.Cohort(jnp.array(ids, jnp.int32), jnp.array(mask))
    new, metrics = algo.round(key, state, data, cohort)
    chex.assert_trees_all_equal(new.server, state.server)
    assert int(new.round) == int(state.round) + 1
    assert int(metrics["num_steps"]) == 0
    assert int(metrics["num_clients"]) == 0, "who has no data does not count"


# -- whole algorithms -----------------------------------------------------------------------

A, B, P = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([0.75, 0.25])


def mean_update(x):
    """The p-weighted mean of Delta_i on Q2 after K = 5 exact steps of rate 0.05."""
    return (P * (1 - (1 - 0.05 * A) ** 5) * (B - x)).sum()


def q2_rounds(factory, num_rounds=8, **options):
    owners = np.repeat([0, 1], [3, 1])
    data = fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)
    algo = factory(
        lambda w, e, key: 0.5 * e["a"] * (w - e["b"]) ** 2,
        optax.sgd(0.05),
        plan=fl.Plan(batch_size=None, steps=5),
        sampler=fl.everyone(),
        **options,
    )
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    models = []
    for _ in range(num_rounds):
        state, _ = algo.round(jax.random.key(0), state, data)
        models.append(float(state.server.params))
    return models


@pytest.mark.parametrize(
    ("factory", "rule", "b1"),
    [(fl.fedadagrad, "adagrad", 0.0), (fl.fedadam, "adam", 0.9), (fl.fedyogi, "yogi", 0.9)],
)
def test_adaptive_algorithms_against_hand_iterated_rounds(factory, rule, b1):
    got = q2_rounds(factory, server_learning_rate=0.03, tau=0.01)
    x, m, v = 0.0, 0.0, 1e-4
    for model in got:
        delta = mean_update(x)
        m, v = b1 * m + (1 - b1) * delta, RULES[rule](v, delta**2)
        x += 0.03 * m / (np.sqrt(v) + 0.01)
        assert abs(model - x) < 1e-11


@pytest.mark.parametrize("nesterov", [False, True])
def test_fedavgm_against_hand_iterated_rounds(nesterov):
    got = q2_rounds(fl.fedavgm, server_learning_rate=0.5, momentum=0.8, nesterov=nesterov)
    x, v = 0.0, 0.0
    for model in got:
        delta = mean_update(x)
        v = 0.8 * v - delta
        x -= 0.5 * (0.8 * v - delta if nesterov else v)
        assert abs(model - x) < 1e-12


def test_momentum_zero_and_rate_one_is_fedavg():
    plain = q2_rounds(fl.fedavg)
    assert plain == q2_rounds(fl.fedavg, server_optimizer=optax.sgd(1.0))
    assert plain == q2_rounds(fl.fedavgm, momentum=0.0, server_learning_rate=1.0)
    assert plain != q2_rounds(fl.fedavgm)


def test_low_precision_parameters_keep_their_dtype():
    update = fl.optimizer_server(server.adam(0.1))
    state = update.init({"w": jnp.ones(3, jnp.bfloat16)}, None)
    new = update.update(jax.random.key(0), state, {"w": jnp.ones(3, jnp.float32)}, SOMEBODY, {})
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)


def test_initial_state_does_not_alias_the_callers_parameters():
    params = jnp.array(0.0)
    algo = fl.fedavg(pull, optax.sgd(0.1), plan=fl.Plan(batch_size=1), sampler=fl.uniform(1))
    state = algo.init(jax.random.key(0), params, small_population())
    assert state.server.params.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


def test_a_server_is_told_of_all_clients():
    """Clients, their sizes without the examples that do not count, and an arity that is named."""
    told = []

    def init(params, population):
        told.append((population.num_clients, population.sizes.tolist()))
        return params

    def algorithm(init):
        return fl.federated_algorithm(
            fl.local_sgd(pull, optax.sgd(0.1))._replace(counts=lambda e: e["b"] != 5.0),
            plan=fl.Plan(batch_size=1),
            sampler=fl.uniform(1),
            server=fl.ServerUpdate(init, lambda x: x, lambda key, x, value, *_: x - value),
        )

    data = fl.data.from_arrays({"b": np.array([-1.0, 2.0, 5.0, 5.0])}, [0, 1, 1, 3], num_clients=4)
    algorithm(init).init(jax.random.key(0), jnp.array(0.0), data)
    assert told == [(4, [1, 1, 0, 0])]
    with pytest.raises(TypeError, match=r"server\.init must take \(params, population\)"):
        algorithm(lambda params: params).init(jax.random.key(0), jnp.array(0.0), data)


def test_what_clients_know_is_neither_billed_nor_compressed():
    """A constant of 1000 numbers beside a model of one: 32 bits a client, whatever the downlink."""
    base = jnp.arange(1000, dtype=jnp.float32)

    def algorithm(**slots):
        update = fl.ServerUpdate(
            lambda params, population: {"x": params, "base": base},
            lambda state: (state["x"], fl.Known(state["base"])),
            lambda key, state, value, *_: {**state, "x": state["x"] - value},
        )
        client = fl.local_sgd(pull, optax.sgd(0.5))

        def start(key, row, broadcast, info):
            model, known = broadcast
            return client.start(key, row, model, info), known.value.sum()

        def step(broadcast, carry, batch):
            return client.step(broadcast[0], carry[0], batch), carry[1]

        def finish(broadcast, carry):
            row, message, metrics = client.finish(broadcast[0], carry[0])
            return row, message, {**metrics, "base": carry[1]}

        return fl.federated_algorithm(
            fl.ClientUpdate(client.init, start, step, finish, client.counts),
            plan=fl.Plan(batch_size=1),
            sampler=fl.everyone(),
            server=update,
            **slots,
        )

    data, key = small_population(), jax.random.key(0)
    half = fl.Transform(lambda v: (), lambda k, s, v: (s, jax.tree.map(lambda x: x / 2, v)))
    for slots in ({}, {"downlink": fl.Downlink(half, of="model")}):
        algo = algorithm(**slots)
        state = algo.init(key, jnp.float32(1.0), data)
        state, metrics = algo.round(key, state, data)
        assert float(metrics["downlink_bits"]) == 3 * 32.0  # all three are asked
        state, metrics = algo.round(key, state, data)
        assert float(metrics["downlink_bits"]) == 3 * 32.0  # all three are asked
        assert float(metrics["base"]) == 999 * 500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: server.adam(-0.1), "learning_rate must not be negative, got -0.1"),
        (lambda: server.yogi(float("nan")), "learning_rate"),
        (lambda: server.adagrad(0.1, tau=0.0), "tau must be positive, got 0.0"),
        (lambda: server.adam(0.1, b1=-0.5), "b1 must"),
        (lambda: server.adam(0.1, b1=1.5), "b1 must"),
        (lambda: server.adam(0.1, b2=1.5), "b2 must"),
        (lambda: server.yogi(0.1, b2=-0.1), "b2 must"),
        (lambda: server.adam(0.1, initial_accumulator=-1.0), "initial_accumulator must"),
    ],
)
def test_bad_rates(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("optimizer", [0.1, optax.sgd, "adam", None])
def test_wrong_server_optimizer(optimizer):
    with pytest.raises(TypeError, match="server_optimizer must be an optax optimizer"):
        fl.optimizer_server(optimizer)
