"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedjax_lite.checks.arguments import as_path


@contextlib.contextmanager
def new_folder(
    folder: str | os.PathLike[str], *, overwrite: bool, made_of: Sequence[str]
) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well.

    Args:
      folder: the name to appear; ``~`` is expanded.
      overwrite: replace an earlier folder of this kind, and nothing else.
      made_of: patterns of the files that such a folder holds.

    Raises:
      FileExistsError: if the name is taken and `overwrite` is False, or if what has the name holds
        other files; before anything is written. Also where another process took the name meanwhile:
        its folder stays.

    Example:
      >>> with tempfile.TemporaryDirectory() as place:
      ...     with new_folder(f"{place}/data", overwrite=False, made_of=["*.txt"]) as inside:
      ...         _ = (inside / "a.txt").write_text("a")
      ...     Path(place, "data", "a.txt").read_text()
      'a'
    """
    folder = as_path(folder, "folder").absolute()
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; overwrite=True replaces it, or choose another")
    if folder.exists():
        inside = folder.iterdir() if folder.is_dir() else [folder]
        foreign = [p.name for p in inside if not any(p.match(kind) for kind in made_of)]
        if foreign:
            raise FileExistsError(
                f"{folder} holds files of others ({', '.join(foreign[:3])}), so "
                "it is not replaced; choose another folder, or delete it yourself"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        writing.chmod(0o755)
        yield writing
        _put_in_place(writing, folder, overwrite)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def _put_in_place(writing: Path, folder: Path, overwrite: bool) -> None:
    """Gives the folder its name; what had it goes when that is done, or gets it back."""
    doomed = writing.with_name(writing.name.replace(".writing-", ".deleting-"))
    if overwrite:
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, doomed)
    try:
        if not overwrite and folder.exists():  # an empty folder would be replaced
            raise FileExistsError
        os.replace(writing, folder)
    except OSError as error:
        if doomed.exists() and not folder.exists():
            os.replace(doomed, folder)
            raise
        if folder.exists():
            raise FileExistsError(
                f"{folder} was made by another process meanwhile and stays; choose another, or "
                "call this again with overwrite=True"
            ) from error
        raise
    finally:
        if folder.exists():
            shutil.rmtree(doomed, ignore_errors=True)
