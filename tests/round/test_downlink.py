"""The compressed broadcast: both forms, their bits, and servers that hold more than a model."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite import transforms as tr
from fedjax_lite.round.downlink import Downlink, Downlinked, downlinked
from fedjax_lite.testing import algorithm_laws
from fedjax_lite.types import Cohort
from fedjax_lite.verify.testbeds import ETA, averaging, fixed, q2, quadratic, shrink, whole

KEY = jax.random.key(3)
NUM_PARAMS = 4


def make(factory=fl.fedavg, client=None, **slots):
    client = optax.sgd(0.05) if client is None else client
    slots = {"plan": fl.Plan(batch_size=2), "sampler": fl.uniform(4), **slots}
    return factory(testing.loss, client, **slots)


def rounds(algo, num_rounds=4, cohort=None):
    data = testing.population()
    state = algo.init(KEY, testing.init_params(KEY), data)
    found = []
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data, cohort)
        found.append(metrics)
    return state, found


same = functools.partial(algorithm_laws.same, exact=True)
close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


@functools.cache
def plain():
    """Rounds of FedAvg whose broadcast is not compressed."""
    return rounds(make())[0]


@functools.cache
def on_q2(factory, client, **slots):
    """Cached, so that tests share compiled programs."""
    return factory(quadratic, client, plan=whole(), sampler=fl.everyone(), **slots)


SGD = optax.sgd(ETA)


def q2_run(num_rounds, factory=fl.fedavg, client=SGD, **slots):
    """Models of the server and of the clients on Q2 after each round, in float64."""
    with jax.enable_x64(True):
        algo = on_q2(factory, client, **slots)
        data, key = q2(), jax.random.key(0)
        state = algo.init(key, jnp.zeros(()), data)
        found = []
        for _ in range(num_rounds):
            state, _ = algo.round(key, state, data)
            got = jax.tree.leaves(state.server.received)[0] if slots.get("downlink") else 0.0
            found.append((float(state.server.params), float(got)))
        return np.array(found).T, state


# -- the identity ---------------------------------------------------------------------------


def test_sending_the_model_as_it_is_changes_nothing_bit_for_bit():
    model, _ = rounds(make(downlink=Downlink(tr.identity(), of="model")))
    assert isinstance(model.server, Downlinked)
    same(model.server.inner, plain().server)
    same(model.server.received, jax.tree.leaves(plain().server.params))


def test_sending_changes_as_they_are_changes_only_rounding():
    update, _ = rounds(make(downlink=tr.identity()))
    close(update.server.params, plain().server.params)
    close(update.server.received, jax.tree.leaves(update.server.params))


def test_the_identity_on_q2_is_plain_averaging():
    (params, received), _ = q2_run(5, downlink=tr.identity())
    np.testing.assert_allclose(params, averaging(5), rtol=0, atol=1e-12)
    np.testing.assert_allclose(received, params, rtol=0, atol=1e-12)


# -- compressed -----------------------------------------------------------------------------

HALVE = fl.Transform(lambda v: (), lambda key, s, v: (s, jax.tree.map(lambda x: x / 2, v)))


def test_trajectory_with_half_the_change_sent():
    """A numpy loop: clients train from x^, x moves by their mean, x^ by half of what is missing."""
    (params, received), _ = q2_run(6, downlink=HALVE)
    x, got, expected = 0.0, 0.0, []
    s, b, p = shrink(), np.array([-1.0, 2.0]), np.array([0.75, 0.25])
    for _ in range(6):
        x = x + (p * s * (b - got)).sum()  # the pseudo-gradient is taken at the clients' model
        got = got + (x - got) / 2
        expected.append((x, got))
    np.testing.assert_allclose(np.array([params, received]).T, expected, rtol=0, atol=1e-12)


def test_half_the_change_converges_to_the_same_fixed_point_and_half_the_model_does_not():
    (params, received), _ = q2_run(150, downlink=HALVE)
    assert params[-1] == pytest.approx(fixed(shrink()), abs=1e-9)
    assert received[-1] == pytest.approx(params[-1], abs=1e-9)
    # x^ = x/2 in the other form: clients stand still where x/2 is the fixed point.
    (params, received), _ = q2_run(150, downlink=Downlink(HALVE, of="model"))
    assert params[-1] == pytest.approx(2 * fixed(shrink()), abs=1e-9)
    assert received[-1] == pytest.approx(fixed(shrink()), abs=1e-9)


def least_squares(num_rounds, **slots):
    """Full participation on quadratics `[4]` whose averaged fixed point is known."""
    targets = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    data = fl.data.from_arrays({"b": jnp.asarray(targets)}, np.arange(6))
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * ((w - e["b"]) ** 2).sum(-1),
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=None, steps=2),
        sampler=fl.everyone(),
        **slots,
    )
    state = algo.init(KEY, jnp.zeros(4), data)
    state, history = fl.run(
        algo, KEY, state, data, num_rounds=num_rounds, every=num_rounds, progress=False
    )
    return np.asarray(state.server.params), targets.mean(0), history


def test_top_1_of_the_change_corrects_itself():
    found, optimum, _ = least_squares(250, downlink=tr.top_k(1))
    np.testing.assert_allclose(found, optimum, atol=1e-4)


def test_both_ways_compressed():
    found, optimum, history = least_squares(
        300, downlink=tr.top_k(1), uplink=tr.ef21(tr.top_k(2)), server_optimizer=optax.sgd(0.3)
    )
    np.testing.assert_allclose(found, optimum, atol=1e-3)
    assert history[5]["uplink_bits"] == 6 * 2 * (32 + 2)
    assert history[5]["downlink_bits"] == 6 * (32 + 2)


def test_unbiased_quantisation_of_the_model_is_noisy_and_of_the_change_is_not():
    update, optimum, _ = least_squares(200, downlink=tr.qsgd(7))
    model, _, _ = least_squares(200, downlink=Downlink(tr.qsgd(7), of="model"))
    assert abs(update - optimum).max() < 1e-4 < 1e-3 < abs(model - optimum).max()


# -- bits -----------------------------------------------------------------------------------

COHORT = Cohort(jnp.array([0, 1, 4, 5], jnp.int32), jnp.array([True, True, False, True]))
N, M, PLAIN, SIGN = 7, 3, 32 * NUM_PARAMS, NUM_PARAMS + 32


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("downlink", "first", "later"),
    [
        (None, M * PLAIN, M * PLAIN),
        (tr.scaled_sign(), N * PLAIN, N * SIGN),  # everybody follows, or nobody could
        (Downlink(tr.scaled_sign(), of="model"), M * PLAIN, M * SIGN),
        (Downlink(tr.identity(), of="model"), M * PLAIN, M * PLAIN),
    ],
    ids=["plain", "update", "model", "identity"],
)
def test_bits_of_both_forms(downlink, first, later):
    _, metrics = rounds(make(downlink=downlink), 3, COHORT)
    assert [float(m["downlink_bits"]) for m in metrics] == [first, later, later]
    for m in metrics:
        assert 0 < float(m["downlink_entropy_bits"]) <= float(m["downlink_bits"])
        assert float(m["uplink_bits"]) == M * PLAIN


def test_a_round_without_anybody_changes_nothing():
    nobody = Cohort(jnp.arange(4, dtype=jnp.int32), jnp.zeros(4, bool))
    algo, data = make(downlink=tr.qsgd(3)), testing.population()
    state, _ = rounds(algo, 2, nobody._replace(mask=~nobody.mask))
    new, _ = algo.round(KEY, state, data, nobody)
    same(new.server, state.server)


# -- servers that hold more than a model ----------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("factory", "client", "options", "limit"),
    [
        (fl.scaffold, ETA, {}, 1.4),
        (fl.scaffold, ETA, {"weighting": "examples"}, 5 / 7),
        (fl.feddyn, optax.sgd(ETA), {"alpha": 1.0}, 1.4),
        (fl.feddyn, optax.sgd(ETA), {"alpha": 1.0, "weighting": "examples"}, 5 / 7),
    ],
    ids=["scaffold", "scaffold weighted", "feddyn", "feddyn weighted"],
)
@pytest.mark.parametrize("form", ["update", "model"])
def test_methods_with_a_population_keep_it(factory, client, options, limit, form):
    """The limit needs the right N and total weight: a compressed one would change it."""
    transform = tr.identity() if form == "model" else HALVE
    downlink = Downlink(transform, of=form)
    (params, _), state = q2_run(900, factory, client, downlink=downlink, **options)
    totals = state.server.inner.totals
    weight = 40.0 if options.get("weighting") == "examples" else 2.0
    assert (float(totals.num_clients), float(totals.weight)) == (2.0, weight)
    assert params[-1] == pytest.approx(limit, abs=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("factory", "beside"), [(fl.scaffold, 0), (fl.mime, M * PLAIN)], ids=["scaffold", "mime"]
)
def test_the_whole_broadcast_is_paid_for(factory, beside):
    """SCAFFOLD's control and Mime's statistics travel beside the model.

    The aggregate of Mime's first pass goes to the cohort as it is.
    """
    algo = make(factory, 0.05, downlink=tr.scaled_sign())
    state, metrics = rounds(algo, 3, COHORT)
    size = sum(leaf.size for leaf in state.server.received)
    assert size == 2 * NUM_PARAMS
    assert float(metrics[-1]["downlink_bits"]) == N * (size + 32) + beside


# -- execution ------------------------------------------------------------------------------


@pytest.mark.sample(2, of="equal under all strategies")
@pytest.mark.slow
def test_all_strategies_agree():
    """In the form "model"; the other is in the registry of the laws."""
    downlink = Downlink(tr.qsgd(15), of="model")
    results = [
        rounds(make(downlink=downlink, strategy=strategy, uplink=tr.error_feedback(tr.top_k(2))))
        for strategy in (fl.vmapped(), fl.chunked(3), fl.sequential())
    ]
    for other in results[1:]:
        close(other, results[0])


def test_a_stateful_transform_lives_in_the_server():
    """Error feedback on the downlink: one residual, since all clients get the same."""
    downlink = Downlink(tr.error_feedback(tr.top_k(1)), of="model")
    state, _ = rounds(make(downlink=downlink), 3)
    residual = state.server.transform[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(residual)) == NUM_PARAMS
    assert any(leaf.any() for leaf in jax.tree.leaves(residual))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "downlink", [tr.qsgd(7), Downlink(tr.error_feedback(tr.top_k(2)), of="model")]
)
def test_a_run_resumes_bit_for_bit(tmp_path, downlink):
    algo, data = make(downlink=downlink), testing.population()

    def run(num_rounds, folder, **options):
        state = algo.init(KEY, testing.init_params(KEY), data)
        output_dir = tmp_path / folder
        how = {"every": 2, "progress": False, "output_dir": output_dir, **options}
        return fl.run(algo, KEY, state, data, num_rounds=num_rounds, **how)

    straight, history = run(6, "straight")
    run(4, "broken")
    resumed, rows = run(6, "broken", resume=True)
    same(resumed.server, straight.server)
    keep = [{n: v for n, v in row.items() if n != "seconds"} for row in history]
    assert keep == [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


@pytest.mark.sample(1, of="laws that test_laws.py leaves out")
@pytest.mark.slow
def test_the_law_of_algorithms_hold_behind_a_downlink():
    """Those that test_laws.py leaves out for FedAvg compressed both ways."""

    def law_subject(learning_rate, sampler, strategy):
        return make(
            client=optax.sgd(learning_rate),
            sampler=sampler,
            strategy=strategy,
            downlink=tr.qsgd(15),
            uplink=tr.drive(),
        )

    testing.check_algorithm(
        law_subject,
        laws=["no_host_transfer", "keys_are_used_once", "survives_a_checkpoint"],
    )


@pytest.mark.parametrize(
    ("downlink", "error", "message"),
    [
        (tr.qsgd, TypeError, "was a factory not called"),
        (Downlink(tr.qsgd(1), of="delta"), ValueError, "of must be one of"),
        (Downlink(tr.qsgd), TypeError, "downlink must be a Transform"),
    ],
)
def test_bad_downlinks_are_named(downlink, error, message):
    with pytest.raises(error, match=message):
        make(downlink=downlink)


@pytest.mark.parametrize("feedback", [tr.error_feedback(tr.top_k(1)), tr.ef21(tr.top_k(1))])
def test_the_update_form_takes_no_second_feedback(feedback):
    with pytest.raises(ValueError, match="feeds errors back by itself"):
        make(downlink=feedback)


def followed(transform, num_rounds=40, size=20_000):
    """Relative error of what clients hold, while the server's model stands still."""
    server = downlinked(fl.server.optimizer_server(optax.sgd(1.0)), transform)

    @jax.jit
    def run():
        target, still = jax.random.normal(KEY, (size,)), jnp.zeros(size)
        cohort = fl.Cohort(jnp.arange(1), jnp.ones(1, bool))
        state = server.update(KEY, server.init(still, None), -target, cohort, {})
        step = lambda i, s: server.update(jax.random.fold_in(KEY, i), s, still, cohort, {})  # noqa: E731
        state = jax.lax.fori_loop(0, num_rounds, step, state)
        return server.broadcast(state), target

    found, target = map(np.asarray, run())
    return np.linalg.norm(found - target) / np.linalg.norm(target)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "transform", [tr.drive(unbiased=False), tr.top_k(0.1), tr.scaled_sign(), tr.qsgd(1023)]
)
def test_contractions_follow_the_server_in_many_dimensions(transform):
    assert followed(transform) < 0.05


def test_few_levels_in_many_dimensions_diverge_as_the_docstring_says():
    assert followed(tr.qsgd(15)) > 10
