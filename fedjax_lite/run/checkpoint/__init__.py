"""Checkpoints: a state on disk that comes back bit for bit, whenever the process was killed.

A step is a folder that appears in one `rename`, so a folder with a step's name is complete:

    checkpoints/00000010/manifest.json    name -> dtype and shape; file -> bytes and SHA-256
    checkpoints/00000010/arrays/          the arrays, written by Orbax
    checkpoints/00000010/tables/          what leaves that are no arrays save of themselves
    checkpoints/00000010/history.jsonl    and other texts that belong to the state

Every file is compared with its digest before anything is restored, so what comes back is what was
saved, or an error that names the file. Anything else in the folder (`.saving`, `.deleting`) is what
a killed process left; the next save clears it. Several processes save and restore together, in a
folder that all of them see: each writes the parts of arrays that it holds, process 0 does the rest.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.run.checkpoint.folders import as_folder, clear, set_aside, steps
    from fedjax_lite.run.checkpoint.leaves import SavesItself
    from fedjax_lite.run.checkpoint.manifest import CheckpointDamaged
    from fedjax_lite.run.checkpoint.restoring import Loaded, load, restore
    from fedjax_lite.run.checkpoint.saving import save

__all__ = [
    "CheckpointDamaged",
    "Loaded",
    "SavesItself",
    "as_folder",
    "clear",
    "load",
    "restore",
    "save",
    "set_aside",
    "steps",
]

load_when_asked(__name__)
