"""Grids of generated pictures, written while a run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.arguments import as_path, check_count, check_key, shown
from fedjax_lite.models.gan import Gan
from fedjax_lite.report.style import make_figure, save_png
from fedjax_lite.types import Key, RoundState


def sample_grids(
    gan: Gan, key: Key, folder: str | os.PathLike[str], *, size: int = 8
) -> Callable[[RoundState], dict[str, Any]]:
    """Makes an evaluator that writes a picture of samples, the same noise each time.

    Args:
      gan: of the algorithm; it makes pictures `[B, H, W, channels]` in [-1, 1].
      key: of the noise.
      folder: where ``round_00010.png`` and so on go; it is made.
      size: pictures a side.

    Returns:
      ``(state) -> {}`` for the `evaluate` of `fedjax_lite.run`, alone or beside another:
      ``lambda state: {**score(state), **grids(state)}``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: when called, if what is made are no pictures.

    Example:
      >>> import tempfile, fedjax_lite as fl
      >>> pair = fl.models.dcgan((4, 4, 1), latent_size=2, features=(2,))
      >>> params, folder = pair.init(jax.random.key(0)), tempfile.mkdtemp()
      >>> state = RoundState(np.int32(7), fl.server.ServerState(params, ()), (), (), (), ())
      >>> sample_grids(pair, jax.random.key(1), folder, size=2)(state), os.listdir(folder)
      ({}, ['round_00007.png'])
    """
    if not isinstance(gan, Gan):
        raise TypeError(f"gan must be a Gan, got {shown(gan)}; fl.models.dcgan((28, 28, 1))")
    check_key(key)
    check_count(size, "size", minimum=1)
    target = as_path(folder, "folder")
    sample = jax.jit(lambda params: gan.sample(params, key, size * size))

    def write(state: RoundState) -> dict[str, Any]:
        pictures = np.asarray(sample(state.server.params))
        save_grid(pictures, target / f"round_{int(state.round):05d}.png")
        return {}

    return write


def save_grid(pictures: np.ndarray, path: Path) -> None:
    """Writes pictures `[n, H, W, channels]` in [-1, 1] as one, in rows of equal length."""
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3):
        raise ValueError(
            f"pictures must be [n, H, W, 1 or 3], got {list(pictures.shape)}; "
            "fl.models.dcgan makes such ones"
        )
    count, height, width, channels = pictures.shape
    side = int(np.ceil(np.sqrt(count)))
    whole = np.ones((side * side, height, width, channels), np.float32)
    whole[:count] = np.clip((pictures + 1) / 2, 0, 1)
    whole = whole.reshape(side, side, height, width, channels).swapaxes(1, 2)
    whole = whole.reshape(side * height, side * width, channels)
    figure = make_figure(4.0, 4.0 * height / width)
    axes = figure.add_subplot()
    axes.imshow(whole.squeeze(-1) if channels == 1 else whole, cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
    save_png(figure, path)
