"""Eager checks of arguments: name, value and remedy before anything is traced."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EXAMPLES = {
    "plan": "fl.Plan(batch_size=20, epochs=1)",
    "sampler": "fl.uniform(10)",
    "aggregator": "fl.mean()",
    "uplink": "fl.clip(1.0), several as fl.chain(fl.clip(1.0), fl.qsgd(15))",
    "strategy": "fl.chunked(8)",
    "cohort": "fl.Cohort(ids, mask)",
    "server": "fl.optimizer_server(optax.sgd(1.0))",
    "client": "fl.local_sgd(loss, optax.sgd(0.1))",
    "inner": "fl.mean(), or fl.top_k(0.01)",
    "batch": "fl.Batch(examples, mask, key)",
    "attack": "fl.attacks.sign_flip()",
}
"""What a slot may hold, for the message to those who put something else there."""


def check_positive(value: Any, name: str) -> None:
    """Raises ValueError where a concrete `value` is not above zero; traced values pass."""
    _check(value, name, lambda v: v > 0, "must be positive", "give a number above 0")


def check_non_negative(value: Any, name: str) -> None:
    """Raises ValueError where a concrete `value` is negative; traced values pass."""
    _check(value, name, lambda v: v >= 0, "must not be negative", "give 0 or more")


def check_fraction(value: Any, name: str) -> None:
    """Raises ValueError where a concrete `value` lies outside `[0, 1]`; traced values pass."""
    in_it = "give a share, such as 0.5"
    _check(value, name, lambda v: (v >= 0) & (v <= 1), "must lie in [0, 1]", in_it)


def check_count(value: Any, name: str, *, minimum: int) -> None:
    """Raises where `value` is not a Python int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {shown(value)}{_count_remedy(value, name)}")
    if value < minimum:
        remedy = f"give {minimum} or more"
        raise ValueError(f"{name} must be at least {minimum}, got {value}; {remedy}")
    if value > 2**32 and "seed" not in name:
        raise ValueError(f"{name} must be at most 2**32, got {value}; it has 32 bits on the device")


def check_bool(value: Any, name: str) -> None:
    """Raises TypeError where `value` is not True or False: the string "no" would count as true.

    Example:
      >>> check_bool(False, "weighted")
      >>> check_bool("no", "weighted")
      Traceback (most recent call last):
      ...
      TypeError: weighted must be True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_one(**given: Any) -> None:
    """Raises ValueError where not exactly one of two arguments is given; None is not given.

    Example:
      >>> check_one(epsilon=8.0, noise_multiplier=1.1)
      Traceback (most recent call last):
      ...
      ValueError: exactly one of epsilon and noise_multiplier must be given, got epsilon=8.0, ...
    """
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(
            f"exactly one of {' and '.join(given)} must be given, got "
            + ", ".join(f"{name}={shown(value)}" for name, value in given.items())
        )


def check_finite(value: Any, name: str) -> None:
    """Raises where a concrete `value` is not a finite number; traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    is_number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if isinstance(value, bool) or not is_number or np.asarray(value).dtype.kind not in "iufV":
        raise TypeError(f"{name} must be a number or an array, got {shown(value)}; give a number")
    if not np.all(np.isfinite(np.asarray(value))):
        raise ValueError(f"{name} must be finite, got {value}; give a number such as 1.0")


def check_tree(tree: Any, name: str) -> None:
    """Raises TypeError where a tree is None or has leaves that are no arrays and no numbers.

    Example:
      >>> check_tree({"w": jnp.zeros(2)}, "params")
      >>> check_tree({"w": "no"}, "params")
      Traceback (most recent call last):
      ...
      TypeError: params must be a tree of arrays, got 'no'; give a model's parameters, or the like
    """
    wrong = [leaf for leaf in jax.tree.leaves(tree) if not _is_leaf(leaf)]
    if tree is None or wrong:
        raise TypeError(
            f"{name} must be a tree of arrays, got {shown(wrong[0]) if wrong else None}; give a "
            "model's parameters, or the like"
        )


def check_whole(value: Any, name: str) -> None:
    """Raises TypeError where `value` is not an array of integers, or one; traced ones pass.

    Example:
      >>> check_whole([1, 2], "total")
      >>> check_whole([1.5], "total")
      Traceback (most recent call last):
      ...
      TypeError: total must hold integers, got float64[1]; encode floats first, or round them
    """
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if is_key or array.dtype.kind not in "iu":
        found = f"{array.dtype}{list(array.shape)}" if array.ndim else shown(value)
        raise TypeError(
            f"{name} must hold integers, got {found}; encode floats first, or round them"
        )


def check_mask(mask: Any, name: str, *, size: int) -> None:
    """Raises where `mask` is not `[size]` of bools, or of zeros and ones.

    Example:
      >>> check_mask([True, False], "mask", size=2)
      >>> check_mask(0.5, "mask", size=2)
      Traceback (most recent call last):
      ...
      ValueError: mask must be bools [2], got 0.5; give True or False for each
    """
    array = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    fits = array.shape == (size,) and array.dtype.kind in "biuf"
    concrete = fits and not isinstance(array, jax.core.Tracer)
    if not fits or (concrete and not np.isin(np.asarray(array), (0, 1)).all()):
        found = f"{array.dtype}{list(array.shape)}" if array.ndim else shown(mask)
        raise ValueError(f"{name} must be bools [{size}], got {found}; give True or False for each")


def check_key(key: Any, name: str = "key") -> None:
    """Raises TypeError where `key` is not one typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        dtype = getattr(key, "dtype", "")
        if isinstance(key, int | np.integer):
            remedy = f"a seed is not a key: jax.random.key({key})"
        elif dtype:
            remedy = "jax.random.PRNGKey's raw arrays are wrapped by jax.random.wrap_key_data"
        else:
            remedy = (
                "the key comes first: algo.init(key, params, data), algo.round(key, state, data), "
                "run(algo, key, state, data)"
            )
        raise TypeError(
            f"{name} must be a typed key such as jax.random.key(0), got "
            f"{f'{type(key).__name__} {dtype}'.strip()}; {remedy}"
        )
    if key.ndim:
        raise TypeError(f"{name} must be one key, got shape {key.shape}; vmap over several")


def check_params(params: Any) -> None:
    """Raises TypeError where no parameters were given, or a model in their place; float16 warns.

    Example:
      >>> check_params({"w": jnp.zeros(2)})
      >>> check_params(None)
      Traceback (most recent call last):
      ...
      TypeError: params must be the model's parameters, got None; give params = model.init(key)
    """
    kind = type(params)  # by name: models are above this; a user's own Model may be parameters
    is_model = (kind.__module__, kind.__name__) == ("fedjax_lite.models.model", "Model")
    if params is None or inspect.isroutine(params) or is_model:
        found = "a Model" if is_model else shown(params)
        raise TypeError(
            f"params must be the model's parameters, got {found}; give params = model.init(key)"
        )
    if any(getattr(leaf, "dtype", None) == jnp.float16 for leaf in jax.tree.leaves(params)):
        warnings.warn(
            "params are float16, in which small steps are lost and large values overflow; give "
            "float32 and, for speed, fl.models.with_precision(model, 'bfloat16')",
            stacklevel=3,
        )


def check_slot(slot: Any, name: str, kind: type) -> None:
    """Raises TypeError where a slot holds something else than its protocol."""
    if not isinstance(slot, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        if isinstance(slot, str) and (call := _factory_call(slot, kind)):
            remedy = f"; give {call}, not {slot!r}"
        else:
            remedy = "; was a factory not called?" if callable(slot) else ""
            if name not in EXAMPLES and not remedy:
                remedy = f"; give {article} {kind.__name__}"
            elif name in EXAMPLES:
                start = " For" if callable(slot) else "; for"
                remedy += f"{start} example {name}={EXAMPLES[name]}"
        raise TypeError(f"{name} must be {article} {kind.__name__}, got {shown(slot)}{remedy}")


def as_path(value: Any, name: str) -> Path:
    """A path that the user gave, with ``~`` expanded: every path goes through here.

    Args:
      value: a string or a path object; ``~`` and ``~user`` at its beginning are home folders.
      name: the argument or environment variable, for the message.

    Returns:
      The path, relative ones as they were given.

    Raises:
      TypeError: if it is no path, or one of bytes.
      ValueError: if it is empty, holds what no file name can, or names an unknown user's home.

    Example:
      >>> as_path("runs/a", "output_dir").as_posix()
      'runs/a'
      >>> as_path("~/runs", "output_dir") == Path.home() / "runs"
      True
      >>> as_path("", "output_dir")
      Traceback (most recent call last):
      ...
      ValueError: output_dir must name a place, got ''; "." is the working directory
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        remedy = "; os.fsdecode(...) makes a string of it" if isinstance(text, bytes) else ""
        raise TypeError(
            f"{name} must be a path as a string or pathlib.Path, got {shown(value)}{remedy}"
        )
    if not text:
        raise ValueError(f"{name} must name a place, got ''; \".\" is the working directory")
    try:
        writable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        writable = False
    if not writable:
        raise ValueError(
            f"{name} must be a name that files can have, got {text!r:.80}; take out what cannot "
            "be written"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{name} must lie in a home that exists, got {text!r:.80}; give the whole path, or "
            "./ before a name that really begins with ~"
        ) from error


def shown(value: Any) -> str:
    """A value for a message: plain ones as they are, all else by what it is.

    Example:
      >>> shown(0.5), shown(len), shown(jnp.zeros(3)), shown([1])
      ('0.5', 'the function len', 'an array float32[3]', 'a list')
    """
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return f"{value!r:.80}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    if isinstance(value, jax.core.Tracer):
        return "a traced value"
    if isinstance(value, jax.Array):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return "a key of JAX" if is_key else f"an array {value.dtype}{list(value.shape)}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def _count_remedy(value: Any, name: str) -> str:
    if isinstance(value, jax.core.Tracer):
        return "; it fixes shapes, so it cannot be traced"
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "; pass an int such as 0: a key is not a number"
    if isinstance(value, jax.Array | np.ndarray):
        return "; int(...) of it on the host"
    if not isinstance(value, float | np.floating) or not np.isfinite(value):
        return "; give a whole number such as 1"
    if name == "cohort_size" and 0 < value < 1:
        return (
            f"; for a share of the population use fl.poisson({value:g}), whose cohorts vary in "
            f"size, or round({value:g} * num_clients) for a fixed one"
        )
    return f"; give {int(value)}" if float(value).is_integer() else "; round it"


def _is_leaf(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind not in "USO"
    return hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)


def _factory_call(name: str, kind: type) -> str:
    """How the library's factory `name` is called; "" where it makes nothing of this kind."""
    factory = getattr(sys.modules.get("fedjax_lite"), name, None)
    if not inspect.isfunction(factory):
        return ""
    if factory.__annotations__.get("return") not in (kind, kind.__name__):
        return ""
    required = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f"fl.{name}({'...' if required else ''})"


def _check(value: Any, name: str, holds: Any, message: str, remedy: str) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    is_number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    if isinstance(value, bool) or not is_number or np.asarray(value).dtype.kind not in "iufV":
        found = shown(value)
        raise TypeError(f"{name} must be a number or an array, got {found}; give a number")
    values = np.asarray(value)
    if not np.all(holds(values)):  # NaN fails every comparison
        raise ValueError(f"{name} {message}, got {value}; {remedy}")
