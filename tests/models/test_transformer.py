"""The character transformer: its formula in numpy, causality, adapters that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl

MODEL = fl.models.char_transformer(11, max_length=6, width=8, num_layers=2, num_heads=2)
PARAMS = jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    MODEL.init(jax.random.key(0)),
)
X = np.random.default_rng(0).integers(0, 11, (3, 5))
PREDICT = jax.jit(MODEL.predict)


def norm(p, x):
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return z * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(params, symbols):
    """One sequence, one head and one place at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = p["embedding"][symbols] + p["positions"][: len(symbols)]
    for i in (1, 2):
        b = p[f"block{i}"]
        z = norm(b["norm1"], h)
        q, k, v = (dense(b[name], z) for name in ("query", "key", "value"))
        mixed = np.zeros_like(h)
        for head in (slice(0, 4), slice(4, 8)):
            for t in range(len(symbols)):
                w = np.exp(k[: t + 1, head] @ q[t, head] / 2.0)
                mixed[t, head] = (w / w.sum()) @ v[: t + 1, head]
        h = h + dense(b["out"], mixed)
        h = h + dense(b["down"], gelu(dense(b["up"], norm(b["norm2"], h))))
    return dense(p["head"], norm(p["norm"], h))


def test_it_is_its_formula():
    found = PREDICT(PARAMS, {"x": X})
    expected = np.stack([by_hand(PARAMS, row) for row in X])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_what_comes_later_changes_nothing_before_it():
    changed = X.copy()
    changed[:, 3:] = -1
    before, after = (np.asarray(PREDICT(PARAMS, {"x": x}))[:, :3] for x in (X, changed))
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_new_bottlenecks_change_nothing_and_lora_finds_every_kernel():
    wide = fl.models.char_transformer(
        11, max_length=6, width=8, num_layers=2, num_heads=2, bottleneck_size=3
    )
    fresh = jax.jit(wide.init)(jax.random.key(1))
    adapters = {b: {n: fresh[b][n] for n in ("adapter1", "adapter2")} for b in ("block1", "block2")}
    params = {**PARAMS, **{b: {**PARAMS[b], **adapters[b]} for b in adapters}}
    plain = PREDICT(PARAMS, {"x": X})
    np.testing.assert_allclose(jax.jit(wide.predict)(params, {"x": X}), plain, atol=1e-6)
    adapted = fl.models.lora(MODEL, PARAMS, rank=1)
    pairs = jax.eval_shape(adapted.init, jax.random.key(0)).adapters
    assert len(jax.tree.leaves(pairs)) == 2 * (2 * 6 + 1)  # two factors of six kernels, and a head


def test_wrong_input():
    with pytest.raises(ValueError, match="width must be a multiple of num_heads"):
        fl.models.char_transformer(11, width=10, num_heads=4)
    with pytest.raises(ValueError, match="num_layers"):
        fl.models.char_transformer(11, num_layers=0)
    with pytest.raises(ValueError, match="x must be integer symbols"):
        MODEL.predict(PARAMS, {"x": jnp.zeros((1, 7), int)})
