"""Bad input to the core: refused early, by name, with the value and the remedy."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.version import check_jax

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
ONE = fl.Plan(batch_size=2)


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def population():
    return fl.data.from_arrays({"b": np.array([-1.0, 2.0, 2.0])}, [0, 1, 1])


def algorithm(**slots):
    slots = {"plan": ONE, "sampler": fl.everyone(), **slots}
    return fl.fedavg(loss, SGD, **slots)


@pytest.fixture(scope="module")
def ready():
    algo, data = algorithm(), population()
    return algo, algo.init(KEY, jnp.array(0.0), data), data


# -- building -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"plan": 20}, "plan must be a Plan, got 20"),
        ({"plan": fl.Plan}, "plan must be a Plan"),
        ({"sampler": fl.everyone}, "sampler must be a Sampler.*factory not called"),
        ({"sampler": 10}, "sampler must be a Sampler, got 10"),
        ({"aggregator": fl.mean}, "aggregator must be an Aggregator.*factory not called"),
        ({"uplink": fl.identity}, "uplink must be a Transform.*factory not called"),
        ({"uplink": optax.clip_by_global_norm(1.0)}, "uplink must be a Transform"),
        ({"strategy": fl.vmapped}, "strategy must be a Strategy.*factory not called"),
        ({"strategy": "vmapped"}, "strategy must be a Strategy, got 'vmapped'"),
        ({"server_optimizer": 1.0}, "server_optimizer must be an optax optimizer, got 1.0"),
    ],
)
def test_wrong_slots(slots, message):
    with pytest.raises(TypeError, match=message):
        algorithm(**slots)


def test_wrong_client_and_server():
    server = fl.optimizer_server(SGD)
    with pytest.raises(TypeError, match="client must be a ClientUpdate"):
        fl.federated_algorithm(cast(Any, loss), plan=ONE, sampler=fl.everyone(), server=server)
    with pytest.raises(TypeError, match="server must be a ServerUpdate"):
        fl.federated_algorithm(fl.local_sgd(loss, SGD), plan=ONE, sampler=fl.everyone(), server=SGD)


@pytest.mark.parametrize("wrong", [0.1, None, "adam"])
def test_wrong_client_optimizer(wrong):
    with pytest.raises(TypeError, match=r"client_optimizer must be .*got .*optax\.sgd\(0\.1\)"):
        fl.fedavg(loss, wrong, plan=ONE, sampler=fl.everyone())


def test_a_loss_that_is_no_function():
    """Arguments the wrong way round, or a Model in place of model.loss."""
    with pytest.raises(TypeError, match="loss must be"):
        fl.fedavg(SGD, SGD, plan=ONE, sampler=fl.everyone())


def test_unknown_weighting():
    with pytest.raises(ValueError, match=r"weighting must be one of \['examples', 'uniform'\]"):
        algorithm(weighting="size")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -4}, ValueError, "batch_size must be at least 1, got -4"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be an int, got 2\.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, got True"),
        ({"batch_size": 2, "epochs": -1}, ValueError, "epochs must not be negative, got -1"),
        ({"batch_size": 2, "steps": -1}, ValueError, "steps must not be negative, got -1"),
        ({"batch_size": 2, "steps": np.array([1, -7])}, ValueError, "steps must not .*got -7"),
        ({"batch_size": 2, "epochs": 1.5}, TypeError, "epochs must be an int.*got 1.5"),
        ({"batch_size": 2, "epochs": np.ones((2, 2), int)}, TypeError, "epochs must be an int"),
        ({"batch_size": 2, "epochs": "all"}, TypeError, "epochs must be an int.*got 'all'"),
        ({"batch_size": 2, "epochs": 1, "steps": 3}, ValueError, "epochs or steps, not both"),
    ],
)
def test_plans(options, error, message):
    with pytest.raises(error, match=message):
        fl.Plan(**options)


@pytest.mark.parametrize("lanes", [0, -1])
def test_lanes_must_be_positive(lanes):
    with pytest.raises(ValueError, match=f"num_lanes must be at least 1, got {lanes}"):
        fl.chunked(lanes)
    with pytest.raises(TypeError, match="num_lanes must be an int"):
        fl.chunked(cast(Any, 2.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: fl.fedadam(loss, SGD, server_learning_rate=-0.1, **o), "learning_rate must not"),
        (lambda o: fl.fedyogi(loss, SGD, server_learning_rate=0.1, tau=-1.0, **o), "tau must be"),
        (lambda o: fl.fedadagrad(loss, SGD, server_learning_rate=0.1, b1=-1.0, **o), "b1 must"),
        (lambda o: fl.fedavgm(loss, SGD, server_learning_rate=-0.1, **o), "learning_rate must not"),
        (lambda o: fl.fedavgm(loss, SGD, momentum=-0.5, **o), "momentum must"),
    ],
)
def test_negative_rates_of_algorithms(call, message):
    with pytest.raises(ValueError, match=message):
        call({"plan": ONE, "sampler": fl.everyone()})


# -- init -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [jax.random.PRNGKey(0), 0, None, np.array([0, 1], np.uint32)], ids=str
)
def test_raw_keys(ready, key):
    algo, state, data = ready
    with pytest.raises(TypeError, match=r"key must be a typed key such as jax\.random\.key\(0\)"):
        algo.init(key, jnp.array(0.0), data)
    with pytest.raises(TypeError, match=r"key must be a typed key such as jax\.random\.key\(0\)"):
        algo.round(key, state, data)


def test_several_keys(ready):
    algo, state, data = ready
    with pytest.raises(TypeError, match=r"key must be one key, got shape \(3,\)"):
        algo.round(jax.random.split(KEY, 3), state, data)


@pytest.mark.parametrize("leaf", [jnp.zeros(2, jnp.int32), jnp.zeros(2, bool), 0])
def test_integer_parameters(ready, leaf):
    algo, _, data = ready
    message = r"params\['steps'\] must be floating point, got .*keep counters and flags out"
    with pytest.raises(TypeError, match=message):
        algo.init(KEY, {"w": jnp.zeros(2), "steps": leaf}, data)


@pytest.mark.parametrize("data", [{"b": np.ones(3)}, None, [1, 2]])
def test_wrong_data(ready, data):
    algo, state, _ = ready
    with pytest.raises(TypeError, match=r"data must be a FederatedDataset.*from_arrays"):
        algo.init(KEY, jnp.array(0.0), data)
    with pytest.raises(TypeError, match=r"data must be a FederatedDataset.*from_arrays"):
        algo.round(KEY, state, data)


def test_arguments_in_the_wrong_order(ready):
    algo, state, data = ready
    with pytest.raises(TypeError, match="state must be the RoundState"):
        algo.round(KEY, state.server, data)
    with pytest.raises(TypeError, match="data must be a FederatedDataset"):
        algo.round(KEY, data, state)


@pytest.mark.parametrize("sampler", [fl.uniform(3), fl.weighted(3), fl.poisson(0.5, capacity=3)])
def test_cohort_larger_than_the_population(sampler):
    with pytest.raises(ValueError, match="must be at most the population, got 3 of 2 clients"):
        algorithm(sampler=sampler).init(KEY, jnp.array(0.0), population())


@pytest.mark.parametrize("amount", [np.array([1]), np.array([1, 2, 3])])
def test_amounts_of_another_population(amount):
    """An index past the end of an array is silently clipped by JAX: lengths must be compared."""
    for plan in (fl.Plan(batch_size=2, steps=amount), fl.Plan(batch_size=2, epochs=amount)):
        with pytest.raises(ValueError, match=r"(steps|epochs).*(2 clients|population)"):
            algorithm(plan=plan).init(KEY, jnp.array(0.0), population())


def test_population_without_data():
    with pytest.raises(ValueError, match=r"examples must not be empty.*the population has no data"):
        fl.data.from_arrays({"b": np.zeros(0)}, np.zeros(0, int), num_clients=4)


def test_nan_data():
    with pytest.raises(
        ValueError, match=r"examples\['b'\] holds NaN or infinity as float32 \(first in row 1\)"
    ):
        fl.data.from_arrays({"b": np.array([1.0, np.nan])}, [0, 1])


# -- round ----------------------------------------------------------------------------------


def test_loss_that_averages_is_named_in_the_first_round():
    algo = fl.fedavg(lambda w, e, key: loss(w, e, key).mean(), SGD, plan=ONE, sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), population())
    message = r"loss must return one value per example, shape \[2\], got \[\]; drop the mean"
    with pytest.raises(ValueError, match=message):
        algo.round(KEY, state, population())


@pytest.mark.parametrize("cohort", [[0, 1], jnp.arange(2), (jnp.arange(2), jnp.ones(2, bool))])
def test_a_cohort_of_the_wrong_type(ready, cohort):
    algo, state, data = ready
    with pytest.raises(TypeError, match="cohort must be a Cohort"):
        algo.round(KEY, state, data, cohort)


@pytest.mark.parametrize(
    ("late", "error", "message"),
    [
        ([False, True], TypeError, r"cohort.late must be an array of bool \[C\], got"),
        (np.array([0, 2]), TypeError, r"cohort.late must be bool \[C\], got int64; late > 0"),
        (np.array(True), ValueError, r"cohort.late must be \[C\], one for each of the 2 ids, got"),
    ],
)
def test_late_clients_are_told_like_those_that_take_part(ready, late, error, message):
    algo, state, data = ready
    with pytest.raises(error, match=message):
        algo.round(KEY, state, data, fl.Cohort(jnp.arange(2), jnp.array([True, False]), late))


@pytest.mark.parametrize("stranger", [2, -1, 2**31 - 1])
def test_a_stranger_is_an_empty_slot_not_somebody_else(ready, stranger):
    """Ids outside the population must not train a client of it in their place."""
    algo, state, data = ready
    odd = fl.Cohort(jnp.array([0, stranger, 0], jnp.int32), jnp.array([True, True, False]))
    plain = fl.Cohort(jnp.array([0, 0, 0], jnp.int32), jnp.array([True, False, False]))
    one, metrics = algo.round(KEY, state, data, odd)
    two, _ = algo.round(KEY, state, data, plain)
    assert float(one.server.params) == float(two.server.params) == pytest.approx(-0.1)
    assert int(metrics["num_clients"]) == 1


def test_a_client_twice_counts_twice(ready):
    """Sampling with replacement: n = 1, 2, 2 and y = -0.1, 0.2, 0.2."""
    algo, state, data = ready
    twice = fl.Cohort(jnp.array([0, 1, 1], jnp.int32), jnp.ones(3, bool))
    new, _ = algo.round(KEY, state, data, twice)
    np.testing.assert_allclose(new.server.params, (-0.1 + 0.4 + 0.4) / 5, rtol=1e-5)


def test_empty_slots_may_hold_any_id(ready):
    """Masked ids are no clients: neither out of range nor doubled ones matter."""
    algo, state, data = ready
    plain = fl.Cohort(jnp.array([1, 0, 0], jnp.int32), jnp.array([True, False, False]))
    odd = fl.Cohort(jnp.array([1, 99, -7], jnp.int32), jnp.array([True, False, False]))
    one, _ = algo.round(KEY, state, data, plain)
    two, _ = algo.round(KEY, state, data, odd)
    assert float(one.server.params) == float(two.server.params)


def test_unknown_slot_names():
    with pytest.raises(TypeError, match="weigthing"):
        algorithm(weigthing="uniform")


def test_a_jax_that_is_too_old_is_named():
    with pytest.raises(ImportError, match=r"needs jax 0.8 or newer, found 0.7.2.*pip install -U"):
        check_jax((0, 7, 2))
    check_jax((0, 8, 0))
    check_jax((1, 0, 0))
