"""Valid arguments of what measures uncertainty."""

from typing import Any

import numpy as np
from fuzz_world import DATA, EXAMPLES, FEDAVG, KEY, MODEL, state

import fedjax_lite as fl

MEMBERS = fl.several_models(MODEL.init, KEY, 2)
PROBABILITIES = np.full((12, 3), 1 / 3)
FOUND = fl.uncertainty.reliability(PROBABILITIES, EXAMPLES["y"])

UNCERTAINTY: dict[str, dict[str, Any]] = {
    "ensemble": {"algo": FEDAVG, "num_rounds": 1, "seeds": [0, 1], "progress": False},
    "report.plot_reliability": {"models": {"one": FOUND}},
    "uncertainty.client_members": {
        "algo": FEDAVG,
        "state": state(),
        "data": DATA,
        "clients": [0, 1],
    },
    "uncertainty.decompose": {"probabilities": PROBABILITIES},
    "uncertainty.decompose_regression": {"means": [1.0, 2.0], "variances": [1.0, 0.5]},
    "uncertainty.ensemble_scores": {"members": MEMBERS},
    "uncertainty.fit_temperature": {"logits": PROBABILITIES},
    "uncertainty.member_probabilities": {"members": MEMBERS},
    "uncertainty.ood_auroc": {"familiar": [0.1, 0.2], "unfamiliar": [0.3]},
    "uncertainty.reliability": {"probabilities": PROBABILITIES},
}
