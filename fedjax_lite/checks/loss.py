"""A first look at a user's loss while it is traced: does it say what the engine presumes?"""

from __future__ import annotations

import contextlib
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.labels import labels_of
from fedjax_lite.checks.state import LARGE_CONSTANT
from fedjax_lite.types import Array, Key, Params, PyTree

_ARGUMENTS = "(params, examples, key)"
_looked_at: weakref.WeakKeyDictionary[Any, set] = weakref.WeakKeyDictionary()


def check_signature(loss: Callable[..., Any]) -> None:
    """Raises TypeError where a loss cannot be called with params, examples and key.

    Example:
      >>> check_signature(lambda params, examples: 0.0)
      Traceback (most recent call last):
      ...
      TypeError: loss must take three arguments, (params, examples, key), got (params, examples); \
examples is a dict such as {"x": ..., "y": ...}, and key may go unused
    """
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # what Python cannot see is tried when it is traced
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        names = ", ".join(signature.parameters)
        raise TypeError(
            f"loss must take three arguments, {_ARGUMENTS}, got ({names}); examples is a dict "
            'such as {"x": ..., "y": ...}, and key may go unused'
        ) from None


def losses_of(
    loss: Callable[..., Any], params: Params, examples: PyTree, key: Key | None, mask: Array
) -> Array:
    """Calls a loss and returns one value per example; says what it was given where it fails.

    The first time that a loss is traced on arrays of given shapes, its program is looked through
    for mistakes that still give `[B]`; later rounds run what was compiled.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      params: the model.
      examples: leaves `[B, ...]`.
      key: of the batch.
      mask: `[B]`.

    Returns:
      `[B]`.

    Raises:
      TypeError, ValueError: if the result is not one floating number per example, with the
        remedy for what it is; what `loss` raises itself gets a note of its arguments.

    Warns:
      UserWarning: see `look`.

    Example:
      >>> mask = jnp.ones(2, bool)
      >>> losses_of(lambda w, e, key: w * e["x"], 2.0, {"x": jnp.array([1.0, 3.0])}, None, mask)
      Array([2., 6.], dtype=float32)
    """
    try:
        with labels_of(examples):
            losses = loss(params, examples, key)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        error.add_note(_was_called(examples))
        raise
    check_losses(losses, mask.shape)
    if isinstance(losses, jax.core.Tracer) and _is_new(loss, params, examples):
        with contextlib.suppress(AttributeError, KeyError):  # a jax whose programs look otherwise
            look(loss, params, examples, key)
    return losses


def check_losses(losses: Any, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError where a loss did not return `[B]` floats.

    Args:
      losses: what it returned.
      shape: ``(B,)``.

    Example:
      >>> check_losses(jnp.zeros((2, 1)), (2,))
      Traceback (most recent call last):
      ...
      ValueError: loss must return one value per example, shape [2], got [2, 1]; drop the mean \
over the batch, if there is one, and the last axis, losses[..., 0]
    """
    if not isinstance(losses, jax.Array | np.ndarray | np.generic | float | int):
        remedy = "return the losses alone, without auxiliary outputs"
        if losses is None:
            remedy = "is a return missing?"
        raise TypeError(
            f"loss must return one value per example, shape {list(shape)}, got "
            f"{type(losses).__name__}; {remedy}"
        )
    found = jnp.shape(losses)
    if found != shape:
        remedy = "drop the mean over the batch, if there is one, and "
        if found == ():
            remedy = (
                "drop the mean over the batch (do not average, do not sum): the engine takes it "
                "over the real examples, because the last batch of a client is padded"
            )
        elif found == (*shape, 1):
            remedy += "the last axis, losses[..., 0]"
        else:
            remedy += (
                "average over all axes but the first; logits are no losses: "
                "fl.models.cross_entropy(logits, labels)"
            )
        raise ValueError(
            f"loss must return one value per example, shape {list(shape)}, got {list(found)}; "
            f"{remedy}"
        )
    dtype = jnp.result_type(losses)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"loss must return floating values, got {dtype}: a count of errors has no gradient; "
            "use a smooth loss such as fedjax_lite.models.cross_entropy(logits, y)"
        )


def look(loss: Callable[..., Any], params: Params, examples: PyTree, key: Key | None) -> None:
    """Traces a loss once more, alone, and warns of what is hardly meant.

    Four mistakes leave the shape right: one number for the whole batch repeated `B` times;
    `[B, 1]` minus `[B]`, which is every prediction against every label; uint8 images that go
    unscaled into a product; and large arrays that the loss closes over.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      params: the model.
      examples: leaves `[B, ...]`.
      key: of the batch.

    Warns:
      UserWarning: for each of them that is found.

    Example:
      >>> look(lambda w, e, key: w * e["x"], jnp.float32(1), {"x": jnp.ones(2)}, None)
    """
    # As an own function: a traced function is cached by identity.
    closed, constants = _program(lambda *args: loss(*args), params, examples, key)
    batch_size = jax.tree.leaves(examples)[0].shape[0]
    for constant in constants:
        num_bytes = getattr(constant, "nbytes", 0)
        if num_bytes >= LARGE_CONSTANT and not isinstance(constant, jax.core.Tracer):
            _warn(
                f"loss closes over an array {constant.dtype}{list(constant.shape)} "
                f"({num_bytes / 2**20:.0f} MiB), which becomes a constant of every compiled "
                "program; put it into the examples (one row per example) or into the parameters"
            )
    num_params = len(jax.tree.leaves(params))
    inputs = closed.invars[num_params : num_params + len(jax.tree.leaves(examples))]
    marks = {v: _raw(v.aval) for v in inputs}
    found = set(_findings(closed, marks, batch_size))
    if batch_size > 1 and _repeats_one_number(closed, marks):
        found.add("repeated")
    for name in sorted(found):
        _warn(_FINDINGS[name].format(b=batch_size))


_FINDINGS = {
    "repeated": "loss repeats one number, the mean or sum over the batch, {b} times: then padding "
    "counts like examples; return the losses of the examples before the mean, shape [{b}]",
    "pairs": "loss subtracts [{b}] from [{b}, 1] into [{b}, {b}]: every prediction against every "
    "label; drop the last axis of the predictions, predictions[..., 0]",
    "uint8": "loss puts uint8 images unscaled (0..255) into a product; divide them first, "
    "x.astype(jnp.float32) / 255, as the models of this library do",
}
_SAME_VALUES = {"reshape", "convert_element_type", "squeeze", "transpose", "broadcast_in_dim"}
_PRODUCTS = {"dot_general", "conv_general_dilated"}


def _program(function: Callable[..., Any], *args: Any) -> tuple[Any, list[Any]]:
    closed = jax.make_jaxpr(function)(*args)
    return closed.jaxpr, list(closed.consts)


def _raw(aval: Any) -> str:
    """The mark of an input: images in bytes, or any example."""
    return "bytes" if aval.dtype == jnp.uint8 and aval.ndim >= 3 else "example"


def _findings(jaxpr: Any, marks: dict[Any, str], batch_size: int) -> Iterator[str]:
    """Walks a program; `marks` gains what depends on the examples, "bytes" where still unscaled."""
    came_from: dict[Any, tuple[int, ...]] = {}
    for equation in jaxpr.eqns:
        operands = [v for v in equation.invars if not hasattr(v, "val")]
        name = equation.primitive.name
        kinds = {marks[v] for v in operands if v in marks}
        inner = _inner(equation)
        if inner is not None and len(inner.invars) == len(equation.invars):
            below = {
                mine: marks[v]
                for mine, v in zip(inner.invars, equation.invars)
                if not hasattr(v, "val") and v in marks
            }
            yield from _findings(inner, below, batch_size)
            for result, own in zip(inner.outvars, equation.outvars):
                if not hasattr(result, "val") and result in below:
                    marks[own] = below[result]
            continue
        if name in _PRODUCTS and "bytes" in kinds:
            yield "uint8"
        if name == "broadcast_in_dim" and operands:
            came_from[equation.outvars[0]] = operands[0].aval.shape
        if name == "sub" and _is_pairwise(equation, came_from, batch_size):
            yield "pairs"
        if kinds:
            kept = "bytes" if name in _SAME_VALUES and "bytes" in kinds else "example"
            marks.update(dict.fromkeys(equation.outvars, kept))


def _is_pairwise(equation: Any, came_from: dict[Any, tuple[int, ...]], batch_size: int) -> bool:
    """Whether `[B, 1]` and `[B]` (as `[1, B]`) meet, both of them floating."""
    avals = [v.aval for v in equation.invars]
    shapes = {aval.shape for aval in avals}
    if batch_size < 2 or not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
        return False
    column, row = (batch_size, 1), (1, batch_size)
    if shapes == {column, row}:
        return True
    spread = {came_from.get(v) for v in equation.invars if not hasattr(v, "val")}
    return shapes == {(batch_size, batch_size)} and (
        {column, row} <= spread or {column, (batch_size,)} <= spread
    )


def _repeats_one_number(jaxpr: Any, marks: dict[Any, str]) -> bool:
    """Whether the result is a scalar that depends on examples, broadcast to `[B]`."""
    made_by = {v: equation for equation in jaxpr.eqns for v in equation.outvars}
    equation = made_by.get(jaxpr.outvars[0]) if not hasattr(jaxpr.outvars[0], "val") else None
    while equation is not None:
        operands = [v for v in equation.invars if not hasattr(v, "val")]
        if equation.primitive.name == "broadcast_in_dim" and operands:
            return operands[0].aval.size == 1 and operands[0] in marks
        if len(operands) != 1:
            return False
        equation = made_by.get(operands[0])
    return False


def _inner(equation: Any) -> Any:
    """The program inside an equation that is a call."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = equation.params.get(name)
        if found is not None and equation.primitive.name not in ("scan", "while", "cond"):
            return getattr(found, "jaxpr", found)
    return None


def _is_new(loss: Any, params: Params, examples: PyTree) -> bool:
    leaves, structure = jax.tree.flatten((params, examples))
    shapes = (structure, *((jnp.shape(x), jnp.result_type(x)) for x in leaves))
    try:
        known = _looked_at.setdefault(loss, set())
    except TypeError:  # an object that cannot be referred to weakly is looked at again
        return True
    new = shapes not in known
    known.add(shapes)
    return new


def _was_called(examples: PyTree) -> str:
    shapes = str(jax.tree.map(_described, examples)).replace("'<", "").replace(">'", "")
    return (
        f"This was raised by loss{_ARGUMENTS}, called with examples = {shapes}. Integer labels [B] "
        "go with fedjax_lite.models.cross_entropy(logits, y); a loss of one-hot labels wants "
        "jax.nn.one_hot(y, num_classes). Images are [B, height, width, channels]."
    )


def _described(leaf: Any) -> str:
    return f"<{jnp.result_type(leaf)}{list(jnp.shape(leaf))}>"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
