"""Checkpoints: a state on disk that comes back bit for bit, whenever the process was killed.

A step is a folder that appears in one `rename`, so a folder with a step's name is complete:

    checkpoints/00000010/manifest.json    what is inside: name -> dtype and shape, in tree order
    checkpoints/00000010/arrays/          the arrays, written by Orbax

Anything else (`.saving`, `.deleting`) is what a killed process left; the next save
clears it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, PyTree

_STEP = re.compile(r"\d{8,}")
_LEFTOVER = re.compile(r"\d{8,}\.(saving|deleting)")


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps saved completely in a directory, in rising order; empty where it does not exist.

    Args:
      directory: the folder handed to `save`.

    Returns:
      Step numbers.

    Example:
      >>> steps("/nowhere")
      []
    """
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if _STEP.fullmatch(entry.name))


def save(directory: str | os.PathLike[str], state: PyTree, *, step: int, keep: int = 2) -> Path:
    """Saves a state as one step and deletes the oldest steps but `keep`.

    Synchronous: when it returns, the step is complete and under its own name. Typed keys are
    stored as their words, arrays without elements by their shape alone.

    Args:
      directory: folder of all steps; made where it does not exist.
      state: a pytree of arrays, typically a `RoundState`. bfloat16 and typed keys are fine.
      step: number of the step, typically ``int(state.round)``; an older step of the same number
        is replaced.
      keep: how many of the newest steps stay, at least 1.

    Returns:
      The step's folder.

    Raises:
      ValueError: if `step` is negative, `keep` is below 1, or two leaves have the same name.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(folder, {"w": jnp.arange(3.0)}, step=7)
      ...     restore(folder, {"w": jnp.zeros(3)})["w"].tolist()
      [0.0, 1.0, 2.0]
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}: the newest checkpoint has to stay")
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    for entry in directory.iterdir():
        if _LEFTOVER.fullmatch(entry.name):
            shutil.rmtree(entry)
    leaves = _named_leaves(state)
    target, saving = directory / f"{step:08d}", directory / f"{step:08d}.saving"
    saving.mkdir()
    arrays = {name: _words(leaf) for name, leaf in leaves.items() if leaf.size}
    if arrays:
        with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
            checkpointer.save(saving / "arrays", args=ocp.args.StandardSave(arrays))
    manifest = {"step": step, "leaves": {name: _describe(leaf) for name, leaf in leaves.items()}}
    (saving / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    _delete(target)
    os.replace(saving, target)
    for old in steps(directory)[:-keep]:
        _delete(directory / f"{old:08d}")
    return target


def restore(
    directory: str | os.PathLike[str], template: PyTree, *, step: int | None = None
) -> PyTree:
    """Restores a step, bit for bit, into the structure of a template.

    Args:
      directory: the folder handed to `save`.
      template: a pytree with the structure, shapes and dtypes of what was saved, such as
        ``algo.init(key, params, data)``. Its values are not used; arrays come back on its devices.
      step: which step; None for the newest complete one.

    Returns:
      A pytree like `template`.

    Raises:
      FileNotFoundError: if there is no such step.
      ValueError: if names, shapes or dtypes differ; the message lists the leaves.

    Example:
      >>> import tempfile, jax
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(folder, {"key": jax.random.key(3)}, step=1)
      ...     same = restore(folder, {"key": jax.random.key(0)})["key"] == jax.random.key(3)
      >>> bool(same)
      True
    """
    directory = Path(directory).absolute()
    found = steps(directory)
    if not found or (step is not None and step not in found):
        raise FileNotFoundError(f"no checkpoint of step {step or 'any'} in {directory}: {found}")
    folder = directory / f"{found[-1] if step is None else step:08d}"
    saved = json.loads((folder / "manifest.json").read_text())["leaves"]
    leaves = _named_leaves(template)
    _check_same(saved, {name: _describe(leaf) for name, leaf in leaves.items()}, folder)
    wanted = {
        name: jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=words.sharding)
        for name, words in ((name, _words(leaf)) for name, leaf in leaves.items() if leaf.size)
    }
    arrays: dict[str, Any] = {}
    if wanted:
        with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
            restored = checkpointer.restore(
                folder / "arrays", args=ocp.args.StandardRestore(wanted)
            )
            arrays = dict(restored)
    values = [_like(leaf, arrays.get(name)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(template), values)


def clear(directory: str | os.PathLike[str]) -> None:
    """Deletes all steps of a directory, and nothing that is not a step.

    Args:
      directory: the folder handed to `save`.

    Example:
      >>> clear("/nowhere")
    """
    for step in steps(directory):
        _delete(Path(directory) / f"{step:08d}")


def _named_leaves(tree: PyTree) -> dict[str, Array]:
    """Leaves by readable names, such as ``server.params.w``, in tree order."""
    named: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "|") or "value"
        if name in named:
            raise ValueError(f"two leaves of the state are named {name!r}; rename one of them")
        named[name] = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    return named


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _describe(leaf: Array) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _like(leaf: Array, words: Array | None) -> Array:
    if words is None:  # no elements: the shape is all there is
        return leaf
    if not leaf.committed:  # free to move: a strategy on many devices may want it elsewhere
        words = jnp.asarray(np.asarray(words))
    return (
        jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else words
    )


def _check_same(saved: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
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


def _delete(folder: Path) -> None:
    """Takes the step's name away first, so that a kill never leaves half a step under it."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".deleting")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def _checkpointer(ocp: Any) -> Any:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[Any]:
    """Imports Orbax and keeps its log lines from the terminal; its errors are still raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        import orbax.checkpoint as ocp

        logger.setLevel(logging.CRITICAL)
        yield ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install orbax-checkpoint") from error
    finally:
        logger.setLevel(level)
