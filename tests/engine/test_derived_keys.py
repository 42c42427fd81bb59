"""Keys of one loop: those of `jax.random`, whatever the key's kind, and few in a program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.engine.derived_keys import derive, word
from fedjax_lite.engine.round_keys import client_keys, clients_key, pass_keys, round_keys

PATHS = [(3,), (2**32 - 1, 0), (3, 5, 7), (0, 0)]


def folded(key, path):
    for link in path:
        key = jax.random.fold_in(key, link)
    return key


def data(keys):
    return np.asarray(jax.random.key_data(keys))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_path_is_its_folds_one_by_one(impl):
    key = jax.random.key(11, impl=impl)
    expected = np.stack([data(folded(key, path)) for path in PATHS])
    np.testing.assert_array_equal(data(derive(key, PATHS)), expected)
    assert jax.random.key_impl(derive(key, PATHS)) == jax.random.key_impl(key)


def test_traced_links_are_put_in_place():
    key = jax.random.key(5)

    @jax.jit
    @jax.vmap
    def ours(client):
        return derive(key, [(client, 0), (7, client, 1), (client, client)])

    clients = jnp.array([0, 4, 2**31 - 1], jnp.int32)
    paths = [[(c, 0), (7, c, 1), (c, c)] for c in clients.tolist()]
    expected = [[data(folded(key, path)) for path in three] for three in paths]
    np.testing.assert_array_equal(data(ours(clients)), np.array(expected))
    with jax.disable_jit():
        np.testing.assert_array_equal(data(ours(clients)), np.array(expected))
    alone = jax.vmap(lambda client: derive(key, [(client,)])[0])(clients)
    np.testing.assert_array_equal(data(alone), [data(folded(key, (c,))) for c in clients.tolist()])


def test_one_link_is_split_and_words_are_bits():
    key = jax.random.key(9)
    pair = derive(key, [(0,), (1,)])
    np.testing.assert_array_equal(data(pair), data(jax.random.split(key)))
    np.testing.assert_array_equal(word(pair), jax.random.bits(key, (2,), jnp.uint32))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_words_differ_by_key_and_client(impl):
    """Also where a key's four words are two, twice."""
    words = [
        np.asarray(client_keys(jax.random.key(seed, impl=impl), client).seed).tobytes()
        for seed, client in itertools.product((0, 1, 7), (0, 1, 5))
    ]
    assert len(set(words)) == 9


def test_no_two_keys_of_a_round_are_alike():
    key = jax.random.key(2)
    keys = [*jax.tree.leaves(round_keys(key, jnp.int32(4)))]
    keys += jax.tree.leaves(round_keys(key, jnp.int32(5)))
    assert len({data(one).tobytes() for one in keys}) == len(keys) == 14
    training = round_keys(key, jnp.int32(4)).training
    assert (data(clients_key(key, jnp.int32(4))) == data(training.clients)).all()
    assert len({data(one).tobytes() for one in pass_keys(key)}) == 2


def test_all_keys_of_a_round_cost_one_loop():
    """Each threefry call is compiled to kernels of its own."""
    text = jax.jit(lambda key: round_keys(key, jnp.int32(3))).lower(jax.random.key(0)).as_text()
    assert text.count("call @threefry2x32") == 1
