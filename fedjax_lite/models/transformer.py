"""A character model of transformer blocks, small enough to be pre-trained and adapted on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.models.bottleneck import bottleneck, init_bottleneck
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params

EPSILON = 1e-5
"""Beside the variance, in layer normalisation."""


@made
def char_transformer(
    vocab_size: int = 90,
    *,
    max_length: int = 80,
    width: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    bottleneck_size: int = 0,
) -> Model:
    r"""Predicts the next character with causal attention; a model to adapt with `lora`.

    .. math::
        h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad
        h \leftarrow h + W_2\, \mathrm{gelu}(W_1\, \mathrm{norm}(h))

    Examples are those of `char_lstm`: ``{"x": int [B, T], "y": int [B, T]}``, `y` being -1 where
    nothing is to be predicted; padding at the end of `x` changes nothing before it. Positions are
    learned, products are `[in, out]` kernels under "query", "key", "value", "out", "up", "down".

    Args:
      vocab_size: symbols `V`. Symbols outside ``[0, V)`` read as zeros.
      max_length: the longest `T`.
      width: of the hidden states, `D`, a multiple of `num_heads`.
      num_layers: blocks.
      num_heads: of attention.
      bottleneck_size: hidden size of a `bottleneck` adapter behind the attention and behind the
        dense layers of each block, "adapter1" and "adapter2"; 0: none.

    Returns:
      A `Model`; predict gives `[B, T, V]`. Parameters "embedding", "positions", "block1", ...,
      "norm" and "head".

    Raises:
      ValueError: if a size is not positive, or heads do not divide the width.

    Example:
      >>> shapes = jax.eval_shape(char_transformer(90, width=32, num_layers=1).init,
      ...                         jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["block1"])) == 12 * 32**2 + 13 * 32
      True

    Reference: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762; normalisation
    first: Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020,
    arXiv:2002.04745.
    """
    sizes = {"vocab_size": vocab_size, "max_length": max_length, "width": width}
    sizes |= {"num_layers": num_layers, "num_heads": num_heads}
    for name, value in sizes.items():
        check_count(value, name, minimum=1)
    check_count(bottleneck_size, "bottleneck_size", minimum=0)
    if width % num_heads:
        raise ValueError(
            f"width must be a multiple of num_heads, got width={width} and num_heads={num_heads}; "
            f"give width={-(-width // num_heads) * num_heads}"
        )

    def init(key: Key) -> Params:
        keys = jax.random.split(key, num_layers + 3)
        small = jax.nn.initializers.normal(0.02)
        params = {
            "embedding": small(keys[0], (vocab_size, width)),
            "positions": small(keys[1], (max_length, width)),
            "norm": _init_norm(width),
            "head": init_affine(keys[2], (width, vocab_size), init="glorot"),
        }
        for i in range(num_layers):
            params[f"block{i + 1}"] = _init_block(keys[i + 3], width, bottleneck_size)
        return params

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        del key
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer) or x.shape[1] > max_length:
            raise ValueError(
                f"x must be integer symbols [B, T] with T at most {max_length}, got {x.dtype} "
                f"{x.shape}; give max_length={x.shape[-1]}"
            )
        # A product instead of a gather: its gradient is a product, not a scatter.
        hidden = jax.nn.one_hot(x, vocab_size, dtype=params["embedding"].dtype)
        hidden = hidden @ params["embedding"] + params["positions"][: x.shape[1]]
        for i in range(num_layers):
            hidden = _block(params[f"block{i + 1}"], hidden, num_heads)
        return dense(params["head"], _norm(params["norm"], hidden))

    return from_functions(init, apply, raw_inputs=True)


def _init_norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _init_block(key: Key, width: int, bottleneck_size: int) -> Params:
    keys = jax.random.split(key, 8)
    shapes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    block = {
        name: init_affine(one, shape, init="glorot")
        for one, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    block |= {"norm1": _init_norm(width), "norm2": _init_norm(width)}
    if bottleneck_size:
        block["adapter1"] = init_bottleneck(keys[6], width, bottleneck_size)
        block["adapter2"] = init_bottleneck(keys[7], width, bottleneck_size)
    return block


def _norm(params: Params, x: Array) -> Array:
    """Layer normalisation over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + EPSILON) * params["scale"] + params["bias"]


def _block(params: Params, x: Array, num_heads: int) -> Array:
    """`[B, T, D]` to `[B, T, D]`."""
    mixed = _attention(params, _norm(params["norm1"], x), num_heads)
    x = x + _adapted(params, "adapter1", mixed)
    hidden = jax.nn.gelu(dense(params["up"], _norm(params["norm2"], x)))
    return x + _adapted(params, "adapter2", dense(params["down"], hidden))


def _adapted(params: Params, name: str, x: Array) -> Array:
    return bottleneck(params[name], x) if name in params else x


def _attention(params: Params, x: Array, num_heads: int) -> Array:
    """Every place looks at itself and what was before it."""
    split = lambda h: h.reshape(*h.shape[:2], num_heads, -1)  # noqa: E731
    query, key, value = (split(dense(params[name], x)) for name in ("query", "key", "value"))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    earlier = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(earlier, scores, jnp.finfo(scores.dtype).min))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, value)
    return dense(params["out"], mixed.reshape(x.shape))
