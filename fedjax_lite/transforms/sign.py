"""scaled_sign(): one bit a coordinate."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import by_code, over_tree
from fedjax_lite.transforms.wire import Code, Field, Symbols, code_length, real
from fedjax_lite.types import Array, Transform


def is_negative(vector: Array) -> Array:
    """The one bit of a sign, bool: zero counts as positive, everywhere in this package.

    Example:
      >>> is_negative(jnp.array([-1.0, -0.0, 0.0, 2.0])).tolist()
      [True, False, False, False]
    """
    return vector < 0


@made
def scaled_sign(*, per_leaf: bool = False) -> Transform:
    r"""Signs, times the mean magnitude.

    .. math::
        C(v) = \frac{\lVert v \rVert_1}{d} \operatorname{sign}(v), \qquad
        \lVert C(v) - v \rVert^2 = (1 - \delta) \lVert v \rVert^2, \quad
        \delta = \lVert v \rVert_1^2 / (d \lVert v \rVert_2^2)

    ``d + 32`` bits. Biased: as a rule it is used under `error_feedback` (EF-SignSGD). The sign of
    a zero is +1 (`is_negative`); a zero value stays zero, since its scale is.

    Args:
      per_leaf: a scale for each leaf instead of one for the whole tree.

    Returns:
      A stateless `Transform`. A value that is not finite is sent as zero.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> scaled_sign().update(jax.random.key(0), (), value)[1].tolist()
      [2.5, -2.5, 2.5, 2.5]

    Reference: Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD", 2018, arXiv:1802.04434;
    Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes", 2019, arXiv:1901.09847.
    """
    return over_tree(by_code(sign_code()), per_leaf=per_leaf)


def sign_code() -> Code:
    """The format of `scaled_sign`: a scale, and a bit a coordinate.

    Example:
      >>> [field.width for field in sign_code().fields(4, jnp.float32)]
      [32, 1]
    """

    def encode(seed: Array, vector: Array) -> Symbols:
        scale = jnp.abs(vector).sum() / vector.shape[0]
        return {"scale": scale, "negative": is_negative(vector)}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        scale = symbols["scale"].reshape(())
        return jnp.where(symbols["negative"] > 0, -scale, scale)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        return real("scale", 1, dtype), Field("negative", size, 1)

    def entropy(symbols: Symbols, size: int) -> Array:
        scale_bits = real("scale", 1, symbols["scale"].dtype).width
        return sign_entropy(symbols["negative"]) + scale_bits

    return Code(encode, decode, fields, entropy)


def sign_entropy(negative: Array) -> Array:
    """The ideal code length of signs, in bits.

    Example:
      >>> float(sign_entropy(jnp.array([True, False, True, False])))
      4.0
    """
    count = (negative > 0).sum()
    return code_length(jnp.stack([count, negative.size - count]))
