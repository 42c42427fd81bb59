"""client_evaluator: every client's held-out data as columns of a history."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIZES = np.array([16, 0, 9, 12, 20])
OWNERS = np.repeat(np.arange(5), SIZES)
X = RNG.normal(size=(57, 3)).astype(np.float32)
Y = (X[:, 0] * (1 - 2 * (OWNERS % 2)) > 0).astype(np.int32)  # clients disagree
DATA = fl.data.from_arrays({"x": X, "y": Y}, OWNERS, num_clients=5)
TRAIN, TEST = fl.data.split_clients(DATA, 0.4, seed=0)
MODEL = fl.models.linear(2, (3,))
PLAN = fl.Plan(batch_size=4)
METRICS = {"f1": fl.metrics.f1(2), "classes": fl.metrics.f1(2, average=None)}


def trained(algo, data=TRAIN, **more):
    state = jax.jit(lambda key, data: algo.init(key, MODEL.init(key), data))(KEY, data)
    return fl.run(algo, KEY, state, data, num_rounds=2, every=1, progress=False, **more)


def test_a_history_holds_the_held_out_figures_of_all_clients():
    evaluate = fl.client_evaluator(MODEL, TEST, metrics=METRICS, groups=[0, 0, 1, 3, 1], worst=0.5)
    algo = fl.local_only(MODEL.loss, optax.sgd(0.5), plan=PLAN)
    state, history = trained(algo, evaluate=evaluate)
    row, ids = history[-1], np.arange(5)
    models = jax.device_get(algo.models(state, ids))
    hits = []
    for i in ids:
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], models)
        test = TEST.client(int(i))
        logits = np.asarray(test["x"]) @ mine["head"]["kernel"] + mine["head"]["bias"]
        hits.append(logits.argmax(-1) == np.asarray(test["y"]))
    shares = np.array([one.mean() if len(one) else np.nan for one in hits])
    assert row["test_accuracy"] == pytest.approx(np.concatenate(hits).mean())
    assert row["test_accuracy_mean"] == pytest.approx(np.nanmean(shares))
    assert row["test_accuracy_worst"] == pytest.approx(np.sort(shares)[:2].mean())
    for group, members in enumerate([[0, 1], [2, 4], [], [3]]):
        wanted = np.concatenate([hits[i] for i in members]).mean() if members else np.nan
        np.testing.assert_allclose(row[f"test_accuracy_group_{group}"], wanted)
    scores = fl.evaluate_personal(MODEL, state, TEST, metrics=METRICS)
    assert row["test_loss_worst"] == pytest.approx(np.sort(scores["loss"][shares >= 0])[-2:].mean())
    assert row["test_f1"] == scores["all"]["f1"]
    assert row["test_classes_1"] == scores["all"]["classes"][1]
    assert "test_classes_mean" not in row
    assert not [name for name in row if name.startswith("test_server")]  # nobody trains it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """A row that is a whole model, beside a server's that is trained, too."""

    params: object

    def own_model(self, server_model):
        return self.params


def test_common_and_personal_models_are_told_apart():
    evaluate = fl.client_evaluator(MODEL, TEST, metrics=METRICS)
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.5), plan=PLAN, sampler=fl.everyone())
    state, history = trained(algo, evaluate=evaluate)
    pooled = fl.evaluator(MODEL, TEST.owned_examples(), metrics=METRICS)(state)
    for name, value in pooled.items():
        assert history[-1][name] == pytest.approx(value, rel=1e-6)
    assert "test_server_loss" not in history[-1]
    assert evaluate(state.server.params) == evaluate(state)
    models = jax.tree.map(lambda p: jnp.stack([p * (i - 2) for i in range(5)]), state.server.params)
    both = evaluate(state._replace(clients=Own(models)))
    for name, value in pooled.items():
        assert both[name.replace("test", "test_server")] == pytest.approx(value, rel=1e-6)
    own = fl.evaluate_personal(MODEL, models, TEST, metrics=METRICS)["all"]
    assert both["test_accuracy"] == own["accuracy"] != both["test_server_accuracy"]


def test_a_wrong_split_is_told():
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.5), plan=PLAN, sampler=fl.everyone())
    with pytest.warns(UserWarning, match="split_clients"):
        trained(algo, evaluate=fl.client_evaluator(MODEL, TRAIN))
    with pytest.warns(UserWarning, match="client_evaluator"):
        trained(algo, evaluate=fl.evaluator(MODEL, TEST.examples))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(algo, evaluate=fl.client_evaluator(MODEL, TRAIN, name="train_set"))
        trained(algo, evaluate=fl.client_evaluator(MODEL, TEST))
        trained(algo, evaluate=fl.evaluator(MODEL, TEST.owned_examples()))


def test_a_column_of_the_round_is_not_taken_twice():
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.5), plan=PLAN, sampler=fl.everyone())
    with pytest.raises(ValueError, match="train_loss"):
        trained(algo, evaluate=fl.client_evaluator(MODEL, TEST, name="train"))


def test_bad_arguments_are_refused_when_it_is_made():
    for arguments, error, words in (
        ({"worst": 0.0}, ValueError, "worst"),
        ({"groups": [0]}, ValueError, "5 of them"),
        ({"metrics": {"f1": 3}}, TypeError, "Metric"),
        ({"name": 3}, TypeError, "name"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ):
        with pytest.raises(error, match=words):
            fl.client_evaluator(MODEL, TEST, **arguments)
    with pytest.raises(TypeError, match="FederatedDataset"):
        fl.client_evaluator(MODEL, {"x": X, "y": Y})
