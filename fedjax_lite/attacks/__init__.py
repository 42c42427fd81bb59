"""What hostile clients do: to their updates (in `byzantine`) and to their data.

Attacks on privacy: the modules `leakage` (gradient inversion) and `membership`.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.attacks import leakage, membership
    from fedjax_lite.attacks.backdoor import backdoor, backdoor_success_rate, patch_trigger, poison
    from fedjax_lite.attacks.byzantine import Attack, Scene, byzantine, byzantine_clients
    from fedjax_lite.attacks.labels import flip_labels, label_flip
    from fedjax_lite.attacks.mimic import mimic
    from fedjax_lite.attacks.min_max import min_max, min_sum
    from fedjax_lite.attacks.replacement import model_replacement, replacement_update
    from fedjax_lite.attacks.updates import alie, gaussian, ipm, sign_flip

__all__ = [
    "Attack",
    "Scene",
    "alie",
    "backdoor",
    "backdoor_success_rate",
    "byzantine",
    "byzantine_clients",
    "flip_labels",
    "gaussian",
    "ipm",
    "label_flip",
    "leakage",
    "membership",
    "mimic",
    "min_max",
    "min_sum",
    "model_replacement",
    "patch_trigger",
    "poison",
    "replacement_update",
    "sign_flip",
]

load_when_asked(__name__)
