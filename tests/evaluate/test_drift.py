"""Drift figures against closed forms, the aggregator that measures them, clients' losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.aggregation.diagnosed import FIGURES, Diagnosed, diagnosed
from fedjax_lite.aggregation.diagnosed import drift_figures as figures_of
from fedjax_lite.evaluate import drift
from fedjax_lite.types import Message

drift_figures = jax.jit(figures_of)
A, B, N, ETA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05
P = N / N.sum()


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2_data():
    owners = np.repeat([0, 1], N)
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def q2(aggregator=None, *, steps=5, client=None, **slots):
    client = fl.local_sgd(quadratic, optax.sgd(ETA), **slots) if client is None else client
    return fl.federated_algorithm(
        client,
        plan=fl.Plan(batch_size=None, steps=steps),
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        aggregator=aggregator,
    )


def one_round(algo, data=None, cohort=None):
    data = q2_data() if data is None else data
    state = algo.init(jax.random.key(0), jnp.array(0.0), data)
    return algo.round(jax.random.key(0), state, data, cohort)


def numpy_figures(updates, weights):
    """Client by client, as the definitions are written."""
    shares = weights / weights.sum()
    mean = sum(p * u for p, u in zip(shares, updates, strict=True))
    norm = np.linalg.norm
    cosines = [u @ mean / (norm(u) * norm(mean)) for u in updates]
    return {
        "drift_variance": sum(p * norm(u - mean) ** 2 for p, u in zip(shares, updates)),
        "drift_cosine_mean": sum(p * c for p, c in zip(shares, cosines)),
        "drift_cosine_min": min(cosines),
        "drift_diversity": sum(p**2 * norm(u) ** 2 for p, u in zip(shares, updates))
        / norm(mean) ** 2,
        "drift_norm_mean": sum(p * norm(u) for p, u in zip(shares, updates)),
        "drift_norm_max": max(norm(u) for u in updates),
        "drift_mean_norm": norm(mean),
    }


# -- figures --------------------------------------------------------------------------------


def test_two_orthogonal_updates():
    figures = drift_figures(np.array([[3.0, 0.0], [0.0, 4.0]]))
    # Cosines to (1.5, 2): 3/5 and 4/5.
    assert abs(figures["drift_cosine_min"] - 0.6) < 1e-12
    assert abs(figures["drift_cosine_mean"] - 0.7) < 1e-12
    assert abs(figures["drift_diversity"] - 1.0) < 1e-12
    assert float(figures["drift_norm_max"]) == 4.0
    assert float(figures["drift_mean_norm"]) == 2.5


@pytest.mark.sample(1)
@pytest.mark.parametrize("num_clients", [1, 3, 8])
def test_equal_clients_have_diversity_one_over_their_number(num_clients):
    figures = drift_figures({"w": np.tile([1.0, -2.0, 0.5], (num_clients, 1))})
    assert abs(figures["drift_diversity"] - 1 / num_clients) < 1e-12
    assert abs(figures["drift_cosine_min"] - 1.0) < 1e-12
    assert float(figures["drift_variance"]) < 1e-12


def test_updates_that_cancel():
    figures = drift_figures(np.array([[2.0, 1.0], [-2.0, -1.0]]))
    assert np.isposinf(figures["drift_diversity"])
    assert float(figures["drift_cosine_mean"]) == 0.0
    assert abs(figures["drift_variance"] - 5.0) < 1e-12
    assert not any(np.isnan(figure) for figure in figures.values())


@pytest.mark.parametrize("weights", [None, np.zeros(3)], ids=["zero updates", "nobody"])
def test_nothing_is_zero(weights):
    values = np.zeros((3, 2)) if weights is None else np.ones((3, 2))
    assert set(map(float, drift_figures(values, weights=weights).values())) == {0.0}


@pytest.mark.parametrize("weighted", [False, True])
def test_figures_of_a_pytree_against_numpy(weighted):
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(5, 3)), "b": rng.normal(size=(5, 2, 2))}
    weights = np.array([3.0, 1.0, 2.0, 5.0, 4.0]) if weighted else None
    got = drift_figures(tree, weights=weights)
    flat = np.concatenate([tree["a"], tree["b"].reshape(5, 4)], axis=1)
    expected = numpy_figures(flat, weights if weighted else np.ones(5))
    assert set(got) == set(expected) == set(FIGURES)
    for name, value in expected.items():
        assert abs(float(got[name]) - value) < 1e-12, name


def test_weight_zero_is_as_good_as_absent():
    values = np.array([[1.0, 2.0], [100.0, -7.0], [0.5, -1.0]])
    some = drift_figures(values, weights=np.array([1.0, 0.0, 1.0]))
    for name, value in drift_figures(values[[0, 2]]).items():
        assert abs(some[name] - value) < 1e-12


# -- the aggregator -------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.sequential()], ids=["lanes", "one by one"])
@pytest.mark.parametrize("weighting", ["uniform", "message"])
def test_diagnosed_round_on_q2(weighting, strategy):
    algo = fl.fedavg(
        quadratic,
        optax.sgd(ETA),
        plan=fl.Plan(batch_size=None, steps=5),
        sampler=fl.everyone(),
        aggregator=diagnosed(fl.mean(), weighting=weighting),
        strategy=strategy,
    )
    state, _ = one_round(algo)
    updates = (1 - (1 - ETA * A) ** 5) * B
    shares = P if weighting == "message" else np.array([0.5, 0.5])
    assert abs(float(state.server.params) - P @ updates) < 1e-12  # the aggregate is the inner's
    assert isinstance(state.aggregator, Diagnosed)
    for name, value in numpy_figures(updates[:, None], shares).items():
        assert abs(float(state.aggregator.metrics[name]) - value) < 1e-6, name
    if weighting == "uniform":
        assert abs(float(state.aggregator.metrics["drift_variance"]) - 0.6168995486) < 1e-7
        assert abs(float(state.aggregator.metrics["drift_diversity"]) - 1.4863564086) < 1e-6


@pytest.mark.slow
def test_diagnosed_obeys_the_laws_of_aggregators():
    """With its other weighting; the default is in the registry."""
    with jax.enable_x64(False):
        testing.check_aggregator(diagnosed(fl.mean(), weighting="message"))


@pytest.mark.sample(1, of="laws that test_laws.py leaves out")
@pytest.mark.slow
def test_a_diagnosed_federation_obeys_laws_of_algorithms():
    """Those that test_laws.py leaves out for a variant of FedAvg."""

    def make(rate, sampler, strategy):
        return fl.fedavg(
            testing.loss,
            optax.sgd(rate),
            plan=fl.Plan(batch_size=2),
            sampler=sampler,
            strategy=strategy,
            aggregator=diagnosed(fl.mean()),
        )

    laws = ["slots_do_not_matter", "finite"]
    with jax.enable_x64(False):
        testing.check_algorithm(make, laws=laws)


def test_masked_and_idle_clients_are_not_measured():
    """Of three clients one is masked and one does no step: the figures are those of the third."""
    owners = np.repeat([0, 1, 2], 2)
    data = fl.data.from_arrays({"a": np.ones(6), "b": np.array([1.0, 5.0, 9.0])[owners]}, owners)
    algo = q2(diagnosed(fl.mean()), steps=np.array([1, 1, 0]))
    cohort = fl.Cohort(jnp.arange(3, dtype=jnp.int32), jnp.array([True, False, True]))
    metrics = one_round(algo, data, cohort)[0].aggregator.metrics
    assert abs(float(metrics["drift_norm_max"]) - ETA) < 1e-7
    assert float(metrics["drift_variance"]) < 1e-12
    assert abs(float(metrics["drift_diversity"]) - 1.0) < 1e-6


def test_select_looks_at_a_part_of_the_message():
    messages = Message(
        {"params": jnp.array([[3.0], [5.0]]), "other": jnp.ones((2, 4))}, jnp.ones(2)
    )
    aggregator = diagnosed(fl.mean(), select=lambda value: value["params"])

    @jax.jit
    def aggregate(messages):
        acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), 2)
        acc = aggregator.add(acc, messages, jnp.arange(2), jnp.ones(2, bool))
        return aggregator.finish(jax.random.key(0), aggregator.init_state(None), acc, None)

    state, value = aggregate(messages)
    assert abs(float(state.metrics["drift_variance"]) - 1.0) < 1e-7
    assert value["other"].shape == (4,)


def test_errors_of_diagnosed():
    with pytest.raises(TypeError, match="inner must be an Aggregator"):
        diagnosed(fl.mean)
    with pytest.raises(ValueError, match="weighting must be"):
        diagnosed(fl.mean(), weighting="examples")
    two = Message(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="one weight per client"):
        diagnosed(fl.mean(), weighting="message").init(two, 3)


# -- losses before and after ----------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_client_losses_on_q2(batch_size):
    plain = fl.local_sgd(quadratic, optax.sgd(ETA))
    plan = fl.Plan(batch_size=batch_size, steps=np.array([5, 2]))
    results = []
    for client in (plain, drift.with_client_losses(plain, quadratic)):
        algo = fl.federated_algorithm(
            client,
            plan=plan,
            sampler=fl.everyone(),
            server=fl.optimizer_server(optax.sgd(1.0)),
        )
        results.append(one_round(algo))
    (state, _), (same, metrics) = results
    assert float(state.server.params) == float(same.server.params)
    shrink = (1 - ETA * A) ** np.array([5, 2])
    before, after = 0.5 * A * B**2, 0.5 * A * (shrink * B) ** 2
    # Weighted by the examples of the last batch: batches 5 and 2 of 7 out of 30 and 10.
    shares = P if batch_size is None else np.array([2, 3]) / 5
    if batch_size is None:
        assert abs(shares @ before - 2.375) < 1e-12  # F(0)
    assert abs(float(metrics["client_loss_before"]) - shares @ before) < 1e-6
    assert abs(float(metrics["client_loss_after"]) - shares @ after) < 1e-6


def test_client_losses_ignore_clients_without_steps():
    client = drift.with_client_losses(fl.local_sgd(quadratic, optax.sgd(ETA)), quadratic)
    _, metrics = one_round(q2(client=client, steps=np.array([0, 1])))
    assert abs(float(metrics["client_loss_before"]) - 8.0) < 1e-6
    with pytest.raises(TypeError, match="client must be a ClientUpdate"):
        drift.with_client_losses(fl.local_sgd, quadratic)


# -- optima ---------------------------------------------------------------------------------


def test_many_local_steps_reach_the_mean_of_the_optima():
    data = q2_data()
    optima = drift.quadratic_optima(data)
    np.testing.assert_array_equal(optima, B)
    state, _ = one_round(q2(steps=2000), data)
    figures = drift.distance_to_optima(state.server.params, jnp.asarray(optima), weights=data.sizes)
    assert abs(float(state.server.params) + 0.25) < 1e-9
    assert float(figures["distance_to_mean_of_optima"]) < 1e-9
    spread = np.sqrt(P @ (B - P @ B) ** 2)
    assert abs(float(figures["spread_of_optima"]) - spread) < 1e-12


def test_optima_of_shuffled_data_and_of_vectors():
    examples = fl.data.quadratic_forms([np.eye(2), 2 * np.eye(2)], [[0.0, 3.0], [4.0, 0.0]], 3)
    owners = np.array([1, 0, 1, 0, 1, 0])
    rows = np.array([3, 0, 4, 1, 5, 2])
    data = fl.data.from_arrays({"w": examples["w"][rows], "h": examples["h"][rows]}, owners)
    optima = drift.quadratic_optima(data)
    np.testing.assert_array_equal(optima, [[0.0, 3.0], [4.0, 0.0]])
    figures = drift.distance_to_optima(jnp.array([2.0, 1.5]), jnp.asarray(optima))
    assert float(figures["distance_to_mean_of_optima"]) == 0.0
    assert abs(float(figures["spread_of_optima"]) - 2.5) < 1e-12


def test_errors_of_optima():
    with pytest.raises(ValueError, match="leading axis of clients"):
        drift.distance_to_optima(jnp.zeros(2), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="weights must be"):
        drift.distance_to_optima(jnp.zeros(2), jnp.zeros((3, 2)), weights=[1.0])
    with pytest.raises(ValueError, match="positive sum"):
        drift.distance_to_optima(jnp.zeros(2), jnp.zeros((3, 2)), weights=[0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="must hold 'b'"):
        drift.quadratic_optima(fl.data.from_arrays({"x": np.ones(2)}, [0, 1]))
    with pytest.raises(ValueError, match="client 1 has no data"):
        drift.quadratic_optima(fl.data.from_arrays({"b": np.ones(2)}, [0, 2], num_clients=3))


def test_losses_of_batches_weigh_what_the_loss_counts():
    """The client counts all rows, the loss those that are not 99: 1 of one client, 2 of another."""

    def square(w, e, key):
        return (w - e["b"]) ** 2

    loss = fl.models.with_counts(square, lambda e: e["b"] != 99)
    client = drift.with_client_losses(fl.local_sgd(square, optax.sgd(0.0)), loss)
    info, sums = fl.ClientInfo(*map(jnp.int32, (0, 3, 1, 0))), fl.Mean(0.0, 0.0)
    for rows in ([1.0, 99, 99], [2.0, 3.0, 99]):
        carry = client.start(jax.random.key(0), (), jnp.array(0.0), info)
        batch = fl.Batch({"b": jnp.array(rows)}, jnp.ones(3, bool), jax.random.key(0))
        metrics = client.finish(0.0, client.step(jnp.array(0.0), carry, batch))[2]
        sums = sums + metrics["client_loss_before"]
    assert float(sums.total / sums.count) == pytest.approx((1 + 4 + 9) / 3)
