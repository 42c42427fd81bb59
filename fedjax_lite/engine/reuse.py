"""Compiled programs that a later call finds again, by their text."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

KEPT = 8
"""Programs that are remembered; the one that was not used for longest is forgotten first."""
BY_JIT = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
"""Settings that look into a function as it runs, which a program compiled ahead cannot."""

# The key is what the program says, not who made it: a function that was compiled before may read
# other globals now (a batch size in a loop), and would run the old program if its identity counted;
# and two functions that say the same share one. Tracing anew is a tenth of compiling.
# JAX's own cache on the disk finds programs by their text, too, but only where an application has
# named a folder, and reads them back each time; the cache of `jax.jit` asks who made them.
# A program holds neither functions nor arguments. It does hold arrays that its function closed over
# (they are constants of it), which is why few are kept.
_kept: OrderedDict[Hashable, Any] = OrderedDict()


def reusing(
    function: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), place: Any = None
) -> Callable[..., Any]:
    """`jax.jit` that traces anew, but compiles only what no call has compiled lately.

    A program is found again if its lowered text, the structures of what goes in and comes out, and
    the places of its arguments are the same, whichever function it was made from. One that calls
    back into Python is never shared, for its text does not say which function it calls; nor is one
    over a mesh that is not `place`, for its text does not say which devices. Under
    ``jax.disable_jit``, ``jax_debug_nans`` and ``jax_debug_infs`` this is `jax.jit`.

    Args:
      function: of arrays only, `jax.Array` or numpy's.
      donate_argnums: as of `jax.jit`.
      place: what else the program depends on and its text may not say, such as a mesh.

    Returns:
      The function, compiled; it keeps its programs for as long as it lives.

    Example:
      >>> import jax.numpy as jnp
      >>> traced = []
      >>> def double(x):
      ...     traced.append(x)
      ...     return 2 * x
      >>> twice = reusing(double)
      >>> int(twice(jnp.int32(3))), int(twice(jnp.int32(4))), len(traced)
      (6, 8, 1)
    """
    jitted = jax.jit(function, donate_argnums=donate_argnums)
    mine: dict[Hashable, Any] = {}

    def call(*args: Any) -> Any:
        if any(getattr(jax.config, name, False) for name in BY_JIT):
            return jitted(*args)
        leaves, structure = jax.tree.flatten(args)
        shapes = (structure, *map(_kind, leaves))
        if shapes not in mine:
            mine[shapes] = _compiled(jitted.lower(*args), (shapes, place))
        return mine[shapes](*args)

    return call


def _kind(x: Any) -> Hashable:
    placed = (getattr(x, name, None) for name in ("weak_type", "sharding", "committed"))
    return (x.shape, x.dtype, *placed)


def _compiled(lowered: Any, given: tuple[Hashable, Any]) -> Any:
    text = lowered.as_text()
    # With hoisted constants the text leaves out what the function closed over.
    hoisted = getattr(jax.config, "jax_use_simplified_jaxpr_constants", False)
    calls_back = "callback" in text or "host_transfer" in text  # the second on TPU
    if hoisted or calls_back or (given[1] is None and "sdy.mesh" in text):
        return lowered.compile()
    digest = hashlib.sha256(text.encode()).digest()
    weak = tuple(getattr(out, "weak_type", False) for out in jax.tree.leaves(lowered.out_info))
    key = (digest, given, lowered.out_tree, weak, jax.config.jax_default_device)  # type: ignore[attr-defined]
    program = _kept.pop(key, None)
    _kept[key] = lowered.compile() if program is None else program
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return _kept[key]
