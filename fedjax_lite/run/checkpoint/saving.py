"""save: a step that appears whole, in one rename, with the digests of its files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.hosts import distributed
from fedjax_lite.run.checkpoint.arrays import disk_errors, write_arrays
from fedjax_lite.run.checkpoint.folders import (
    as_folder,
    clear_leftovers,
    delete,
    discard,
    remove,
    steps,
)
from fedjax_lite.run.checkpoint.leaves import describe, named_leaves, named_tables, shared, words_of
from fedjax_lite.run.checkpoint.manifest import write_manifest
from fedjax_lite.run.folder_lock import FolderLock
from fedjax_lite.types import PyTree


def save(
    folder: str | os.PathLike[str],
    state: PyTree,
    *,
    step: int,
    keep: int = 2,
    num_clients: int | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Saves a state as one step and deletes the oldest steps but `keep`.

    Synchronous: when it returns, the step is complete and under its own name. Typed keys are
    stored as their words, arrays without elements by their shape alone. While it writes, other
    saves into the folder wait (where the file system has locks); two runs that save into one
    folder by turns would still delete each other's steps: give each its own. Into the
    ``checkpoints`` of an `output_dir` only its run should save.

    Args:
      folder: of all steps; made where it does not exist. ``~`` is the home folder.
      state: a pytree of arrays, typically a `RoundState`. bfloat16 and typed keys are fine.
      step: number of the step, typically ``int(state.round)``; an older step of the same number
        is replaced.
      keep: how many of the newest steps stay, at least 1.
      num_clients: `N`, where the tables of client rows in a `RoundState` may be padded to the
        number of devices: they can then be restored with another padding.
      texts: kept beside the state, by file name; `load` gives them back.

    Returns:
      The step's folder.

    Raises:
      TypeError, ValueError: if `step` is no int or negative, `keep` is below 1, or two leaves
        have the same name.
      OSError: if it cannot be written, as on a full disk; earlier steps are as they were.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from fedjax_lite.run import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = checkpoint.save(folder, {"w": jnp.arange(3.0)}, step=7)
      ...     checkpoint.restore(folder, {"w": jnp.zeros(3)})["w"].tolist()
      [0.0, 1.0, 2.0]
    """
    check_count(step, "step", minimum=0)
    check_count(keep, "keep", minimum=1)
    folder = as_folder(folder)
    leaves, tables = named_leaves(state), named_tables(state)
    target, saving = folder / f"{step:08d}", folder / f"{step:08d}.saving"
    writes = distributed.is_coordinator()
    with contextlib.ExitStack() as stack:
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(folder, wait=600.0))
            clear_leftovers(folder)
            saving.mkdir()
            stack.callback(discard, saving)  # of a save that failed; else it has another name
        stack.enter_context(disk_errors(target))
        distributed.barrier(f"checkpoint {step} has a folder")
        arrays = {name: shared(words_of(leaf)) for name, leaf in leaves.items() if leaf.size}
        if arrays:
            write_arrays(saving / "arrays", arrays)
        distributed.barrier(f"checkpoint {step} is written")
        if writes:
            for name, table in tables.items():
                table.save_to(saving / "tables" / name, final=target / "tables" / name)
            for name, text in (texts or {}).items():
                (saving / name).write_text(text, encoding="utf-8", newline="")
            manifest = {
                "step": int(step),
                "num_clients": num_clients,
                "tables": {name: table.describe() for name, table in tables.items()},
                "leaves": {name: describe(leaf) for name, leaf in leaves.items()},
                "texts": sorted(texts or {}),
            }
            write_manifest(saving, manifest)
            earlier = target.with_name(target.name + ".deleting")
            if os.path.lexists(target):
                os.replace(target, earlier)
            os.replace(saving, target)
            remove(earlier)
            for old in steps(folder)[:-keep]:
                if old != step:  # what was just saved stays, whatever its number
                    delete(folder / f"{old:08d}")
    distributed.barrier(f"checkpoint {step} is complete")
    return target
