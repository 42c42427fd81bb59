"""A figure that a notebook shows as the value of a cell. Imports matplotlib: import it lazily."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class ReportFigure(Figure):
    r"""A `Figure` of its own, outside of pyplot, with a canvas and a picture for notebooks.

    Jupyter draws matplotlib's figures only after pyplot was imported; this one brings its picture.

    Args:
      width: in inches.
      height: in inches.

    Example:
      >>> figure = ReportFigure(2.0, 1.5)
      >>> figure._repr_png_()[0][:4], figure._repr_png_()[1]
      (b'\x89PNG', {'width': 200, 'height': 150})
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, and its size on the screen (100 pixels an inch; it holds 150)."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        width, height = (round(100 * side) for side in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}
