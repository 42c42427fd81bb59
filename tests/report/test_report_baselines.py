"""Baselines in one call: closed forms on quadratics, budgets, and the picture of who gains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.report import baselines, plot_side_by_side
from fedjax_lite.report.baselines import of_union

A, B, N, ETA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05
P = N / N.sum()
K, ROUNDS = 5, 3
SGD = optax.sgd(ETA)
MODEL = fl.models.Model(
    lambda key: jnp.zeros(()),
    lambda w, e, key: 0.5 * e["a"] * (w - e["y"]) ** 2,
    lambda w, e: w - e["y"],
)
WHOLE = fl.Plan(batch_size=None, steps=K)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def q2():
    owners = np.repeat([0, 1], N)
    return fl.data.from_arrays({"a": A[owners], "y": B[owners]}, owners)


@pytest.fixture(scope="module")
def found(q2):
    pull = 1.0
    methods = {
        "Ditto": fl.ditto(MODEL.loss, SGD, pull=pull, plan=WHOLE, sampler=fl.everyone()),
        "tuned": fl.fine_tuned(MODEL.loss, SGD, q2, plan=WHOLE),
    }
    return baselines(
        *(MODEL, SGD, q2, q2), plan=WHOLE, num_rounds=ROUNDS, methods=methods, metric="loss"
    )


def losses(x):
    return 0.5 * A * (x - B) ** 2


def test_closed_forms(found):
    left = (1 - ETA * A) ** K  # of the way to a client's optimum, after a round
    x, ditto, start = 0.0, np.zeros(2), 0.0
    for _ in range(ROUNDS):
        start = x
        for _ in range(K):
            ditto = ditto - ETA * (A * (ditto - B) + (ditto - start))
        x = P @ (B + left * (x - B))
    expected = {
        "global": np.full(2, x),
        "local only": B + left**ROUNDS * (0 - B),
        # dF/dx = 1.75 (x - 5/7), K steps a round
        "centralised": np.full(2, 5 / 7 * (1 - (1 - 1.75 * ETA) ** (K * ROUNDS))),
        "Ditto": ditto,
        "tuned": B + left * (x - B),
    }
    assert list(found.scores) == list(found.models) == list(expected)
    for name, models in expected.items():
        np.testing.assert_allclose(found.scores[name]["scores"], losses(models), rtol=1e-9)
        gained = losses(expected["global"]) - losses(models)
        assert found.scores[name]["gain"] == pytest.approx(gained.mean(), abs=1e-12)
    assert found.num_rounds == {**dict.fromkeys(expected, ROUNDS), "tuned": 0}


def test_the_union_gets_as_many_examples_as_the_cohorts():
    """Half of the clients a round. Counted by a loss of slope one: the model is its steps."""
    counting = MODEL._replace(loss=lambda w, e, key: w + 0 * e["y"])
    ones = fl.data.from_arrays({"y": np.zeros(40)}, np.repeat(np.arange(4), 10))
    slots = {"plan": fl.Plan(batch_size=5, epochs=2), "sampler": fl.uniform(2), "num_rounds": 4}
    got = baselines(counting, optax.sgd(1.0), ones, ones, metric="loss", **slots)
    assert got.num_rounds["centralised"] == 2
    steps = 2 * 2 * 40 // 5
    np.testing.assert_allclose(got.models["centralised"].server.params, -steps, rtol=1e-12)


@pytest.mark.parametrize(
    ("plan", "steps"), [(fl.Plan(5, steps=3), 12), (WHOLE, K), (fl.Plan(5, epochs=2), None)]
)
def test_work_on_the_union(plan, steps):
    """Minibatch steps of four clients one after the other; steps of whole data sets as they are."""
    union = of_union(plan, 4)
    assert (union.steps, union.epochs, union.batch_size) == (steps, plan.epochs, plan.batch_size)


def test_the_picture(found, tmp_path):
    figure = plot_side_by_side(
        found.scores, dataset="Q2", metric="loss", split="test", path=tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    *panels, summary = figure.axes
    assert len(panels) == 4
    for panel, (name, row) in zip(panels, list(found.scores.items())[1:], strict=True):
        base, points = found.scores["global"]["scores"], panel.collections[0].get_offsets()
        np.testing.assert_allclose(points, np.stack([base, row["scores"]], 1))
        gain, lose = (row["scores"] < base).sum(), (row["scores"] > base).sum()
        assert panel.get_title() == f"{name}: {gain} gain, {lose} lose"
    assert [label.get_text() for label in summary.get_yticklabels()] == list(found.scores)
    tails, means = (line.get_xdata() for line in summary.lines)
    np.testing.assert_allclose(means, [row["mean"] for row in found.scores.values()])
    np.testing.assert_allclose(tails, [row["worst"] for row in found.scores.values()])


def test_wrong_input(q2, found):
    def call(train=q2, test=q2, plan=WHOLE, **more):
        return baselines(MODEL, SGD, train, test, plan=plan, num_rounds=1, metric="loss", **more)

    with pytest.raises(TypeError, match="test must be a FederatedDataset"):
        call(test={"y": B})
    with pytest.raises(ValueError, match="train and test must have the same clients, got 2 and 1"):
        call(test=fl.algorithms.pooled(q2))
    with pytest.raises(ValueError, match="methods must have names of their own, got 'global'"):
        call(methods={"global": fl.fedavg(MODEL.loss, SGD, plan=WHOLE, sampler=fl.everyone())})
    with pytest.raises(TypeError, match=r"methods\['mine'\] must be an algorithm"):
        call(methods={"mine": 3})
    with pytest.raises(ValueError, match="plan must have the same steps for all clients"):
        call(plan=fl.Plan(batch_size=5, steps=jnp.array([1, 2])))
    with pytest.raises(ValueError, match="two models or more"):
        plot_side_by_side({"global": found.scores["global"]}, dataset="Q2")
    with pytest.raises(ValueError, match="against must be one of"):
        plot_side_by_side(found.scores, dataset="Q2", against="mine")
    with pytest.raises(ValueError, match="metric must be"):
        plot_side_by_side(found.scores, dataset="Q2", metric="f1")
