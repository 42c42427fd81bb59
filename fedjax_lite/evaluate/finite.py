"""Whether the models of a state are finite: one reduction on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.round.own_models import is_table, keeps_own, server_model
from fedjax_lite.types import RoundState


class Looked(NamedTuple):
    """What was seen in a model: of numbers on the device or the host."""

    finite: Any
    """It holds neither NaN nor infinity."""
    huge: Any
    """A number of it is so large that its square overflows."""


def looked_at(state: RoundState) -> Looked:
    """Looks at all models of a state; waits for the device, and reads two numbers from it.

    Rows on the host are looked at as they are written, and not here.

    Example:
      >>> looked_at(RoundState(None, {"w": jnp.array([1.0, jnp.inf])}, (), (), (), ()))
      Looked(finite=False, huge=True)
    """
    rows, lost = state.clients if keeps_own(state) else (), False
    if is_table(state.clients):
        lost, rows = bool(state.clients.not_finite), ()
    found = np.asarray(_look(_floats(server_model(state)), rows, server_model(state)))
    return Looked(bool(found[0]) and not lost, bool(found[1]))


def look_inside(state: RoundState) -> Looked:
    """`looked_at` of a traced state, inside a program: bool scalars.

    Example:
      >>> look_inside(RoundState(None, {"w": jnp.ones(2)}, (), (), (), ())).finite.tolist()
      True
    """
    server = server_model(state)
    found = _seen(_floats(server))
    if keeps_own(state):
        own = jax.vmap(lambda row: _seen(_floats(row.own_model(server))))(state.clients)
        found = jnp.stack([found[0] & own[:, 0].all(), found[1] | own[:, 1].any()])
    return Looked(found[0], found[1])


@jax.jit
def _look(floats: list[jax.Array], rows: Any, server: Any) -> jax.Array:
    if not jax.tree.leaves(rows):
        return _seen(floats)
    return jnp.stack(look_inside(RoundState(None, server, rows, (), (), ())))  # type: ignore[arg-type]


def _seen(floats: list[jax.Array]) -> jax.Array:
    """Bool `[2]`: all are finite, and one is huge."""
    finite = [jnp.isfinite(leaf).all() for leaf in floats]
    huge = [(jnp.abs(leaf) > float(jnp.finfo(leaf.dtype).max) ** 0.5).any() for leaf in floats
            if jnp.finfo(leaf.dtype).bits > 16 or leaf.dtype == jnp.bfloat16]  # fmt: skip
    return jnp.stack(
        [jnp.stack(finite or [jnp.bool_(True)]).all(), jnp.stack(huge or [jnp.bool_(False)]).any()]
    )


def server_is_finite(state: RoundState) -> bool:
    """Whether the server's model is, whatever the clients' own are."""
    return bool(np.asarray(_seen(_floats(server_model(state))))[0])


def clients_not_finite(state: RoundState) -> list[int]:
    """Clients whose own model, or row on the host, holds NaN or infinity."""
    if is_table(state.clients):
        return sorted(state.clients.not_finite)
    server = server_model(state)
    own = jax.vmap(lambda row: _seen(_floats(row.own_model(server))))(state.clients)
    return np.flatnonzero(~np.asarray(own)[:, 0]).tolist()


def _floats(tree: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
