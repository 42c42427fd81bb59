"""What a linear layer gives away exactly, and PSNR: known answers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.attacks import leakage

W = np.cos(np.outer(np.arange(3), np.arange(4)) + 1)
X = np.array([[0.1, -0.2, 0.3, 0.4], [0.5, 0.0, -0.3, 0.2]])
Y = np.array([1, 2])


def residuals(x, y):
    """softmax(W x) - onehot(y), in numpy."""
    z = np.exp(W @ x)
    return z / z.sum() - np.eye(3)[y]


def gradient(rows):
    """Through the library's own dense layer and cross-entropy, in float64."""
    from fedjax_lite.models.layers import dense
    from fedjax_lite.models.losses import cross_entropy

    layer = {"kernel": jnp.asarray(W.T), "bias": jnp.zeros(3, jnp.float64)}
    objective = lambda layer: cross_entropy(dense(layer, X[rows]), jnp.asarray(Y[rows])).mean()  # noqa: E731
    return jax.jit(jax.grad(objective))(layer)


def test_one_example_comes_back_exactly_with_its_label():
    with jax.enable_x64(True):
        grads = gradient([0])
        expected = [0.3516002342, -0.8331462218, 0.4815459876]
        np.testing.assert_allclose(grads["bias"], expected, atol=5e-11)
        np.testing.assert_allclose(grads["bias"], residuals(X[0], 1), rtol=1e-12)
        candidates = leakage.linear_inputs(grads["kernel"], grads["bias"])
        np.testing.assert_allclose(candidates, np.tile(X[0], (3, 1)), rtol=1e-12)
        found = leakage.linear_input(grads["kernel"], grads["bias"])
        np.testing.assert_allclose(found, X[0], rtol=1e-12)
        assert int(leakage.infer_label(grads["bias"])) == 1


def test_two_examples_give_the_mixture_of_each_unit():
    with jax.enable_x64(True):
        grads = gradient([0, 1])
        mixture = np.asarray(leakage.linear_inputs(grads["kernel"], grads["bias"]))
    expected = [0.2829687018, -0.1085156491, 0.0255469473, 0.3085156491]
    np.testing.assert_allclose(mixture[0], expected, atol=5e-11)
    weights = np.stack([residuals(X[0], 1), residuals(X[1], 2)])
    np.testing.assert_allclose(mixture, (weights.T @ X) / weights.sum(0)[:, None], rtol=1e-9)


def test_a_federated_round_gives_an_image_away_and_its_defences_do_not():
    """One client, one step, a dense first layer: the pseudo-gradient is as good as a gradient."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(3, 12)).astype(np.float32)
    data = fl.data.from_arrays({"x": x, "y": np.array([2, 0, 1])}, [0, 1, 2])
    model = fl.models.mlp((8,), num_classes=3, input_shape=(12,))
    params = jax.jit(model.init)(jax.random.key(0))

    def attacked(clients, steps=1):
        import optax

        algo = fl.fedavg(
            model.loss, optax.sgd(0.5), plan=fl.Plan(batch_size=1, steps=steps),
            sampler=fl.everyone(),
        )  # fmt: skip
        key = jax.random.key(1)
        state = algo.init(key, params, data)
        update, after = leakage.observe(algo, state, data=data, clients=clients, key=key)
        assert int(after.round) == 1
        found = leakage.linear_input(update["dense1"]["kernel"], update["dense1"]["bias"])
        return float(leakage.psnr(found[None], x[clients[0]][None])[0]), update

    alone, update = attacked([0])
    assert alone > 60
    assert int(leakage.infer_label(update["head"]["bias"])) == 2
    summed, _ = attacked([0, 1, 2])
    assert summed < 25


def test_psnr_of_known_errors():
    ten = jnp.full((1, 5, 5, 1), 0.1)
    assert float(leakage.psnr(ten, jnp.zeros((1, 5, 5, 1)))[0]) == pytest.approx(20.0, abs=1e-5)
    pixels = (jnp.arange(1000) + 0.5) / 1000  # uniform: the error of a constant is 1/12
    got = float(leakage.psnr(jnp.full((1, 1000), 0.5), pixels[None])[0])
    assert got == pytest.approx(10 * np.log10(12), abs=1e-3)
    assert round(got, 2) == 10.79
    bytes_ = leakage.psnr(255 * ten, jnp.zeros((1, 5, 5, 1)), peak=255.0)
    assert float(bytes_[0]) == pytest.approx(20.0, abs=1e-4)


def test_matching_finds_the_permutation():
    rng = np.random.default_rng(0)
    original = rng.uniform(size=(6, 4, 4)).astype(np.float32)
    order = rng.permutation(6)
    shuffled = original[order] + 0.01
    found = leakage.matched_psnr(jnp.asarray(shuffled), jnp.asarray(original))
    np.testing.assert_array_equal(order[found.order], np.arange(6))
    np.testing.assert_allclose(found.psnr, 40.0, atol=1e-3)


def test_units_without_gradient_are_nan_and_never_chosen():
    x, residual = jnp.array([1.0, 2.0]), jnp.array([0.0, -0.5])
    candidates = leakage.linear_inputs(jnp.outer(x, residual), residual)
    assert np.isnan(candidates[0]).all()
    np.testing.assert_allclose(candidates[1], x)
    np.testing.assert_allclose(leakage.linear_input(jnp.outer(x, residual), residual), x)
    assert not np.isnan(leakage.linear_input(jnp.zeros((2, 2)), jnp.zeros(2))).any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="transpose"):
        leakage.linear_inputs(jnp.zeros((3, 4)), jnp.zeros(3))
    with pytest.raises(ValueError, match="bias_update"):
        leakage.infer_label(jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="one shape"):
        leakage.psnr(jnp.zeros((1, 2)), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="peak"):
        leakage.psnr(jnp.zeros((1, 2)), jnp.zeros((1, 2)), peak=0.0)
