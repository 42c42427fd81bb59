"""Checkpoints: a state on disk that comes back bit for bit, whenever the process was killed.

A step is a folder that appears in one `rename`, so a folder with a step's name is complete:

    checkpoints/00000010/manifest.json    what is inside: name -> dtype and shape, in tree order
    checkpoints/00000010/arrays/          the arrays, written by Orbax
    checkpoints/00000010/tables/          what leaves that are no arrays save of themselves

Anything else (`.saving`, `.deleting`) is what a killed process left; the next save
clears it. Several processes save and restore together, in a folder that all of them see: each
writes the parts of arrays that it holds, process 0 does the rest.
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
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import distributed
from fedjax_lite.ledger import fitted
from fedjax_lite.types import Array, PyTree, RoundState

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


def save(
    directory: str | os.PathLike[str],
    state: PyTree,
    *,
    step: int,
    keep: int = 2,
    num_clients: int | None = None,
) -> Path:
    """Saves a state as one step and deletes the oldest steps but `keep`.

    Synchronous: when it returns, the step is complete and under its own name. Typed keys are
    stored as their words, arrays without elements by their shape alone.

    Args:
      directory: folder of all steps; made where it does not exist.
      state: a pytree of arrays, typically a `RoundState`. bfloat16 and typed keys are fine.
      step: number of the step, typically ``int(state.round)``; an older step of the same number
        is replaced.
      keep: how many of the newest steps stay, at least 1.
      num_clients: `N`, where the tables of client rows in a `RoundState` may be padded to the
        number of devices: they can then be restored with another padding.

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
    leaves, tables = _named_leaves(state), _named_tables(state)
    target, saving = directory / f"{step:08d}", directory / f"{step:08d}.saving"
    writes = distributed.is_coordinator()
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        for entry in directory.iterdir():
            if _LEFTOVER.fullmatch(entry.name):
                shutil.rmtree(entry)
        saving.mkdir()
    distributed.barrier(f"checkpoint {step} has a folder")
    arrays = {name: _shared(_words(leaf)) for name, leaf in leaves.items() if leaf.size}
    if arrays:
        with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
            checkpointer.save(saving / "arrays", args=ocp.args.StandardSave(arrays))
    distributed.barrier(f"checkpoint {step} is written")
    if writes:
        for name, table in tables.items():
            table.save_to(saving / "tables" / name, final=target / "tables" / name)
        manifest = {
            "step": step,
            "num_clients": num_clients,
            "tables": {name: table.describe() for name, table in tables.items()},
            "leaves": {name: _describe(leaf) for name, leaf in leaves.items()},
        }
        (saving / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        earlier = target.with_name(target.name + ".deleting")
        if target.exists():
            os.replace(target, earlier)
        os.replace(saving, target)
        shutil.rmtree(earlier, ignore_errors=True)
        for old in steps(directory)[:-keep]:
            if old != step:  # what was just saved stays, whatever its number
                _delete(directory / f"{old:08d}")
    distributed.barrier(f"checkpoint {step} is complete")
    return target


def restore(
    directory: str | os.PathLike[str],
    template: PyTree,
    *,
    step: int | None = None,
    num_clients: int | None = None,
) -> PyTree:
    """Restores a step, bit for bit, into the structure of a template.

    Args:
      directory: the folder handed to `save`.
      template: a pytree with the structure, shapes and dtypes of what was saved, such as
        ``algo.init(key, params, data)``. Its values are not used; arrays come back on its devices,
        which may be others than those that saved.
      step: which step; None for the newest complete one.
      num_clients: as in `save`: the first `N` rows of the tables come back bit for bit, and rows
        behind them mean nothing.

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
    newest = int(distributed.from_coordinator(str(found[-1])))
    folder = directory / f"{newest if step is None else step:08d}"
    manifest = json.loads((folder / "manifest.json").read_text())
    template = fitted(template, manifest["leaves"])
    leaves, tables = _named_leaves(template), _named_tables(template)
    described = {name: _describe(leaf) for name, leaf in leaves.items()}
    saved = manifest["leaves"]
    population = manifest.get("num_clients")
    if None not in (population, num_clients) and population != num_clients:
        raise ValueError(
            f"the checkpoint {folder} is of {population} clients, this run has {num_clients}"
        )
    repadded = False
    if num_clients is not None and num_clients == population and isinstance(template, RoundState):
        repadded = saved != described
        saved, described = (_unpadded(names, num_clients) for names in (saved, described))
    kept = {name: table.describe() for name, table in tables.items()}
    _check_same(saved | manifest.get("tables", {}), described | kept, folder)
    wanted = {name: _wanted(_words(leaf)) for name, leaf in leaves.items() if leaf.size}
    arrays: dict[str, Any] = {}
    if wanted:
        with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
            # Not strict: rows are cut off or zeros added at the end, which only padding can be.
            what = ocp.args.StandardRestore(wanted, strict=not repadded)
            arrays = dict(checkpointer.restore(folder / "arrays", args=what))
    values = {name: _like(leaf, arrays.get(name)) for name, leaf in leaves.items()}
    for name, table in tables.items():
        values[name] = table.restore_from(folder / "tables" / name)
    in_order = [values[name] for name in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), in_order)


def clear(directory: str | os.PathLike[str]) -> None:
    """Deletes all steps of a directory, and nothing that is not a step.

    Args:
      directory: the folder handed to `save`.

    Example:
      >>> clear("/nowhere")
    """
    for step in steps(directory):
        _delete(Path(directory) / f"{step:08d}")


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


def _named_leaves(tree: PyTree) -> dict[str, Array]:
    """Arrays by readable names, such as ``server.params.w``, in tree order."""
    return {
        name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        for name, leaf in _named(tree).items()
        if not hasattr(leaf, "save_to")
    }


def _named_tables(tree: PyTree) -> dict[str, SavesItself]:
    return {name: leaf for name, leaf in _named(tree).items() if hasattr(leaf, "save_to")}


def _named(tree: PyTree) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "|") or "value"
        if name in named:
            raise ValueError(f"two leaves of the state are named {name!r}; rename one of them")
        named[name] = leaf
    return named


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _describe(leaf: Array) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _shared(words: Array) -> Any:
    """What Orbax is to write: of an array that each process has for itself, process 0's values."""
    alone = jax.process_count() == 1 or not words.is_fully_addressable
    return words if alone else np.asarray(words)


def _wanted(words: Array) -> Any:
    if jax.process_count() > 1 and words.is_fully_addressable:
        return np.zeros(words.shape, words.dtype)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=words.sharding)


def _unpadded(described: dict[str, str], num_clients: int) -> dict[str, str]:
    """Descriptions in which tables of at least `N` client rows all have `N`."""

    def one(name: str, text: str) -> str:
        dtype, _, shape = text.partition("[")
        sizes = json.loads("[" + shape)
        table = name.split(".")[0] in ("clients", "uplink") and sizes and sizes[0] >= num_clients
        return f"{dtype}{[num_clients, *sizes[1:]]}" if table else text

    return {name: one(name, text) for name, text in described.items()}


def _like(leaf: Array, words: Array | np.ndarray | None) -> Array:
    if words is None:  # no elements: the shape is all there is
        return leaf
    if isinstance(words, np.ndarray):
        words = jax.device_put(words, leaf.sharding)
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
