"""Columns of an evaluation that a round has already are refused before the first round."""

import warnings

import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream.dataset import StreamedDataset

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
EXAMPLES = {"x": X, "y": (X[:, 0] > 0).astype(int)}
DATA = fl.data.from_arrays(EXAMPLES, np.arange(12) // 4)
STREAM = StreamedDataset(ArrayStore(EXAMPLES, [4, 4, 4]))
MODEL = fl.models.linear(2, (2,))
PLAN, ALL = fl.Plan(batch_size=4), fl.everyone()


@pytest.fixture(scope="module")
def algo():
    return fl.fedavg(MODEL.loss, optax.sgd(0.1), plan=PLAN, sampler=ALL)


def go(algo, evaluate, data=DATA, done=0):
    state = algo.init(KEY, MODEL.init(KEY), data)
    ran = []

    def listen(state):
        ran.append(int(state.round))
        return evaluate(state)

    if done:
        state, _ = fl.run(algo, KEY, state, data, num_rounds=done, progress=False)
    chosen = evaluate if done else listen
    try:
        _, history = fl.run(
            algo, KEY, state, data, num_rounds=done + 2, every=1, evaluate=chosen, progress=False
        )
    except ValueError:
        assert max(ran, default=0) == 0, "a round was run"
        raise
    return history


def test_the_remedy_of_the_warning_works(algo):
    state = algo.init(KEY, MODEL.init(KEY), DATA)
    options = {"num_rounds": 1, "progress": False}
    with pytest.warns(UserWarning, match="one by one") as caught:
        fl.run(algo, KEY, state, DATA, evaluate=fl.evaluator(MODEL, EXAMPLES), **options)
    name = str(caught[0].message).split("name='")[1].split("'")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = fl.run(
            algo, KEY, state, DATA, evaluate=fl.evaluator(MODEL, EXAMPLES, name=name), **options
        )
    assert {f"{name}_loss", f"{name}_accuracy", "train_loss"} <= set(history[-1])


@pytest.mark.sample(2)
@pytest.mark.parametrize("data", [DATA, STREAM], ids=["memory", "streamed"])
@pytest.mark.parametrize("done", [0, 1])
def test_a_name_of_the_round_is_refused_before_it(algo, data, done):
    train = fl.evaluator(MODEL, EXAMPLES, name="train")
    with pytest.raises(ValueError, match=r"train_loss.*name='train_set'"):
        go(algo, train, data, done)


@pytest.mark.parametrize("name", ["round", "seconds", "num_clients", "uplink_bits_total"])
def test_reserved_names(algo, name):
    with pytest.raises(ValueError, match=rf"evaluate return(s|ed) \['{name}'\]"):
        go(algo, lambda state: {name: 1.0})


@pytest.mark.parametrize("name", ["train", "rate"])
def test_members_of_a_sweep_are_not_trained_for_a_name_that_clashes(name):
    made = []

    def make(**settings):
        made.append(settings)
        return fl.fedavg(MODEL.loss, optax.sgd(settings.popitem()[1]), plan=PLAN, sampler=ALL)

    score = fl.evaluator(MODEL, EXAMPLES, name=name)
    with pytest.raises(ValueError, match=f"name='{name}_set'"):
        fl.sweep(
            make, {"rate_loss": [0.1]}, init=MODEL.init, data=DATA, num_rounds=1, evaluate=score
        )
    assert not made
