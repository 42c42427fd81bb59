"""Valid arguments of what chooses clients."""

from typing import Any

import numpy as np

CHOOSING: dict[str, dict[str, Any]] = {
    "selection.at_least_once": {"every": 3},
    "selection.available": {"schedule": np.ones((1, 6), bool)},
    "selection.in_time": {"deadline": 2.0, "step_seconds": 0.1},
    "selection.stratified": {"clients_per_group": 1},
}
