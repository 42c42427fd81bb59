"""Pachinko allocation: limits, and its concentration on the real labels of CIFAR-100."""

import pathlib
import time

import numpy as np
import pytest

from fedjax_lite.data.partition.pachinko import pachinko
from fedjax_lite.data.partition.partition import owners

LABELS = pathlib.Path("/work/shared/data/cifar100/labels.npz")
needs_labels = pytest.mark.skipif(not LABELS.is_file(), reason=f"no CIFAR-100 labels at {LABELS}")


def _tables(train, partitioner):
    owner = owners(train, partitioner)
    tables = []
    for key in ("coarse", "y"):
        table = np.zeros((partitioner.num_clients, train[key].max() + 1), np.int64)
        np.add.at(table, (owner, train[key]), 1)
        tables.append(table)
    return tables


def _toy(per_fine=40):
    fine = np.repeat(np.arange(20), per_fine)
    return {"y": fine, "coarse": fine // 5}


def test_small_alpha_is_one_coarse_label_and_large_beta_spreads_its_fine_ones():
    coarse, fine = _tables(_toy(), pachinko(num_clients=8, alpha=1e-9, beta=1e9, seed=0))
    assert np.all(coarse.sum(1) == 100)
    assert np.all((coarse > 0).sum(1) == 1)  # classes of 200, clients of 100: whole clients
    first = fine[fine.sum(1) > 0]
    assert np.all((first > 0).sum(1) == 5)


def test_small_beta_is_one_fine_label():
    coarse, fine = _tables(_toy(), pachinko(num_clients=20, alpha=1e-9, beta=1e-9, seed=0))
    assert np.all((coarse > 0).sum(1) == 1)
    assert np.all((fine > 0).sum(1) == 1)  # fine labels of 40, clients of 40


def test_large_alpha_and_beta_are_iid():
    coarse, fine = _tables(_toy(200), pachinko(num_clients=20, alpha=1e9, beta=1e9, seed=0))
    early = np.random.default_rng(0).permutation(20)[:10]  # the last ones take what is left
    coarse, fine = coarse[early], fine[early]
    assert np.abs(coarse - 50).max() < 5 * np.sqrt(200 * 0.25 * 0.75)
    assert np.abs(fine - 10).max() < 5 * np.sqrt(200 * 0.05 * 0.95)


def test_a_fine_label_below_two_coarse_ones_keeps_its_parents():
    train = {"y": np.zeros(40, int), "coarse": np.repeat([0, 1], 20)}
    coarse, _ = _tables(train, pachinko(num_clients=4, alpha=1e-9, seed=0))
    assert np.all((coarse > 0).sum(1) == 1)


def test_the_last_clients_get_what_is_left():
    coarse, fine = _tables(_toy(), pachinko(num_clients=800, alpha=1e-9, beta=1e-9, seed=0))
    assert np.all(coarse.sum(1) == 1)
    np.testing.assert_array_equal(fine.sum(0), 40)


def _z(samples, expected):
    """How many standard errors the mean of independent samples is off."""
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(len(samples)))


def _agreement(counts):
    """The chance that two of a client's draws agree, unbiased for sum of squared shares."""
    total = counts.sum(1)
    return np.sum(counts * (counts - 1), axis=1) / (total * (total - 1))


def _mean_agreement(concentration, size):
    """E[sum q^2] for q ~ Dir_size(concentration)."""
    return (concentration + 1) / (concentration * size + 1)


@needs_labels
@pytest.mark.parametrize(
    ("alpha", "beta", "wrong_betas"),
    [
        (0.1, 10.0, (2.5, 5.0)),  # sum phi^2 of 10 and 40 differ by .012: too near to tell apart
        (1.0, 0.5, (0.25, 1.0)),
    ],
)
def test_cifar100_concentration_also_rejects_wrong_ones(alpha, beta, wrong_betas):
    with np.load(LABELS) as labels:
        train = {"y": labels["train_fine"], "coarse": labels["train_coarse"]}
    start = time.process_time()
    coarse, fine = _tables(train, pachinko(num_clients=500, alpha=alpha, beta=beta, seed=0))
    assert time.process_time() - start < 10
    assert np.all(coarse.sum(1) == 100)
    np.testing.assert_array_equal(fine.sum(0), 500)

    # Before anything is used up the law is exact: the clients served first.
    early = np.random.default_rng(0).permutation(500)[:150]
    assert fine[early].sum(0).max() < 500
    pairs = _agreement(coarse[early])
    assert abs(_z(pairs, _mean_agreement(alpha, 20))) < 5
    assert abs(_z(pairs, _mean_agreement(2 * alpha, 20))) > 5
    assert abs(_z(pairs, _mean_agreement(alpha / 2, 20))) > 5

    below = [np.unique(train["y"][train["coarse"] == c]) for c in range(20)]
    parts = np.concatenate([fine[early][:, columns] for columns in below])
    pairs = _agreement(parts[parts.sum(1) >= 5])  # enough draws below one coarse label
    assert abs(_z(pairs, _mean_agreement(beta, 5))) < 5
    for wrong in wrong_betas:
        assert abs(_z(pairs, _mean_agreement(wrong, 5))) > 5
