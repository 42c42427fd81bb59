"""How good examples are that a generator makes: two samples compared, and whom it forgets."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.evaluate.generation.coverage import client_coverage, mode_coverage
    from fedjax_lite.evaluate.generation.frechet import frechet_distance
    from fedjax_lite.evaluate.generation.manifold import precision_recall

__all__ = ["client_coverage", "frechet_distance", "mode_coverage", "precision_recall"]

load_when_asked(__name__)
