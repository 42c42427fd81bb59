"""Algorithms, one file a method."""

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_lite.algorithms.fedsgd import fedsgd

__all__ = ["fedadagrad", "fedadam", "fedavg", "fedavgm", "fedsgd", "fedyogi"]
