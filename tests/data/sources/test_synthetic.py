"""synthetic(alpha, beta) against the authors' order of draws; quadratics against closed forms."""

# The legacy generators are what is being tested.
# ruff: noqa: NPY002

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.data.sources.load import load
from fedjax_lite.data.sources.quadratics import (
    quadratic_form_loss,
    quadratic_forms,
    quadratic_loss,
    quadratics,
)
from fedjax_lite.data.sources.synthetic import synthetic


def test_pinned_draw():
    train, test = synthetic(1.0, 1.0)
    sizes = np.bincount(train["client"])
    assert (sizes.sum(), sizes.max(), sizes.min(), len(sizes)) == (20_101, 4_645, 45, 30)
    assert (train["x"].shape, train["x"].dtype) == ((20_101, 60), np.float32)
    assert train["y"].dtype == train["client"].dtype == np.int32
    assert set(np.unique(train["y"])) <= set(range(10))
    # 90 / 10, rounded down, for every client.
    total = sizes + np.bincount(test["client"])
    np.testing.assert_array_equal(sizes, (0.9 * total).astype(int))


def reference(alpha, beta, num_clients, seed):
    """The authors' steps on the global generators, with numpy's own multivariate normal."""
    np.random.seed(seed)
    random.seed(seed)
    sizes = np.random.lognormal(4, 2, num_clients).astype(int) + 50
    u = np.random.normal(0, alpha, num_clients)
    big_b = np.random.normal(0, beta, num_clients)
    v = [np.random.normal(big_b[k], 1, 60) for k in range(num_clients)]
    covariance = np.diag([j**-1.2 for j in range(1, 61)])
    clients = []
    for k in range(num_clients):
        w = np.random.normal(u[k], 1, (60, 10))
        b = np.random.normal(u[k], 1, 10)
        x = np.random.multivariate_normal(v[k], covariance, sizes[k])
        rows = [(row, int(np.argmax(row @ w + b))) for row in x]
        random.shuffle(rows)
        clients.append(rows)
    return clients


@pytest.mark.parametrize(("alpha", "beta", "seed"), [(1, 1, 0), (0.5, 2.0, 7), (0, 0, 3)])
def test_the_draw_is_that_of_the_authors_generator(alpha, beta, seed):
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        clients = reference(alpha, beta, 6, seed)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    train, test = synthetic(alpha, beta, num_clients=6, seed=seed)
    for k, rows in enumerate(clients):
        cut = int(0.9 * len(rows))
        for split, part in ((train, rows[:cut]), (test, rows[cut:])):
            mine = split["client"] == k
            np.testing.assert_array_equal(split["y"][mine], [y for _, y in part])
            np.testing.assert_allclose(split["x"][mine], [x for x, _ in part], atol=1e-5)


def test_global_random_states_are_left_alone():
    np.random.seed(5)
    random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    synthetic(1.0, 1.0, num_clients=2)
    assert (np.random.random(), random.random()) == expected


def test_load_synthetic_passes_the_options():
    direct = synthetic(0.5, 0.25, num_clients=3, seed=2)
    loaded = load("synthetic", alpha=0.5, beta=0.25, num_clients=3, seed=2)
    for one, other in zip(direct, loaded):
        assert list(one) == list(other) == ["x", "y", "client"]
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_sizes_without_deviation_are_all_alike():
    train, test = synthetic(1.0, 1.0, num_clients=5, size_deviation=0.0)
    whole = np.bincount(train["client"]) + np.bincount(test["client"])
    assert whole.tolist() == [int(np.exp(4.0)) + 50] * 5
    for deviation in (1.0, 2.0):  # a normal's 84 % quantile is a deviation above its median
        train, test = synthetic(0.0, 0.0, num_clients=400, num_features=2, size_deviation=deviation)
        drawn = np.bincount(train["client"]) + np.bincount(test["client"]) - 50
        middle, above = np.log(np.quantile(drawn, [0.5, 0.8413]))
        np.testing.assert_allclose(middle, 4, atol=0.2)
        np.testing.assert_allclose(above - middle, deviation, rtol=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha must be a finite deviation"),
        ({"beta": float("nan")}, "beta must be a finite deviation"),
        ({"size_deviation": -1.0}, r"size_deviation must lie in \[0, 3\], got -1.0"),
        ({"size_deviation": 4.0}, r"size_deviation must lie in \[0, 3\], got 4.0"),
        ({"num_clients": 0}, "num_clients must be at least 1, got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
    ],
)
def test_synthetic_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**{"alpha": 1.0, "beta": 1.0, **arguments})


def test_quadratics_minimum_and_gradient():
    a, b, n = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, -1.0]), np.array([3, 1, 2])
    data = quadratics(a, b, n)
    assert np.bincount(data["client"]).tolist() == n.tolist()
    minimum = (n * a * b).sum() / (n * a).sum()

    def mean_loss(x):
        return quadratic_loss(x, data).mean()

    assert abs(jax.grad(mean_loss)(jnp.float32(minimum))) < 1e-6
    # Of one client the loss is f_i itself, whatever its number of examples.
    losses = quadratic_loss(jnp.float32(3.0), data, jax.random.key(0))
    np.testing.assert_allclose(losses, np.repeat(a / 2 * (3 - b) ** 2, n), rtol=1e-6)


def test_quadratics_of_vectors():
    data = quadratics([2.0, 1.0], [[0.0, 0.0], [3.0, 4.0]], 2)
    losses = quadratic_loss(jnp.zeros(2), data)
    np.testing.assert_allclose(losses, [0, 0, 12.5, 12.5])


def test_quadratic_forms_follow_the_closed_form_of_local_steps():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 3, 3))
    h = root @ root.swapaxes(1, 2) / 3 + np.eye(3)
    w = rng.normal(size=(2, 3))
    data = quadratic_forms(h, w, [1, 2])
    assert data["client"].tolist() == [0, 1, 1]
    x, rate, steps = jnp.ones(3), 0.05, 7
    first = {key: value[:1] for key, value in data.items()}
    for _ in range(steps):
        x = x - rate * jax.grad(lambda x: quadratic_form_loss(x, first).mean())(x)
    power = np.linalg.matrix_power(np.eye(3) - rate * h[0], steps)
    np.testing.assert_allclose(x, w[0] + power @ (np.ones(3) - w[0]), rtol=1e-5)
    # With isotropic curvature the two test beds are one.
    same = quadratic_forms(np.array([2.0 * np.eye(3)]), w[:1])
    np.testing.assert_allclose(
        quadratic_form_loss(x, same), quadratic_loss(x, quadratics([2.0], w[:1])), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quadratics([[1.0]], [0.0]), r"a must be \[N\]"),
        (lambda: quadratics([1.0, 2.0], [0.0]), r"b must be \[2\] or \[2, D\]"),
        (lambda: quadratics([1.0], [np.nan]), "b must be finite"),
        (lambda: quadratics([1.0], [0.0], 0), "n must be at least 1 for every client, got 0"),
        (lambda: quadratics([1.0], [0.0], 1.5), "n must be an integer"),
        (lambda: quadratics([1.0, 1.0], [0.0, 1.0], [1, 2, 3]), "n must be an integer"),
        (lambda: quadratic_forms(np.eye(2)[None], [[0.0]]), r"h must be \[1, 1, 1\]"),
        (lambda: quadratic_forms([np.eye(2)], [0.0, 0.0]), r"w must be \[N, D\]"),
        (lambda: quadratic_forms([[[1.0, 1.0], [0.0, 1.0]]], [[0.0, 0.0]]), "symmetric"),
    ],
)
def test_quadratics_refuse_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
