"""Ensembles: the parts of their uncertainty, calibration, and what they do not know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

UN = fl.uncertainty
RNG = np.random.default_rng(0)


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_entropies_of_known_ensembles():
    def parts(p):
        return np.array(UN.decompose(np.array(p)))

    with jax.enable_x64(True):
        expected = (0.6108643021, 0.5091150770, 0.1017492251)
        np.testing.assert_allclose(parts([[0.9, 0.1], [0.5, 0.5]]), expected, atol=1e-9)
        assert parts([[0.9, 0.1]] * 3)[2] == 0  # identical members: nothing is unknown
        np.testing.assert_allclose(parts(np.eye(2)), (np.log(2), 0, np.log(2)), atol=1e-12)
        found = UN.decompose_regression([1.0, 3.0], [0.5, 1.5])
        np.testing.assert_allclose(np.array(found), (2, 1, 1), atol=1e-12)


def test_epistemic_part_is_the_mean_divergence_from_the_mean():
    p = softmax(RNG.normal(size=(4, 6, 3)))
    mean = p.mean(0)
    expected = (p * (np.log(p) - np.log(mean))).sum(-1).mean(0)
    np.testing.assert_allclose(UN.decompose(p).epistemic, expected, atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """Three seeds of ten-class digits, two rounds, and FedAvg itself."""
    train, test = fl.data.load("digits")
    data = fl.data.partition(train, fl.data.iid(num_clients=4, seed=0))
    model = fl.models.mlp((8,), num_classes=10, input_shape=(8, 8, 1))
    plan = fl.Plan(batch_size=50, steps=3)
    algo = fl.fedavg(model.loss, optax.sgd(0.2), plan=plan, sampler=fl.uniform(2))
    options = {"init": model.init, "data": data, "num_rounds": 2, "progress": False}
    found = fl.ensemble(algo, seeds=[0, 7, 3], **options)
    return model, algo, data, test, found


def test_a_member_is_the_plain_run_of_its_seed(trained):
    model, algo, data, _, found = trained
    key = jax.random.key(7)
    state = jax.jit(lambda key, data: algo.init(key, model.init(key), data))(key, data)
    for _ in range(2):
        state, _ = algo.round(key, state, data)
    for mine, theirs in zip(*map(jax.tree.leaves, (state.server.params, found.members))):
        np.testing.assert_allclose(mine, theirs[1], atol=1e-4)
    assert [point["seed"] for point in found.runs.points] == [0, 7, 3]


QUADRATIC = {"plan": fl.Plan(batch_size=1), "sampler": fl.everyone()}


def quadratic(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def test_members_of_a_method_with_rows():
    """Ditto's shared model is FedAvg's, the mean of three; two members are not three clients."""
    data = fl.data.from_arrays({"b": np.array([-1.0, 2.0, 5.0], np.float32)}, range(3))
    algo = fl.ditto(quadratic, optax.sgd(1.0), pull=0.5, **QUADRATIC)
    options = {"init": lambda key: jnp.float32(0), "data": data, "num_rounds": 1}
    found = fl.ensemble(algo, seeds=[3, 4], progress=False, **options)
    np.testing.assert_allclose(found.members, [2.0, 2.0], rtol=1e-6)
    alone = fl.local_only(quadratic, optax.sgd(1.0), **QUADRATIC)
    with pytest.raises(TypeError, match="one whole model for all clients"):
        fl.ensemble(alone, progress=False, evaluate=lambda state: pytest.fail("trained"), **options)


def test_scores_of_an_ensemble_by_numpy(trained):
    model, _, _, test, found = trained
    p = np.asarray(UN.member_probabilities(model, found.members, test, batch_size=100))
    predict = jax.jit(model.predict)
    for m in (0, 2):
        params = jax.tree.map(lambda leaf, m=m: leaf[m], found.members)
        np.testing.assert_allclose(p[m], softmax(np.asarray(predict(params, test))), atol=1e-5)
    scores = UN.ensemble_scores(model, found.members, test, batch_size=100)
    y, rows, mean = np.asarray(test["y"]), np.arange(len(test["y"])), p.mean(0)
    assert scores["accuracy"] == np.mean(mean.argmax(-1) == y)
    np.testing.assert_allclose(scores["nll"], -np.log(mean[rows, y]).mean(), rtol=1e-5)
    members = -np.log(p[:, rows, y])
    np.testing.assert_allclose(scores["member_nll"], members.mean(), rtol=1e-5)
    assert scores["nll"] < scores["member_nll"]  # Jensen
    np.testing.assert_allclose(
        scores["total"], scores["aleatoric"] + scores["epistemic"], rtol=1e-5
    )
    votes = p.argmax(-1)
    pairs = [np.mean(votes[i] != votes[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(scores["disagreement"], np.mean(pairs), atol=1e-12)


def test_a_diagram_bins_as_the_metric_of_evaluations_does(trained):
    model, _, _, test, found = trained
    params = jax.tree.map(lambda leaf: leaf[0], found.members)
    one = jax.tree.map(lambda leaf: leaf[None], params)
    p = np.asarray(UN.member_probabilities(model, one, test))[0]
    diagram = UN.reliability(p, test["y"], bins=10)
    metric = {"ece": fl.metrics.expected_calibration_error(10)}
    scored = fl.evaluator(model, test, metrics=metric)(params)
    np.testing.assert_allclose(diagram.error, scored["test_ece"], atol=1e-5)
    assert diagram.counts.sum() == len(test["y"])
    sure, right = p.max(-1), p.argmax(-1) == np.asarray(test["y"])
    for m in np.flatnonzero(diagram.counts):
        inside = (sure > diagram.edges[m]) & (sure <= diagram.edges[m + 1])
        np.testing.assert_allclose(diagram.accuracy[m], right[inside].mean())
        np.testing.assert_allclose(diagram.confidence[m], sure[inside].mean())
    figure = fl.report.plot_reliability({"first seed": diagram}, dataset="digits")
    heights = [bar.get_height() for bar in figure.axes[0].patches[:10]]
    np.testing.assert_array_equal(heights, diagram.accuracy)


def test_members_from_clients_average_to_the_round_and_spread_by_its_metric():
    data = fl.data.from_arrays({"b": np.array([-1.0, 2.0, 2.0, 5.0])}, [0, 1, 1, 2])

    def loss(w, e, key):
        return 0.5 * (w - e["b"]) ** 2

    slots = {"plan": fl.Plan(batch_size=None, steps=2), "sampler": fl.everyone()}
    algo = fl.fedavg(
        loss, optax.sgd(0.5), aggregator=fl.diagnosed(fl.mean(), weighting="message"), **slots
    )
    key = jax.random.key(0)
    state = algo.init(key, jnp.array(0.0), data)
    members = fl.uncertainty.client_members(algo, key, state, data, [0, 1, 2])
    expected = 0.75 * np.array([-1.0, 2.0, 5.0])  # two steps of one half each
    np.testing.assert_allclose(members, expected, atol=1e-6)
    after, metrics = algo.round(key, state, data)
    shares = np.array([1, 2, 1]) / 4
    np.testing.assert_allclose(after.server.params, shares @ expected, atol=1e-6)
    spread = shares @ (expected - shares @ expected) ** 2
    np.testing.assert_allclose(metrics["drift_variance"], spread, rtol=1e-5)
    with pytest.raises(ValueError, match="clients must lie in 0 to 2"):
        fl.uncertainty.client_members(algo, key, state, data, [3])


def test_temperature_of_closed_forms_and_bounds():
    logits = np.array([[3.0, 0.0]] * 5)  # sure by 3, right four times in five: T = 3 / ln 4
    np.testing.assert_allclose(UN.fit_temperature(logits, [0, 0, 0, 0, 1]), 3 / np.log(4), 1e-12)
    assert UN.fit_temperature(logits, [0] * 5) == 0.01
    assert UN.fit_temperature(logits, [1] * 5, highest=7.0) == 7.0
    z, y = RNG.normal(size=(300, 4)), RNG.integers(0, 4, 300)
    z[np.arange(300), y] += 1.0
    best = UN.fit_temperature(4 * z, y)
    np.testing.assert_allclose(best, 4 * UN.fit_temperature(z, y), rtol=1e-10)

    def nll(t):
        return -np.log(softmax(4 * z / t)[np.arange(300), y]).mean()

    assert nll(best) < min(nll(0.99 * best), nll(1.01 * best))
    ignored = np.concatenate([y, [-1]])
    more = np.concatenate([4 * z, [[1e3, 0, 0, 0]]])
    np.testing.assert_allclose(UN.fit_temperature(more, ignored), best, rtol=1e-12)


def test_auroc_counts_pairs():
    inside, outside = RNG.integers(0, 6, 20) / 6, RNG.integers(2, 8, 15) / 6
    pairs = [(o > i) + 0.5 * (o == i) for i in inside for o in outside]
    np.testing.assert_allclose(UN.ood_auroc(inside, outside), np.mean(pairs), atol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match=r"probabilities must not be negative and sum to 1"):
        UN.decompose([[2.0, 1.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="members must hold models side by side"):
        UN.member_probabilities(
            fl.models.linear(2, (3,)), {"a": np.ones(2), "b": np.ones(3)}, {"y": np.zeros(2, int)}
        )
    with pytest.raises(ValueError, match=r"probabilities must be \[E, ..., K\]"):
        UN.reliability([0.5], [0])
    model, examples = fl.models.linear(2, (3,)), {"x": np.ones((2, 3)), "y": np.array([0, 2])}
    members = fl.several_models(model.init, jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"labels of 0 to 1.* got 2; .*num_classes=3"):
        UN.ensemble_scores(model, members, examples)
    key, state = jax.random.key(0), None
    with pytest.raises(TypeError, match="algo must be a FederatedAlgorithm, got None"):
        UN.client_members(None, key, state, None, [0])
    algo = fl.fedavg(quadratic, optax.sgd(1.0), **QUADRATIC)
    with pytest.raises(TypeError, match="state must be a RoundState, got None"):
        UN.client_members(algo, key, state, None, [0])
    with pytest.raises(ValueError, match="lowest and highest"):
        UN.fit_temperature([[1.0, 0.0]], [0], lowest=2.0, highest=1.0)
    with pytest.raises(ValueError, match="unfamiliar must be scores"):
        UN.ood_auroc([0.1], [])
