"""restore: the newest step that is what was saved, or an error that names what is not."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_lite.hosts import distributed
from fedjax_lite.round.ledger import fitted
from fedjax_lite.run.checkpoint.arrays import read_arrays
from fedjax_lite.run.checkpoint.folders import as_folder, steps
from fedjax_lite.run.checkpoint.leaves import (
    check_same,
    describe,
    like,
    named_all,
    named_leaves,
    named_tables,
    unpadded,
    wanted_as,
    words_of,
)
from fedjax_lite.run.checkpoint.manifest import CheckpointDamaged, check_files, read_manifest
from fedjax_lite.types import PyTree, RoundState

_KINDS: dict[str, type[Exception]] = {
    "damaged": CheckpointDamaged,
    "none": FileNotFoundError,
    "disk": OSError,
    "value": ValueError,
}


class Loaded(NamedTuple):
    """What `load` found."""

    state: PyTree
    step: int
    texts: dict[str, str]
    """What was saved beside the state, by name."""
    damaged: dict[int, str]
    """Newer steps that are not what was saved, and why."""
    notices: list[str]
    """For people: that a step was passed over, or that nothing is known of damage."""


def restore(
    folder: str | os.PathLike[str],
    template: PyTree,
    *,
    step: int | None = None,
    num_clients: int | None = None,
) -> PyTree:
    """Restores a step, bit for bit, into the structure of a template.

    Every file is compared with the digest that the manifest has of it. A newest step that is
    damaged is passed over with a warning, for the newest one that is whole. Steps that earlier
    versions saved, without digests, are read with a warning.

    Args:
      folder: as handed to `save`.
      template: a pytree with the structure, shapes and dtypes of what was saved, such as
        ``algo.init(key, params, data)``. Its values are not used; arrays come back on its devices,
        which may be others than those that saved.
      step: which step; None for the newest whole one.
      num_clients: as in `save`: the first `N` rows of the tables come back bit for bit, and rows
        behind them mean nothing.

    Returns:
      A pytree like `template`.

    Raises:
      FileNotFoundError: if there is no such step.
      CheckpointDamaged: (a ValueError) if that step, or every step, is not what was saved; the
        message names the file.
      ValueError: if names, shapes or dtypes differ; the message lists the leaves.

    Warns:
      UserWarning: where a damaged step is passed over, or there are no digests.

    Example:
      >>> import tempfile, jax
      >>> from fedjax_lite.run import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = checkpoint.save(folder, {"key": jax.random.key(3)}, step=1)
      ...     found = checkpoint.restore(folder, {"key": jax.random.key(0)})
      >>> bool(found["key"] == jax.random.key(3))
      True
    """
    loaded = load(folder, template, step=step, num_clients=num_clients)
    for text in loaded.notices:
        warnings.warn(text, stacklevel=2)
    return loaded.state


def load(
    folder: str | os.PathLike[str],
    template: PyTree,
    *,
    step: int | None = None,
    num_clients: int | None = None,
) -> Loaded:
    """Like `restore`, with all that is known: which step it was, its texts, what is damaged.

    Args:
      folder: as handed to `save`.
      template: as in `restore`.
      step: which step; None for the newest whole one.
      num_clients: as in `restore`.

    Raises:
      FileNotFoundError, CheckpointDamaged, ValueError: as `restore`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from fedjax_lite.run import checkpoint
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = checkpoint.save(folder, {"w": jnp.ones(2)}, step=7, texts={"note.txt": "seven"})
      ...     loaded = checkpoint.load(folder, {"w": jnp.zeros(2)})
      >>> loaded.step, loaded.texts
      (7, {'note.txt': 'seven'})
    """
    folder = as_folder(folder)
    damaged: dict[int, str] = {}
    while True:
        chosen, found = _choose(folder, step, damaged)
        damaged |= found
        place = folder / f"{chosen:08d}"
        manifest = read_manifest(place)
        try:
            state = _read(place, manifest, template, num_clients)
        except CheckpointDamaged as error:  # rows outside of the folder, or no digests
            if step is not None or jax.process_count() > 1:
                raise
            damaged[chosen] = str(error)
            continue
        notices = [
            f"the checkpoint of step {one} is damaged ({why}): going back to step {chosen}"
            for one, why in damaged.items()
        ]
        if "files" not in manifest:
            notices.append(
                f"{place} was saved without digests, by an earlier version: damage inside of it "
                "would not be seen"
            )
        texts = {
            name: (place / name).read_text(encoding="utf-8") for name in manifest.get("texts", ())
        }
        return Loaded(state, chosen, texts, damaged, notices)


def _choose(folder: Path, step: int | None, skip: Mapping[int, str]) -> tuple[int, dict[int, str]]:
    """The step to read, in all processes the same, and newer ones that are damaged.

    Process 0 reads all files to compare them; the others are told what it found.
    """
    if jax.process_count() == 1:
        return _find(folder, step, skip)
    answer = ""
    if distributed.is_coordinator():
        try:
            chosen, damaged = _find(folder, step, skip)
            reasons = {one: why[:300] for one, why in list(damaged.items())[-5:]}
            answer = json.dumps([chosen, reasons, None, ""])
        except (OSError, ValueError) as error:
            kind = next(k for k, v in _KINDS.items() if isinstance(error, v))
            answer = json.dumps([-1, {}, kind, str(error)[:1500]])
    chosen, reasons, kind, message = json.loads(distributed.from_coordinator(answer))
    if kind is not None:
        raise _KINDS[kind](message)
    return chosen, {int(one): why for one, why in reasons.items()}


def _find(folder: Path, step: int | None, skip: Mapping[int, str]) -> tuple[int, dict[int, str]]:
    found, damaged = steps(folder), dict(skip)
    for one in reversed(found if step is None else [one for one in found if one == step]):
        if one not in damaged:
            place = folder / f"{one:08d}"
            try:
                check_files(place, read_manifest(place))
                return one, damaged
            except CheckpointDamaged as error:
                damaged[one] = str(error)
    if damaged:
        raise CheckpointDamaged(_lost(folder, step, damaged, found))
    which = "" if step is None else f" of step {step}"
    raise FileNotFoundError(f"no checkpoint{which} in {folder}; steps there: {found}")


def _lost(folder: Path, step: int | None, damaged: Mapping[int, str], found: list[int]) -> str:
    reasons = "; ".join(damaged.values())
    if step is not None:
        others = [one for one in found if one != step]
        remedy = f"restore another step, of {others}" if others else "there is no other step"
        return f"the checkpoint of step {step} is damaged: {reasons}; {remedy}"
    return (
        f"no checkpoint in {folder} is whole: {reasons}; put back what is missing from a copy, "
        "or start anew (overwrite=True, or another folder)"
    )


def _read(
    folder: Path, manifest: dict[str, Any], template: PyTree, num_clients: int | None
) -> PyTree:
    """The state in a folder whose files were checked."""
    template = fitted(template, manifest["leaves"])
    leaves, tables = named_leaves(template), named_tables(template)
    described = {name: describe(leaf) for name, leaf in leaves.items()}
    saved = manifest["leaves"]
    population = manifest.get("num_clients")
    if None not in (population, num_clients) and population != num_clients:
        raise ValueError(
            f"the checkpoint {folder} is of {population} clients, this run has {num_clients}"
        )
    repadded = False
    if num_clients is not None and num_clients == population and isinstance(template, RoundState):
        repadded = saved != described
        saved, described = (unpadded(names, num_clients) for names in (saved, described))
    kept = {name: table.describe() for name, table in tables.items()}
    check_same(saved | manifest.get("tables", {}), described | kept, folder)
    wanted = {name: wanted_as(words_of(leaf)) for name, leaf in leaves.items() if leaf.size}
    arrays: dict[str, Any] = {}
    if wanted:
        try:
            # Not strict: rows are cut off or zeros added at the end, which only padding can be.
            arrays = read_arrays(folder / "arrays", wanted, strict=not repadded)
        except ImportError:
            raise
        except Exception as error:
            if "files" in manifest:
                raise  # the bytes are those that were saved
            raise CheckpointDamaged(f"{folder / 'arrays'} cannot be read: {error}") from error
    values = {name: like(leaf, arrays.get(name)) for name, leaf in leaves.items()}
    for name, table in tables.items():
        values[name] = table.restore_from(folder / "tables" / name)
    in_order = [values[name] for name in named_all(template)]
    return jax.tree.unflatten(jax.tree.structure(template), in_order)
