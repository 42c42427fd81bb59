"""Whether a value is of the kind that an annotation asks for, and the message where it is not."""

from __future__ import annotations

import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_slot, shown

INFINITE = {
    "clip": "no clipping",
    "clips": "no clipping",
    "max_norm": "no bound",
    "max_distance": "no bound",
    "epsilon": "no bound on what is learnt",
    "max_seconds": "no limit",
    "deadline": "everybody is waited for",
    "timeout": "nobody is given up",
    "initial_clip": "no clipping",
    "mu": "no privacy at all",
    "accounted_epsilon": "no bound",
    "values": "what diverged",
}
"""Numbers that may be infinite, and what that means; no other may."""

LARGE = 2**32
"""Sizes and numbers of things have 32 bits on the device."""

UNBOUNDED = {
    "seed",
    "seeds",
    "rotation_seed",
    "max_bytes",
    "prime",
    "modulus",
    "secret",
    "value",
    "coefficients",
    "points",
    "x",
    "at",
}
"""Integers that are no sizes: Python's own, however large."""

OWN_WORDS = {
    "FederatedDataset",
    "RoundState",
    "Downlink",
    "Partitioner",
    "Callable",
    "Literal",
    "Run",
}
"""Kinds that functions look at themselves and know more of; what they let pass is refused here."""

DUCKS = {"FederatedAlgorithm": "round", "Model": "loss", "FederatedDataset": "num_clients"}
"""Kinds that others may make, told by what they have."""

MADE_BY = {
    "FederatedDataset": "make it with fl.data.partition(...) or fl.data.from_arrays(...)",
    "FederatedAlgorithm": "make it with a factory such as fl.fedavg(...)",
    "RoundState": "make it with algo.init(key, params, data)",
    "Model": "make it with fl.models, such as fl.models.mlp((64,))",
    "Plan": "give fl.Plan(batch_size=20, epochs=1)",
    "Mesh": "make it with fl.client_mesh()",
    "Generator": "give np.random.default_rng(0)",
    "GradientTransformation": "give optax.sgd(1.0)",
    "FeatureSkew": "make it with fl.data.rotation(max_angle=30.0) or another of fl.data",
    "Attack": "make it with fl.attacks, such as fl.attacks.sign_flip()",
    "Trigger": "make it with fl.attacks.patch_trigger()",
    "Mechanism": "make it with fl.privacy, such as fl.privacy.central_gaussian(...)",
    "ServerUpdate": "give fl.optimizer_server(optax.sgd(1.0))",
    "ClientUpdate": "give fl.local_sgd(loss, optax.sgd(0.1))",
    "Message": "give fl.Message(value, weight)",
    "Triple": "make it with fl.crypto.deal_triple(...)",
    "CkksSecret": "make it with fl.crypto.CkksSecret()",
}
"""How what a factory asks for is made."""


def check_kind(value: Any, name: str, hint: Any) -> None:
    """Raises where a value is not of the annotated kind; traced numbers pass as numbers.

    Args:
      value: what was given.
      name: of the argument, for the message.
      hint: its resolved annotation, such as ``int | None`` or ``Sequence[float]``.

    Raises:
      TypeError: where it is of another kind.
      ValueError: for NaN, for infinity and sizes beyond int32 where they mean nothing, and for a
        word that is not among those allowed.

    Example:
      >>> check_kind(3, "k", int | None)
      >>> check_kind("3", "k", int | None)
      Traceback (most recent call last):
      ...
      TypeError: k must be an int or None, got '3'; give a number, not a string
    """
    options = _options(hint)
    if any(option in (Any, object) or isinstance(option, typing.TypeVar) for option in options):
        return
    if value is None and type(None) in options:
        return
    if float in options and _is_array(value) and not isinstance(value, list | tuple):
        options = [option for option in options if option is not jax.Array]  # one number
    if any(_is_of(value, option) for option in options):
        if float in options or int in options:
            _check_number(value, name)
        return
    given = [option for option in options if option is not type(None)]
    if len(given) == 1:
        _refuse_one(value, name, given[0], optional=len(options) > 1)
    words = [word for o in options if _origin(o) is Literal for word in typing.get_args(o)]
    if isinstance(value, str) and words:
        raise ValueError(f"{name} must be one of {sorted(map(str, words))}, got {shown(value)}")
    found = f"{value!r:.60}" if isinstance(value, list | tuple) else shown(value)
    kinds = " or ".join(dict.fromkeys(_word(option) for option in options))
    raise TypeError(f"{name} must be {kinds}, got {found}; {_remedy(value, name, given[0])}")


def may_be_fine(value: Any, hint: Any) -> bool:
    """Whether a value of another kind than annotated may serve all the same: numbers as arrays.

    Example:
      >>> may_be_fine([1.0], jax.Array), may_be_fine("a", jax.Array)
      (True, False)
    """
    options = _options(hint)
    if float in options and not isinstance(value, jax.core.Tracer):
        return False  # one number, which `check_kind` has looked at
    return jax.Array in options and _is_array(value)


def is_told_by_function(value: Any, hint: Any) -> bool:
    """Whether functions refuse this in words of their own, which are heard first.

    Example:
      >>> is_told_by_function(float("nan"), float), is_told_by_function("3", int)
      (True, False)
    """
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return True
    labels = {getattr(_origin(o) or o, "__name__", str(_origin(o))) for o in _options(hint)}
    labels = {label.removeprefix("typing.") for label in labels}
    return any(n in OWN_WORDS or n in DUCKS or n.startswith("Gradient") for n in labels)


def _refuse_one(value: Any, name: str, option: Any, *, optional: bool) -> None:
    """Raises what a single kind says, the most telling message that there is."""
    if option is int and not optional:
        check_count(value, name, minimum=-LARGE)
    if _origin(option) is Literal:
        words = sorted(map(str, typing.get_args(option)))
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {words}, got {shown(value)}")
    if isinstance(option, type) and (hasattr(option, "_fields") or option.__name__ == "Plan"):
        try:
            check_slot(value, name, option)
        except TypeError as error:
            text, made = str(error), MADE_BY.get(option.__name__)
            raise TypeError(text if ";" in text or not made else f"{text}; {made}") from None
    kind = _word(option) + " or None" * optional
    found = f"{value!r:.60}" if isinstance(value, list | tuple) else shown(value)
    raise TypeError(f"{name} must be {kind}, got {found}; {_remedy(value, name, option)}")


def _options(hint: Any) -> list[Any]:
    if _origin(hint) in (typing.Union, types.UnionType):
        return [option for arg in typing.get_args(hint) for option in _options(arg)]
    return [hint]


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint)


def _is_of(value: Any, option: Any) -> bool:
    kind = _origin(option) or option
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if kind is float:
        return is_number(value)
    if kind is jax.Array:
        return isinstance(value, jax.Array) or (
            isinstance(value, np.ndarray | np.generic) and _is_array(value)
        )
    if kind is np.ndarray:
        return _is_array(value)
    if kind is Literal:
        return isinstance(value, str | int) and value in typing.get_args(option)
    if kind in (Sequence, Iterable, tuple, list):
        return _is_sequence(value, kind, typing.get_args(option))
    if kind is Callable:  # int and the like take what they are given and make nothing of it
        return callable(value) and not (isinstance(value, type) and value.__module__ == "builtins")
    if kind is os.PathLike:
        return isinstance(value, os.PathLike)
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True  # not told apart here
    if kind.__name__ in DUCKS:
        return isinstance(value, kind) or hasattr(value, DUCKS[kind.__name__])
    if kind.__name__.startswith("GradientTransformation"):
        return hasattr(value, "init") and hasattr(value, "update")
    return isinstance(value, kind)


def is_number(value: Any) -> bool:
    """Whether a value is one real number, traced or not.

    Example:
      >>> is_number(0.5), is_number(jax.numpy.ones(())), is_number(None), is_number(True)
      (True, True, False, False)
    """
    if isinstance(value, jax.core.Tracer):
        return jax.numpy.issubdtype(value.dtype, np.number) and not value.ndim
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return bool(jax.numpy.issubdtype(value.dtype, np.number)) and not (
            value.ndim or jax.numpy.issubdtype(value.dtype, np.complexfloating)
        )
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_array(value: Any) -> bool:
    if isinstance(value, jax.Array):
        return True
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError):
            return False
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufcV"
    return isinstance(value, numbers.Number) and not isinstance(value, bool)


def _is_sequence(value: Any, kind: Any, args: tuple[Any, ...]) -> bool:
    if isinstance(value, str | bytes | Mapping):
        return False
    if isinstance(value, jax.Array | np.ndarray):
        if value.ndim == 0 or isinstance(value, jax.core.Tracer):
            return False
        if args and args[0] in (int, float, str, bool):
            wanted = {int: "iu", float: "iuf", str: "U", bool: "b"}[args[0]]
            return value.ndim == 1 and (value.dtype.kind in wanted or not value.size)
        return True
    if not isinstance(value, Iterable if kind is Iterable else Sequence | range):
        return False
    if kind is Iterable or not args or args[0] is Any:
        return True
    value = list(value)
    items = args[:1] * len(value) if kind is not tuple or args[-1] is Ellipsis else args
    return len(items) == len(value) and all(
        any(option is Any or _is_of(v, option) for option in _options(item))
        for v, item in zip(value, items)
    )


def _check_number(value: Any, name: str) -> None:
    """NaN is never meant; infinity, and integers beyond int32, only where they mean something."""
    if isinstance(value, jax.core.Tracer) or not is_number(value):
        return
    if isinstance(value, int | np.integer):
        if value < 0 and name.endswith("seed"):
            raise ValueError(f"{name} must not be negative, got {value}; give 0 or more")
        if abs(int(value)) > LARGE and name not in UNBOUNDED:
            raise ValueError(
                f"{name} must be at most 2**32, got {value}; it has 32 bits on the device"
            )
        return
    number = float(value)
    if number != number:
        raise ValueError(f"{name} must be a number, got nan; what it was computed from diverged?")
    if abs(number) == float("inf") and name not in INFINITE:
        raise ValueError(f"{name} must be finite, got {number}; give a finite number")


def _word(option: Any) -> str:
    kind = _origin(option) or option
    words = {
        type(None): "None",
        bool: "True or False",
        int: "an int",
        float: "a number",
        str: "a string",
        bytes: "bytes",
        jax.Array: "an array",
        np.ndarray: "an array",
        Mapping: "a mapping",
        Callable: "a function",
        os.PathLike: "a path",
    }
    if kind in words:
        return words[kind]
    if kind is Literal:
        return f"one of {sorted(map(str, typing.get_args(option)))}"
    if kind in (Sequence, Iterable, tuple, list):
        items = {int: "integers", float: "numbers", str: "strings", bool: "bools"}
        args = typing.get_args(option)
        item = items.get(args[0]) if args else None
        if item is None and args and isinstance(args[0], type):
            item = f"{args[0].__name__}s"
        return f"a sequence of {item}" if item else "a sequence"
    label = getattr(kind, "__name__", str(kind))
    if label.startswith("GradientTransformation"):
        return "an optax optimizer"
    return f"{'an' if label[0] in 'AEIOU' else 'a'} {label}"


def _remedy(value: Any, name: str, option: Any) -> str:
    """What to give instead."""
    kind = _origin(option) or option
    label = getattr(kind, "__name__", "")
    if isinstance(value, jax.core.Tracer) and kind in (int, bool, str, Sequence):
        return "it fixes the program, so it cannot be traced"
    if inspect.isfunction(value) and label in MADE_BY:
        return f"was a factory not called? {MADE_BY[label]}"
    if label in MADE_BY:
        return MADE_BY[label]
    if kind is bool:
        return (
            "a string counts as true: give False"
            if isinstance(value, str)
            else f"give {bool(value)}"
            if isinstance(value, int | float)
            else "give one of the two"
        )
    if kind in (int, float):
        if isinstance(value, str):
            return "give a number, not a string"
        if isinstance(value, jax.Array | np.ndarray | list | tuple):
            return "give one number; vmap or sweep over several"
        return "give a number such as 1" if kind is int else "give a number such as 0.1"
    if kind in (Sequence, Iterable, tuple, list):
        if isinstance(value, int | float):
            return f"give ({shown(value)},)"
        return "give a list or a tuple of them"
    return {
        str: "give its name in quotes",
        bytes: "give bytes, such as b'...'",
        jax.Array: "give an array of numbers",
        np.ndarray: "give an array of numbers",
        Mapping: "give a dict",
        Callable: "give the function itself",
        os.PathLike: "give a path, such as 'outputs/run'",
    }.get(kind, f"give {_word(option)}")
