"""qsgd(): stochastic rounding of every coordinate to a multiple of the norm over the levels."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import by_code, over_tree
from fedjax_lite.transforms.random_words import uniforms
from fedjax_lite.transforms.wire import (
    Code,
    Field,
    Symbols,
    code_length,
    counts_of,
    real,
    width_of,
)
from fedjax_lite.types import Array, Transform


@made
def qsgd(levels: int, *, per_leaf: bool = False) -> Transform:
    r"""Quantised SGD: unbiased, a few bits a coordinate.

    .. math::
        C(v)_i = \lVert v \rVert_2 \operatorname{sign}(v_i)\, \xi_i / s, \qquad
        \xi_i \in \{\lfloor x_i \rfloor, \lfloor x_i \rfloor + 1\}, \quad
        x_i = s |v_i| / \lVert v \rVert_2, \quad \mathbb E \xi_i = x_i

    with variance :math:`\lVert v \rVert^2 / s^2 \sum_i \phi_i (1 - \phi_i) \le
    \min(d / s^2, \sqrt d / s) \lVert v \rVert^2`, where :math:`\phi_i` is the fraction of `x_i`.

    A coordinate takes a sign and a level, the value one norm:
    ``d (ceil(log2(s + 1)) + 1) + 32`` bits, so ``levels = 2**(b - 1) - 1`` makes `b` bits a
    coordinate. The entropy bound counts the `2 s + 1` signed levels.

    For a large `d` and few levels the variance is large (`sqrt(d)` at one level): that is no
    contraction, so do not put it under `error_feedback` unless `levels` is above `sqrt(d)`.

    Args:
      levels: `s` at least 1; fixes the width of the fields.
      per_leaf: a norm for each leaf instead of one for the whole tree (smaller variance).

    Returns:
      A stateless `Transform`. Zero stays zero; a value that is not finite is sent as zero.
      Rounding probabilities are multiples of ``2**-24``.

    Raises:
      TypeError, ValueError: if `levels` is not an int of at least 1.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, 4.0])
      >>> _, out, wire = qsgd(2).send(jax.random.key(0), (), value)
      >>> set(out.tolist()) <= {2.5, 5.0}, float(wire.bits)
      (True, 38.0)

    Reference: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via
    Gradient Quantization and Encoding", 2017, arXiv:1610.02132.
    """
    return over_tree(by_code(qsgd_code(levels)), per_leaf=per_leaf)


def qsgd_code(levels: int) -> Code:
    """The format of `qsgd`: a norm, signs, levels.

    Example:
      >>> [field.width for field in qsgd_code(15).fields(1000, jnp.float32)]
      [32, 1, 4]
    """
    check_count(levels, "levels", minimum=1)

    def encode(seed: Array, vector: Array) -> Symbols:
        norm = jnp.sqrt((vector * vector).sum())
        scaled = jnp.abs(vector) * (levels / jnp.where(norm > 0, norm, 1))
        whole = jnp.floor(scaled)
        up = uniforms(seed, vector.shape[0]) < scaled - whole
        # Rounding may put s |v| / norm above s.
        level = jnp.minimum(whole.astype(jnp.int32) + up, levels)
        return {"norm": norm, "negative": (vector < 0) & (level > 0), "level": level}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        norm = symbols["norm"].reshape(())
        size_of = symbols["level"].astype(norm.dtype) * (norm / levels)
        return jnp.where(symbols["negative"] > 0, -size_of, size_of)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        levels_field = Field("level", size, width_of(levels + 1))
        return real("norm", 1, dtype), Field("negative", size, 1), levels_field

    def entropy(symbols: Symbols, size: int) -> Array:
        signed = jnp.where(symbols["negative"] > 0, -symbols["level"], symbols["level"])
        norm_bits = real("norm", 1, symbols["norm"].dtype).width
        return code_length(counts_of(signed + levels, 2 * levels + 1)) + norm_bits

    return Code(encode, decode, fields, entropy)


def qsgd_variance(vector: Array, levels: int) -> Array:
    r"""The variance :math:`\mathbb E \lVert C(v) - v \rVert^2` of `qsgd` on a vector.

    Args:
      vector: `[D]`.
      levels: `s`.

    Returns:
      A scalar, :math:`\lVert v \rVert^2 / s^2 \sum_i \phi_i (1 - \phi_i)`.

    Example:
      >>> round(float(qsgd_variance(jnp.array([3.0, 4.0]), 2)), 4)
      2.5
    """
    norm = jnp.sqrt((vector * vector).sum())
    scaled = jnp.abs(vector) * levels / jnp.where(norm > 0, norm, 1)
    part = scaled - jnp.floor(scaled)
    return (norm / levels) ** 2 * (part * (1 - part)).sum()
