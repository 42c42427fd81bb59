"""The model is looked at after every call, whatever the metrics are called."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_algorithm import DATA

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream.dataset import StreamedDataset
from fedjax_lite.types import FederatedAlgorithm, RoundState

KEY = jax.random.key(0)
MODEL = fl.models.from_functions(
    lambda key: jnp.zeros(()), lambda w, x, key: w * x, loss=lambda z, y: (z - y) ** 2
)
EXAMPLES = {"x": np.ones((6, 1), np.float32).reshape(6), "y": np.arange(6, dtype=np.float32)}
PLAN = fl.Plan(batch_size=None, steps=5)


def plain(change, *, loss=None, silent=False):
    """``params <- change(params, round)``, with a metric of another name and perhaps a loss."""

    def one_round(key, state, data, cohort=None):
        params = change(state.server, state.round + 1)
        metrics = {} if silent else {"score": params.sum()}
        if loss is not None:
            metrics["train_loss"] = loss(params, state.round + 1)
        return state._replace(round=state.round + 1, server=params), metrics

    return FederatedAlgorithm(lambda *given: given[1], one_round)


def go(algo, num_rounds=20, *, start=1.0, **options):
    state = RoundState(jnp.int32(0), jnp.full(2, start), (), (), (), ())
    options = {"num_rounds": num_rounds, "every": 5, "progress": False, **options}
    return fl.run(algo, KEY, state, DATA, **options)


def test_a_model_without_a_training_loss_is_looked_at():
    algo = plain(lambda p, r: jnp.where(r == 7, jnp.inf, p))
    with pytest.raises(fl.RunDiverged, match=r"score is inf in round 7.*learning_rate") as caught:
        go(algo)
    assert int(caught.value.state.round) == 10
    hidden = plain(lambda p, r: jnp.where(r == 7, jnp.nan, p), silent=True)
    with pytest.raises(fl.RunDiverged, match=r"not finite after round 10 \(it was after round 5\)"):
        go(hidden)


def test_a_warning_of_the_loss_does_not_blind_for_the_model():
    """Warned of in round 2, the model lost in round 12."""
    algo = plain(
        lambda p, r: jnp.where(r == 12, jnp.nan, p),
        loss=lambda p, r: jnp.where(r == 2, jnp.inf, p.sum()),
    )
    with (
        pytest.warns(RuntimeWarning, match="round 2"),
        pytest.raises(fl.RunDiverged, match="round 12"),
    ):
        go(algo)


def test_a_loss_that_stays_infinite_is_not_passed_over_in_silence():
    """Told at 1, 2, 4 and 8 calls of 5 rounds, of 10."""
    algo = plain(lambda p, r: p, loss=lambda p, r: jnp.inf)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, history = go(algo, 50)
    assert len(history) == 50
    words = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(words) == 4
    assert "not finite in 40 rounds" in words[-1]


def test_a_model_that_is_huge_beside_an_infinite_loss_is_lost():
    algo = plain(lambda p, r: p * 1e10, loss=lambda p, r: (p**2).sum())
    with pytest.raises(fl.RunDiverged, match=r"train_loss is inf in round 2.*squares") as caught:
        go(algo, every=1)
    assert int(caught.value.state.round) == 2
    large = plain(lambda p, r: p * 1e10, loss=lambda p, r: jnp.float32(0.0))
    go(large, 3, every=1)  # large, but the loss is finite: not ours to judge


def test_going_on_is_told():
    algo = plain(lambda p, r: jnp.where(r >= 3, jnp.nan, p))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, history = go(algo, 20, stop_if_diverged=False)
    assert len(history) == 20
    words = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert "in round 3" in words[0]
    assert "The run goes on" in words[0]
    assert len(words) == 3  # after 5, 10 and 20 rounds: each time it has lasted twice as long


def test_a_start_that_is_lost_is_refused_before_the_first_round():
    with pytest.raises(fl.RunDiverged, match="before round 1") as caught:
        go(plain(lambda p, r: p), start=np.nan)
    assert caught.value.history == []


@pytest.mark.sample(2)
@pytest.mark.parametrize("rate", [1.0, 3.0, 1e3])
@pytest.mark.parametrize("every", [1, 10])
def test_gradient_descent_that_climbs_is_stopped(rate, every):
    """A step multiplies the error by ``1 - 2 rate``, five a round: 3.4e38 within 60 rounds."""
    growth = abs(1 - 2 * rate) ** 5
    algo = fl.fedavg(MODEL.loss, optax.sgd(rate), plan=PLAN, sampler=fl.everyone())
    data = fl.data.from_arrays(EXAMPLES, [0, 0, 0, 1, 1, 1])
    state = algo.init(KEY, MODEL.init(KEY), data)
    options = {"num_rounds": 60, "every": every, "progress": False}
    if growth == 1:  # on the edge it swings, and nothing is lost
        fl.run(algo, KEY, state, data, **options)
        return
    with pytest.raises(fl.RunDiverged) as caught:
        fl.run(algo, KEY, state, data, **options)
    needed = np.log(3.4e38) / np.log(growth)
    assert len(caught.value.history) <= needed + every + 1


@pytest.mark.parametrize("place", ["memory", "host"])
def test_models_of_clients_are_looked_at(place):
    """Client 2 alone has data that its model runs away on; the server's model never moves."""
    x = np.array([0.1, 0.1, 0.1, 0.1, 30.0, 30.0], np.float32)
    examples = {"x": x, "y": np.ones(6, np.float32)}
    data = fl.data.from_arrays(examples, [0, 0, 1, 1, 2, 2])
    if place == "host":
        data = StreamedDataset(ArrayStore(examples, [2, 2, 2]), "host")
    algo = fl.local_only(MODEL.loss, optax.sgd(0.5), plan=PLAN)
    state = algo.init(KEY, MODEL.init(KEY), data)
    with pytest.raises(fl.RunDiverged, match=r"own model of 1 clients \(first: client 2\)"):
        fl.run(algo, KEY, state, data, num_rounds=30, every=5, progress=False)
