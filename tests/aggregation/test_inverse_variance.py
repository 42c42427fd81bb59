"""Inverse-variance weights against closed forms, alone and in a round."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.aggregation.inverse_variance import inverse_variance, inverse_variance_weights
from fedjax_lite.aggregation.mean import weight_by

KEY = jax.random.key


def info(client, size=1, steps=1):
    return fl.ClientInfo(*map(jnp.int32, (client, size, steps, 0)))


def one_step_to_the_mean(estimates, weighting, counts: Any = 1):
    """A round in which client i sends the way to ``estimates[i]``: the weighted mean of them."""
    owners = np.repeat(np.arange(len(estimates)), counts)
    data = fl.data.from_arrays({"b": np.asarray(estimates, np.float32)[owners]}, owners)
    algo = fl.fedavg(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(1.0),
        plan=fl.Plan(batch_size=None, steps=1),
        sampler=fl.everyone(),
        weighting=weighting,
    )
    state = algo.init(KEY(0), jnp.array(0.0), data)
    return float(algo.round(KEY(0), state, data)[0].server.params)


def test_weights_and_variance_of_three_estimates():
    found = inverse_variance_weights([1, 4, 0.25], floor=0.01)
    np.testing.assert_allclose(
        found.weights, [0.1904761905, 0.0476190476, 0.7619047619], atol=5e-11
    )
    np.testing.assert_allclose(found.weights, np.array([4, 1, 16]) / 21, rtol=1e-14)
    assert found.largest == found.weights[2]
    assert abs(found.variance - 4 / 21) < 1e-15
    # The variance is that of the weighted mean, and no weights have a smaller one.
    sigma = np.array([1, 4, 0.25])
    assert abs((found.weights**2 * sigma).sum() - found.variance) < 1e-15
    assert abs(sigma.mean() / 3 - 0.5833333333) < 5e-11
    for other in np.random.default_rng(0).dirichlet(np.ones(3), size=50):
        assert (other**2 * sigma).sum() >= found.variance
    assert abs(found.weights @ [1, 2, 3] - 2.5714285714) < 5e-11


def test_weights_from_variances_of_examples():
    found = inverse_variance_weights([1, 4, 0.25], floor=0.01, sizes=[10, 40, 5])
    np.testing.assert_allclose(found.weights, [0.25, 0.25, 0.5], rtol=1e-14)
    assert abs(found.variance - 1 / 40) < 1e-15
    assert inverse_variance_weights([1.0, 0.0], floor=0.5, sizes=[4, 0]).weights.tolist() == [1, 0]


def test_the_floor_keeps_a_one_class_client_in_place():
    estimates, sigma = np.array([0, 0, 10]), [1, 1, 0.01]
    trusting = inverse_variance_weights(sigma, floor=0.01)
    assert abs(trusting.weights @ estimates - 9.8039215686) < 5e-11
    assert abs(trusting.largest - 100 / 102) < 1e-14
    floored = inverse_variance_weights(sigma, floor=0.5)
    assert abs(floored.weights @ estimates - 5.0) < 1e-14
    assert floored.largest == 0.5
    by_size = inverse_variance_weights([1, 1, 1], floor=0.5, sizes=[100, 100, 2])
    assert abs(by_size.weights @ estimates - 0.0990099010) < 5e-11


def test_zero_variance_is_finite():
    found = inverse_variance_weights([0.0, 0.0, 1.0], floor=0.25)
    np.testing.assert_allclose(found.weights, [4 / 9, 4 / 9, 1 / 9], rtol=1e-14)
    assert float(inverse_variance([0.0], floor=0.25)(info(0))) == 4


@pytest.mark.parametrize(
    ("sigma", "floor", "estimates", "expected"),
    [
        ([1, 4, 0.25], 0.01, [1, 2, 3], 18 / 7),
        ([1, 1, 0.01], 0.01, [0, 0, 10], 1000 / 102),
        ([1, 1, 0.01], 0.5, [0, 0, 10], 5.0),
    ],
)
def test_a_round_gives_the_weighted_mean(sigma, floor, estimates, expected):
    got = one_step_to_the_mean(estimates, inverse_variance(sigma, floor=floor))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_round_with_variances_of_examples_counts_them():
    weigh = inverse_variance([1, 4, 0.25], floor=0.01, per_example=True)
    got = one_step_to_the_mean([1.0, 2.0, 4.0], weigh, counts=[10, 40, 5])
    np.testing.assert_allclose(got, 0.25 * 1 + 0.25 * 2 + 0.5 * 4, rtol=1e-6)


def test_function_and_table_agree():
    sigma, sizes = np.array([0.3, 2.0, 0.0, 7.0]), np.array([5, 0, 3, 8])
    for per_example, table in ((False, None), (True, sizes)):
        weigh = weight_by(inverse_variance(sigma, floor=0.2, per_example=per_example))
        got = np.array([float(weigh(info(i, n))) for i, n in enumerate(sizes)])
        expected = inverse_variance_weights(sigma, floor=0.2, sizes=table).weights
        np.testing.assert_allclose(got / got.sum(), expected, rtol=1e-6)


def test_no_steps_weigh_nothing_and_a_short_table_is_not_clamped():
    weigh = weight_by(inverse_variance([1.0, 2.0], floor=0.1))
    assert float(weigh(info(0, steps=0))) == 0
    assert float(weigh(info(1))) == 0.5
    assert np.isnan(float(weigh(info(2))))


def test_variances_may_be_traced():
    def weights(variances, floor):
        weigh = inverse_variance(variances, floor=floor)
        return jnp.stack([weigh(info(i)) for i in range(2)])

    got = jax.jit(weights)(jnp.array([4.0, 0.0]), 0.5)
    np.testing.assert_array_equal(got, [0.25, 2.0])


def test_errors():
    with pytest.raises(TypeError, match="floor"):
        inverse_variance([1.0])  # pyright: ignore[reportCallIssue]  # the floor is demanded
    for function in (inverse_variance, inverse_variance_weights):
        for floor in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match="floor must be positive"):
                function([1.0, 2.0], floor=floor)
        with pytest.raises(ValueError, match="floor must be finite"):
            function([1.0], floor=np.inf)
        with pytest.raises(ValueError, match=r"got -2.0 for client 1"):
            function([1.0, -2.0], floor=0.1)
        with pytest.raises(ValueError, match=r"got nan for client 0"):
            function([np.nan, 2.0], floor=0.1)
        with pytest.raises(ValueError, match=r"must be \[N\]"):
            function(1.0, floor=0.1)
        with pytest.raises(TypeError, match="must be numbers"):
            function(["a"], floor=0.1)
    with pytest.raises(ValueError, match="one entry per variance"):
        inverse_variance_weights([1.0, 2.0], floor=0.1, sizes=[1])
    with pytest.raises(ValueError, match="sizes must not be negative"):
        inverse_variance_weights([1.0, 2.0], floor=0.1, sizes=[1, -1])
    with pytest.raises(ValueError, match="not all zero"):
        inverse_variance_weights([1.0, 2.0], floor=0.1, sizes=[0, 0])
