"""Every metric against numpy, example by example, and its merging over parts, clients, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.evaluate import passes
from fedjax_lite.models.model import Model

RNG = np.random.default_rng(0)
NUM, CLASSES, CLIENTS = 83, 4, 6
OWNERS = RNG.choice([0, 1, 3, 4, 5], NUM)  # client 2 has nothing
LOGITS = np.round(RNG.normal(size=(NUM, CLASSES)) * 2, 1).astype(np.float32)  # with ties
LABELS = np.where(RNG.random(NUM) < 0.15, -1, RNG.integers(0, CLASSES - 1, NUM)).astype(np.int32)
SITE = RNG.choice([0, 2, 3, -1], NUM).astype(np.int32)  # group 1 is empty


def given(outputs, counts=None):
    """A model that answers what the examples say."""

    def loss(params, examples, key):
        return jnp.zeros(len(examples["y"]))

    loss = loss if counts is None else fl.models.with_counts(loss, counts)
    return Model(lambda key: (), loss, lambda params, examples: params + outputs(examples))


MODEL = given(lambda e: e["z"], lambda e: e["y"] >= 0)
EXAMPLES = {"z": LOGITS, "y": LABELS, "site": SITE}
ONE = {"z": LOGITS[:, :1], "y": np.minimum(LABELS, 1), "site": SITE}
NUMBERS = {"z": LOGITS[:, 0], "y": LOGITS[:, 1], "site": SITE}


def accuracy(z, y):
    return np.mean(z.argmax(-1) == y)


def top_2(z, y):
    ranked = np.argsort(-z, axis=-1, kind="stable")[:, :2]
    return np.mean([y[i] in ranked[i] for i in range(len(y))])


def f1_of(z, y, average):
    answers, scores, right, either = z.argmax(-1), [], 0, 0
    for c in range(z.shape[-1]):
        hits = sum((answers == c) & (y == c))
        both = sum(answers == c) + sum(y == c)
        scores.append(2 * hits / both if both else np.nan)
        right, either = right + 2 * hits, either + both
    return {"macro": np.nanmean(scores), "micro": right / either, None: scores}[average]


def calibration(z, y, bins=5):
    p = np.exp(z.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    sure, right = p.max(-1), z.argmax(-1) == y
    total = 0.0
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    return total


def area(z, y):
    score = z[:, 0]
    pairs = [(p > n) + (p == n) / 2 for p in score[y == 1] for n in score[y == 0]]
    return np.mean(pairs) if pairs else np.nan


def rate(z, y, asked):
    return np.mean(z.argmax(-1)[asked] == 2) if asked.any() else np.nan


def distance(z, y):
    return np.abs(z - y).mean()


METRICS = {
    "mine": (fl.metrics.accuracy(), accuracy),
    "top_2": (fl.metrics.top_k_accuracy(2), top_2),
    "macro": (fl.metrics.f1(CLASSES), lambda z, y: f1_of(z, y, "macro")),
    "micro": (fl.metrics.f1(CLASSES, average="micro"), lambda z, y: f1_of(z, y, "micro")),
    "by_class": (fl.metrics.f1(CLASSES, average=None), lambda z, y: f1_of(z, y, None)),
    "positive": (fl.metrics.positive_rate(2), lambda z, y: rate(z, y, y >= 0)),
    "tpr": (fl.metrics.true_positive_rate(2), lambda z, y: rate(z, y, y == 2)),
    "fpr": (fl.metrics.false_positive_rate(2), lambda z, y: rate(z, y, y != 2)),
    "ece": (fl.metrics.expected_calibration_error(5), calibration),
}
PAIR = {"auc": (fl.metrics.auc(None), area), "fine": (fl.metrics.auc(5000), area)}
REAL = {"mae": (fl.metrics.mean_absolute_error(), distance)}
CASES = [(EXAMPLES, MODEL, METRICS), (ONE, MODEL, PAIR), (NUMBERS, given(lambda e: e["z"]), REAL)]


def expected(found, reference, where):
    labels = found["y"]
    counts = where & ((labels >= 0) if labels.dtype.kind == "i" else True)
    if not counts.any():
        return np.nan
    return reference(found["z"][counts], labels[counts])


def check(scores, found, metrics, atol=2e-6):
    """Clients, groups and all of them against numpy."""
    for name, (_, reference) in metrics.items():
        units = [(scores[name], OWNERS, range(CLIENTS))]
        if "groups" in scores:
            units.append((scores["groups"][name], SITE, range(4)))
        for values, numbers, range_ in units:
            assert len(values) == len(range_)
            for unit in range_:
                wanted = expected(found, reference, numbers == unit)
                np.testing.assert_allclose(values[unit], wanted, atol=atol, err_msg=name)
        wanted = expected(found, reference, np.ones(NUM, bool))
        np.testing.assert_allclose(scores["all"][name], wanted, atol=atol)


def population(found):
    return fl.data.from_arrays(found, OWNERS, num_clients=CLIENTS)


def streamed(found):
    order = np.argsort(OWNERS, kind="stable")
    arrays = {name: leaf[order] for name, leaf in found.items()}
    sizes = np.bincount(OWNERS, minlength=CLIENTS)
    return fl.StreamedDataset(fl.data.ArrayStore(arrays, sizes))


@pytest.mark.parametrize(("found", "model", "metrics"), CASES)
def test_all_evaluations_agree_with_numpy(found, model, metrics, monkeypatch):
    """However examples are batched, split into blocks of clients, streamed or passed over twice."""
    asked = {name: metric for name, (metric, _) in metrics.items()}
    zero, zeros = jnp.float32(0), jnp.zeros(CLIENTS)
    for data in (population(found), streamed(found)):
        scores = fl.evaluate_clients(model, zero, data, metrics=asked, groups="site", batch_size=20)
        check(scores, found, metrics)
        own = fl.evaluate_personal(model, zeros, data, metrics=asked, groups="site", batch_size=7)
        check(own, found, metrics)
    monkeypatch.setattr(passes, "SUMS", 2 * 4 * 3 * CLASSES)  # few clients at a time
    some = {name: metrics[name] for name in list(metrics)[::2]}
    asked = {name: asked[name] for name in some}
    data, groups = population(found), [0, 0, 1, 2, 0, 2]
    by_client = fl.evaluate_clients(model, zero, data, metrics=asked, groups=groups)
    for name, (_, reference) in some.items():
        wanted = expected(found, reference, np.isin(OWNERS, [0, 1, 4]))
        np.testing.assert_allclose(by_client["groups"][name][0], wanted, atol=2e-6)
        assert np.isnan(by_client["groups"][name][1]).all()  # client 2 alone, who has nothing
    del by_client["groups"]
    check(by_client, found, some)
    check(fl.evaluate_personal(model, zeros, data, metrics=asked), found, some)


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_populations_on_devices_agree_with_numpy():
    found, model, metrics = CASES[1]
    asked = {name: metric for name, (metric, _) in metrics.items()}
    data = fl.shard_population(population(found), mesh=fl.client_mesh())
    zeros = jnp.zeros(CLIENTS)
    scores = fl.evaluate_clients(model, zeros[0], data, metrics=asked, groups="site", batch_size=9)
    check(scores, found, metrics)
    own = fl.evaluate_personal(model, zeros, data, metrics=asked, groups="site", batch_size=7)
    check(own, found, metrics)
    assert own["size"].tolist() == np.bincount(OWNERS, ONE["y"] >= 0, CLIENTS).tolist()


@pytest.mark.sample(3)
@pytest.mark.parametrize(("found", "model", "metrics"), CASES)
@pytest.mark.parametrize("batch_size", [13, 1000])
def test_common_examples_agree_with_numpy(found, model, metrics, batch_size):
    asked = {name: metric for name, (metric, _) in metrics.items()}
    for groups in ("site", SITE):
        evaluate = fl.evaluator(
            model, found, metrics=asked, groups=groups, batch_size=batch_size, name="held_out"
        )
        row = evaluate(jnp.float32(0))
        assert all(isinstance(value, float) for value in row.values())
        for name, (_, reference) in metrics.items():
            for unit, suffix in [(None, ""), *((g, f"_group_{g}") for g in range(4))]:
                where = np.ones(NUM, bool) if unit is None else unit == SITE
                wanted = np.broadcast_to(expected(found, reference, where), np.shape(
                    expected(found, reference, np.ones(NUM, bool))))  # fmt: skip
                for place in np.ndindex(wanted.shape):
                    number = "".join(f"_{k}" for k in place)
                    got = row[f"held_out_{name}{number}{suffix}"]
                    np.testing.assert_allclose(got, wanted[place], atol=2e-6)


def test_the_histogram_is_as_near_as_it_says():
    """|AUC^ - AUC| is at most half the share of pairs within one bin."""
    data, params = population(ONE), jnp.float32(0)
    for bins in (2, 7, 50):
        asked = {"rough": fl.metrics.auc(bins), "exact": fl.metrics.auc(None)}
        found = fl.evaluate_clients(MODEL, params, data, metrics=asked)["all"]
        z, y = ONE["z"][:, 0].astype(np.float64), ONE["y"]
        place = np.minimum(np.floor((z / (1 + np.abs(z)) + 1) / 2 * bins), bins - 1)
        within = np.mean(place[y == 1][:, None] == place[y == 0][None])
        assert abs(found["rough"] - found["exact"]) <= within / 2 + 1e-9


def test_two_outputs_are_the_odds_of_the_second():
    both = {**ONE, "z": np.concatenate([np.zeros_like(ONE["z"]), ONE["z"]], axis=1)}
    for bins in (None, 100):
        asked = {"auc": fl.metrics.auc(bins), "f1": fl.metrics.f1(2, average=None)}
        first, second = (
            fl.evaluate_clients(MODEL, jnp.float32(0), population(found), metrics=asked)
            for found in (ONE, both)
        )
        for name in asked:
            np.testing.assert_allclose(first[name], second[name])
    assert np.isnan(first["auc"][2])


def test_sequences_count_their_labels_one_by_one():
    z = np.round(RNG.normal(size=(5, 3, CLASSES)), 1).astype(np.float32)
    y = RNG.integers(-1, CLASSES, (5, 3))
    y[0] = -1
    asked = {name: metric for name, (metric, _) in METRICS.items()}
    row = fl.evaluator(given(lambda e: e["z"]), {"z": z, "y": y}, metrics=asked)(jnp.float32(0))
    flat, labels = z[y >= 0], y[y >= 0]
    for name in ("mine", "top_2", "macro", "micro", "ece"):
        assert row[f"test_{name}"] == pytest.approx(METRICS[name][1](flat, labels), abs=1e-6)
    assert row["test_mine"] == pytest.approx(row["test_accuracy"])
    binary = {"z": z[..., :1], "y": np.minimum(y, 1)}
    asked = {"exact": fl.metrics.auc(None), "rough": fl.metrics.auc(9999)}
    row = fl.evaluator(given(lambda e: e["z"]), binary, metrics=asked)(jnp.float32(0))
    wanted = area(flat[:, :1], np.minimum(labels, 1))
    assert row["test_exact"] == pytest.approx(wanted)
    assert row["test_rough"] == pytest.approx(wanted)


def test_a_model_that_answers_nan_has_no_metric():
    asked = {"wide": fl.metrics.auc(None), "fine": fl.metrics.auc(100)}
    hurting = Model(
        MODEL.init,
        MODEL.loss,
        lambda params, e: jnp.where((e["site"] > params)[:, None], jnp.nan, e["z"]),
    )
    scores, bad = (
        fl.evaluate_clients(hurting, jnp.float32(limit), population(ONE), metrics=asked)
        for limit in (3, 2)
    )
    lost = [((i == OWNERS) & (ONE["y"] >= 0) & (SITE > 2)).any() for i in range(CLIENTS)]
    for name in asked:
        np.testing.assert_array_equal(np.isnan(bad[name]), np.isnan(scores[name]) | lost)
        assert np.isfinite(scores["all"][name])
        assert np.isnan(bad["all"][name])


ALL = {name: (found, one) for found, _, of in CASES for name, (one, _) in of.items()}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ALL)
def test_all_metrics_obey_the_laws(name):
    found, metric = ALL[name]
    fl.testing.check_metric(metric, found["z"][:12], {k: v[:12] for k, v in found.items()})


def test_all_metrics_are_here():
    tried = {metric.made.name for _, metric in ALL.values()}
    assert tried == {name for name in fl.metrics.__all__ if name.islower()}


WRONG = {
    "examples_are_measured_alone": fl.metrics.Metric(
        lambda z, e: jnp.broadcast_to(z.mean(), e["y"].shape), lambda sums: sums
    ),
    "measuring_is_pure": fl.metrics.Metric(
        lambda z, e: z + isinstance(z, jax.core.Tracer), lambda sums: sums
    ),
    "units_are_told_apart": fl.metrics.Metric(lambda z, e: z, lambda sums: sums / sums.sum()),
    "order_of_examples_does_not_matter": fl.metrics.HostMetric(
        lambda z, e: z, lambda values, units, n: np.bincount(units, values * np.arange(len(units)))
    ),
}


@pytest.mark.parametrize("law", WRONG)
def test_laws_find_what_is_wrong(law):
    z = jnp.arange(1.0, 13.0)
    with pytest.raises(AssertionError, match=law):
        fl.testing.check_metric(WRONG[law], z, {"y": jnp.zeros(12)}, laws=[law])


def test_examples_that_do_not_count_leave_no_trace_even_as_nan():
    asked = {name: metric for name, (metric, _) in METRICS.items()}
    spoilt = MODEL._replace(
        predict=lambda params, e: jnp.where((e["y"] < 0)[:, None], jnp.nan, params + e["z"])
    )
    for metrics, found in ((asked, EXAMPLES), ({"auc": fl.metrics.auc(None)}, ONE)):
        clean, hurt = (
            fl.evaluate_clients(model, jnp.float32(0), population(found), metrics=metrics)
            for model in (MODEL, spoilt)
        )
        for name in metrics:
            np.testing.assert_array_equal(clean[name], hurt[name])
            np.testing.assert_array_equal(clean["all"][name], hurt["all"][name])


def test_what_does_not_fit_is_refused_before_anything_is_computed():
    data, zero = population(EXAMPLES), jnp.float32(0)

    def ask(metrics, groups=None, found=data):
        return fl.evaluate_clients(MODEL, zero, found, metrics=metrics, groups=groups)

    for metrics, error, words in (
        ({"f1": fl.metrics.f1}, TypeError, "was a factory not called"),
        ({"loss": fl.metrics.accuracy()}, ValueError, "another name"),
        ([fl.metrics.accuracy()], TypeError, "dict"),
        ({"f1": fl.metrics.f1(3)}, ValueError, r"give fl.metrics.f1\(4\)"),
        ({"auc": fl.metrics.auc()}, ValueError, "two classes"),
        ({"mae": fl.metrics.mean_absolute_error()}, ValueError, "one output a target"),
        ({"own": fl.metrics.Metric(lambda z, e: z.sum(), len)}, ValueError, "per example"),
        ({"own": fl.metrics.Metric(lambda z, e: e["y"], np.sum)}, ValueError, "figure a unit"),
    ):
        with pytest.raises(error, match=words):
            ask(metrics)
    with pytest.raises(ValueError, match="mean_absolute_error"):
        ask({"f1": fl.metrics.f1(2)}, found=population(NUMBERS))
    for groups, error, words in (
        ("nowhere", ValueError, r"\['site', 'y', 'z'\]"),
        ("z", ValueError, "one integer an example"),
        ([0, 1], ValueError, "6 of them, got 2"),
        (np.zeros(CLIENTS), TypeError, "integers"),
        ([-1] * CLIENTS, ValueError, "hold a group"),
    ):
        with pytest.raises(error, match=words):
            ask(None, groups)
    for make in (
        lambda: fl.metrics.f1(1),
        lambda: fl.metrics.f1(3, average="weighted"),
        lambda: fl.metrics.top_k_accuracy(0),
        lambda: fl.metrics.auc(1),
        lambda: fl.metrics.expected_calibration_error(0),
    ):
        with pytest.raises(ValueError):
            make()


def test_asking_again_compiles_nothing():
    data = population(EXAMPLES)
    traces = []

    def predict(params, examples):
        traces.append(None)
        return params + examples["z"]

    model = MODEL._replace(predict=predict)
    for _ in range(2):
        fl.evaluate_clients(model, jnp.float32(0), data, metrics={"f1": fl.metrics.f1(CLASSES)})
        count = len(traces)
        fl.evaluate_clients(model, jnp.float32(1), data, metrics={"f1": fl.metrics.f1(CLASSES)})
        assert len(traces) == count
