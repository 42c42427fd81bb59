"""Vectors of clients, and their plain sum."""

import numpy as np

LENGTH = 6


def some_vectors(num_clients: int, *, length: int = LENGTH) -> dict[int, np.ndarray]:
    """Words over the whole ring, so that sums wrap; ids with gaps."""
    rng = np.random.default_rng(num_clients)
    words = rng.integers(0, 2**32, (num_clients, length), dtype=np.uint32)
    return {3 * i + 1: word for i, word in enumerate(words)}


def plain_sum(vectors, who) -> np.ndarray:
    total = sum((vectors[i].astype(object) for i in who), start=np.zeros(LENGTH, object))
    return np.array(total % 2**32, np.uint32)
