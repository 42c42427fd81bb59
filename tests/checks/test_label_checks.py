"""Labels are compared with the model at every call, in any order, not only while it is traced."""

import warnings

import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.checks.labels import Outputs, shapes_of, watching
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream.dataset import StreamedDataset

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
MODEL = fl.models.linear(3, (2,))


def population(highest, lowest=0):
    y = np.arange(12) % 2
    y[7], y[3] = highest, lowest
    return fl.data.from_arrays({"x": X, "y": y}, np.arange(12) // 4)


def stream(highest):
    data = population(highest)
    return StreamedDataset(ArrayStore(jax.device_get(data.examples), [4, 4, 4]))


def make(loss=MODEL.loss):
    return fl.fedavg(loss, optax.sgd(0.1), plan=fl.Plan(batch_size=4), sampler=fl.everyone())


def by_round(algo, state, data):
    return algo.round(KEY, state, data)[0]


def by_run(algo, state, data):
    state = state._replace(round=0 * state.round)
    return fl.run(algo, KEY, state, data, num_rounds=2, every=2, progress=False)[0]


BEYOND = r"labels must lie in \[0, 3\).*holds 0\.\.3"


@pytest.mark.sample(2)
@pytest.mark.parametrize("first", [by_round, by_run])
@pytest.mark.parametrize("then", [by_round, by_run])
def test_a_label_beyond_is_an_error_whatever_came_before(first, then):
    algo, good, bad = make(), population(2), population(3)
    state = algo.init(KEY, MODEL.init(KEY), good)
    for _ in range(2):
        first(algo, state, good)
        with pytest.raises(ValueError, match=BEYOND):
            then(algo, state, bad)
        with pytest.raises(ValueError, match=BEYOND):
            first(algo, state, bad)
    then(algo, state, good)


def test_one_algorithm_for_models_of_several_sizes():
    """What is known of one model says nothing of another: labels up to 3 are right for four."""
    algo, good, wide = make(), population(2), population(3)
    small, large = (algo.init(KEY, fl.models.linear(n, (2,)).init(KEY), good) for n in (3, 4))
    model = fl.models.from_functions(
        lambda key: None, lambda w, x, key: x @ w["head"]["kernel"] + w["head"]["bias"]
    )
    algo = make(model.loss)
    small, large = (algo.init(KEY, fl.models.linear(n, (2,)).init(KEY), good) for n in (3, 4))
    by_round(algo, small, good)
    by_round(algo, large, wide)
    with pytest.raises(ValueError, match=BEYOND):
        by_round(algo, small, wide)
    by_run(algo, large, wide)
    with pytest.raises(ValueError, match=BEYOND):
        by_run(algo, small, wide)


def test_wrapped_rounds_know_it_too():
    algo, good, bad = (
        fl.centralised(MODEL.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=4)),
        population(2),
        population(3),
    )
    state = algo.init(KEY, MODEL.init(KEY), good)
    by_run(algo, state, good)
    for call in (by_run, by_round):
        with pytest.raises(ValueError, match=BEYOND):
            call(algo, state, bad)


def test_streamed_cohorts_are_looked_at_one_by_one():
    """The bad label is of client 1: an error when it is drawn, after rounds without it, too."""
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=4), sampler=fl.uniform(1))
    for highest, rounds in ((2, 12), (3, 12)):
        data = stream(highest)
        state = algo.init(KEY, MODEL.init(KEY), data)
        if highest == 2:
            fl.run(algo, KEY, state, data, num_rounds=rounds, progress=False)
            continue
        with pytest.raises(ValueError, match=BEYOND):
            fl.run(algo, KEY, state, data, num_rounds=rounds, progress=False)


def test_members_of_a_sweep():
    def sweep(data):
        fl.sweep(
            lambda rate: fl.fedavg(
                MODEL.loss, optax.sgd(rate), plan=fl.Plan(batch_size=4), sampler=fl.everyone()
            ),
            {"rate": [0.1, 0.2]}, init=MODEL.init, data=data, num_rounds=1, progress=False,
        )  # fmt: skip

    sweep(population(2))
    with pytest.raises(ValueError, match=BEYOND):
        sweep(population(3))


def heard(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return sum("negative labels" in str(w.message) for w in caught)


def test_negative_labels_are_told_once_of_each_data_set():
    algo, one, two = make(), population(2, lowest=-1), population(2, lowest=-1)
    state = algo.init(KEY, MODEL.init(KEY), one)
    assert heard(lambda: by_round(algo, state, population(2))) == 0
    assert heard(lambda: by_round(algo, state, one)) == 1
    assert heard(lambda: (by_round(algo, state, one), by_run(algo, state, one))) == 0
    assert heard(lambda: by_run(algo, state, two)) == 1


def test_labels_in_host_memory_are_read_again():
    """numpy arrays may be written to between calls."""
    labels, outputs = np.array([0, 1, 2]), Outputs()
    outputs.note(shapes_of(()), 3)
    with watching(outputs, (), {"y": labels}):
        pass
    labels[1] = 3
    with pytest.raises(ValueError, match=BEYOND), watching(outputs, (), {"y": labels}):
        pass
