"""Membership inference: AUC by brute force, intervals that cover, bounds by DP, real attacks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score

import fedjax_lite as fl
from fedjax_lite.attacks import membership


def test_known_answer():
    report = membership.membership_report([-0.1, -0.2, -0.4], [-0.3, -0.5, -0.6])
    assert report.auc == pytest.approx(8 / 9)
    assert report.advantage == pytest.approx(2 / 3)
    assert (report.num_members, report.num_non_members) == (3, 3)


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_auc_and_advantage_by_brute_force_with_ties(digits):
    rng = np.random.default_rng(digits)
    inside, outside = rng.normal(0.5, 1, 40).round(digits), rng.normal(size=31).round(digits)
    report = membership.membership_report(inside, outside, fprs=(0.1, 0.0, 1.0))
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert report.auc == pytest.approx(np.mean(wins))
    labels = np.repeat([1, 0], [40, 31])
    assert report.auc == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])))
    points = [((inside >= t).mean(), (outside >= t).mean()) for t in [*inside, *outside, math.inf]]
    assert report.advantage == pytest.approx(max(t - f for t, f in points))
    at = (inside >= report.threshold).mean() - (outside >= report.threshold).mean()
    assert at == pytest.approx(report.advantage)
    for rate, tpr in report.tpr_at_fpr.items():
        assert tpr == pytest.approx(max(t for t, f in points if f <= rate))


def test_interval_covers_as_often_as_it_says():
    """N(.7, 1) against N(0, 1): AUC Phi(.7 / sqrt 2); 300 intervals at 90 %."""
    rng, true = np.random.default_rng(0), stats.norm.cdf(0.7 / math.sqrt(2))
    hits = 0
    for _ in range(300):
        report = membership.membership_report(
            rng.normal(0.7, 1, 60), rng.normal(size=80), confidence=0.9
        )
        hits += report.auc_low <= true <= report.auc_high
    assert abs(hits - 270) < 4 * math.sqrt(300 * 0.9 * 0.1)


def test_bounds_that_privacy_sets():
    for epsilon, expected in ((0.1, 0.0499584), (0.5, 0.2449187), (1, 0.4621172), (2, 0.7615942)):
        got = membership.advantage_bound(epsilon)
        assert got == pytest.approx(expected, abs=5e-8)
        assert got == pytest.approx((math.exp(epsilon) - 1) / (math.exp(epsilon) + 1))
    assert membership.gdp_advantage_bound(1.0) == pytest.approx(0.3829249, abs=5e-8)
    assert membership.gdp_advantage_bound(1.0) == pytest.approx(2 * stats.norm.cdf(0.5) - 1)
    assert membership.advantage_bound(0.0, delta=0.1) == pytest.approx(0.1)
    assert membership.advantage_bound(1000.0, delta=0.1) == 1.0


def test_no_attack_beats_the_bound():
    """Randomised response attains it for epsilon; two Gaussians attain it for mu."""
    for epsilon in (0.3, 2.0):
        truth = 1 / (1 + math.exp(-epsilon))
        assert 2 * truth - 1 == pytest.approx(membership.advantage_bound(epsilon))
    for mu in (0.4, 2.0):
        distance, _ = integrate.quad(
            lambda x, mu=mu: 0.5 * abs(stats.norm.pdf(x, mu) - stats.norm.pdf(x)),
            -12, 12, points=[mu / 2],
        )  # fmt: skip
        assert distance == pytest.approx(membership.gdp_advantage_bound(mu), abs=1e-7)


@pytest.fixture(scope="module")
def problem():
    """Ten sets of 50 with a rule to learn and three labels of ten flipped, to be memorised."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 20)).astype(np.float32)
    y = (x[:, :2].sum(1) > 0) ^ (rng.uniform(size=500) < 0.3)
    return [{"x": x[i : i + 50], "y": y[i : i + 50].astype(np.int32)} for i in range(0, 500, 50)]


MODEL = fl.models.mlp((64,), num_classes=2, input_shape=(20,))


@pytest.fixture(scope="module")
def trained(problem):
    @jax.jit
    def fit(params, examples):
        def step(carry, _):
            params, opt_state = carry
            grads = jax.grad(lambda p: MODEL.loss(p, examples, None).mean())(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        tx = optax.adam(0.01)
        return jax.lax.scan(step, (params, tx.init(params)), None, length=150)[0][0]

    params = MODEL.init(jax.random.key(0))
    return params, [fit(params, jax.tree.map(jnp.asarray, part)) for part in problem]


def test_untrained_model_is_at_chance_and_an_overfitted_one_is_not(problem, trained):
    start, models = trained
    members, others = problem[0], problem[1]
    blind = membership.membership_inference(MODEL.loss, start, members=members, non_members=others)
    assert blind.auc_low < 0.5 < blind.auc_high
    leaky = membership.membership_inference(
        MODEL.loss, models[0], members=members, non_members=others, batch_size=17
    )
    assert leaky.auc_low > 0.6
    assert leaky.advantage > 0.3


def test_references_work_on_models_and_tell_which_was_trained_on_what(problem, trained):
    _, models = trained
    sets = {"members": problem[0], "non_members": problem[1], "references": models[2:]}
    first = membership.membership_inference(MODEL.loss, models[0], **sets)
    assert first.auc_low > 0.6
    second = membership.membership_inference(MODEL.loss, models[1], **sets)
    assert second.auc_high < 0.4, "the other model's members are the other set"


def test_references_tell_an_easy_example_from_a_memorised_one():
    """Difficulty N(0, 3), membership worth 1: AUC Phi(1 / sqrt(2 s)) by what is left of s."""
    rng, n = np.random.default_rng(0), 2000
    difficulty, member = rng.normal(0, 3, 2 * n), np.repeat([1.0, 0.0], n)
    to_loss = lambda logit: np.logaddexp(0, -logit)  # noqa: E731
    losses = to_loss(difficulty + member + rng.normal(0, 0.5, 2 * n))
    others = to_loss(difficulty + rng.normal(0, 0.5, (8, 2 * n)))
    plain = membership.membership_report(-losses[:n], -losses[n:])
    scores = membership.offline_lira(losses, others)
    calibrated = membership.membership_report(scores[:n], scores[n:])
    for report, variance in ((plain, 9.25), (calibrated, 0.25 * (1 + 1 / 8))):
        expected = stats.norm.cdf(1 / math.sqrt(2 * variance))
        assert report.auc == pytest.approx(expected, abs=0.03)
    assert calibrated.tpr_at_fpr[0.01] > 5 * plain.tpr_at_fpr[0.01]


def test_lira_score_by_hand():
    p = np.array([0.9, 0.5])
    others = np.array([[0.6, 0.5], [0.8, 0.4], [0.7, 0.6]])
    logit = lambda q: np.log(q / (1 - q))  # noqa: E731
    spread = math.sqrt(np.mean(np.var(logit(others), axis=0, ddof=1)))
    expected = (logit(p) - logit(others).mean(0)) / spread
    got = membership.offline_lira(-np.log(p), -np.log(others))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(membership.offline_lira(np.zeros(2), -np.log(others))).all()


def test_bad_input_is_named(problem):
    params = MODEL.init(jax.random.key(0))
    with pytest.raises(ValueError, match="members"):
        membership.membership_report([1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="non_members must be finite"):
        membership.membership_report([1.0, 2.0], [0.0, math.nan])
    with pytest.raises(ValueError, match="confidence"):
        membership.membership_report([1.0, 2.0], [0.0, 1.0], confidence=95)
    with pytest.raises(ValueError, match="fprs"):
        membership.membership_report([1.0, 2.0], [0.0, 1.0], fprs=(2.0,))
    with pytest.raises(ValueError, match="references"):
        membership.membership_inference(
            MODEL.loss, params, members=problem[0], non_members=problem[1], references=[params]
        )
    with pytest.raises(TypeError, match="loss"):
        membership.membership_inference(
            MODEL,  # type: ignore[arg-type]
            params,
            members=problem[0],
            non_members=problem[1],
        )
    with pytest.raises(ValueError, match="reference_losses"):
        membership.offline_lira(np.ones(3), np.ones((1, 3)))
    with pytest.raises(ValueError, match="epsilon"):
        membership.advantage_bound(-1.0)


def test_examples_that_do_not_count_are_no_members():
    """Their loss is the 0 of nothing, which would be the surest member of all."""

    def square(w, e, key):
        return jnp.where(e["x"] == 99, 0.0, (w - e["x"]) ** 2)

    loss = fl.models.with_counts(square, lambda e: e["x"] != 99)
    inside, outside = {"x": jnp.array([3.0, 99, 0.5, 99])}, {"x": jnp.array([1.0, 2.0, 99, 4.0])}
    report = membership.membership_inference(loss, 0.0, members=inside, non_members=outside)
    pairs = [(a, b) for a in (9.0, 0.25) for b in (1.0, 4.0, 16.0)]
    assert report.auc == pytest.approx(np.mean([a < b for a, b in pairs]))
    assert (report.num_members, report.num_non_members) == (2, 3)
