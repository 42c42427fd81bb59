"""The contract of partitions: every example once, determinism, natural clients, messages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lite.data.partition import apportion
from fedjax_lite.data.partition.feature_skew import brightness
from fedjax_lite.data.partition.label_skew import dirichlet, dirichlet_mixture, dirichlet_quantity
from fedjax_lite.data.partition.pachinko import pachinko
from fedjax_lite.data.partition.partition import (
    Partitioner,
    by_key,
    iid,
    label_counts,
    owners,
    partition,
)
from fedjax_lite.data.partition.quantity_skew import lognormal, power_law, quantity_dirichlet, zipf
from fedjax_lite.data.partition.shards import classes_per_client, shards

ALL = {
    "iid": lambda n, s, m: iid(num_clients=n, seed=s),
    "dirichlet": lambda n, s, m: dirichlet(alpha=0.3, num_clients=n, seed=s, min_size=m),
    "balanced": lambda n, s, m: dirichlet(
        alpha=0.3, num_clients=n, seed=s, min_size=m, balanced=True
    ),
    "mixture": lambda n, s, m: dirichlet_mixture(alpha=0.3, num_clients=n, seed=s),
    "mixture_symmetric": lambda n, s, m: dirichlet_mixture(
        alpha=0.3, num_clients=n, seed=s, symmetric=True
    ),
    "quantity_and_label": lambda n, s, m: dirichlet_quantity(
        alpha=0.3, num_clients=n, seed=s, sigma=1.5, min_size=m
    ),
    "shards": lambda n, s, m: shards(num_clients=n, seed=s),
    "classes": lambda n, s, m: classes_per_client(num_classes=3, num_clients=n, seed=s),
    "pachinko": lambda n, s, m: pachinko(num_clients=n, seed=s),
    "lognormal": lambda n, s, m: lognormal(sigma=2.0, num_clients=n, seed=s, min_size=m),
    "power_law": lambda n, s, m: power_law(exponent=1.5, num_clients=n, seed=s, min_size=m),
    "zipf": lambda n, s, m: zipf(exponent=1.5, num_clients=n, seed=s, min_size=m),
    "quantity_dirichlet": lambda n, s, m: quantity_dirichlet(
        alpha=0.1, num_clients=n, seed=s, min_size=m
    ),
}
RESPECTS_MIN_SIZE = {
    "dirichlet", "balanced", "quantity_and_label", "lognormal", "power_law", "zipf",
    "quantity_dirichlet",
}  # fmt: skip
EQUAL_SIZES = {"iid", "mixture", "mixture_symmetric", "pachinko"}


def _train(num_examples=600, num_classes=12, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate(
        [np.arange(num_classes), rng.integers(0, num_classes, num_examples - num_classes)]
    )
    x = np.arange(num_examples, dtype=np.int32)  # a serial number: tells which example it is
    return {"x": x, "y": y.astype(np.int32), "coarse": (y // 3).astype(np.int32)}


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15, deadline=None)
@given(
    num_clients=st.integers(4, 60),
    seed=st.integers(0, 2**31),
    min_size=st.integers(0, 5),
    num_examples=st.integers(300, 700),
)
def test_every_example_once_and_sizes_as_promised(name, num_clients, seed, min_size, num_examples):
    train = _train(num_examples)
    owner = owners(train, ALL[name](num_clients, seed, min_size))
    assert owner.shape == (num_examples,)
    assert owner.min() >= 0
    assert owner.max() < num_clients
    sizes = np.bincount(owner, minlength=num_clients)
    assert sizes.sum() == num_examples
    if name in RESPECTS_MIN_SIZE:
        assert sizes.min() >= min_size
    if name in EQUAL_SIZES:
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("name", ALL)
def test_seed_decides(name):
    train = _train()
    first = owners(train, ALL[name](20, 3, 1))
    np.testing.assert_array_equal(first, owners(train, ALL[name](20, 3, 1)))
    assert np.mean(first != owners(train, ALL[name](20, 4, 1))) > 0.3


@pytest.mark.parametrize("name", ALL)
def test_global_randomness_is_neither_read_nor_moved(name):
    train = _train()

    def state():
        return np.array(np.random.get_state(legacy=True)[1])  # type: ignore  # noqa: NPY002

    np.random.seed(1)  # noqa: NPY002
    before = state()
    first = owners(train, ALL[name](20, 3, 1))
    np.testing.assert_array_equal(before, state())
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, owners(train, ALL[name](20, 3, 1)))


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ALL)
def test_partition_holds_what_owners_say(name):
    train = _train()
    partitioner = ALL[name](7, 0, 1)
    data, owner = partition(train, partitioner), owners(train, partitioner)
    assert data.num_clients == 7
    np.testing.assert_array_equal(data.client_of_example, owner)
    serial = np.concatenate([np.asarray(data.client(i)["x"]) for i in range(7)])
    np.testing.assert_array_equal(np.sort(serial), train["x"])
    for i in range(7):
        np.testing.assert_array_equal(data.client(i)["x"], np.flatnonzero(owner == i))


def test_iid_is_the_documented_permutation():
    owner = owners(_train(103), iid(num_clients=10, seed=5))
    pieces = np.array_split(np.random.default_rng(5).permutation(103), 10)
    for i, piece in enumerate(pieces):
        np.testing.assert_array_equal(np.flatnonzero(owner == i), np.sort(piece))


def test_label_counts_is_the_table():
    train = _train()
    data = partition(train, dirichlet(alpha=0.5, num_clients=9, seed=0))
    owner = np.asarray(data.client_of_example)
    expected = [[np.sum((owner == i) & (train["y"] == k)) for k in range(15)] for i in range(9)]
    np.testing.assert_array_equal(label_counts(data, 15), expected)
    np.testing.assert_array_equal(label_counts(data), np.array(expected)[:, :12])
    assert label_counts(data, label="coarse").shape == (9, 4)
    with pytest.raises(ValueError, match="num_classes=5"):
        label_counts(data, 5)


def test_natural_clients_are_numbered_in_sorted_order_and_strings_dropped():
    train = {"x": np.arange(5.0), "writer": np.array(["d", "b", "d", "a", "b"])}
    data = partition(train, by_key("writer"))
    assert data.sizes.tolist() == [1, 2, 2]
    assert list(data.examples) == ["x"]
    assert data.client(2)["x"].tolist() == [0.0, 2.0]
    numeric = {"x": np.arange(3.0), "id": np.array([30, 10, 30])}
    assert sorted(partition(numeric, by_key("id", keep=True)).examples) == ["id", "x"]
    with pytest.raises(TypeError, match=r"writer.*numeric"):
        owners(train, by_key("writer", keep=True))
    with pytest.raises(ValueError, match="besides"):
        partition({"writer": np.array(["a"])}, by_key("writer"))


def test_memory_mapped_examples(tmp_path):
    x = np.arange(40 * 3, dtype=np.uint8).reshape(40, 3)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = partition({"x": mapped}, iid(num_clients=4, seed=0), brightness(deltas=[1 / 255]))
    np.testing.assert_array_equal(data.examples["x"], x + 1)


def test_largest_remainder_against_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares = rng.dirichlet(np.full(7, 0.5))
        total = int(rng.integers(0, 50))
        counts = apportion.largest_remainder(rng, shares, total)
        floors = np.floor(shares * total)
        up = counts - floors
        assert counts.sum() == total
        assert set(up) <= {0, 1}
        remainders = shares * total - floors
        assert min(remainders[up == 1], default=1) >= max(remainders[up == 0], default=0)


def test_ties_of_equal_shares_favour_nobody():
    rng = np.random.default_rng(0)
    hits = sum(apportion.largest_remainder(rng, np.full(4, 0.25), 1) for _ in range(2000))
    # Binomial(2000, 1/4): standard deviation 19.4
    assert np.abs(hits - 500).max() < 5 * np.sqrt(2000 * 3 / 16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 10))
def test_raise_to_minimum_against_one_at_a_time(sizes, min_size):
    sizes = np.array(sizes)
    min_size = min(min_size, int(sizes.sum()) // len(sizes))
    slow = sizes.copy()
    while slow.min() < min_size:
        slow[slow.argmin()] += 1
        slow[slow.argmax()] -= 1
    raised = apportion.raise_to_minimum(sizes, min_size)
    np.testing.assert_array_equal(np.sort(raised), np.sort(slow))
    assert np.all((raised >= sizes) | (raised >= min_size))


def test_repair_moves_no_more_than_needed():
    owner = np.repeat(np.arange(4), [50, 40, 9, 1])
    repaired = apportion.repair(np.random.default_rng(0), owner, 4, 10)
    assert np.bincount(repaired).tolist() == [40, 40, 10, 10]
    assert np.sum(owner != repaired) == 10
    assert np.all(owner[owner != repaired] == 0)


def test_deal_has_the_law_of_drawing_one_by_one():
    shares, stock, need = (0.6, 0.3, 0.1), (2, 1, 4), 4

    def law(taken):
        """Exact probabilities of the counts, by walking through every sequence of draws."""
        if sum(taken) == need:
            return {taken: 1.0}
        live = [k for k in range(3) if taken[k] < stock[k]]
        total, out = sum(shares[k] for k in live), {}
        for k in live:
            following = tuple(t + (j == k) for j, t in enumerate(taken))
            for end, probability in law(following).items():
                out[end] = out.get(end, 0.0) + shares[k] / total * probability
        return out

    rng, num_draws = np.random.default_rng(0), 6000
    seen = {}
    for _ in range(num_draws):
        end = tuple(apportion.deal(rng, need, np.log(shares), np.array(stock)).tolist())
        seen[end] = seen.get(end, 0) + 1
    expected = law((0, 0, 0))
    assert set(seen) <= set(expected)
    for end, probability in expected.items():
        spread = np.sqrt(num_draws * probability * (1 - probability))
        assert abs(seen.get(end, 0) - num_draws * probability) < 5 * spread


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: dirichlet(alpha=0.0, num_clients=3), ValueError, "alpha.*0.0"),
        (lambda: dirichlet(alpha=-1, num_clients=3), ValueError, "alpha.*-1"),
        (lambda: dirichlet(alpha=float("nan"), num_clients=3), ValueError, "alpha.*nan"),
        (lambda: dirichlet(alpha=float("inf"), num_clients=3), ValueError, "alpha.*inf"),
        (lambda: dirichlet(alpha="1", num_clients=3), TypeError, "alpha.*'1'"),  # type: ignore
        (lambda: dirichlet(alpha=1, num_clients=0), ValueError, "num_clients.*0"),
        (lambda: dirichlet(alpha=1, num_clients=2.5), TypeError, "num_clients.*2.5"),  # type: ignore
        (lambda: dirichlet(alpha=1, num_clients=2, min_size=-1), ValueError, "min_size.*-1"),
        (lambda: dirichlet(alpha=1, num_clients=2, seed=-1), ValueError, "seed.*-1"),
        (lambda: pachinko(num_clients=2, beta=0), ValueError, "beta.*0"),
        (lambda: shards(num_clients=2, shards_per_client=0), ValueError, "shards_per_client.*0"),
        (lambda: lognormal(sigma=-0.1, num_clients=2), ValueError, "sigma.*-0.1"),
        (lambda: power_law(exponent=1.0, num_clients=2), ValueError, "exponent.*1.0"),
        (lambda: zipf(exponent=-1.0, num_clients=2), ValueError, "exponent.*-1.0"),
        (lambda: dirichlet_quantity(alpha=1, num_clients=2), ValueError, "exactly one"),
        (
            lambda: dirichlet_quantity(alpha=1, num_clients=2, sizes=[1, 2, 3]),
            ValueError,
            r"num_clients=2.*\[3\]",
        ),
        (
            lambda: dirichlet_quantity(alpha=1, num_clients=2, sizes=[5, 0], min_size=1),
            ValueError,
            "min_size=1.*0",
        ),
    ],
)
def test_arguments_are_checked_when_they_are_given(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("examples", "partitioner", "error", "words"),
    [
        ({"x": np.zeros(4)}, dirichlet(alpha=1, num_clients=2), ValueError, r"'y'.*\['x'\].*label"),
        ({"y": np.eye(4)}, dirichlet(alpha=1, num_clients=2), ValueError, "argmax"),
        ({"y": np.zeros((4, 2, 2))}, shards(num_clients=2), ValueError, r"\[4, 2, 2\]"),
        ({"y": np.array([0.0, 1.0])}, shards(num_clients=1), TypeError, "astype"),
        ({"y": np.array([0.5, 1.0])}, shards(num_clients=1), TypeError, "unique"),
        ({"y": np.array([-1, 1])}, shards(num_clients=1), ValueError, "-1"),
        ({"y": np.zeros(3, int)}, iid(num_clients=4), ValueError, "4 \\* 1.*only 3"),
        ({"y": np.zeros(3, int)}, shards(num_clients=2), ValueError, "4 shards.*3"),
        (
            {"y": np.zeros(9, int)},
            dirichlet(alpha=1, num_clients=5, min_size=2),
            ValueError,
            "5 \\* 2 = 10.*only 9",
        ),
        (
            {"y": np.zeros(9, int)},
            lognormal(sigma=1, num_clients=5, min_size=2),
            ValueError,
            "only 9",
        ),
        ({"y": np.zeros(3, int)}, pachinko(num_clients=2), ValueError, "coarse='coarse'"),
        (
            {"y": np.arange(6)},
            classes_per_client(num_classes=2, num_clients=2),
            ValueError,
            "without an owner",
        ),
        (
            {"y": np.arange(2)},
            classes_per_client(num_classes=3, num_clients=2),
            ValueError,
            "at most the 2",
        ),
        (
            {"y": np.zeros(9, int)},
            dirichlet_quantity(alpha=1, num_clients=2, sizes=[5, 5]),
            ValueError,
            "sum to the 9.*10",
        ),
        ({"y": np.zeros(0, int)}, iid(num_clients=1), ValueError, "empty"),
        ([np.zeros(3)], iid(num_clients=1), TypeError, "dict.*list"),
        ({"y": np.zeros(3, int)}, by_key("writer"), ValueError, "'writer'"),
        (
            {"y": np.zeros(3, int)},
            Partitioner(lambda e: np.array([0, 1, 2]), 2, "mine"),
            ValueError,
            "mine.*0..2",
        ),
        (
            {"y": np.zeros(3, int)},
            Partitioner(lambda e: np.array([0, 1]), 2, "mine"),
            ValueError,
            "mine",
        ),
    ],
)
def test_examples_are_checked_when_they_are_dealt(examples, partitioner, error, words):
    with pytest.raises(error, match=words):
        owners(examples, partitioner)


def test_another_label_key():
    train = {"digit": np.repeat(np.arange(5), 20)}
    owner = owners(train, shards(num_clients=5, shards_per_client=1, label="digit"))
    assert all(len(set(train["digit"][owner == i])) == 1 for i in range(5))
