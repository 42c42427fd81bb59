"""Valid arguments of methods beyond one mean of one network."""

from typing import Any

BEYOND: dict[str, dict[str, Any]] = {
    "precision_weighted": {"floor": 0.1},
}
