"""Networks over columns: SGD and FedBCD, on the wire, with parties missing, under `run`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.parties import Part, joint

KEY = jax.random.key(0)
RNG = np.random.default_rng(2)
N = 11
X = {p: RNG.normal(size=(N, d)).astype(np.float32) for p, d in (("a", 2), ("b", 3), ("c", 4))}
DATA = fl.parties.from_columns(X, {"b": RNG.integers(0, 2, N)})
TRACED: list[int] = []
PLAN = fl.Plan(batch_size=4, epochs=2)  # three batches, of which the last has three examples


def dense(size, out, *, noisy=False):
    """A dense layer with tanh; a noisy one draws from its key in training."""

    def apply(params, x, key):
        TRACED.append(size)
        if noisy and key is not None:
            x = x * jax.random.bernoulli(key, 0.8, x.shape)
        return jnp.tanh(x @ params["w"])

    return Part(lambda key: {"w": jax.random.normal(key, (size, out))}, apply)


MODEL = fl.parties.vertical_model(
    {"a": dense(2, 2, noisy=True), "b": dense(3, 1), "c": dense(4, 3)},
    fl.models.linear(2, (6,)),
    holder="b",
)


def begun(model):
    """Parameters none of which is zero: a head of zeros would return no gradient."""
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)),
        jax.jit(model.init)(KEY),
    )


def same(found, expected, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        *(found, expected),
    )


@pytest.fixture(scope="module")
def once():
    """A round of Adam on minibatches."""
    algo = fl.parties.vertical_sgd(MODEL, optax.adam(0.05), plan=PLAN)
    start = algo.init(KEY, begun(MODEL), DATA)
    return algo, start, algo.round(KEY, start, DATA)


def test_is_training_of_the_whole_on_the_same_batches(once):
    """As FedAvg with one client has them, dropout and short batches included; and what it costs."""
    _, start, (state, metrics) = once
    data = fl.data.from_arrays(DATA.examples_of(), np.zeros(N, int), num_clients=1)
    whole = joint(MODEL)
    algo = fl.fedavg(whole.loss, optax.adam(0.05), plan=PLAN, sampler=fl.everyone())
    params = start.server.params
    expected, rows = algo.round(KEY, algo.init(KEY, params, data), data)
    found = state.server.params
    same(
        (found.bottoms, found.heads), (expected.server.params.bottoms, expected.server.params.heads)
    )
    np.testing.assert_allclose(metrics["train_loss"], rows["train_loss"], rtol=1e-6)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - np.asarray(b)).max(), found.bottoms, params.bottoms
    )
    assert min(jax.tree.leaves(moved)) > 0.01
    # Party a sends two numbers and c three, for each example of two epochs; the padding is none.
    assert metrics["uplink_bits"] == metrics["downlink_bits"] == 32 * (2 + 3) * 2 * N
    assert (metrics["num_exchanges"], metrics["num_parties"]) == (6, 3)


def test_stand_ins_are_means_of_what_was_sent(once):
    """In a round of one batch all activations are those of the first parameters."""
    algo = fl.parties.vertical_sgd(MODEL, optax.sgd(0.5), plan=fl.Plan(batch_size=None))
    start = algo.init(KEY, begun(MODEL), DATA)
    params = algo.round(KEY, start, DATA)[0].server.params
    for party in ("b", "c"):
        w = np.asarray(start.server.params.bottoms[party]["w"])
        np.testing.assert_allclose(
            params.stand_ins[party], np.tanh(X[party] @ w).mean(0), rtol=1e-5
        )
    # A party that is missing is replaced by it, and its features are not asked for.
    predict = joint(MODEL, missing=["c"]).predict
    found = predict(params, {"x": {party: X[party] for party in ("a", "b")}})
    h = [np.tanh(X[party] @ np.asarray(params.bottoms[party]["w"])) for party in ("a", "b")]
    h = np.concatenate([*h, np.repeat(params.stand_ins["c"][None], N, 0)], axis=1)
    head = MODEL.heads["b"].predict(params.heads["b"], {"x": h})
    np.testing.assert_allclose(found, head, rtol=1e-5)
    evaluate = fl.evaluator(joint(MODEL, missing=["c"]), DATA.examples_of())
    right = np.mean(np.argmax(head, 1) == np.asarray(DATA.labels["b"]))
    assert evaluate(algo.round(KEY, start, DATA)[0])["test_accuracy"] == pytest.approx(right)


def test_fedbcd_by_numpy():
    """Who has no label repeats its stale gradient; who has one sees its own part fresh."""
    x, y = {p: X[p] for p in ("a", "b")}, np.asarray(DATA.labels["b"], np.float64)
    data = fl.parties.from_columns(x, {"b": y.astype(np.float32)})
    model = fl.parties.regression("logistic", data)
    w = {p: np.zeros(v.shape[1]) for p, v in x.items()}
    bias, rate, steps = 0.0, 0.4, 3
    for _ in range(2):
        sent = x["a"] @ w["a"]
        stale = 1 / (1 + np.exp(-(sent + x["b"] @ w["b"] + bias))) - y
        w["a"] = w["a"] - steps * rate * x["a"].T @ stale / N
        for _ in range(steps):
            fresh = 1 / (1 + np.exp(-(sent + x["b"] @ w["b"] + bias))) - y
            w["b"] = w["b"] - rate * x["b"].T @ fresh / N
            bias -= rate * fresh.mean()
    algo = fl.parties.fedbcd(
        model, optax.sgd(rate), plan=fl.Plan(batch_size=None), local_steps=steps
    )
    state = algo.init(KEY, None, data)
    for _ in range(2):
        state, metrics = algo.round(KEY, state, data)
    found = state.server.params
    same(found.bottoms, w)
    np.testing.assert_allclose(found.heads["b"]["intercept"], bias, rtol=1e-5)
    assert metrics["uplink_bits"] == 32 * N  # one exchange, whatever is done with it
    assert (metrics["num_steps"], metrics["num_exchanges"]) == (3, 1)


@pytest.mark.filterwarnings("ignore:.*negative labels")
def test_unlabelled_rows_are_in_no_mean():
    """Two labels of four rows: the loss of either once, whatever batches the rows fall into."""
    x = {party: X[party][:4] for party in ("a", "b")}
    data = fl.parties.from_columns(x, {"b": np.array([-1, -1, 1, 0])})
    bottoms = {"a": dense(2, 2), "b": dense(3, 2)}
    model = fl.parties.vertical_model(bottoms, fl.models.linear(2, (4,)), holder="b")
    algo = fl.parties.vertical_sgd(model, optax.sgd(0.0), plan=fl.Plan(batch_size=2, epochs=2))
    start = algo.init(KEY, begun(model), data)
    labelled = data.take([2, 3]).examples_of()
    losses = jax.jit(lambda params: joint(model).loss(params, labelled, None))
    expected = losses(start.server.params).mean()
    found = [algo.round(jax.random.key(k), start, data)[1]["train_loss"] for k in range(4)]
    np.testing.assert_allclose(found, float(expected), rtol=1e-6)


def test_fedbcd_with_one_step_is_sgd(once):
    _, start, (expected, metrics) = once
    algo = fl.parties.fedbcd(MODEL, optax.adam(0.05), plan=PLAN, local_steps=1)
    found, rows = algo.round(KEY, start, DATA)
    same((found.server, rows), (expected.server, metrics), 0)


def test_several_holders():
    """Two parties with labels, one of them without features: gradients add up, all is billed."""
    y = {"b": np.asarray(DATA.labels["b"]), "court": RNG.integers(0, 3, N)}
    data = fl.parties.from_columns(X, y)
    heads = {"b": fl.models.linear(2, (6,)), "court": fl.models.linear(3, (6,))}
    model = fl.parties.vertical_model({**MODEL.bottoms, "a": dense(2, 2)}, heads)
    algo = fl.parties.vertical_sgd(model, optax.sgd(0.1), plan=fl.Plan(batch_size=None))
    start = algo.init(KEY, begun(model), data)
    params = start.server.params
    state, metrics = algo.round(KEY, start, data)

    def total(params):
        return sum(
            joint(model, holder=k).loss(params, data.examples_of(k), None).mean() for k in heads
        )

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    same(state.server.params.bottoms, expected.bottoms)
    same(state.server.params.heads, expected.heads)
    np.testing.assert_allclose(metrics["train_loss"], value, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["train_loss_b"] + metrics["train_loss_court"], value, rtol=1e-6
    )
    # a (2) and c (3) go to both, b (1) to the court; each gradient comes back from each.
    assert metrics["uplink_bits"] == metrics["downlink_bits"] == 32 * N * (2 * (2 + 3) + 1)
    # On the wire the gradients of either holder, each its own loss's; b gets none from itself.
    tapped = jax.jit(lambda params: fl.parties.wiretap(model, params, data, key=KEY))(params)
    receivers = {holder: sorted(returned) for holder, returned in tapped.by_holder.items()}
    assert receivers == {"b": ["a", "c"], "court": ["a", "b", "c"]}
    h = tapped.activations
    for holder, parties in tapped.by_holder.items():
        head, examples = model.heads[holder], {"y": data.labels[holder]}
        loss = jax.grad(
            lambda h, head=head, examples=examples, holder=holder: head.loss(
                params.heads[holder], {"x": model.combine(h), **examples}, None
            ).mean()
        )
        gradient = jax.jit(loss)(h)
        for party, returned in parties.items():
            np.testing.assert_allclose(returned, gradient[party], rtol=1e-4, atol=1e-8)


def test_absence():
    """Who is never there keeps everything and is billed nothing; the head trains on stand-ins."""
    plan = fl.Plan(batch_size=None)
    algo = fl.parties.vertical_sgd(MODEL, optax.adam(0.05), plan=plan, absence=1.0)
    start = algo.init(KEY, begun(MODEL), DATA)
    state, metrics = algo.round(KEY, start, DATA)
    before, after = start.server, state.server
    for party in ("a", "c"):
        same(after.params.bottoms[party], before.params.bottoms[party], 0)
        same(after.opt_state[party], before.opt_state[party], 0)
    assert metrics["uplink_bits"] == metrics["downlink_bits"] == 0
    alone = np.tanh(X["b"] @ np.asarray(before.params.bottoms["b"]["w"]))
    h = np.concatenate([np.zeros((N, 2)), alone, np.zeros((N, 3))], axis=1)
    loss = jax.jit(MODEL.heads["b"].loss)
    losses = loss(before.params.heads["b"], {"x": h, "y": DATA.labels["b"]}, None)
    np.testing.assert_allclose(metrics["train_loss"], np.mean(losses), rtol=1e-5)
    step = np.abs(after.params.bottoms["b"]["w"] - np.asarray(before.params.bottoms["b"]["w"]))
    assert float(step.max()) == pytest.approx(0.05, rel=1e-3)  # Adam's first
    # Half of the time: the bits of either party in about half of many batches.
    algo = fl.parties.vertical_sgd(
        MODEL, optax.sgd(0.0), plan=fl.Plan(batch_size=1, steps=400), absence=0.5
    )
    bits = algo.round(KEY, start._replace(server=_server(algo)), DATA)[1]["uplink_bits"]
    assert abs(bits / (32 * 5 * 400) - 0.5) < 0.1  # five and a half standard deviations


def _server(algo: Any) -> Any:
    return algo.init(KEY, begun(MODEL), DATA).server


def test_on_the_wire():
    """Each example's activation is clipped by itself; bits are the transform's; memory is none."""
    plan = fl.Plan(batch_size=None)
    algo = fl.parties.vertical_sgd(
        MODEL, optax.sgd(0.1), plan=plan, uplink=fl.clip(0.5), downlink=fl.top_k(1)
    )
    start = algo.init(KEY, begun(MODEL), DATA)
    state, metrics = algo.round(KEY, start, DATA)
    h = np.tanh(X["c"] @ np.asarray(start.server.params.bottoms["c"]["w"]))
    norms = np.linalg.norm(h, axis=1, keepdims=True)
    clipped = h * np.minimum(1, 0.5 / norms)
    assert (norms > 0.5).any()
    np.testing.assert_allclose(state.server.params.stand_ins["c"], clipped.mean(0), atol=1e-7)
    # The holder's own activation does not travel.
    own = np.tanh(X["b"] @ np.asarray(start.server.params.bottoms["b"]["w"])).mean(0)
    np.testing.assert_allclose(state.server.params.stand_ins["b"], own, rtol=1e-5)
    assert metrics["uplink_bits"] == 32 * N * (2 + 3)
    # The largest of two numbers and of three, and which it is.
    assert metrics["downlink_bits"] == N * ((32 + 1) + (32 + 2))
    for kept in (fl.error_feedback(fl.top_k(1)), fl.transforms.worker_momentum(0.9)):
        with pytest.raises(ValueError, match="uplink must not remember one message"):
            fl.parties.vertical_sgd(MODEL, optax.sgd(0.1), plan=plan, uplink=kept)


def test_run_resume_and_sweep(once, tmp_path):
    algo, start, _ = once
    evaluate = fl.evaluator(joint(MODEL), DATA.examples_of(), name="train_set")
    state, rows = fl.run(
        algo, KEY, start, DATA, num_rounds=4, every=2, progress=False, evaluate=evaluate
    )
    assert rows[-1]["uplink_bits_total"] == 4 * rows[-1]["uplink_bits"]
    assert rows[-1]["train_set_loss"] < rows[0]["train_set_loss"]
    options: Any = {"every": 2, "progress": False, "output_dir": tmp_path / "run"}
    fl.run(algo, KEY, start, DATA, num_rounds=2, **options)
    again, _ = fl.run(algo, KEY, start, DATA, num_rounds=4, resume=True, **options)
    same(again, state, 0)  # byte for byte
    params = begun(MODEL)
    swept = fl.sweep(
        lambda rate: fl.parties.vertical_sgd(MODEL, optax.adam(rate), plan=PLAN),
        {"rate": [0.05, 0.01]}, init=lambda key: params, data=DATA, num_rounds=4, progress=False,
    )  # fmt: skip
    first = jax.tree.map(lambda leaf: leaf[0], swept.states.server.params)
    same(first.bottoms, state.server.params.bottoms, 1e-5)


def test_one_optimizer_for_each_and_refusals():
    each = {"a": optax.sgd(0.0), "b": optax.sgd(0.1), "c": optax.adam(0.1)}
    plan = fl.Plan(batch_size=None)
    algo = fl.parties.vertical_sgd(MODEL, each, plan=plan)
    start = algo.init(KEY, begun(MODEL), DATA)
    state, _ = algo.round(KEY, start, DATA)
    same(state.server.params.bottoms["a"], start.server.params.bottoms["a"], 0)
    ends = (np.asarray(of.server.params.bottoms["c"]["w"]) for of in (state, start))
    np.testing.assert_allclose(np.abs(np.subtract(*ends)), 0.1, rtol=1e-3)  # Adam's first
    longer = fl.parties.vertical_sgd(MODEL, each, plan=fl.Plan(batch_size=4, steps=[1, 2]))
    with pytest.raises(ValueError, match="steps must have one value per client, got 2"):
        longer.init(KEY, None, DATA)
    with pytest.raises(ValueError, match=r"one for each of \['a', 'b', 'c'\], got \['a'\]"):
        fl.parties.vertical_sgd(MODEL, {"a": optax.sgd(0.1)}, plan=plan)
    with pytest.raises(ValueError, match="cohort must be None"):
        algo.round(KEY, start, DATA, fl.Cohort(jnp.arange(1), jnp.ones(1, bool)))
    with pytest.raises(ValueError, match=r"features of \['a', 'b', 'c'\], got \['a'\]"):
        algo.init(KEY, None, fl.parties.from_columns({"a": X["a"]}, {"b": DATA.labels["b"]}))
    with pytest.raises(TypeError, match="data must be a ColumnDataset, got a FederatedDataset"):
        algo.init(KEY, None, fl.testing.population())
    with pytest.raises(TypeError, match="params must be those of the model, got a dict"):
        algo.init(KEY, {"w": jnp.zeros(2)}, DATA)
    with pytest.raises(ValueError, match=r"missing must be parties of the model.*\['d'\]"):
        joint(MODEL, missing=["d"])
    bad = DATA.labels["b"].at[0].set(7)
    with pytest.raises(ValueError, match="7"):
        algo.round(KEY, start, fl.parties.from_columns(X, {"b": bad}))


def test_nothing_is_compiled_twice(once):
    """A second round has the shapes and types of the first, and reads nothing back."""
    algo, start, (state, _) = once
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), one) for one in (start, state)]
    assert kinds[0] == kinds[1]
    before = len(TRACED)
    with jax.transfer_guard("disallow"):
        algo.round(KEY, state, DATA)
    assert before
    assert len(TRACED) == before
