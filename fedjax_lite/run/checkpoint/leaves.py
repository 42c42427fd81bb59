"""The leaves of a state in a checkpoint: their names, what they are, and back from the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, PyTree


class SavesItself(Protocol):
    """A leaf of a state that is no array, such as a `HostTable`."""

    def describe(self) -> str:
        """What it is; equal texts fit each other."""
        ...

    def save_to(self, folder: Path, *, final: Path) -> None:
        """Makes `folder`, which is going to be renamed to `final`, and writes itself into it."""
        ...

    def restore_from(self, folder: Path) -> SavesItself:
        """A leaf like this one, as it was saved in `folder`."""
        ...


def named_leaves(tree: PyTree) -> dict[str, Array]:
    """Arrays by readable names, such as ``server.params.w``, in tree order."""
    return {
        name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        for name, leaf in named_all(tree).items()
        if not hasattr(leaf, "save_to")
    }


def named_tables(tree: PyTree) -> dict[str, SavesItself]:
    """Leaves that save themselves, by name."""
    return {name: leaf for name, leaf in named_all(tree).items() if hasattr(leaf, "save_to")}


def named_all(tree: PyTree) -> dict[str, Any]:
    """All leaves by name, in tree order; names are unique."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "|") or "value"
        if name in named:
            raise ValueError(f"two leaves of the state are named {name!r}; rename one of them")
        named[name] = leaf
    return named


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def words_of(leaf: Array) -> Array:
    """What is stored of an array: of typed keys their words."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def describe(leaf: Array) -> str:
    """Dtype and shape, such as ``float32[3]``."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def shared(words: Array) -> Any:
    """What Orbax is to write: of an array that each process has for itself, process 0's values."""
    alone = jax.process_count() == 1 or not words.is_fully_addressable
    return words if alone else np.asarray(words)


def wanted_as(words: Array) -> Any:
    """What Orbax is to make of stored words: shape, dtype, and where they go."""
    if jax.process_count() > 1 and words.is_fully_addressable:
        return np.zeros(words.shape, words.dtype)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=words.sharding)


def unpadded(described: dict[str, str], num_clients: int) -> dict[str, str]:
    """Descriptions in which tables of at least `N` client rows all have `N`."""

    def one(name: str, text: str) -> str:
        dtype, _, shape = text.partition("[")
        sizes = json.loads("[" + shape)
        table = name.split(".")[0] in ("clients", "uplink") and sizes and sizes[0] >= num_clients
        return f"{dtype}{[num_clients, *sizes[1:]]}" if table else text

    return {name: one(name, text) for name, text in described.items()}


def like(leaf: Array, words: Array | np.ndarray | None) -> Array:
    """A leaf like the template's, of the words that were stored."""
    if words is None:  # no elements: the shape is all there is
        return leaf
    if isinstance(words, np.ndarray):
        words = jax.device_put(words, leaf.sharding)
    if not leaf.committed:  # free to move: a strategy on many devices may want it elsewhere
        words = jnp.asarray(np.asarray(words))
    return (
        jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else words
    )


def check_same(saved: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
    """Raises ValueError where what was saved is not what is expected, leaf by leaf."""
    problems = [
        f"  {name}: saved {saved.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in {**wanted, **saved}
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        more = [f"  ... and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise ValueError(
            f"the checkpoint {folder} does not fit this run's state; build the same model, "
            "algorithm and population as the run that saved it:\n" + "\n".join(problems[:10] + more)
        )
