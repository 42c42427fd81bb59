"""FedGAN: one client is a plain GAN, equal clients are one, what stays is not sent, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.fedgan import discriminator_losses

KEY = jax.random.key(0)
PAIR = fl.models.Gan(  # a generator without noise, so that there is nothing to draw
    init=lambda key: {
        "generator": {"m": jnp.zeros(2)},
        "discriminator": {"a": jnp.array([0.3, -0.1]), "b": jnp.zeros(())},
    },
    generate=lambda params, z: jnp.tile(params["m"], (len(z), 1)),
    judge=lambda params, x: x @ params["a"] + params["b"] - 0.1 * (x**2).sum(-1),
    latent_size=1,
)
X = np.random.default_rng(0).normal(1.0, 0.5, (6, 2)).astype(np.float32)
SLOTS = {"plan": fl.Plan(batch_size=None, steps=3), "sampler": fl.everyone()}
ONCE = {"plan": fl.Plan(batch_size=None, steps=1), "sampler": fl.everyone()}
LINE = fl.models.Gan(  # a judge of no opinion: its gradient at a real x is -x / 2, NaN below 0
    init=lambda key: {"generator": jnp.zeros(1), "discriminator": jnp.zeros(1)},
    generate=lambda m, z: jnp.tile(m, (len(z), 1)),
    judge=lambda a, x: jnp.where(x < 0, jnp.nan, x) @ a,
    latent_size=1,
)


def sigma(v):
    return 1 / (1 + np.exp(-v))


def plain_gan(x, steps, d_rate, g_rate, mu=0.0):
    """Gradients by hand: of the judge a x + b - |x|^2 / 10, and of a generator of one point."""
    m, a, b = start = np.zeros(2), np.array([0.3, -0.1]), 0.0
    for _ in range(steps):
        real = sigma(x @ a + b - 0.1 * (x**2).sum(-1)) - 1
        fake = sigma(m @ a + b - 0.1 * m @ m)
        a, b = (
            a - d_rate * ((real[:, None] * x).mean(0) + fake * m + mu * (a - start[1])),
            b - d_rate * (real.mean() + fake + mu * (b - start[2])),
        )
        fake = sigma(m @ a + b - 0.1 * m @ m) - 1
        m = m - g_rate * (fake * (a - 0.2 * m) + mu * (m - start[0]))
    return m, a, b


def rounds(data, num_rounds=2, wrap=lambda tx: tx, **options):
    algo = fl.fedgan(PAIR, wrap(optax.sgd(0.2)), wrap(optax.sgd(0.4)), **SLOTS, **options)
    state = algo.init(KEY, PAIR.init(KEY), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


@pytest.fixture(scope="module")
def twins():
    """Two clients with the same examples."""
    return fl.data.from_arrays({"x": np.concatenate([X, X])}, np.repeat([0, 1], 6))


def test_equal_clients_are_one_and_one_is_a_plain_gan(twins):
    state, metrics = rounds(twins)
    m, a, b = plain_gan(X.astype(float), 6, 0.4, 0.2)
    params = state.server.params
    np.testing.assert_allclose(params["generator"]["m"], m, atol=1e-5)
    np.testing.assert_allclose(params["discriminator"]["a"], a, atol=1e-5)
    np.testing.assert_allclose(params["discriminator"]["b"], b, atol=1e-5)
    assert metrics["uplink_bits"] == 2 * 5 * 32


def test_discriminators_that_stay_are_neither_sent_nor_shared():
    """Two clients of different data: the generator is the mean of two plain GANs' generators."""
    data = fl.data.from_arrays({"x": np.concatenate([X, X - 2])}, np.repeat([0, 1], 6))
    state, metrics = rounds(data, 1, share="generator")
    both = [plain_gan(x.astype(float), 3, 0.4, 0.2) for x in (X, X - 2)]
    assert sorted(state.server.params) == ["generator"]
    mean = np.mean([m for m, _, _ in both], axis=0)
    np.testing.assert_allclose(state.server.params["generator"]["m"], mean, atol=1e-5)
    kept = state.clients.discriminator["a"]
    np.testing.assert_allclose(kept, [a for _, a, _ in both], atol=1e-5)
    assert metrics["uplink_bits"] == 2 * 2 * 32


def test_a_judge_that_cannot_tell_pays_two_ln_two():
    params = PAIR.init(KEY)
    params["discriminator"] = jax.tree.map(jnp.zeros_like, params["discriminator"])
    losses = discriminator_losses(PAIR, params, jnp.zeros((3, 2)), jnp.zeros((3, 1)))
    np.testing.assert_allclose(losses, 1.3862943611, atol=1e-6)


def test_clipping_and_noise_of_the_discriminators_gradients(twins):
    """A high clip without noise changes nothing; a low one bounds a step; noise is z S / b."""
    plain, high = (rounds(twins, 1, **options)[0].server.params for options in ({}, {"clip": 1e3}))
    for mine, theirs in zip(*map(jax.tree.leaves, (plain, high)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)

    one = fl.data.from_arrays({"x": X}, np.zeros(6, int))
    algo = fl.fedgan(PAIR, optax.sgd(0.0), optax.sgd(1.0), clip=1e-3, noise_multiplier=2e3, **ONCE)
    state = algo.init(KEY, PAIR.init(KEY), one)

    @jax.jit
    def moved(keys):
        def after(key):
            return algo.round(key, state, one)[0].server.params["discriminator"]["a"]

        return jax.vmap(after)(keys) - state.server.params["discriminator"]["a"]

    steps = np.asarray(moved(jax.random.split(KEY, 2000)))
    # z S / b = 2000 * .001 / 6; the deviation of 4000 draws is known to 1.1 % (one sigma).
    np.testing.assert_allclose(steps.std(), 2.0 / 6, rtol=0.06)
    assert abs(steps.mean()) < 5 * (2.0 / 6) / np.sqrt(4000) + 1e-3


def test_gradients_are_clipped_example_by_example():
    """Gradients -.5 and -9 add to -1.5; a NaN adds nothing, and counts in the public number."""
    x = np.array([[1.0], [18.0], [1.0], [18.0], [-1.0]], np.float32)
    data = fl.data.from_arrays({"x": x}, [0, 0, 1, 1, 1])
    algo = fl.fedgan(LINE, optax.sgd(0.0), optax.sgd(1.0), share="generator", clip=1.0, **ONCE)
    state, _ = algo.round(KEY, algo.init(KEY, LINE.init(KEY), data), data)
    found = np.asarray(state.clients.discriminator)[:, 0]
    np.testing.assert_allclose(found, [1.5 / 2, 1.5 / 3], rtol=1e-6)


def test_optimizers_are_given_the_broadcast_networks_and_the_loss(twins):
    """But with a clip nothing of the loss, which is not noised."""
    state, _ = rounds(twins, 1, wrap=lambda tx: optax.chain(fl.proximal(2.0), tx))
    m, a, b = plain_gan(X.astype(float), 3, 0.4, 0.2, mu=2.0)
    np.testing.assert_allclose(state.server.params["generator"]["m"], m, atol=1e-5)
    np.testing.assert_allclose(state.server.params["discriminator"]["a"], a, atol=1e-5)
    np.testing.assert_allclose(state.server.params["discriminator"]["b"], b, atol=1e-5)

    data, polyak = fl.data.from_arrays({"x": np.array([[1.0], [3.0]])}, [0, 0]), optax.polyak_sgd()
    algo = fl.fedgan(LINE, optax.sgd(0.0), polyak, **ONCE)
    state, _ = algo.round(KEY, algo.init(KEY, LINE.init(KEY), data), data)
    # Loss 2 ln 2, gradient -(1 + 3) / 4 = -1: a step of 2 ln 2, no longer than 1.
    np.testing.assert_allclose(state.server.params["discriminator"], [1.0], rtol=1e-6)
    algo = fl.fedgan(LINE, optax.sgd(0.0), polyak, clip=1.0, **ONCE)
    with pytest.raises(TypeError, match=r"discriminator_optimizer needs the argument value"):
        algo.round(KEY, algo.init(KEY, LINE.init(KEY), data), data)


def test_grids_are_written_while_a_run_goes_on(tmp_path):
    pair = fl.models.Gan(  # pictures of 2 x 2
        init=lambda key: {"generator": jnp.ones(4), "discriminator": jnp.zeros(4)},
        generate=lambda params, z: jnp.tanh(z * params).reshape(-1, 2, 2, 1),
        judge=lambda params, x: x.reshape(-1, 4) @ params,
        latent_size=4,
    )
    pictures = np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)
    data = fl.data.from_arrays({"x": pictures}, [0, 0, 1, 1])
    plan = fl.Plan(batch_size=2)
    algo = fl.fedgan(pair, optax.sgd(0.1), optax.sgd(0.1), plan=plan, sampler=fl.everyone())
    state = algo.init(KEY, pair.init(KEY), data)
    grids = fl.report.sample_grids(pair, KEY, tmp_path, size=2)
    _, history = fl.run(
        algo, KEY, state, data, num_rounds=2, every=1, evaluate=grids, progress=False
    )
    assert sorted(path.name for path in tmp_path.iterdir())[-2:] == [
        "round_00001.png",
        "round_00002.png",
    ]
    assert np.isfinite(history[-1]["discriminator_loss"])


def test_bad_input():
    with pytest.raises(ValueError, match="share must be 'both' or 'generator', got 'judge'"):
        fl.fedgan(PAIR, optax.sgd(0.1), optax.sgd(0.1), share="judge", **SLOTS)
    with pytest.raises(ValueError, match=r"clip must be given beside noise_multiplier=1\.0"):
        fl.fedgan(PAIR, optax.sgd(0.1), optax.sgd(0.1), noise_multiplier=1.0, **SLOTS)
    with pytest.raises(TypeError, match="generator_optimizer must be an optax optimizer"):
        fl.fedgan(PAIR, 0.1, optax.sgd(0.1), **SLOTS)
    with pytest.raises(TypeError, match="discriminator_optimizer, a function of the round"):
        fl.fedgan(PAIR, optax.sgd(0.1), lambda r, s: optax.sgd(0.1), **SLOTS)
    with pytest.raises(ValueError, match="sides divisible by 4"):
        fl.models.dcgan((6, 8, 1))
    data = fl.data.from_arrays({"x": X}, np.zeros(6, int))
    algo = fl.fedgan(PAIR, optax.sgd(0.1), optax.sgd(0.1), **SLOTS)
    with pytest.raises(ValueError, match=r"params must hold both networks.*\['discriminator'\]"):
        algo.init(KEY, {"generator": jnp.zeros(2)}, data)
