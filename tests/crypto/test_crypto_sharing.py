"""Shamir and additive shares, Beaver triples, the mean by several servers."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lite import crypto
from fedjax_lite.crypto import Share

P = 97
POINTS = (1, 2, 3, 4, 5)


def is_prime(n: int) -> bool:
    """Miller and Rabin with 24 bases; deterministic below 3.3e24, else wrong with 4**-24."""
    if n < 2 or any(n % p == 0 and n != p for p in (2, 3, 5, 7)):
        return False
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for base in range(2, 26):
        x = pow(base, d, n)
        if x in (1, n - 1, 0):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_fields_are_fields():
    assert is_prime(crypto.SECRET_PRIME)
    assert crypto.SECRET_PRIME > 2**256
    assert not any(is_prime(n) for n in range(2**256 + 1, crypto.SECRET_PRIME, 2))
    assert is_prime(crypto.VECTOR_PRIME)
    assert not any(is_prime(n) for n in range(crypto.VECTOR_PRIME + 2, 2**32, 2))


def test_known_shares():
    """f(X) = 42 + 7 X + 13 X^2 mod 97."""
    shares = crypto.split(42, POINTS, threshold=3, prime=P, coefficients=[7, 13])
    expected = [(42 + 7 * x + 13 * x * x) % P for x in POINTS]
    assert [share.value for share in shares] == expected == [62, 11, 83, 84, 14]
    for three in itertools.permutations(shares, 3):
        assert crypto.combine(three, threshold=3, prime=P) == 42
    assert crypto.combine(shares, threshold=3, prime=P) == 42


def test_known_lagrange_weights():
    assert crypto.lagrange_weights((1, 2, 3), prime=P) == [3, 94, 1]
    assert crypto.lagrange_weights((1, 3, 5), prime=P) == [14, 23, 61]
    # At a point of its own the weights pick it.
    assert crypto.lagrange_weights((1, 3, 5), prime=P, at=3) == [0, 1, 0]


def test_two_shares_fit_every_secret_equally():
    """With t = 3: for each secret exactly one polynomial through any two given shares."""
    prime, pair = 11, ((1, 4), (3, 9))
    fitting = Counter(
        secret
        for secret, a, b in itertools.product(range(prime), repeat=3)
        if all((secret + a * x + b * x * x) % prime == y for x, y in pair)
    )
    assert fitting == dict.fromkeys(range(prime), 1)
    # And fewer than t shares interpolate to something else.
    shares = crypto.split(42, POINTS, threshold=3, prime=P, coefficients=[7, 13])
    assert crypto.combine(shares[:2], threshold=2, prime=P) != 42


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**256 - 1), st.integers(1, 6), st.data())
def test_secrets_of_32_bytes_come_back(secret, threshold, data):
    num_shares = data.draw(st.integers(threshold, 7))
    shares = crypto.split(secret, list(range(1, num_shares + 1)), threshold=threshold)
    some = data.draw(st.permutations(shares))[:threshold]
    assert crypto.combine(some, threshold=threshold) == secret


def test_random_shares_are_uniform():
    """One share of t = 2 over 11: chi-square with 10 degrees of freedom, 1e-6 quantile 47.9."""
    shares = [crypto.split(3, [2, 5], threshold=2, prime=11)[0].value for _ in range(2200)]
    counts = np.bincount(shares, minlength=11)
    assert ((counts - 200) ** 2 / 200).sum() < 47.9


@pytest.mark.parametrize("modulus", [P, crypto.VECTOR_PRIME])
@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_shared_arrays_add_up(modulus, threshold):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, modulus, (3, 4)) for _ in range(2))
    shares = [
        crypto.split_array(v, num_shares=4, threshold=threshold, prime=modulus) for v in (x, y)
    ]
    both = (shares[0] + shares[1]) % np.uint64(modulus)
    for points in itertools.combinations(range(1, 5), threshold):
        held = both[[p - 1 for p in points]]
        got = crypto.combine_array(held, points=points, threshold=threshold, prime=modulus)
        np.testing.assert_array_equal(got, (x + y) % modulus)


def test_array_shares_are_those_of_numbers():
    """The vectorised polynomial against the scalar one, with the same coefficients."""
    values = np.array([5, 96, 0])
    shares = crypto.split_array(
        values, num_shares=3, threshold=3, prime=P, rng=np.random.default_rng(3)
    )
    coefficients = np.random.default_rng(3).integers(0, P, (2, 3), dtype=np.uint64)
    for i, value in enumerate(values):
        curve = [int(value), *map(int, coefficients[:, i])]
        assert shares[:, i].tolist() == [crypto.polynomial(curve, x, prime=P) for x in (1, 2, 3)]


@pytest.mark.parametrize("modulus", [2, P, 2**32])
def test_additive_shares_sum_to_the_secret(modulus):
    values = np.random.default_rng(1).integers(0, modulus, 50)
    shares = crypto.share(values, num_shares=3, modulus=modulus)
    np.testing.assert_array_equal(shares.astype(object).sum(0) % modulus, values)
    np.testing.assert_array_equal(crypto.reveal(shares, modulus=modulus), values)


def test_all_but_one_additive_shares_are_uniform():
    """Each share of a fixed secret over 8 values, each pair over 64: chi-square at 1e-6."""
    shares = crypto.share(np.full(6400, 5), num_shares=3, modulus=8).astype(int)
    for share in shares:  # 7 degrees of freedom
        assert ((np.bincount(share, minlength=8) - 800) ** 2 / 800).sum() < 41.0
    for a, b in itertools.combinations(shares, 2):  # 63 degrees of freedom
        assert ((np.bincount(8 * a + b, minlength=64) - 100) ** 2 / 100).sum() < 128.0


def test_known_product():
    """x = 12, y = 34, triple (5, 7, 35) mod 97: d = 7, e = 27, 35 + 7 d + 5 e + d e = 408."""
    triple = crypto.deal_triple((), num_parties=3, modulus=P, values=(5, 7))
    a, b, c = triple._shares
    assert [int(crypto.reveal(v, modulus=P)) for v in (a, b, c)] == [5, 7, 35]
    x, y = (crypto.share(v, num_shares=3, modulus=P) for v in (12, 34))
    d, e = 12 - 5, 34 - 7
    product = crypto.reveal(crypto.multiply(x, y, triple=triple), modulus=P)
    assert int(product) == (35 + 7 * d + 5 * e + d * e) % P == 12 * 34 % P == 20


@pytest.mark.parametrize("modulus", [P, crypto.VECTOR_PRIME, 2**32])
def test_products_of_arrays(modulus):
    rng = np.random.default_rng(2)
    x, y = (rng.integers(0, modulus, (5, 3)) for _ in range(2))
    triple = crypto.deal_triple((5, 3), num_parties=4, modulus=modulus)
    shares = [crypto.share(v, num_shares=4, modulus=modulus) for v in (x, y)]
    got = crypto.reveal(crypto.multiply(*shares, triple=triple), modulus=modulus)
    np.testing.assert_array_equal(got, x.astype(object) * y.astype(object) % modulus)


def test_a_triple_serves_once():
    triple = crypto.deal_triple((2,), num_parties=2, modulus=P)
    x = crypto.share([1, 2], num_shares=2, modulus=P)
    with pytest.raises(ValueError, match="one shape"):
        crypto.multiply(x[:, :1], x[:, :1], triple=triple)
    assert not triple.used, "an error does not use it up"
    crypto.multiply(x, x, triple=triple)
    with pytest.raises(crypto.TripleReusedError, match="one product only"):
        crypto.multiply(x, x, triple=triple)


@pytest.mark.parametrize("threshold", [None, 2, 3])
def test_mean_by_servers_is_the_fixed_point_mean(threshold):
    """Bit for bit the mean of the codes, and within half a step of the float mean."""
    rng = np.random.default_rng(4)
    values, weights = rng.uniform(-1, 1, (6, 20)), np.array([1, 2, 3, 0, 5, 6])
    got = crypto.mpc_mean(values, weights=weights, max_abs=1.0, bits=16, threshold=threshold)
    codes = crypto.encode(values, max_abs=1.0, bits=16).astype(np.int64)
    plain = crypto.decode_mean((weights @ codes).astype(np.uint32), 17, max_abs=1.0, bits=16)
    np.testing.assert_array_equal(got, plain)
    step = 2 / (2**16 - 1)
    np.testing.assert_allclose(got, weights @ values / 17, atol=0.51 * step)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: crypto.split(P, [1, 2], threshold=2, prime=P), "secret"),
        (lambda: crypto.split(1, [1, 98], threshold=2, prime=P), "points"),
        (lambda: crypto.split(1, [0, 2], threshold=2, prime=P), "points"),
        (lambda: crypto.split(1, [1, 2], threshold=3, prime=P), "threshold"),
        (lambda: crypto.split(1, [1, 2], threshold=2, coefficients=[1, 2]), "coefficients"),
        (lambda: crypto.combine([Share(1, 2)], threshold=2), "shares"),
        (lambda: crypto.combine([Share(1, 2), Share(1, 2)], threshold=2), "points"),
        (lambda: crypto.split_array([1], num_shares=2, threshold=2, prime=2**61 - 1), "prime"),
        (lambda: crypto.split_array([P], num_shares=2, threshold=2, prime=P), "values"),
        (lambda: crypto.combine_array([[1]], points=[1, 2], threshold=1), "shares"),
        (lambda: crypto.share([-1], num_shares=2), "values"),
        (lambda: crypto.share([1], num_shares=1), "num_shares"),
        (lambda: crypto.share([1], num_shares=2, modulus=2**33), "modulus"),
        (lambda: crypto.random_elements(3, modulus=1), "modulus"),
        (lambda: crypto.mpc_mean(np.zeros(3), max_abs=1.0), "values"),
        (lambda: crypto.mpc_mean(np.zeros((2, 3)), weights=[0.5, 1], max_abs=1.0), "weights"),
        (lambda: crypto.mpc_mean(np.zeros((70_000, 1)), max_abs=1.0, bits=16), "wrap"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_floats_are_not_shared():
    with pytest.raises(TypeError, match="encode them first"):
        crypto.share([0.5], num_shares=2)
