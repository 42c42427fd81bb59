"""split_clients: train and test of every client, a function of seed and client alone."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.partition.keyed import keyed_words
from fedjax_lite.data.partition.split import held_out

RNG = np.random.default_rng(0)
SIZES = np.array([7, 0, 1, 12, 3, 30, 1])
OWNERS = RNG.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
NUM = len(OWNERS)
EXAMPLES = {"i": np.arange(NUM, dtype=np.int32), "y": RNG.integers(0, 3, NUM)}
DATA = fl.data.from_arrays(EXAMPLES, OWNERS, num_clients=len(SIZES))


def owned(data, client):
    ends, order = np.asarray(data.offsets), np.asarray(data.order)
    return EXAMPLES["i"][order[ends[client] : ends[client + 1]]].tolist()


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.75])
def test_parts_are_disjoint_and_complete_client_by_client(fraction):
    train, test = fl.data.split_clients(DATA, fraction, seed=3)
    assert train.num_clients == test.num_clients == len(SIZES)
    for client in range(len(SIZES)):
        mine, theirs = owned(train, client), owned(test, client)
        assert sorted(mine + theirs) == np.flatnonzero(client == OWNERS).tolist()
        assert mine == sorted(mine)  # the order that they had
        share = fraction * SIZES[client]
        assert len(theirs) in (np.floor(share), np.ceil(share))
    for part in (train, test):
        assert part.examples is DATA.examples  # no pixel is copied
        assert part.num_examples == len(part.order) == part.sizes.sum()
        assert part.max_client_size == part.sizes.max()
        owners = np.asarray(part.client_of_example)
        assert (owners[np.asarray(part.order)] == OWNERS[np.asarray(part.order)]).all()
        assert (owners >= 0).sum() == part.num_examples
        np.testing.assert_array_equal(part.owned_examples()["i"], part.order)
        counts = fl.data.label_counts(part, 3)
        assert counts.sum(1).tolist() == part.sizes.tolist()
    assert DATA.owned_examples()["i"].tolist() == DATA.order.tolist()


def test_rounding_is_right_in_the_mean():
    """Of 4,000 clients of each size: the mean of t_i is f n_i, within five standard errors."""
    for size in (1, 2, 3, 10):
        clients = np.arange(4000)
        flags = held_out(np.full(4000, size), clients, 0.3, 0).reshape(4000, size)
        counts = flags.sum(1)
        share = 0.3 * size - np.floor(0.3 * size)
        error = 5 * np.sqrt(max(share * (1 - share), 1e-9) / 4000)
        assert abs(counts.mean() - 0.3 * size) < error + 1e-9
        # every place of a client is as likely as every other
        assert np.abs(flags.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 4000)


def test_a_client_of_one_example_has_it_in_one_part():
    data = fl.data.from_arrays({"x": np.arange(2000.0)}, np.arange(2000))
    train, test = fl.data.split_clients(data, 0.25, seed=1)
    np.testing.assert_array_equal(train.sizes + test.sizes, 1)
    assert abs(int(test.sizes.sum()) - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_split_knows_seed_and_client_only():
    base = held_out(SIZES, np.arange(len(SIZES)), 0.4, 5)
    ends = np.concatenate([[0], np.cumsum(SIZES)])
    for client in range(len(SIZES)):  # alone, as among others
        alone = held_out(SIZES[[client]], np.array([client]), 0.4, 5)
        np.testing.assert_array_equal(alone, base[ends[client] : ends[client + 1]])
    more = held_out(np.append(SIZES, 50), np.arange(len(SIZES) + 1), 0.4, 5)
    np.testing.assert_array_equal(more[:NUM], base)
    assert (held_out(SIZES, np.arange(len(SIZES)), 0.4, 6) != base).any()
    large = held_out(SIZES, np.arange(len(SIZES)), 0.6, 5)
    assert (large | ~base).all()  # a smaller test part lies within a larger one


def test_keyed_words_are_uniform_bits_and_tell_seeds_clients_and_places_apart():
    clients, places = (a.reshape(-1) for a in np.meshgrid(np.arange(300), np.arange(40)))
    words = keyed_words(0, clients, places)
    assert len(np.unique(words)) == len(words)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))
    others = [(1, clients, places), (0, clients + 1, places), (0, clients, places + 1)]
    for other in [keyed_words(*one) for one in [*others, (2**70, clients, places)]]:
        differ = ((words ^ other)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        assert np.abs(differ.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))


def test_streams_split_alike(tmp_path):
    by_client = np.argsort(OWNERS, kind="stable")
    arrays = {name: leaf[by_client] for name, leaf in EXAMPLES.items()}
    streamed = fl.StreamedDataset(fl.data.ArrayStore(arrays, SIZES), "disk", tmp_path / "rows")
    parts = fl.data.split_clients(streamed, 0.4, seed=2)
    assert [part.state for part in parts] == ["disk", "device"]
    for part, same in zip(parts, fl.data.split_clients(DATA, 0.4, seed=2), strict=True):
        assert part.sizes.tolist() == same.sizes.tolist()
        ids = np.array([5, 0, 1, 3])
        cohort = part.cohort(ids, np.array([True, True, True, False]))
        ends = np.asarray(cohort.offsets)
        for slot, client in enumerate([5, 0, 1]):
            rows = cohort.examples["i"][ends[slot] : ends[slot + 1]]
            assert rows.tolist() == owned(same, client)
        assert ends[-1] == ends[-2]
    written = fl.data.write_streamed(tmp_path / "test", fl.data.chunks(parts[1].store))
    assert fl.open_streamed(written).sizes.tolist() == parts[1].sizes.tolist()


def test_training_on_a_part_is_training_on_its_examples_alone():
    """Poisoned with NaN, the held-out examples leave no trace; the union of clients neither."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(NUM, 2)).astype(np.float32)
    data = fl.data.from_arrays({"x": x, "y": EXAMPLES["y"]}, OWNERS, num_clients=len(SIZES))
    train, test = fl.data.split_clients(data, 0.3, seed=0)
    poisoned = jax.numpy.asarray(x).at[test.order].set(np.nan)
    hurt = dataclasses.replace(train, examples={**data.examples, "x": poisoned})
    model = fl.models.linear(3, (2,))
    plan, key = fl.Plan(batch_size=4), jax.random.key(0)
    algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=plan, sampler=fl.everyone())
    ends = [
        algo.round(key, algo.init(key, model.init(key), part), part)[0].server.params
        for part in (train, hurt)
    ]
    chex.assert_trees_all_equal(*ends)
    sharded = fl.shard_population(hurt, mesh=fl.client_mesh(jax.devices()[:1]))
    kept = np.asarray(sharded.examples["x"])[: train.num_examples]
    np.testing.assert_array_equal(kept, train.owned_examples()["x"])  # the others stay behind
    assert sharded.sizes.tolist() == train.sizes.tolist()
    pooled = fl.pooled(hurt)
    assert pooled.sizes.tolist() == [train.num_examples]
    assert np.isfinite(pooled.client(0)["x"]).all()


def test_what_cannot_be_split_says_what_can():
    for fraction, error in ((0, ValueError), (1.0, ValueError), ("a", TypeError)):
        with pytest.raises(error, match="fraction"):
            fl.data.split_clients(DATA, fraction, seed=0)
    with pytest.raises(ValueError, match="test part; raise it"):
        fl.data.split_clients(DATA, 1e-6, seed=0)
    with pytest.raises(ValueError, match="train part; lower it"):
        fl.data.split_clients(DATA, 1 - 1e-6, seed=0)
    with pytest.raises(TypeError, match="seed"):
        fl.data.split_clients(DATA, 0.5, seed=0.5)
    store = fl.data.ArrayStore({"x": np.zeros(3)}, [3])
    sharded = fl.shard_population(DATA, mesh=fl.client_mesh(jax.devices()[:1]))
    for data, words in (
        (EXAMPLES, "from_arrays"),
        (store, "StreamedDataset"),
        (sharded, "shard the train part"),
        (fl.StreamedDataset(store).cohort([0], [True]), "StreamedDataset"),
    ):
        with pytest.raises(TypeError, match=words):
            fl.data.split_clients(data, 0.5, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_common_test_data_are_dealt_by_the_labels_that_clients_train_on(seed):
    rng = np.random.default_rng(seed)
    train = {"y": rng.choice([0, 1, 3], 400, p=[0.6, 0.3, 0.1])}
    data = fl.data.from_arrays(train, rng.choice(9, 400, p=np.arange(9) / 36), num_clients=9)
    test = {"i": np.arange(150), "y": rng.choice([0, 1, 2, 3], 150)}
    dealt = fl.data.deal_like(test, data, seed=seed)
    rows = np.asarray(dealt.order)
    assert sorted(rows) == np.flatnonzero(test["y"] != 2).tolist()  # once; class 2 is nobody's
    counts, got = fl.data.label_counts(data, 4), fl.data.label_counts(dealt, 4)
    for c in (0, 1, 3):
        share = (test["y"] == c).sum() * counts[:, c] / counts[:, c].sum()
        assert (np.abs(got[:, c] - share) < 1).all()
    assert dealt.num_clients == 9
    assert dealt.sizes[0] == 0  # it does not train
    again, other = (fl.data.deal_like(test, data, seed=s) for s in (seed, seed + 1))
    assert again.order.tolist() == rows.tolist() != other.order.tolist()


def test_dealing_is_right_in_the_mean():
    """Nine clients share 4 test examples by their 18 training examples: 4 / 9 each, on average."""
    data = fl.data.from_arrays({"y": np.zeros(18, int)}, np.repeat(np.arange(9), 2))
    test, seeds = {"y": np.zeros(4, int)}, 600
    sizes = np.array([fl.data.deal_like(test, data, seed=s).sizes for s in range(seeds)])
    error = 5 * np.sqrt(4 / 9 * 5 / 9 / seeds)
    assert np.abs(sizes.mean(0) - 4 / 9).max() < error
    with pytest.raises(ValueError, match="somebody trains on"):
        fl.data.deal_like({"y": np.array([5])}, data, seed=0)
    with pytest.raises(TypeError, match="order is"):
        fl.data.deal_like(test, test, seed=0)
