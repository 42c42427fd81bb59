"""Forgetting, transfer and plasticity of a matrix of scores, by hand."""

import numpy as np
import pytest

from fedjax_lite.evaluate import lifelong

R = [[0.8, 0.3, 0.2], [0.9, 0.7, 0.4], [0.6, 0.5, 1.0]]
"""Task 0 was best after task 1."""


def test_by_hand():
    close = {"abs": 1e-12}
    assert lifelong.average_accuracy(R) == pytest.approx((0.6 + 0.5 + 1.0) / 3, **close)
    assert lifelong.learning_accuracy(R) == pytest.approx((0.8 + 0.7 + 1.0) / 3, **close)
    assert lifelong.backward_transfer(R) == pytest.approx((-0.2 + -0.2) / 2, **close)
    assert lifelong.forgetting(R) == pytest.approx((0.3 + 0.2) / 2, **close)
    start = [0.9, 0.1, 0.3]
    assert lifelong.forward_transfer(R, start) == pytest.approx((0.2 + 0.1) / 2, **close)


def test_of_two_tasks_forgetting_is_minus_the_backward_transfer():
    two = np.array([[0.8, 0.1], [0.85, 0.6]])
    assert lifelong.forgetting(two) == pytest.approx(-0.05)
    assert lifelong.backward_transfer(two) == pytest.approx(0.05)


def test_only_what_is_needed_must_be_known():
    """Above the diagonal nothing is, but for the forward transfer."""
    late = np.where(np.triu(np.ones((3, 3)), 1) > 0, np.nan, R)
    assert lifelong.forgetting(late) == lifelong.forgetting(R)
    assert lifelong.backward_transfer(late) == lifelong.backward_transfer(R)
    with pytest.raises(ValueError, match="got NaN"):
        lifelong.forward_transfer(late, [0.0, 0.0, 0.0])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"numbers \[T, T\]"):
        lifelong.forgetting(np.ones((2, 3)))
    with pytest.raises(ValueError, match="2 tasks at least, got 1"):
        lifelong.backward_transfer([[1.0]])
    with pytest.raises(ValueError, match="one score a task"):
        lifelong.forward_transfer(R, [0.1])
