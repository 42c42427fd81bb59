"""What a client may return: weights, metrics, and what a prologue's aggregate looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.aggregation import stacked
from fedjax_lite.engine.prologue import Prologue
from fedjax_lite.types import Cohort, Mean, Message

KEY = jax.random.key(0)
DATA = fl.data.from_arrays({"b": np.array([1, 2, 4, 8], np.float32)}, [0, 1, 1, 2])


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def algorithm(weight=1.0, metrics=None, **slots):
    client = fl.local_sgd(loss, optax.sgd(1.0))

    def finish(broadcast, carry):
        found = {} if metrics is None else metrics(carry.info)
        return (), Message(broadcast - carry.params, weight), found

    return fl.federated_algorithm(
        client._replace(finish=finish),
        **{
            "plan": fl.Plan(batch_size=None),
            "sampler": fl.everyone(),
            "server": fl.optimizer_server(optax.sgd(1.0)),
            **slots,
        },
    )


def one_round(algo, cohort=None):
    state = algo.init(KEY, jnp.zeros(()), DATA)
    state, metrics = algo.round(KEY, state, DATA, cohort)
    return float(state.server.params), metrics


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "weight",
    [1.0, 1, True, np.float32(2), np.int64(3), np.bool_(True), np.array(2), jnp.int32(1),
     jnp.array(True), jnp.float16(1)],
    ids=repr,
)  # fmt: skip
def test_any_number_is_a_weight(weight):
    means = [1.0, 3.0, 8.0]
    assert one_round(algorithm(weight))[0] == pytest.approx(np.mean(means))


def test_a_number_is_a_weight_under_every_rule():
    assert one_round(algorithm(1, aggregator=fl.median()))[0] == pytest.approx(3.0)


@pytest.mark.parametrize("weight", [-1.0, np.array(-2), jnp.float32(-0.5)])
def test_negative_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weight of a message must not be negative, got -"):
        algorithm(weight).init(KEY, jnp.zeros(()), DATA)
    with pytest.raises(ValueError, match="weighting must not give a negative weight, got -1"):
        fl.aggregation.weight_by(lambda info: -1.0)(None)


def test_a_traced_negative_weight_counts_for_nothing():
    client = fl.local_sgd(loss, optax.sgd(1.0), weighting=lambda info: 1.0 - info.id)
    algo = fl.federated_algorithm(
        client, plan=fl.Plan(batch_size=None), sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )  # fmt: skip
    model, metrics = one_round(algo)  # weights 1, 0, -1
    assert (model, int(metrics["num_clients"])) == (1.0, 1)


def test_plain_numbers_are_metrics():
    given = {"a": 1, "b": 2.5, "c": True, "d": np.float64(3), "e": Mean(1, 4)}
    _, metrics = one_round(algorithm(metrics=lambda info: given))
    assert [float(metrics[name]) for name in "abcde"] == [1, 2.5, 1, 3, 0.25]


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (lambda i: jax.nn.one_hot(i.id, 3), ValueError, r"'m' .* got shape \[3\]"),
        (lambda i: jnp.ones((1,)), ValueError, r"got shape \[1\]; give every entry"),
        (lambda i: Mean(jnp.ones(2), jnp.ones(2)), ValueError, r"got shape \[2\]"),
        (lambda i: {"inner": 1.0}, TypeError, "got dict"),
        (lambda i: "text", TypeError, "got str"),
        (lambda i: None, TypeError, "got NoneType"),
        (lambda i: (1.0, 2.0), TypeError, "got tuple"),
    ],
)
def test_other_metrics_are_refused_before_the_first_round(metric, error, words):
    with pytest.raises(error, match=words):
        algorithm(metrics=lambda info: {"m": metric(info)}).init(KEY, jnp.zeros(()), DATA)


@pytest.mark.parametrize("name", ["num_clients", "uplink_bits", "num_steps"])
def test_names_of_the_round_are_refused(name):
    with pytest.raises(ValueError, match="name that belongs to the round"):
        algorithm(metrics=lambda info: {name: 1.0}).init(KEY, jnp.zeros(()), DATA)


@pytest.mark.sample(2)
@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.chunked(2), fl.engine.differentiable()])
def test_bits_are_summed_and_means_are_ratios_of_sums(strategy):
    algo = algorithm(
        metrics=lambda i: {"activation_bits": 8.0 * i.size, "share": Mean(1.0 * i.id, i.size)},
        strategy=strategy,
    )
    _, metrics = one_round(algo)
    assert float(metrics["activation_bits"]) == 8 * 4
    assert float(metrics["share"]) == (0 + 1 + 2) / (1 + 2 + 1)
    drawn = Cohort(jnp.arange(3, dtype=jnp.int32), jnp.array([False, True, True]))
    _, metrics = one_round(algo, drawn)
    assert float(metrics["activation_bits"]) == 8 * 3
    assert float(metrics["share"]) == (1 + 2) / (2 + 1)
    state = algo.init(KEY, jnp.zeros(()), DATA)
    _, history = fl.run(algo, KEY, state, DATA, num_rounds=2, progress=False)
    assert history[-1]["activation_bits_total"] == 2 * 8 * 4


def test_a_mean_of_bits_is_refused():
    with pytest.raises(ValueError, match="bits are summed"):
        algorithm(metrics=lambda i: {"my_bits": Mean(8.0, 1.0)}).init(KEY, jnp.zeros(()), DATA)


def test_means_add_as_sums_do():
    first, second = Mean(jnp.ones(3), jnp.full(3, 2.0)), Mean(jnp.arange(3.0), jnp.ones(3))
    both = sum([first, second])
    assert isinstance(both, Mean)
    np.testing.assert_array_equal(both.total, [1, 2, 3])
    np.testing.assert_array_equal(both.count, [3, 3, 3])
    for wrong in (
        lambda: 2 * first, lambda: first * 2, lambda: first + (1.0, 2.0),
        lambda: (1.0, 2.0) + first, lambda: first - second,
        lambda: first / 2, lambda: first + 1.0, lambda: jnp.ones(3) * first,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()


# -- prologue ---------------------------------------------------------------------------------


def with_prologue(aggregator):
    """Clients start from the broadcast plus all of what the first pass gave."""
    first = fl.ClientUpdate(
        lambda params: (),
        lambda key, row, x, info: info.size * 1.0,
        lambda x, carry, batch: carry,
        lambda x, carry: ((), Message(carry, 1.0), {}),
    )
    client = fl.ClientUpdate(
        lambda params: (),
        lambda key, row, down, info: (),
        lambda down, carry, batch: carry,
        lambda down, carry: ((), Message(-jax.tree.leaves(down.preface)[0].sum(), 1.0), {}),
    )
    server = fl.optimizer_server(optax.sgd(1.0))
    return fl.federated_algorithm(
        client, plan=fl.Plan(batch_size=None), sampler=fl.everyone(),
        prologue=Prologue(first, fl.Plan(batch_size=None), aggregator),
        server=server._replace(update=lambda k, s, v, c, m: server.update(k, s, v.value, c, m)),
    )  # fmt: skip


def test_a_preface_of_another_shape_than_the_messages():
    table = stacked(lambda key, s, stack, cohort: (s, {"all": stack.values}), like_message=False)
    assert one_round(with_prologue(table))[0] == 1 + 2 + 1
    assert one_round(with_prologue(fl.aggregation.mean()))[0] == pytest.approx(4 / 3)


def test_a_prologue_keeps_nothing():
    rule = stacked(
        lambda key, s, stack, cohort: (s, stack.values.sum(0)), init_state=lambda p: jnp.int32(0)
    )
    with pytest.raises(ValueError, match="keep nothing between rounds"):
        with_prologue(rule).init(KEY, jnp.zeros(()), DATA)


def test_the_two_sums_of_the_guide_are_q_fedavg():
    """Against the paper's rule in numpy: x - sum F^q dw / sum (q F^(q-1) |dw|^2 + F^q / eta)."""
    eta, q, steps = 0.05, 2.0, 3
    client = fl.local_sgd(loss, optax.sgd(eta))

    def start(key, row, x, info):
        return client.start(key, row, x, info), jnp.zeros(())

    def step(x, carry, batch):
        return client.step(x, carry[0], batch), fl.mean_loss(loss, x, batch)

    def finish(x, carry):
        update, at_x = x - carry[0].params, carry[1]
        sums = {
            "update": at_x**q * update / eta,
            "length": q * at_x ** (q - 1) * update**2 / eta**2 + at_x**q / eta,
        }
        return (), Message(sums, 1.0), {}

    server = fl.optimizer_server(optax.sgd(1.0))

    def update(key, state, value, cohort, metrics):
        return server.update(key, state, value["update"] / value["length"], cohort, metrics)

    algo = fl.federated_algorithm(
        client._replace(start=start, step=step, finish=finish), sampler=fl.everyone(),
        plan=fl.Plan(batch_size=None, steps=steps), server=server._replace(update=update),
    )  # fmt: skip
    top = bottom = 0.0
    for b in ([1.0], [2.0, 4.0], [8.0]):
        y, at_x = 0.0, np.mean(np.square(b)) / 2
        for _ in range(steps):
            y -= eta * (y - np.mean(b))
        dw = (0.0 - y) / eta
        top, bottom = top + at_x**q * dw, bottom + q * at_x ** (q - 1) * dw**2 + at_x**q / eta
    assert one_round(algo)[0] == pytest.approx(-top / bottom, rel=1e-5)


def test_sums_of_integers_do_not_wrap_around():
    """Three clients of a billion each: 3e9 is beyond int32."""
    data = fl.data.from_arrays({"b": np.zeros(3, np.float32)}, np.arange(3))
    inner = fl.local_sgd(lambda w, e, key: (w - e["b"]) ** 2, optax.sgd(0.1))

    def finish(broadcast, carry):
        row, message, _ = inner.finish(broadcast, carry)
        billion = jnp.int32(10**9)
        return row, message, {"own_bits": billion, "each": billion, "ratio": fl.Mean(billion, 1)}

    algo = fl.federated_algorithm(
        inner._replace(finish=finish),
        plan=fl.Plan(batch_size=1),
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        strategy=fl.vmapped(),
    )
    key = jax.random.key(0)
    metrics = algo.round(key, algo.init(key, jnp.float32(0), data), data)[1]
    assert float(metrics["own_bits"]) == pytest.approx(3e9)
    assert float(metrics["each"]) == float(metrics["ratio"]) == pytest.approx(1e9)
