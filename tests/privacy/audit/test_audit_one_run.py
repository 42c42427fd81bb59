"""The audit of a method: a correct one passes, planted bugs are caught."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import trees
from fedjax_lite.privacy import audit as audits
from fedjax_lite.privacy import central_gaussian, gaussian_sum, gdp_epsilon
from fedjax_lite.privacy.audit.canaries import CanaryRow, Kind
from fedjax_lite.transforms.clip import clip_by_global_norm
from fedjax_lite.types import Accountant, Aggregator, Mechanism

DELTA, D, M, ROUNDS, HONEST, MU = 1e-5, 1024, 400, 3, 4, 1.5


def mechanism(
    *, mu, noise=1.0, max_norm=1.0, weighted=False, sampler=None, local=False
) -> Mechanism:
    """Clip to 1, sum, noise for mu-GDP over all rounds, fixed denominator; or with a defect."""
    stddev = noise * math.sqrt(ROUNDS) / mu

    def init(message, cohort_size):
        return jax.tree.map(jnp.zeros_like, message.value)

    def add(acc, messages, slots, mask):
        values = jax.vmap(lambda value: clip_by_global_norm(value, max_norm))(messages.value)
        weights = messages.weight if weighted else jnp.ones(mask.shape)
        total = trees.weighted_sum(values, jnp.where(mask, weights, 0.0))
        return jax.tree.map(jnp.add, acc, total)

    def finish(key, state, acc, cohort):
        leaves, treedef = jax.tree.flatten(acc)
        keys = jax.random.split(key, len(leaves))
        scale = 0.0 if local else stddev
        noisy = [
            (leaf + scale * jax.random.normal(k, leaf.shape)) / (HONEST + M)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return state, jax.tree.unflatten(treedef, noisy)

    def own_noise(key, state, value):
        value = clip_by_global_norm(value, max_norm)
        return state, jax.tree.map(
            lambda leaf: leaf + stddev * jax.random.normal(key, leaf.shape), value
        )

    return Mechanism(
        fl.everyone() if sampler is None else sampler,
        Aggregator(lambda params: (), init, add, finish),
        Accountant(lambda r: {"epsilon": gdp_epsilon(DELTA, mu)}, ROUNDS, "test"),
        fl.Transform(lambda value: (), own_noise, kinds=("clip", "noise")) if local else None,
    )


def pull(w, examples, key):
    """The honest clients' loss: they move the model, which is nuisance to the auditor."""
    return 0.5 * jnp.mean((w[None] - examples["b"]) ** 2, axis=1)


@pytest.fixture(scope="module")
def data():
    b = np.random.default_rng(0).normal(size=(HONEST, D)).astype(np.float32)
    return fl.data.from_arrays({"b": b}, np.arange(HONEST))


def run(privacy, data, *, key=0, swap=lambda uplink: uplink, **options):
    options = {"canary": "coordinate", "bound": "gaussian", "strict": False, **options}
    options = {"delta": DELTA, **options}
    return audits.audit(
        lambda uplink: fl.fedavg(
            pull,
            optax.sgd(1.0),
            plan=fl.Plan(batch_size=None),
            uplink=swap(uplink),
            privacy=privacy,
        ),
        jnp.zeros(D),
        data=data,
        num_rounds=ROUNDS,
        num_canaries=M,
        key=jax.random.key(key),
        **options,
    )


@pytest.fixture(scope="module")
def correct(data):
    """One run of the correct mechanism; every bound is a judgement of its scores."""
    return run(mechanism(mu=MU), data, strict=True)


def judged(report, bound):
    return audits.judge(
        report.scores,
        report.present,
        delta=DELTA,
        accounted_epsilon=report.accounted_epsilon,
        bound=bound,
        strict=False,
    )


@pytest.mark.parametrize("bound", ["one_run", "gaussian_one_run", "gaussian"])
def test_correct_mechanism_passes_and_is_not_blind(correct, bound):
    report, true = judged(correct, bound), gdp_epsilon(DELTA, MU)
    assert report.passed
    assert report.accounted_epsilon == pytest.approx(true)
    assert 0.5 < report.epsilon_lower_bound <= true
    assert report.epsilon_estimate == pytest.approx(true, rel=0.25)
    assert report.num_canaries == M == len(report.scores) == len(report.present)
    assert (report.guesses > 0) == (bound == "one_run")
    assert correct.num_rounds == ROUNDS


def test_scores_are_the_signal_and_the_noise_of_the_mechanism(correct):
    """Sent in every round: mean T C / n, deviation sqrt(T) sigma / n, for Gaussian noise."""
    scores, present = correct.scores * (HONEST + M), correct.present
    stddev = math.sqrt(ROUNDS) * math.sqrt(ROUNDS) / MU
    error = 4 * stddev / math.sqrt(M / 2)
    assert abs(scores[present].mean() - ROUNDS) < error
    assert abs(scores[~present].mean()) < error
    assert scores[~present].std() == pytest.approx(stddev, rel=4 / math.sqrt(M))
    assert abs(present.sum() - M / 2) < 4 * math.sqrt(M / 4)


def test_who_does_not_know_the_directions_sees_nothing(data):
    """Canaries of another key than the auditor's: its bound is what chance allows."""
    other = audits.canary_uplink(jax.random.key(9), kind="coordinate")
    report = run(mechanism(mu=MU), data, swap=lambda uplink: other)
    assert report.epsilon_lower_bound < 0.5
    assert report.epsilon_estimate < 0.25 * report.accounted_epsilon


TOO_QUIET = pytest.mark.sample(1, of="noise weaker than accounted for")
TOO_WIDE = pytest.mark.sample(1, of="a clip wider than accounted for")


@pytest.mark.parametrize(
    ("bug", "options", "bound"),
    [
        pytest.param("noise switched off", {"noise": 0.0, "mu": 0.5}, "one_run", marks=TOO_QUIET),
        pytest.param("noise of a third", {"noise": 1 / 3}, "gaussian", marks=TOO_QUIET),
        pytest.param("noise of two thirds", {"noise": 2 / 3}, "gaussian", marks=TOO_QUIET),
        pytest.param("clip missing", {"max_norm": math.inf, "mu": 0.5}, "one_run", marks=TOO_WIDE),
        pytest.param("clip to the threefold", {"max_norm": 3.0}, "gaussian", marks=TOO_WIDE),
        ("local noise switched off", {"noise": 0.0, "local": True, "mu": 0.5}, "one_run"),
    ],
)
def test_planted_bugs_are_caught(data, bug, options, bound):
    options = {"mu": MU, **options}
    with pytest.raises(audits.AuditFailed, match="exceeds the accounted") as failure:
        run(mechanism(**options), data, bound=bound, strict=True)
    report = failure.value.report
    assert not report.passed
    claimed = gdp_epsilon(DELTA, options["mu"])
    assert report.epsilon_lower_bound > report.accounted_epsilon == claimed


def shipped(noise_multiplier, *, actual=1.0):
    """`central_gaussian` of everybody in all rounds; `actual`: the share of the noise added."""
    size = HONEST + M
    private = central_gaussian(
        clip=1.0,
        num_clients=size,
        sampling_rate=1.0,
        noise_multiplier=noise_multiplier,
        num_rounds=ROUNDS,
        delta=DELTA,
    )
    if actual == 1:
        return private
    weak = gaussian_sum(clip=1.0, noise_multiplier=actual * noise_multiplier, denominator=size)
    return private._replace(aggregator=weak)


def test_the_shipped_mechanism_passes_and_a_third_of_its_noise_is_caught(data):
    """z = sqrt(T) / mu: mu-GDP of all rounds together."""
    z, true = math.sqrt(ROUNDS) / MU, gdp_epsilon(DELTA, MU)
    report = run(shipped(z), data, strict=True)
    assert report.passed
    assert report.verdict == "passed"
    assert report.accounted_epsilon == pytest.approx(true)
    assert 0.5 < report.epsilon_lower_bound <= true
    assert report.epsilon_estimate == pytest.approx(true, rel=0.25)
    with pytest.raises(audits.AuditFailed, match="exceeds the accounted") as failure:
        run(shipped(z, actual=1 / 3), data, strict=True)
    assert failure.value.report.epsilon_lower_bound > true
    assert "audit: failed" in str(failure.value.report)


def test_no_claim_is_no_pass(data):
    """Without noise, or without an accountant, there is nothing to pass."""
    report = run(shipped(0.0), data, bound="one_run", strict=True)
    assert report.passed is None
    assert report.accounted_epsilon == math.inf
    assert "no claim was made" in str(report)
    assert report.epsilon_lower_bound > 1
    plain = audits.audit(
        lambda uplink: fl.fedavg(
            pull,
            optax.sgd(1.0),
            plan=fl.Plan(batch_size=None),
            sampler=fl.everyone(),
            uplink=uplink,
        ),
        jnp.zeros(D),
        data=data,
        num_rounds=1,
        num_canaries=M,
        delta=DELTA,
        canary="coordinate",
        key=jax.random.key(0),
    )
    assert plain.passed is None
    assert plain.verdict == "no claim was made"


def test_delta_is_the_accountants(data):
    """An epsilon accounted at another delta is no claim about this one."""
    for delta in (1e-6, 1e-3):
        with pytest.raises(ValueError, match=f"delta=1e-05, got {delta:g}"):
            run(shipped(1.0), data, delta=delta)
    other = run(shipped(1.0), data, delta=1e-3, accounted_epsilon=50.0)
    assert other.passed
    assert other.delta == 1e-3


def test_correct_local_noise_passes(data):
    """Every client adds the noise: a canary among m is hidden far better than accounted."""
    report = run(mechanism(mu=MU, local=True), data)
    assert report.passed
    assert report.epsilon_lower_bound < 0.2 * report.accounted_epsilon


def test_example_weights_after_the_clip_are_caught(data):
    """Defect 4: n_i times the clipped update; a canary has three examples, the others one."""
    assert run(mechanism(mu=MU), data, canary_size=3).passed
    assert not run(mechanism(mu=MU, weighted=True), data, canary_size=3).passed


@pytest.mark.sample(1)
@pytest.mark.parametrize("view", ["model", "rounds"])
def test_random_directions_and_sampled_clients(data, view):
    """Without noise, from the last model or by the largest cosine of all rounds."""
    private = mechanism(mu=0.5, noise=0.0, sampler=fl.poisson(0.6))
    report = run(private, data, canary="gaussian", view=view, bound="one_run")
    assert not report.passed
    assert report.correct > 0.9 * report.guesses
    if view == "rounds":
        assert np.abs(report.scores).max() <= 1.0 + 1e-5, "cosines"


def test_directions_are_unit_and_nearly_orthogonal():
    key, like = jax.random.key(0), {"a": jnp.zeros((20, 30)), "b": jnp.zeros(40, jnp.bfloat16)}
    kinds: tuple[tuple[Kind, float], ...] = (("gaussian", 6 / math.sqrt(640)), ("coordinate", 0.0))
    for kind, bound in kinds:
        of = jax.jit(functools.partial(audits.direction, key, like=like, kind=kind))
        rows = [of(i) for i in range(12)]
        flat = np.stack([np.concatenate([np.ravel(r["a"]), np.ravel(r["b"])]) for r in rows])
        gram = flat.astype(np.float64) @ flat.T.astype(np.float64)
        np.testing.assert_allclose(np.diag(gram), 1.0, atol=2e-3)
        assert np.abs(gram - np.diag(np.diag(gram))).max() <= bound
        assert rows[0]["b"].dtype == jnp.bfloat16
        update = jax.tree.map(lambda a, b: 2.0 * a - b, rows[5], rows[7])
        scores = audits.canary_scores(update, key=key, num_canaries=12, kind=kind)
        np.testing.assert_allclose(scores, flat @ (2 * flat[5] - flat[7]), atol=2e-2)


def test_coordinates_are_all_different():
    like = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(7)}
    one = jax.jit(lambda i: audits.direction(jax.random.key(1), i, like=like, kind="coordinate"))
    total = sum(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(unit)])
        for unit in map(one, range(22))
    )
    np.testing.assert_array_equal(total, np.ones(22))


def test_uplink_leaves_honest_clients_alone_and_absent_canaries_send_nothing():
    uplink = audits.canary_uplink(jax.random.key(0), norm=5.0)
    value = {"w": jnp.arange(6.0)}
    honest = uplink.init(value)
    send = lambda row: uplink.update(jax.random.key(1), row, value)[1]["w"]  # noqa: E731
    np.testing.assert_array_equal(send(honest), value["w"])
    np.testing.assert_array_equal(send(CanaryRow(jnp.int32(2), jnp.array(False))), np.zeros(6))
    sent = send(CanaryRow(jnp.int32(2), jnp.array(True)))
    expected = 5 * audits.direction(jax.random.key(0), 2, like=value)["w"]
    np.testing.assert_allclose(sent, expected, rtol=1e-6)


def test_population_with_canaries_keeps_the_honest_clients(data):
    shuffled = fl.data.from_arrays({"x": np.arange(5.0)}, [1, 0, 1, 0, 0])
    joined = audits.with_canaries(shuffled, 3)
    assert joined.sizes.tolist() == [3, 2, 1, 1, 1]
    for i in range(2):
        np.testing.assert_array_equal(joined.client(i)["x"], shuffled.client(i)["x"])
    assert joined.examples["x"].shape == shuffled.examples["x"].shape, "no copies"
    assert audits.with_canaries(shuffled, 2, size=4).sizes.tolist() == [3, 2, 4, 4]


def test_guess_uses_half_of_the_highest_and_half_of_the_lowest():
    scores = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    present = np.array([False, True, False, True, False, True, True, True])
    found = audits.guess(scores, present, shares=(0.5,))
    assert found[1:] == (4, 3)  # 7, 6 right; 0 right, 1 wrong
    assert audits.guess(scores, present, shares=(1.0,))[1:] == (8, 5)  # 4 wrong; 1 and 3 too
    two = audits.guess(np.arange(100), np.arange(100) >= 50, shares=(1.0, 0.5))
    assert two.epsilon == audits.one_run_epsilon(100, 100, confidence=1 - 0.05 / 2)


def test_bad_input_is_named(data):
    private = mechanism(mu=1.0)
    with pytest.raises(ValueError, match="num_rounds must be at most 3"):
        audits.audit(
            lambda uplink: fl.fedavg(
                pull, optax.sgd(1.0), plan=fl.Plan(batch_size=1), uplink=uplink, privacy=private
            ),
            jnp.zeros(D),
            data=data,
            num_rounds=ROUNDS + 1,
            num_canaries=M,
            delta=DELTA,
            key=jax.random.key(0),
        )
    for options, text in [
        ({"bound": "best"}, "bound"),
        ({"view": "all"}, "view"),
        ({"canary": "loud"}, "canary"),
        ({"accounted_epsilon": -1.0}, "accounted_epsilon"),
        ({"canary_norm": 0.0}, "norm"),
    ]:
        with pytest.raises(ValueError, match=text):
            run(private, data, **options)
    with pytest.raises(ValueError, match="finite"):
        audits.guess([math.nan, 1.0], [True, False])
    with pytest.raises(ValueError, match="coordinates"):
        audits.canary_scores(jnp.zeros(3), key=jax.random.key(0), num_canaries=4, kind="coordinate")
    with pytest.raises(ValueError, match="uplink"):
        audits.audit(
            lambda uplink: fl.fedavg(
                pull, optax.sgd(1.0), plan=fl.Plan(batch_size=1), privacy=private
            ),
            jnp.zeros(D),
            data=data,
            num_rounds=1,
            num_canaries=M,
            delta=DELTA,
            key=jax.random.key(0),
        )


def test_methods_that_send_more_than_the_model_are_refused(data):
    with pytest.raises(TypeError, match="model updates only"):
        audits.audit(
            lambda uplink: fl.scaffold(
                pull, 0.1, plan=fl.Plan(batch_size=1), sampler=fl.everyone(), uplink=uplink
            ),
            jnp.zeros(D),
            data=data,
            num_rounds=1,
            num_canaries=M,
            delta=DELTA,
            key=jax.random.key(0),
            accounted_epsilon=1.0,
        )
