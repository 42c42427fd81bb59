"""Phases that read another split of each client's data: closed forms under every strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.engine.mesh.placement import init_state, replicate, shard_population
from fedjax_lite.types import ClientUpdate, Message, Phase

KEY = jax.random.key(0)
RATE = 0.25
SIZES = np.array([3, 1, 5, 2, 0])  # the last client has nothing to train on
HELD = np.array([2, 0, 1, 3, 4])  # the second has nothing held out
STEPS = np.array([1, 2, 3, 2, 5])
"""What a plan per client asks of the phase on held-out rows."""
START = {"head": 1.0, "body": -2.0}


def rows_of(sizes, first):
    return {"b": first + np.arange(float(sizes.sum()), dtype=np.float32) ** 1.5}


def owners(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


TRAINED, TESTED = rows_of(SIZES, -3.0), rows_of(HELD, 40.0)
DATA = fl.data.with_splits(
    fl.data.from_arrays(TRAINED, owners(SIZES), num_clients=5),
    {"held_out": fl.data.from_arrays(TESTED, owners(HELD), num_clients=5)},
)


def move(part):
    """A step on one of two numbers, towards the mean of the batch."""

    def step(broadcast, carry, batch):
        target = (batch.examples["b"] * batch.mask).sum() / batch.mask.sum()
        return {**carry, part: carry[part] - RATE * (carry[part] - target)}

    return step


def tuned(strategy=None, plan=fl.Plan(None, steps=STEPS), data="held_out"):  # noqa: B008
    """The body on training rows, then the head on rows held out; rows remember the head."""

    def finish(x, carry):
        message = {part: x[part] - carry[part] for part in ("head", "body")}
        return carry["head"], Message(message, carry["size"].astype(float)), {}

    phases = (Phase(move("body")), Phase(move("head"), plan, "head", data=data))
    client = ClientUpdate(
        lambda params: jnp.float32(0),
        lambda key, row, x, info: {**x, "size": info.size},
        phases,
        finish,
    )
    return fl.federated_algorithm(
        client,
        plan=fl.Plan(None, epochs=2),
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )


def ends(rows, sizes, start, steps):
    """``m + (x - m) (1 - eta)^K`` of each client; without rows it stays."""
    parts = np.split(rows["b"].astype(float), np.cumsum(sizes)[:-1])
    means = np.array([part.mean() if len(part) else start for part in parts])
    return means + (start - means) * (1 - RATE) ** steps


def check(state, metrics):
    """One round: heads by the held-out rows and their own steps, weights by training rows alone."""
    steps = np.where((HELD > 0) & (SIZES > 0), STEPS, 0)
    heads = ends(TESTED, HELD, START["head"], steps)
    bodies = ends(TRAINED, SIZES, START["body"], np.where(SIZES > 0, 2, 0))
    shares = SIZES / SIZES.sum()
    found = state.server.params
    np.testing.assert_allclose(found["head"], shares @ heads, rtol=1e-5)
    np.testing.assert_allclose(found["body"], shares @ bodies, rtol=1e-5)
    assert int(metrics["head_steps"]) == steps.sum() == 6
    assert int(metrics["num_steps"]) == 6 + 2 * 4
    if not isinstance(state.clients, fl.HostTable):
        rows = np.asarray(state.clients)[:5]
        np.testing.assert_allclose(rows, np.where(SIZES > 0, heads, 0), rtol=1e-5)


def start(algo, data):
    return algo.init(KEY, jax.tree.map(jnp.float32, START), data)


STRATEGIES = {
    "vmapped": fl.vmapped,
    "chunked": lambda: fl.chunked(2),
    "sequential": fl.sequential,
    "differentiable": fl.differentiable,
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_phase_reads_its_split(strategy):
    algo = tuned(strategy())
    check(*algo.round(KEY, start(algo, DATA), DATA))


def test_on_devices():
    """Data whole on each device, and split over them with their clients; one device or several."""
    mesh = fl.client_mesh()
    algo = tuned(fl.sharded(mesh, fl.chunked(2)))
    everywhere = replicate(DATA, mesh=mesh)
    check(*algo.round(KEY, start(algo, everywhere), everywhere))
    dealt = shard_population(DATA, mesh=mesh)
    state = init_state(algo, KEY, jax.tree.map(jnp.float32, START), dealt, mesh=mesh)
    check(*algo.round(KEY, state, dealt))


def test_streamed_splits_come_with_the_cohort():
    """The same round where examples lie on the host, and rows too."""
    data = fl.data.with_splits(
        fl.StreamedDataset(ArrayStore(TRAINED, SIZES), state="host"),
        {"held_out": fl.StreamedDataset(ArrayStore(TESTED, HELD))},
    )
    algo = tuned(fl.chunked(2))
    state, history = fl.run(algo, KEY, start(algo, data), data, num_rounds=1, progress=False)
    check(state, history[0])


def test_streams_draw_the_batches_of_memory():
    """FedRep for three rounds: batches of 2, cohorts of 3, heads on rows held out, on the host."""
    loss = lambda w, e, key: 0.5 * (w["head"] * w["body"] - 0.01 * e["b"]) ** 2  # noqa: E731
    algo = fl.fedrep(
        loss,
        optax.sgd(0.05),
        head_data="held_out",
        plan=fl.Plan(2, epochs=2),
        sampler=fl.uniform(3),
        strategy=fl.chunked(2),
    )
    stream = fl.data.with_splits(
        fl.StreamedDataset(ArrayStore(TRAINED, SIZES), state="host"),
        {"held_out": fl.StreamedDataset(ArrayStore(TESTED, HELD))},
    )
    found = []
    for data in (DATA, stream):
        state, history = fl.run(algo, KEY, start(algo, data), data, num_rounds=3, progress=False)
        heads = fl.personal_models(state, jnp.arange(5))["head"]
        steps = [row["head_steps"] for row in history]
        found.append((state.server.params["body"], heads, steps))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert len(set(np.asarray(found[0][1]).tolist())) > 1


def test_epochs_are_passes_over_the_split():
    """Batches of 2 out of 2, 0, 1 and 3 rows, twice: ``2 (1 + 0 + 1 + 2)`` steps."""
    algo = tuned(plan=fl.Plan(2, epochs=2))
    metrics = algo.round(KEY, start(algo, DATA), DATA)[1]
    assert int(metrics["head_steps"]) == 8


def test_splits_that_nobody_reads_change_no_letter():
    client = fl.local_sgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.1))
    server = fl.optimizer_server(optax.sgd(1.0))
    texts = []
    for data in (DATA, fl.data.from_arrays(TRAINED, owners(SIZES), num_clients=5)):
        algo = fl.federated_algorithm(
            client, plan=fl.Plan(2), sampler=fl.everyone(), server=server, strategy=fl.chunked(2)
        )
        state = algo.init(KEY, jnp.zeros(()), data)
        texts.append(jax.jit(algo.round).lower(KEY, state, data).as_text())
    assert texts[0] == texts[1]


def test_parts_of_a_split_go_on_sharing_their_examples():
    whole = fl.data.from_arrays(TRAINED, owners(SIZES), num_clients=5)
    train, held = fl.data.split_clients(whole, 0.5, seed=1)
    both = fl.data.with_splits(train, {"held_out": held})
    assert both.splits["held_out"].examples["b"] is train.examples["b"]
    placed = replicate(both, mesh=fl.client_mesh())
    assert placed.splits["held_out"].examples["b"] is placed.examples["b"]
    assert fl.data.split_clients(both, 0.5, seed=2)[0].splits == {}


def test_what_does_not_fit_is_named():
    plain = fl.data.from_arrays(TRAINED, owners(SIZES), num_clients=5)
    algo = tuned()
    with pytest.raises(ValueError, match=r"split 'held_out'.*with_splits"):
        start(algo, plain)
    with pytest.raises(ValueError, match=r"split 'held_out'.*with_splits"):
        algo.round(KEY, start(algo, DATA), plain)
    with pytest.raises(TypeError, match="data of a Phase"):
        tuned(data=3)
    few = fl.data.from_arrays({"b": np.ones(2)}, [0, 1])
    with pytest.raises(ValueError, match="5 clients of data, got 2 for 'few'"):
        fl.data.with_splits(plain, {"few": few})
    with pytest.raises(TypeError, match="own kind"):
        fl.data.with_splits(plain, {"held_out": fl.StreamedDataset(ArrayStore(TESTED, HELD))})
    with pytest.raises(ValueError, match="populations by name"):
        fl.data.with_splits(plain, {})
    dealt = shard_population(plain, mesh=fl.client_mesh())
    with pytest.raises(TypeError, match="shard_population"):
        fl.data.with_splits(dealt, {"held_out": dealt})
    clock = fl.arrivals.clocked(fl.uniform(2), lambda key, info, traffic: 1.0 * info.num_steps)
    timed = fl.federated_algorithm(**{**algo.slots._asdict(), "sampler": clock})
    with pytest.raises(ValueError, match="sampler must not decide by clients' steps"):
        start(timed, DATA)
