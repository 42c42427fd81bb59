"""Valid arguments of methods beyond one mean of one network."""

from typing import Any

import jax
import numpy as np
from fuzz_world import KEY, SGD

import fedjax_lite as fl

WIDE = fl.models.mlp((3,), num_classes=3, input_shape=(4,))
NET = WIDE.init(KEY)
HIDDEN = fl.matching.hidden_layers(NET)[0]
PAIR = fl.models.mlp_gan(4, hidden=(3,))
POINTS = np.linspace(0, 1, 10).reshape(5, 2)

BEYOND: dict[str, dict[str, Any]] = {
    "fedbabu": {"loss": WIDE.loss},
    "fedgan": {"gan": PAIR, "generator_optimizer": SGD, "discriminator_optimizer": SGD},
    "fedma": {"loss": WIDE.loss},
    "generation.client_coverage": {"shares": [0.5, 0.5], "counts": [[1, 2], [3, 4]]},
    "generation.frechet_distance": {"real": POINTS, "made": POINTS},
    "generation.mode_coverage": {"made": POINTS, "modes": POINTS, "radius": 1.0},
    "generation.precision_recall": {"real": POINTS, "made": POINTS},
    "report.sample_grids": {"gan": PAIR},
    "matching.align": {"params": NET, "like": NET},
    "matching.assignment": {"costs": np.eye(3)},
    "matching.hidden_layers": {"params": NET},
    "matching.matched_average": {"models": fl.several_models(WIDE.init, KEY, 2)},
    "matching.pfnm": {"models": [NET, NET]},
    "matching.pfnm_atoms": {"units": np.ones((2, 3, 2))},
    "matching.reorder": {"params": NET, "layer": HIDDEN, "order": jax.numpy.arange(3)},
    "precision_weighted": {"floor": 0.1},
}
