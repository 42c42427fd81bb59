"""Two samples compared, against closed forms and loops; who is forgotten."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

import fedjax_lite as fl

RNG = np.random.default_rng(0)
G = fl.generation


def test_frechet_distance_by_scipy_and_closed_forms():
    a, b = RNG.normal(size=(40, 3)), RNG.normal(size=(30, 3)) @ RNG.normal(size=(3, 3)) + 1
    left, right = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(left + right)
    expected -= 2 * np.trace(np.real(np.asarray(sqrtm(left @ right))))
    np.testing.assert_allclose(G.frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(G.frechet_distance(a, a), 0, atol=1e-9)
    np.testing.assert_allclose(G.frechet_distance(a, a + [3, 0, 4]), 25, rtol=1e-9)
    # Numbers alone: (s - t)^2 where the means agree, here deviations 1 and 2 times the same.
    x = RNG.normal(size=(50, 1))
    x -= x.mean()
    np.testing.assert_allclose(G.frechet_distance(x, 2 * x), x.var(ddof=1), rtol=1e-9)


def test_precision_and_recall_by_loops():
    real, made = RNG.normal(size=(15, 2)), 0.5 * RNG.normal(size=(12, 2)) + 0.4

    def within(points, balls, k):
        inside = 0
        for p in points:
            for i, c in enumerate(balls):
                others = sorted(np.linalg.norm(c - d) for j, d in enumerate(balls) if j != i)
                if np.linalg.norm(p - c) <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    found = G.precision_recall(real, made, neighbours=2)
    assert found == (within(made, real, 2), within(real, made, 2))
    assert G.precision_recall(real, real) == (1.0, 1.0)
    assert G.precision_recall(real, real + 100) == (0.0, 0.0)


def test_a_mode_that_is_not_made_and_the_clients_who_have_it():
    modes = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    made = np.concatenate([modes[[0] * 6 + [1] * 3 + [2]] + 0.1, [[2.0, 2.0]] * 2])
    found = G.mode_coverage(made, modes, radius=0.5)
    np.testing.assert_allclose(found.shares, np.array([6, 3, 1, 0]) / 12)
    assert found.covered == 0.75
    assert found.quality == 10 / 12
    counts = np.array([[30, 30, 0, 0], [0, 0, 0, 10], [5, 0, 0, 5], [0, 0, 0, 0]])
    shares = G.client_coverage(found.shares, counts)
    # Modes 0 and 1 are made at 6/12 of 35/80 and 3/12 of 30/80: the first wholly, the other 2/3.
    np.testing.assert_allclose(shares[:3], [0.5 + 0.5 * 2 / 3, 0.0, 0.5])
    assert np.isnan(shares[3])


def test_bad_input():
    with pytest.raises(ValueError, match="made must have the 2 features of real, got 3"):
        G.frechet_distance(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="neighbours must be below"):
        G.precision_recall(np.ones((3, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="radius must be positive"):
        G.mode_coverage(np.ones((3, 2)), np.ones((2, 2)), radius=0.0)
    with pytest.raises(ValueError, match="counts must be"):
        G.client_coverage([0.5, 0.5], [[1, 2, 3]])
