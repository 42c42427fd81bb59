"""Federated data: who owns which examples, and where examples come from."""

from fedjax_lite.data.dataset import FederatedDataset, from_arrays

__all__ = ["FederatedDataset", "from_arrays"]
