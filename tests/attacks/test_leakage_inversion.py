"""Inversion of updates: images come back from gradients and local steps, not through defences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.attacks import leakage
from fedjax_lite.attacks.leakage.inversion import cosine_distance, squared_distance

SHAPE, CLASSES, RATE = (5, 5, 1), 4, 0.2


def init(key):
    first, second = jax.random.split(key)
    return {
        "a": jax.random.normal(first, (25, 30)) / 5,
        "b": jax.random.normal(second, (30, CLASSES)) / 5,
    }


def apply(params, x, key):
    """No biases, so nothing can be read off in closed form; smooth, as the attack wants it."""
    return jnp.tanh(x.reshape(x.shape[0], -1) @ params["a"]) @ params["b"]


MODEL = fl.models.from_functions(init, apply)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PSNR = jax.jit(leakage.psnr)
IMAGE = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.9, size=(1, *SHAPE)), jnp.float32)
LABEL = jnp.array([2])


def attack(update, simulate, **options):
    options = {"num_iterations": 500, "key": jax.random.key(1), "variation": 0.0, **options}
    found = leakage.invert(
        update, simulate, params=PARAMS, labels=LABEL, input_shape=SHAPE, **options
    )
    return found, float(PSNR(found.x, IMAGE)[0])


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(leakage.gradient_of(MODEL.loss))(PARAMS, {"x": IMAGE, "y": LABEL})


@pytest.fixture(scope="module")
def simulate():
    """One function, which is compiled once an attack."""
    return leakage.gradient_of(MODEL.loss)


@pytest.mark.parametrize("distance", ["cosine", "squared"])
def test_image_comes_back_from_its_gradient(gradient, simulate, distance):
    found, quality = attack(gradient, simulate, distance=distance)
    assert quality > 30
    assert found.x.shape == (1, *SHAPE)
    assert found.curve.shape == (1, 500)
    assert float(found.objective) <= float(found.curve.min())
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1


def test_noise_defends_and_a_clip_alone_does_not(gradient, simulate):
    """Clipping alone is no defence (a cosine has no length); noise longer than the update is."""
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, gradient)
    assert attack(halved, simulate)[1] > 30
    norm, keys = optax.tree.norm(gradient), jax.random.split(jax.random.key(5))
    noisy = {
        name: leaf + 3 * norm * jax.random.normal(key, leaf.shape) / np.sqrt(leaf.size)
        for key, (name, leaf) in zip(keys, gradient.items(), strict=True)
    }
    assert attack(noisy, simulate)[1] < 15
    assert attack(gradient, simulate)[1] > 30


def test_sparse_updates_need_an_attack_that_knows_it(gradient, simulate):
    """Top 40 %: compared where something was sent, the image comes back; else it does not."""
    flat = np.sort(np.concatenate([np.abs(np.ravel(g)) for g in gradient.values()]))
    bar = flat[int(0.6 * len(flat))]
    sent = jax.tree.map(lambda g: jnp.where(jnp.abs(g) >= bar, g, 0.0), gradient)
    knowing = attack(sent, leakage.where_sent(simulate, sent))[1]
    assert knowing > 25
    assert attack(sent, simulate)[1] < knowing - 5


def test_local_steps_are_simulated(simulate):
    """K = 4 steps: attacked as what they are, far better than as one gradient."""
    steps = leakage.local_steps(MODEL.loss, 2.0, num_steps=4)
    update = steps(PARAMS, {"x": IMAGE, "y": LABEL})
    as_they_are = attack(update, steps)[1]
    assert as_they_are > 30
    assert attack(update, simulate)[1] < as_they_are - 5


def test_simulation_is_the_librarys_own_local_training():
    """The update that an attacker plays equals what a FedAvg round gives away."""
    data = fl.data.from_arrays({"x": np.asarray(IMAGE), "y": np.asarray(LABEL)}, [0])
    for steps in (1, 3):
        algo = fl.fedavg(
            MODEL.loss,
            optax.sgd(RATE),
            plan=fl.Plan(batch_size=1, steps=steps),
            sampler=fl.everyone(),
        )
        key = jax.random.key(2)
        seen, _ = leakage.observe(
            algo, algo.init(key, PARAMS, data), data=data, clients=[0], key=key
        )
        played = leakage.local_steps(MODEL.loss, RATE, num_steps=steps)(
            PARAMS, {"x": IMAGE, "y": LABEL}
        )
        for name in PARAMS:
            np.testing.assert_allclose(seen[name], played[name], atol=1e-6)


def test_restarts_keep_the_best_and_are_vmapped(gradient, simulate):
    found, _ = attack(gradient, simulate, num_restarts=3, num_iterations=30)
    assert found.curve.shape == (3, 30)
    alone = [float(row.min()) for row in found.curve]
    assert float(found.objective) <= min(alone)
    assert len(set(alone)) == 3


def test_distances_and_variation_by_hand():
    left = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    right = {"a": jnp.array([0.0, 1.0]), "b": jnp.array(2.0)}
    cosine, squared = jax.jit(cosine_distance), jax.jit(squared_distance)
    assert float(cosine(left, right)) == pytest.approx(1 - 8 / (5 * np.sqrt(5)), abs=1e-6)
    assert float(squared(left, right)) == pytest.approx(9 + 1 + 4)
    zero = jax.tree.map(jnp.zeros_like, left)
    assert float(cosine(left, zero)) == 1.0
    assert not np.isnan(jax.grad(lambda z: cosine(left, z))(zero)["a"]).any()
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    expected = np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()
    assert float(jax.jit(leakage.total_variation)(x)) == pytest.approx(expected, rel=1e-5)


def test_variation_smooths(gradient, simulate):
    rough, _ = attack(gradient, simulate, num_iterations=100)
    smooth, _ = attack(gradient, simulate, num_iterations=100, variation=1.0)
    assert leakage.total_variation(smooth.x) < 0.3 * leakage.total_variation(rough.x)


def test_bad_input_is_named(gradient, simulate):
    for options, text in [
        ({"distance": "manhattan"}, "distance"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"variation": -1.0}, "variation"),
    ]:
        with pytest.raises(ValueError, match=text):
            attack(gradient, simulate, **options)
    with pytest.raises(TypeError, match="update must be shaped"):
        attack({"a": gradient["a"]}, simulate)
    with pytest.raises(ValueError, match="num_steps"):
        leakage.local_steps(MODEL.loss, 0.1, num_steps=0)
    with pytest.raises(TypeError, match="loss"):
        leakage.gradient_of(MODEL)  # type: ignore[arg-type]
    data = fl.data.from_arrays({"x": np.asarray(IMAGE), "y": np.asarray(LABEL)}, [0])
    algo = fl.fedavg(MODEL.loss, optax.sgd(RATE), plan=fl.Plan(batch_size=1), sampler=fl.everyone())
    key = jax.random.key(0)
    state = algo.init(key, PARAMS, data)
    for clients in ([], [1], [0, 0]):
        with pytest.raises(ValueError, match="clients"):
            leakage.observe(algo, state, data=data, clients=clients, key=key)


def test_a_simulated_client_averages_what_counts():
    loss = fl.models.with_counts(lambda w, e, key: w * e["x"], lambda e: e["x"] > 0)
    update = leakage.gradient_of(loss)(1.0, {"x": jnp.array([2.0, 4.0, -9.0, -9.0])})
    assert float(update) == (2 + 4) / 2
