"""Data that change over the rounds: the right stage, nothing compiled, resumed bit for bit."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
OWNERS = np.array([2, 0, 0, 1, 2, 0, 1, 2, 2, 0])
Y = np.array([0, 1, 2, 0, 1, 1, 2, 0, 2, 0])


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


@pytest.fixture(scope="module")
def stages():
    data = fl.data.from_arrays({"b": np.arange(10.0, dtype=np.float32), "y": Y}, OWNERS)
    return data, fl.data.split_tasks(data, np.array([0, 1, 1])[Y])


def test_tasks_are_the_clients_examples_of_them(stages):
    data, parts = stages
    for task, part in enumerate(parts):
        for client in range(3):
            mine = np.flatnonzero((client == OWNERS) & (np.array([0, 1, 1])[Y] == task))
            assert sorted(np.asarray(part.client(client)["b"]).tolist()) == mine.tolist()
    assert sum(part.num_examples for part in parts) == data.num_examples


def run(algo, data, rounds, state=None, start=0.0, **options):
    state = algo.init(KEY, jnp.array(start), data) if state is None else state
    return fl.run(algo, KEY, state, data, num_rounds=rounds, progress=False, **options)


@pytest.mark.sample(1)
@pytest.mark.parametrize("sampler", [fl.everyone(), fl.uniform(2)])
def test_a_run_on_a_stream_is_runs_on_its_stages(stages, sampler, tmp_path):
    """Round by round as if the data had been exchanged by hand; and resumed inside a stage."""
    _, parts = stages
    stream = fl.data.task_stream([*parts, parts[0]], [0, 3, 5])
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=fl.Plan(batch_size=2, epochs=2), sampler=sampler)
    state = algo.init(KEY, jnp.array(0.0), stream)
    for round, part in enumerate([*[parts[0]] * 3, *[parts[1]] * 2, *[parts[0]] * 2]):
        assert int(stream.stage_of(round)) == [0, 0, 0, 1, 1, 2, 2][round]
        state, _ = algo.round(KEY, state, part)
    whole, history = run(algo, stream, 7, every=3)
    same(whole.server, state.server)
    assert len(history) == 7
    run(algo, stream, 4, every=2, output_dir=tmp_path)
    resumed, _ = run(algo, stream, 7, every=2, output_dir=tmp_path, resume=True)
    assert np.asarray(resumed.server.params).tobytes() == np.asarray(whole.server.params).tobytes()


def test_no_stage_compiles_anew(stages):
    traces = []

    def counted(w, e, key):
        traces.append(1)
        return loss(w, e, key)

    stream = fl.data.task_stream(stages[1], [0, 2])
    algo = fl.fedavg(counted, optax.sgd(0.1), plan=fl.Plan(batch_size=None), sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), stream)
    found = []
    for _ in range(4):
        state, metrics = algo.round(KEY, state, stream)
        found.append((len(traces), int(metrics["num_clients"])))
    assert len({count for count, _ in found}) == 1
    # A whole data set is one batch of the largest client's size in any stage, the rest masked.
    x = 0.0
    for part in [stages[1][0]] * 2 + [stages[1][1]] * 2:
        sizes = np.asarray(part.sizes)
        means = [np.asarray(part.client(i)["b"]).mean() for i in range(3)]
        x = sizes / sizes.sum() @ np.array([x - 0.1 * (x - mean) for mean in means])
    np.testing.assert_allclose(state.server.params, x, rtol=1e-6)


def test_stages_of_their_own_examples_are_joined():
    first = fl.data.from_arrays({"b": np.array([1.0, 2.0], np.float32)}, [0, 1])
    second = fl.data.from_arrays({"b": np.array([5.0], np.float32)}, [1], num_clients=2)
    stream = fl.data.task_stream([first, second, first], [0, 1, 2])
    assert stream.examples["b"].tolist() == [1.0, 2.0, 5.0]
    for index, part in enumerate([first, second, first]):
        for client in range(2):
            same(stream.stage(index).client(client), part.client(client), exact=True)
    algo = fl.fedavg(loss, optax.sgd(1.0), plan=fl.Plan(1), sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), stream)
    found = []
    for _ in range(3):
        state, metrics = algo.round(KEY, state, stream)
        found.append((float(state.server.params), int(metrics["num_clients"])))
    assert found == [(1.5, 2), (5.0, 1), (1.5, 2)]  # who has nothing in a stage rests


def test_servers_are_told_of_all_who_ever_have_data():
    """SCAFFOLD's share is of two clients, though one has nothing at first."""
    first = fl.data.from_arrays({"b": np.array([1.0], np.float32)}, [0], num_clients=2)
    second = fl.data.from_arrays({"b": np.array([2.0], np.float32)}, [1], num_clients=2)
    stream = fl.data.task_stream([first, second], [0, 1])
    algo = fl.scaffold(loss, 0.1, plan=fl.Plan(1), sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), stream)
    assert float(state.server.totals.weight) == 2
    labelled = fl.models.linear(2, (1,))
    examples = {"x": np.ones((2, 1), np.float32), "y": np.array([1, -1])}
    parts = fl.data.split_tasks(fl.data.from_arrays(examples, [0, 1]), [0, 1])
    stream = fl.data.task_stream(parts, [0, 1])
    algo = fl.scaffold(labelled.loss, 0.1, plan=fl.Plan(1), sampler=fl.everyone())
    state = algo.init(KEY, labelled.init(KEY), stream)
    assert float(state.server.totals.weight) == 1  # the other has no label


def test_bad_arguments(stages):
    data, parts = stages
    for starts in ([0], [0, 0], [1, 2]):
        with pytest.raises(ValueError, match="starts must"):
            fl.data.task_stream(parts, cast(Any, starts))
    with pytest.raises(ValueError, match="same clients, got 3 and 1"):
        fl.data.task_stream([data, fl.data.from_arrays(data.examples, np.zeros(10, int))], [0, 1])
    with pytest.raises(ValueError, match="same structure"):
        fl.data.task_stream([data, fl.data.from_arrays({"y": Y}, OWNERS)], [0, 1])
    with pytest.raises(ValueError, match=r"integers \[10\]"):
        fl.data.split_tasks(data, [0, 1])
    with pytest.raises(ValueError, match="none of task 1"):
        fl.data.split_tasks(data, 2 * (Y > 0))
    stream = fl.data.task_stream(parts, [0, 1])
    with pytest.raises(ValueError, match="index must be in"):
        stream.stage(2)
    assert "2 stages of 3 clients" in repr(stream)
