"""What happens to a value on the wire."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.transforms.chain import chain, identity
    from fedjax_lite.transforms.clip import clip
    from fedjax_lite.transforms.drive import drive
    from fedjax_lite.transforms.ef21 import ef21
    from fedjax_lite.transforms.error_feedback import error_feedback
    from fedjax_lite.transforms.noise import gaussian_noise
    from fedjax_lite.transforms.packing import pack, unpack
    from fedjax_lite.transforms.powersgd import powersgd
    from fedjax_lite.transforms.qsgd import qsgd
    from fedjax_lite.transforms.random_k import random_k
    from fedjax_lite.transforms.rotation import rotated
    from fedjax_lite.transforms.sign import scaled_sign
    from fedjax_lite.transforms.stochastic_levels import stochastic_levels
    from fedjax_lite.transforms.ternary import sparse_ternary, ternary
    from fedjax_lite.transforms.top_k import top_k
    from fedjax_lite.transforms.wire import Code, Field
    from fedjax_lite.transforms.worker_momentum import worker_momentum

__all__ = [
    "Code",
    "Field",
    "chain",
    "clip",
    "drive",
    "ef21",
    "error_feedback",
    "gaussian_noise",
    "identity",
    "pack",
    "powersgd",
    "qsgd",
    "random_k",
    "rotated",
    "scaled_sign",
    "sparse_ternary",
    "stochastic_levels",
    "ternary",
    "top_k",
    "unpack",
    "worker_momentum",
]

load_when_asked(__name__)
