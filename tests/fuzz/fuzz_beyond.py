"""Valid arguments of methods beyond one mean of one network."""

from typing import Any

import jax
import numpy as np
from fuzz_world import KEY

import fedjax_lite as fl

WIDE = fl.models.mlp((3,), num_classes=3, input_shape=(4,))
NET = WIDE.init(KEY)
HIDDEN = fl.matching.hidden_layers(NET)[0]

BEYOND: dict[str, dict[str, Any]] = {
    "fedma": {"loss": WIDE.loss},
    "matching.align": {"params": NET, "like": NET},
    "matching.assignment": {"costs": np.eye(3)},
    "matching.hidden_layers": {"params": NET},
    "matching.matched_average": {"models": fl.several_models(WIDE.init, KEY, 2)},
    "matching.pfnm": {"models": [NET, NET]},
    "matching.pfnm_atoms": {"units": np.ones((2, 3, 2))},
    "matching.reorder": {"params": NET, "layer": HIDDEN, "order": jax.numpy.arange(3)},
    "precision_weighted": {"floor": 0.1},
}
