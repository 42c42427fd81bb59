"""Optimizers of optax that ask for more than a gradient: the loss, functions of it, own params."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.types import Array, Params, PyTree

Extra = dict[str, Any]
"""Arguments of ``optimizer.update`` by name, beside gradient, state and params."""
_LOSS = frozenset({"value", "grad", "value_fn", "grad_fn"})
_TWO = jax.ShapeDtypeStruct((2,), np.float32)
_REFUSED = re.compile(r"nexpected keyword argument.*?((?:'\w+'(?:, )?)+)", re.DOTALL)
_LACKING = re.compile(r"missing \d+ required (?:keyword-only |positional )?arguments?: (.*)")
_OWN_WORDS = re.compile(r"\b(value_fn|grad_fn|value|grad)\b(?=.*\b(?:provided|required|needed)\b)")


def loss_arguments(value_fn: Callable[[Params], Array], value: Array, grad: PyTree) -> Extra:
    """What optimizers may ask of a loss: ``value``, ``grad``, ``value_fn`` and SAM's ``grad_fn``.

    What an optimizer leaves alone costs nothing: the compiler drops it.

    Args:
      value_fn: ``(params) -> scalar``, the loss on the batch at hand.
      value: it at the present params.
      grad: its gradient there.

    Example:
      >>> extra = loss_arguments(lambda w: w**2, jnp.float32(9.0), jnp.float32(6.0))
      >>> sorted(extra), float(extra["grad_fn"](jnp.float32(2.0), 0))
      (['grad', 'grad_fn', 'value', 'value_fn'], 4.0)
    """
    gradient = jax.grad(value_fn)
    return {
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "grad_fn": lambda params, step=0: gradient(params),
    }


def step_optimizer(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    state: PyTree,
    params: Params,
    extra: Extra,
    *,
    name: str,
    remedy: str,
) -> tuple[PyTree, PyTree]:
    """``optimizer.update`` with those of the extra arguments that it takes.

    Args:
      optimizer: any of optax.
      gradient: like `params`.
      state: the optimizer's.
      params: the model.
      extra: what there is to give. A stage that refuses one of them by name is asked again without.
      name: of the caller's argument, for the message.
      remedy: what to do where the optimizer needs something else.

    Returns:
      ``(updates, state)``.

    Raises:
      TypeError: if the optimizer needs an argument that there is not.

    Example:
      >>> tx = optax.polyak_sgd()
      >>> w, given = jnp.float32(3.0), {"value": jnp.float32(9.0), "anchor": None}
      >>> updates, _ = step_optimizer(tx, 2 * w, tx.init(w), w, given, name="tx", remedy="")
      >>> round(float(updates), 4)  # -9 / 6^2 * 6
      -1.5
    """
    takes = optax.with_extra_args_support(optimizer)
    extra = dict(extra)
    while True:
        try:
            return takes.update(gradient, state, params, **extra)
        except (TypeError, ValueError) as error:
            refused = _refused(error) & extra.keys()
            if refused:
                extra = {name: extra[name] for name in extra if name not in refused}
                continue
            wanted = _wanted(error)
            if not wanted or wanted <= set(extra):
                raise
            lacking = " and ".join(sorted(wanted - set(extra)))
            raise TypeError(
                f"{name} needs the argument {lacking}, and is given {sorted(extra)}; {remedy}"
            ) from error


def hidden_arguments(extra: Extra, updates: PyTree, params: Params | None, mask: PyTree) -> Extra:
    """Extra arguments for an optimizer that must not see some leaves: these are zero.

    Args:
      extra: of the whole model.
      updates: a tree like the model.
      params: the model; functions of a model are called with its hidden leaves.
      mask: True for leaves that are hidden.

    Example:
      >>> w = {"a": jnp.float32(3.0), "b": jnp.float32(5.0)}
      >>> extra = {"anchor": w, "value": 1.0, "value_fn": lambda w: w["a"] + w["b"]}
      >>> seen = hidden_arguments(extra, w, w, {"a": False, "b": True})
      >>> float(seen["anchor"]["b"]), float(seen["value_fn"]({"a": 1.0, "b": 0.0}))
      (0.0, 6.0)
    """

    def hide(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda is_one, x: jnp.zeros_like(x) if is_one else x, mask, tree)

    def of_the_rest(name: str) -> Callable[..., Any]:
        def function(seen: Params, *step: int) -> Any:
            whole = jax.tree.map(lambda is_one, x, y: x if is_one else y, mask, params, seen)
            result = extra[name](whole, *step)
            return hide(result) if name == "grad_fn" else result

        return function

    structure = jax.tree.structure(updates)
    return {
        name: of_the_rest(name)
        if name in ("value_fn", "grad_fn") and params is not None
        else hide(value)
        if jax.tree.structure(value) == structure
        else value
        for name, value in extra.items()
    }


def takes_anything(optimizer: optax.GradientTransformation) -> bool:
    """Whether an optimizer needs nothing but a gradient and passes over all that it is offered.

    Example:
      >>> takes_anything(optax.adam(0.1)), takes_anything(optax.polyak_sgd())
      (True, False)
    """
    if asks_for(optimizer):
        return False
    takes = optax.with_extra_args_support(optimizer)

    def one(two: Array) -> Any:
        given = loss_arguments(lambda params: params.sum(), two.sum(), two)
        return takes.update(two, takes.init(two), two, anchor=two, **given)

    try:
        jax.eval_shape(one, _TWO)
    except TypeError as error:
        return not _refused(error)
    except Exception:  # masks of another model
        return True
    return True


def asks_for(optimizer: optax.GradientTransformation) -> frozenset[str]:
    """Names of the arguments without which an optimizer does not work, found by trying.

    Nothing is computed. What cannot be tried on a model of two numbers (masks of another model)
    asks for nothing that is known here.

    Example:
      >>> sorted(asks_for(optax.polyak_sgd())), sorted(asks_for(optax.adam(0.1)))
      (['value'], [])
    """
    found: frozenset[str] = frozenset()

    def one(two: Array) -> Any:
        given = loss_arguments(lambda params: params.sum(), two.sum(), two)
        extra = {name: given[name] for name in found}
        return optimizer.update(two, optimizer.init(two), two, **extra)

    for _ in _LOSS:
        try:
            jax.eval_shape(one, _TWO)
            break
        except (TypeError, ValueError) as error:
            more = (_wanted(error) & _LOSS) - found
            if not more:
                break
            found |= more
        except Exception:
            break
    return found


def _refused(error: Exception) -> set[str]:
    """Names of arguments that an error says are too many; line searches list them."""
    found = _REFUSED.search(str(error))
    return set(re.findall(r"'(\w+)'", found.group(1))) if found else set()


def _wanted(error: Exception) -> set[str]:
    """Names of arguments that an error says are missing."""
    lacking = _LACKING.search(str(error))
    if lacking:
        return set(re.findall(r"'(\w+)'", lacking.group(1)))
    return set(_OWN_WORDS.findall(str(error)))


def as_transformation(optimizer: Any) -> Any:
    """What optax calls optimizers without their being transformations, as transformations.

    ``optax.MultiSteps`` is an object with the two functions. ``optax.lookahead`` wants fast and
    slow params: the model are the fast ones, the slow ones are kept in the state; both are the same
    whenever they meet. Anything else is returned as it is.

    Example:
      >>> tx = as_transformation(optax.lookahead(optax.sgd(1.0), 2, 0.5))
      >>> w = jnp.float32(0.0)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(-1.0), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> float(w)  # half of the way of two steps
      1.0
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    if isinstance(optimizer, optax.GradientTransformation) and _looks_ahead(optimizer):
        return _with_slow_params(optimizer)
    return optimizer


def _looks_ahead(optimizer: optax.GradientTransformation) -> bool:
    pair = optax.LookaheadParams.init_synced(_TWO)
    try:
        state = jax.eval_shape(optimizer.init, pair)
    except Exception:  # masks of another model
        return False
    ours = (optax.LookaheadState, SlowParams)
    kinds = jax.tree.leaves(state, is_leaf=lambda one: isinstance(one, ours))
    return any(isinstance(kind, optax.LookaheadState) for kind in kinds)


class SlowParams(NamedTuple):
    """The state of an optimizer that looks ahead, and its slow params."""

    inner: PyTree
    slow: Params


def _with_slow_params(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> SlowParams:
        return SlowParams(inner.init(optax.LookaheadParams.init_synced(params)), params)

    def update(
        gradient: PyTree, state: SlowParams, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, SlowParams]:
        pair = optax.LookaheadParams(fast=params, slow=state.slow)
        updates, kept = inner.update(gradient, state.inner, pair, **extra)
        return updates.fast, SlowParams(kept, optax.apply_updates(state.slow, updates.slow))

    return optax.GradientTransformationExtraArgs(init, update)
