"""Matrix products and convolutions on narrow operands that add up in float32, both directions."""

from __future__ import annotations

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_lite.types import Array


def narrow_dot(a: Array, b: Array, *, params: dict[str, Any], dtype: Any) -> Array:
    """``lax.dot_general`` with operands of `dtype` and float32 sums, forward and backward.

    Args:
      a: floating, any shape.
      b: floating, any shape.
      params: of the ``dot_general`` that it stands for: its ``dimension_numbers``.
      dtype: narrow dtype of the operands, e.g. ``jnp.bfloat16``.

    Returns:
      The product in the wider dtype of `a` and `b`.

    Example:
      >>> params = {"dimension_numbers": (((1,), (0,)), ((), ())), "preferred_element_type": None}
      >>> narrow_dot(jnp.ones((2, 3)), jnp.ones((3, 4)), params=params, dtype=jnp.bfloat16).shape
      (2, 4)
    """
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    names_a = [next(letters) for _ in range(a.ndim)]
    names_b = [next(letters) for _ in range(b.ndim)]
    for i, j in zip((*contract_a, *batch_a), (*contract_b, *batch_b)):
        names_b[j] = names_a[i]
    free_a = [n for i, n in enumerate(names_a) if i not in (*contract_a, *batch_a)]
    free_b = [n for j, n in enumerate(names_b) if j not in (*contract_b, *batch_b)]
    names = [names_a[i] for i in batch_a] + free_a + free_b
    subscripts = tuple("".join(n) for n in (names_a, names_b, names))
    out = params.get("preferred_element_type") or jnp.promote_types(a.dtype, b.dtype)
    # With the dtypes as arguments, derivatives can be cast back where operands are stored narrow.
    dtypes = tuple(np.dtype(d).name for d in (a.dtype, b.dtype, out))
    return _dot(subscripts, dtypes, np.dtype(dtype).name, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dot(subscripts: tuple, dtypes: tuple, narrow: str, a: Array, b: Array) -> Array:
    of_a, of_b, of_out = subscripts
    sums = jnp.einsum(
        f"{of_a},{of_b}->{of_out}",
        a.astype(narrow),
        b.astype(narrow),
        preferred_element_type=jnp.float32,
    )
    return sums.astype(dtypes[2])


def _dot_forward(
    subscripts: tuple, dtypes: tuple, narrow: str, a: Array, b: Array
) -> tuple[Array, tuple[Array, Array]]:
    a, b = a.astype(narrow), b.astype(narrow)  # what is kept for the way back is narrow, too
    # Where this pass is differentiated again, cotangents of the narrow operands must be narrow.
    return _dot(subscripts, (narrow, narrow, dtypes[2]), narrow, a, b), (a, b)


def _dot_backward(
    subscripts: tuple, dtypes: tuple, narrow: str, kept: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    a, b = kept
    (of_a, of_b, of_out), (type_a, type_b, type_out) = subscripts, dtypes
    # The same product again, so that derivatives of every order are narrow.
    bar_a = _dot((of_out, of_b, of_a), (type_out, narrow, type_a), narrow, cotangent, b)
    bar_b = _dot((of_a, of_out, of_b), (narrow, type_out, type_b), narrow, a, cotangent)
    return bar_a, bar_b


_dot.defvjp(_dot_forward, _dot_backward)


def narrow_conv(a: Array, b: Array, *, params: dict[str, Any], dtype: Any) -> Array:
    """``lax.conv_general_dilated`` with operands and results of `dtype`, forward and backward.

    The sums are the device's, in float32 on all that exist; only the result is rounded.

    Args:
      a: inputs.
      b: kernel.
      params: of the convolution that it stands for.
      dtype: narrow dtype of the operands.

    Returns:
      The convolution in the wider dtype of `a` and `b`.

    Example:
      >>> x, w = jnp.ones((1, 1, 5)), jnp.ones((1, 1, 3))
      >>> equation = jax.make_jaxpr(lambda x, w: lax.conv(x, w, (1,), "VALID"))(x, w).eqns[0]
      >>> narrow_conv(x, w, params=equation.params, dtype=jnp.bfloat16).tolist()
      [[[3.0, 3.0, 3.0]]]
    """
    out = params.get("preferred_element_type") or jnp.promote_types(a.dtype, b.dtype)
    options = {k: v for k, v in params.items() if k not in ("preferred_element_type", "precision")}
    result = lax.conv_general_dilated_p.bind(
        a.astype(dtype), b.astype(dtype), preferred_element_type=None, precision=None, **options
    )
    return result.astype(out)
