"""Adaptive clipping converges from both sides (defect 1), with the published numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite import testing
from fedjax_lite.types import Message

KEY = jax.random.key(0)
SIZE = 10


def clips(norms, num_rounds, *, sign=1.0, **change):
    """``C`` before every round and after the last, of clients whose updates have these norms."""
    options = {
        "noise_multiplier": 0.0,
        "count_noise_multiplier": 0.0,
        "denominator": float(SIZE),
        **change,
    }
    aggregator = dp.adaptive_sum(**options)
    values = jnp.asarray(norms)[:, None] * jnp.array([0.6, 0.8])
    rows = Message(values, jnp.arange(1.0, SIZE + 1))  # weights that must not count
    template = jax.tree.map(lambda leaf: leaf[0], rows)

    def step(state, _):
        now = aggregator.at(state)
        acc = now.init(template, SIZE)
        for low in (0, 4):
            part = slice(low, low + 6 if low else 4)
            some = jax.tree.map(lambda leaf: leaf[part], rows)  # noqa: B023
            acc = now.add(acc, some, jnp.arange(SIZE)[part], jnp.ones(SIZE, bool)[part])
        new, value = now.finish(KEY, state, acc, None)
        return new, (new.clip, value)

    with jax.enable_x64(False):
        state = aggregator.init_state(template.value)
        _, (later, values) = jax.jit(lambda: jax.lax.scan(step, state, None, length=num_rounds))()
    return np.append(np.float64(state.clip), np.asarray(later, np.float64)), values


def expected(norms, num_rounds, *, initial=0.1, quantile=0.5, rate=0.2):
    """The rule in float64: count who is *not* clipped."""
    clip, out = initial, [initial]
    for _ in range(num_rounds):
        clip *= math.exp(-rate * (np.mean(np.asarray(norms) <= clip) - quantile))
        out.append(clip)
    return np.array(out)


def test_grows_to_large_norms():
    got, _ = clips(np.full(SIZE, 10.0), 60)
    np.testing.assert_allclose(got[:47], 0.1 * np.exp(0.1 * np.arange(47)), rtol=1e-5)
    assert got[46] == pytest.approx(9.9484, abs=1e-3)
    np.testing.assert_allclose(got[47:53:2], 10.9947, rtol=1e-4)
    np.testing.assert_allclose(got[48:54:2], 9.9484, rtol=1e-4)


def test_shrinks_to_small_norms():
    got, _ = clips(np.full(SIZE, 0.01), 60)
    assert sorted(got[-2:]) == pytest.approx([0.009072, 0.010026], abs=1e-6)


def test_the_wrong_sign_runs_away():
    """The numbers of defect 1 belong to the wrong rule, and ours are far from them."""
    for norm, runaway in ((10.0, 0.006738), (0.01, 148.413)):
        wrong = 1.0
        for _ in range(50):
            wrong *= math.exp(-0.2 * (float(norm > wrong) - 0.5))
        assert wrong == pytest.approx(runaway, rel=1e-4)
        got, _ = clips(np.full(SIZE, norm), 50, initial_clip=1.0)
        assert 0.8 < got[-1] / norm < 1.2


@pytest.mark.parametrize(("quantile", "limit"), [(0.5, 5.0530903166), (0.8, 8.0044689143)])
def test_finds_the_quantile(quantile, limit):
    norms = np.arange(1.0, 11.0)
    got, _ = clips(norms, 300, initial_clip=1.0, target_quantile=quantile)
    reference = expected(norms, 300, initial=1.0, quantile=quantile)
    np.testing.assert_allclose(got, reference, rtol=2e-5)
    assert got[-1] == pytest.approx(limit, rel=2e-5)
    if quantile == 0.5:
        assert got[1:3] == pytest.approx([1.0832870677, 1.1735108710], rel=1e-6)


def test_a_round_clips_with_the_old_norm():
    _, values = clips(np.full(SIZE, 10.0), 3, initial_clip=1.0)
    lengths = np.linalg.norm(np.asarray(values), axis=1)
    np.testing.assert_allclose(lengths, np.exp(0.1 * np.arange(3)), rtol=1e-5)


def test_rate_zero_is_a_fixed_clip():
    rows = Message(jnp.array([[3.0, 4.0], [0.3, 0.4]]), jnp.ones(2))
    got = []
    for aggregator in (
        dp.adaptive_sum(
            noise_multiplier=0.0,
            count_noise_multiplier=1.0,
            denominator=2.0,
            initial_clip=1.0,
            clip_learning_rate=0.0,
        ),
        dp.gaussian_sum(clip=1.0, noise_multiplier=0.0, denominator=2.0),
    ):

        @jax.jit
        def once(rows, state, aggregator=aggregator):
            now = aggregator if aggregator.at is None else aggregator.at(state)
            acc = now.init(Message(jnp.zeros(2), jnp.ones(())), 2)
            acc = now.add(acc, rows, jnp.arange(2), jnp.ones(2, bool))
            return now.finish(KEY, state, acc, None)

        state = aggregator.init_state(jnp.zeros(2))
        for _ in range(3):
            state, value = once(rows, state)
        got.append(np.asarray(value))
    np.testing.assert_array_equal(*got)


@pytest.mark.parametrize(
    ("z", "sigma_b", "z_delta"),
    [(1.0, 5.0, 1.0050378153), (0.5, 1.0, 0.5163977795), (1.1, 50.0, 1.1000665560)],
)
def test_noise_left_for_the_updates(z, sigma_b, z_delta):
    """m = 100, 20 and 1000 with sigma_b = m / 20; both together cost what z costs."""
    assert dp.update_noise(z, sigma_b) == pytest.approx(z_delta, rel=1e-9)
    assert z_delta**-2 + (2 * sigma_b) ** -2 == pytest.approx(z**-2, rel=1e-9)
    assert dp.update_noise(0.0, sigma_b) == 0.0


def test_too_little_noise_on_the_count_is_refused():
    options = {"num_clients": 100, "sampling_rate": 0.1, "delta": 1e-5}
    with pytest.raises(ValueError, match="count_noise_multiplier must exceed"):
        dp.adaptive_clipping(**options, noise_multiplier=1.0)  # m / 20 = .5 is not above z / 2
    for change, message in (
        ({"target_quantile": 1.5}, "target_quantile"),
        ({"clip_learning_rate": -1.0}, "clip_learning_rate"),
        ({"initial_clip": 0.0}, "clip"),
        ({"count_noise_multiplier": -1.0}, "count_noise_multiplier"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.adaptive_clipping(**options, **{"noise_multiplier": 0.0, **change})


def test_laws():
    """Of the aggregator that a first round gets; nobody aggregates to noise by design."""
    for z, laws in ((0.0, None), (1.0, testing.LAWS_OF_NOISE)):
        aggregator = dp.adaptive_sum(
            noise_multiplier=z, count_noise_multiplier=1.0, denominator=3.0, initial_clip=1.0
        )
        testing.check_aggregator(aggregator, laws=laws)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("norm", "end"), [(0.0, 0.1e-10), (3e38, 0.1e10)])
def test_the_clip_stays_in_range(norm, end):
    """Zero or huge updates for ever: ten orders of magnitude, then it stays, and so do values."""
    found, values = clips([norm] * SIZE, 400)
    # 400 rounds of e^+-.1 are 17 orders; the bound is met with 2 % to spare at 231.
    assert found[-1] == found[-100] == pytest.approx(end, rel=1e-6)
    assert found.min() >= 0.1e-10 * (1 - 1e-6)
    assert found.max() <= 0.1e10 * (1 + 1e-6)
    assert bool(jnp.isfinite(values).all())
    noisy, released = clips([norm] * SIZE, 400, noise_multiplier=1.0, count_noise_multiplier=1.0)
    assert noisy.min() > 0
    assert np.isfinite(noisy).all()
    assert bool(jnp.isfinite(released).all())


STRATEGIES = [fl.vmapped(), fl.chunked(3)]


def runs(strategies, mesh=None):
    """Three rounds of FedAvg under each strategy: models, clips and reported clips.

    Where there is a mesh, the last strategy's state lies on it from the beginning: from one device
    its first round would be a program of its own.
    """
    data = testing.population()
    mechanism = dp.adaptive_clipping(
        num_clients=7,
        sampling_rate=0.9,
        noise_multiplier=0.5,
        count_noise_multiplier=1.0,
        delta=1e-5,
        initial_clip=0.05,
    )
    out = []
    for strategy in strategies:
        algo = fl.fedavg(
            testing.loss,
            optax.sgd(0.1),
            plan=fl.Plan(batch_size=2),
            privacy=mechanism,
            strategy=strategy,
        )
        state, shown = algo.init(KEY, testing.init_params(KEY), data), []
        if mesh is not None and strategy is strategies[-1]:
            state, data = fl.replicate((state, data), mesh=mesh)
        for _ in range(3):
            before = float(state.aggregator.clip)
            state, metrics = algo.round(KEY, state, data)
            assert float(metrics["clip"]) == before
            shown.append(before)
        out.append((np.asarray(state.server.params["w"]), shown, float(state.aggregator.clip)))
    return out


@pytest.mark.sample(1, of="mechanisms equal under all strategies")
def test_strategies_agree():
    first, *others = runs(STRATEGIES)
    assert len(set(first[1])) == 3  # the clip moves
    for other in others:
        np.testing.assert_allclose(other[0], first[0], rtol=2e-5, atol=2e-6)
        assert other[1] == pytest.approx(first[1], rel=1e-5)


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_several_devices_agree():
    mesh = fl.client_mesh()
    one, two = runs([fl.sequential(), fl.sharded(mesh, fl.chunked(2))], mesh)
    np.testing.assert_allclose(one[0], two[0], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-5)
