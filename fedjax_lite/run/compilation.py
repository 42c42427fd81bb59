"""Compiled programs kept on the disk, so that the second start of a script is a quick one."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.sources.cache import default_cache_dir


def keep_compiled_programs(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Lets JAX keep every compiled program of this process in a folder, and look there first.

    Scripts call this once, before anything is compiled; a library that is imported does not, for
    it is the application's choice. JAX's own settings win: nothing is changed where
    ``JAX_COMPILATION_CACHE_DIR`` or ``JAX_ENABLE_COMPILATION_CACHE=false`` is set. Programs
    are found again by their text, the versions of jax and XLA, flags and device, so a change of
    any compiles anew; results are those of the same program compiled now.

    Args:
      folder: where; default ``xla/`` in the cache folder of the data (`FEDJAX_LITE_CACHE`, else
        the user's). It may be deleted at any time.

    Returns:
      The folder in use, or None where JAX keeps nothing: switched off, or the folder cannot be
      written, which costs the cache and not the run.

    Example:
      >>> import tempfile
      >>> before = jax.config.jax_compilation_cache_dir
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     used = keep_compiled_programs(folder)
      ...     jax.config.update("jax_compilation_cache_dir", before)
      >>> used is None or used.is_absolute()
      True
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir is not None and folder is None:
        return Path(jax.config.jax_compilation_cache_dir)
    given = None if folder is None else as_path(folder, "folder")
    path = (given or default_cache_dir() / "xla").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # A start compiles a hundred small programs beside the large one; together they cost as much.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
