"""The distributed discrete Gaussian: its grid, sampler and mechanism, and the wire."""
