"""The package's version, in the one place that everything else reads, and the oldest jax."""

from __future__ import annotations

import jax

__version__ = "0.1.0"
OLDEST_JAX = (0, 8)


def check_jax(found: tuple[int, ...], *, oldest: tuple[int, ...] = OLDEST_JAX) -> None:
    """Raises ImportError where jax is older than what the package is written for.

    An installation without dependencies (as the notebooks do, to leave Colab's jax alone) would
    otherwise end in an AttributeError far from the cause.

    Args:
      found: version of jax at hand, such as ``jax.__version_info__``.
      oldest: the oldest that will do.

    Raises:
      ImportError: if `found` is older.

    Example:
      >>> check_jax((0, 8, 1))
    """
    if tuple(found) < oldest:
        have, want = (".".join(map(str, version)) for version in (found, oldest))
        raise ImportError(
            f"fedjax_lite needs jax {want} or newer, found {have}; pip install -U jax (with your "
            "accelerator's extra, such as 'jax[cuda13]' or 'jax[tpu]') and restart Python"
        )


check_jax(jax.__version_info__)
