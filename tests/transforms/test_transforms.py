"""clip at its edges, and chain as composition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fedjax_lite as fl
from fedjax_lite.transforms.chain import send
from fedjax_lite.trees import global_norm
from fedjax_lite.types import Wire

KEY = jax.random.key(0)


def clipped(value, max_norm):
    state, out = fl.clip(max_norm).update(KEY, (), value)
    assert state == ()
    return out


def norm64(tree):
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(flat)


# -- clip -----------------------------------------------------------------------------------


def test_one_norm_over_the_whole_tree():
    value = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[-4.0]]), "d": jnp.float32(0.0)}}
    out = clipped(value, 2.5)
    np.testing.assert_allclose(out["a"], [1.5, 0], rtol=1e-6)
    np.testing.assert_allclose(out["b"]["c"], [[-2.0]], rtol=1e-6)
    assert out["b"]["d"].shape == ()
    assert jax.tree.structure(out) == jax.tree.structure(value)


def test_values_within_the_ball_are_untouched_bit_for_bit():
    value = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)
    for bound in (norm64(value) * 1.001, 1e9, jnp.inf):
        np.testing.assert_array_equal(clipped(value, bound), value)
    np.testing.assert_array_equal(clipped(jnp.array([3.0, 4.0]), 5.0), [3.0, 4.0])


def test_zero_stays_zero():
    for bound in (1e-30, 1.0, jnp.inf):
        np.testing.assert_array_equal(clipped({"a": jnp.zeros(3)}, bound)["a"], np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bound", [1.0, jnp.inf])
def test_what_has_no_direction_becomes_zero(bad, bound):
    out = clipped({"a": jnp.array([1.0, 2.0]), "b": jnp.array([bad, 1.0])}, bound)
    np.testing.assert_array_equal(out["a"], np.zeros(2))
    np.testing.assert_array_equal(out["b"], np.zeros(2))


@pytest.mark.parametrize("magnitude", [1e30, 1e19, 1e-19, 1e-30, 1e36])
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_extreme_magnitudes_keep_their_direction(magnitude, ratio):
    """Squares overflow or vanish in float32; the direction must not."""
    value = jnp.array([3.0, -4.0], jnp.float32) * jnp.float32(magnitude)
    bound = float(np.float32(5 * magnitude * ratio))
    expected = np.asarray(value, np.float64) * min(1.0, ratio)
    np.testing.assert_allclose(np.asarray(clipped(value, bound), np.float64), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ((2e38, 1e38), 1.0),  # max_norm / norm is subnormal
        ((1e36, 0.0), 1e-3),
        ((3e38, 3e38), 1.0),  # the norm itself overflows
        ((3e38, -3e38), 1e38),
        ((1e-30, 1e-30), 1e-36),
    ],
)
def test_huge_values_against_small_bounds(value, bound):
    out = np.asarray(clipped(jnp.array(value, jnp.float32), bound), np.float64)
    expected = np.array(value) / np.linalg.norm(value) * bound
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_subnormals_are_finite_and_no_larger():
    value = jnp.array([1e-40, -3e-41], jnp.float32)
    for bound in (1e-38, 1.0, jnp.inf):
        out = np.asarray(clipped(value, bound))
        assert np.isfinite(out).all()
        assert (abs(out) <= abs(np.asarray(value))).all()


@settings(max_examples=80, deadline=None)
@example([3e38, 3e38, 1.0], 1.0)  # 1 / 3e38 is subnormal, and flushed to zero on some devices
@example([1e-38, 1e-38, 1e-38], 1e-20)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=3, max_size=3),
    st.sampled_from([1e-20, 1e-3, 1.0, 7.5, 1e20]),
)
def test_guarantee_for_every_input(entries, bound):
    value = {"a": jnp.array(entries[:2], jnp.float32), "b": jnp.array(entries[2], jnp.float32)}
    out = clipped(value, bound)
    assert norm64(out) <= bound * (1 + 1e-5)
    assert norm64(jax.jit(clipped)(value, bound)) <= bound * (1 + 1e-5)
    again = clipped(out, bound)
    # Entries far below the norm may be flushed to zero: a rounding of the norm's size.
    chex.assert_trees_all_close(out, again, rtol=1e-5, atol=1e-7 * bound)


def test_bound_may_be_traced_and_result_matches_optax():
    value = {"a": jnp.arange(4.0), "b": -jnp.ones((2, 3))}
    run = jax.jit(lambda bound, v: clipped(v, bound))
    for bound in (0.5, 2.0, 100.0):
        expected, _ = optax.clip_by_global_norm(bound).update(value, optax.EmptyState())
        got = run(bound, value)
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5), got, expected)
    assert not np.asarray(jax.tree.leaves(run(0.0, value))[0]).any()
    assert run._cache_size() == 1


def test_gradient_is_finite_everywhere():
    def through(value):
        return (clipped(value, 1.0)["a"] * jnp.array([1.0, 2.0])).sum()

    gradient = jax.jit(jax.grad(through))
    at_zero = gradient({"a": jnp.zeros(2)})["a"]
    np.testing.assert_allclose(at_zero, [1.0, 2.0])  # the identity inside the ball
    for entry in ([1.0, 0.0], [5.0, 5.0], [1e20, 1e-20], [jnp.nan, 1.0], [1e30, 1e30]):
        assert np.isfinite(gradient({"a": jnp.array(entry)})["a"]).all(), entry
    # Outside: the projection on the sphere, J = (I - u u^T) / |v|.
    v = np.array([3.0, 4.0])
    jacobian = (np.eye(2) - np.outer(v, v) / 25) / 5
    got = gradient({"a": jnp.array(v, jnp.float32)})["a"]
    np.testing.assert_allclose(got, jacobian @ [1, 2], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept_and_low_precision_norms_do_not_overflow(dtype):
    value = {"a": jnp.full((1000,), 300.0, dtype), "b": jnp.ones(3, jnp.float32)}
    out = clipped(value, 1.0)
    assert out["a"].dtype == dtype
    assert out["b"].dtype == jnp.float32
    np.testing.assert_allclose(norm64(out), 1.0, rtol=2e-2)


def test_clip_of_lanes_is_per_client():
    values = jnp.array([[3.0, 4.0], [0.3, 0.4], [jnp.nan, 1.0], [0.0, 0.0]])
    out = jax.vmap(lambda v: clipped(v, 1.0))(values)
    np.testing.assert_allclose(out, [[0.6, 0.8], [0.3, 0.4], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), np.array(-2.0)])
def test_bound_must_be_positive(bound):
    with pytest.raises(ValueError, match="max_norm must be positive, got"):
        fl.clip(bound)


# -- chain ----------------------------------------------------------------------------------


def scale(factor):
    return fl.Transform(lambda v: (), lambda k, s, v: (s, jax.tree.map(lambda x: x * factor, v)))


def counter(cost=None):
    """Counts its uses, adds the count."""

    def update(key, state, value):
        return state + 1, value + state

    def priced(key, state, value):
        return *update(key, state, value), Wire(jnp.float32(cost), jnp.float32(cost / 2))

    return fl.Transform(lambda v: jnp.array(0), update, None if cost is None else priced)


def keyed():
    return fl.Transform(
        lambda v: (), lambda k, s, v: (s, jnp.concatenate([v, jax.random.uniform(k, (1,))]))
    )


def test_order_of_a_chain():
    value = jnp.array([3.0, 4.0])
    for transforms, expected in (
        ((fl.clip(1.0), scale(10.0)), [6.0, 8.0]),
        ((scale(10.0), fl.clip(1.0)), [0.6, 0.8]),
        ((fl.identity(), fl.clip(5.0), fl.identity()), [3.0, 4.0]),
    ):
        chain = fl.chain(*transforms)
        _, out = chain.update(KEY, chain.init(value), value)
        np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_states_of_a_chain_are_apart_and_nested_chains_compose():
    chain = fl.chain(counter(), fl.chain(scale(2.0), counter()))
    state = chain.init(jnp.float32(0))
    structure = jax.tree.structure(state)
    outs = []
    for _ in range(3):
        state, out = chain.update(KEY, state, jnp.float32(1.0))
        outs.append(float(out))
    assert jax.tree.structure(state) == structure
    assert outs == [(1 + t) * 2 + t for t in range(3)]


def test_every_member_of_a_chain_gets_its_own_key():
    chain = fl.chain(keyed(), keyed(), fl.chain(keyed(), keyed()))
    _, out = chain.update(KEY, chain.init(jnp.zeros(1)), jnp.zeros(1))
    draws = np.asarray(out)[1:]
    assert len(set(draws.tolist())) == 4
    _, same = chain.update(KEY, chain.init(jnp.zeros(1)), jnp.zeros(1))
    np.testing.assert_array_equal(out, same)
    _, other = chain.update(jax.random.key(1), chain.init(jnp.zeros(1)), jnp.zeros(1))
    assert not set(draws.tolist()) & set(np.asarray(other)[1:].tolist())


def test_init_of_a_chain_sees_the_shapes_of_what_comes_before():
    memory = fl.Transform(jnp.zeros_like, lambda k, s, v: (s + v, v))
    chain = fl.chain(keyed(), memory)
    state = chain.init(jnp.zeros(3))
    assert state[1].shape == (4,)
    state, _ = chain.update(KEY, state, jnp.zeros(3))
    assert state[1].shape == (4,)


def test_a_chain_costs_what_the_last_that_knows_says():
    assert fl.chain(fl.clip(1.0), scale(2.0)).send is None
    assert fl.chain().send is None
    chain = fl.chain(counter(7), fl.clip(1.0), counter(11), scale(3.0))
    assert chain.send is not None
    value = jnp.array([0.6, 0.8])
    _, sent, wire = chain.send(KEY, chain.init(value), value)
    assert (float(wire.bits), float(wire.entropy)) == (11, 5.5)
    np.testing.assert_array_equal(sent, chain.update(KEY, chain.init(value), value)[1])


def test_what_nobody_prices_costs_all_its_bits():
    value = {"a": jnp.zeros(3), "b": jnp.zeros(2, jnp.bfloat16)}
    _, _, wire = send(fl.clip(1.0), KEY, (), value)
    assert (float(wire.bits), float(wire.entropy)) == (128, 128)


def kind(*names):
    return fl.Transform(lambda v: (), lambda k, s, v: (s, v), kinds=names)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("noise", "clip"),
        ("compress", "clip"),
        ("feedback", "clip"),
        ("compress", "noise"),
        ("feedback", "noise"),
        ("compress", "momentum"),
        ("feedback", "momentum"),
    ],
)
def test_senseless_orders_are_refused_however_deep(first, second):
    wrong = (kind(first), fl.identity(), kind(second))
    with pytest.raises(ValueError, match=f"{first} -> {second}"):
        fl.chain(*wrong)
    with pytest.raises(ValueError, match=f"must not put {first} before {second}"):
        fl.chain(fl.chain(wrong[0]), fl.chain(wrong[2]))
    assert fl.chain(*reversed(wrong)).kinds == (second, first)


@pytest.mark.parametrize("first", ["compress", "feedback"])
@pytest.mark.parametrize("second", ["compress", "feedback"])
def test_one_coder_a_chain(first, second):
    with pytest.raises(ValueError, match=f"must not put {first} before {second}"):
        fl.chain(kind(first), fl.identity(), kind(second))


def test_empty_chain_is_identity():
    chain = fl.chain()
    value = {"a": jnp.arange(3.0)}
    state, out = chain.update(KEY, chain.init(value), value)
    assert state == chain.init(value)
    np.testing.assert_array_equal(out["a"], value["a"])


@pytest.mark.parametrize("wrong", [fl.identity, 1.0, None, optax.clip(1.0)])
def test_chain_takes_transforms(wrong):
    with pytest.raises(TypeError, match=r"chain takes Transforms, got .*factory not called"):
        fl.chain(fl.clip(1.0), wrong)


def test_norm_of_a_chain_with_clip_last_is_bounded():
    chain = fl.chain(scale(1e6), fl.clip(0.25))
    _, out = chain.update(KEY, chain.init(jnp.ones(9)), jnp.arange(9.0))
    np.testing.assert_allclose(global_norm(out), 0.25, rtol=1e-6)
