"""Secure aggregation after Bonawitz et al.: keys, shares, masks, the four turns of both sides."""
