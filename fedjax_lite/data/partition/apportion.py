"""Whole examples out of real shares: largest remainders, minimum sizes, Dirichlet draws in logs."""

from __future__ import annotations

import numpy as np


def even_sizes(num_examples: int, num_clients: int) -> np.ndarray:
    """Sizes `[N]` equal to within one, the larger first, as ``np.array_split`` cuts."""
    small, extra = divmod(num_examples, num_clients)
    return np.full(num_clients, small, np.int64) + (np.arange(num_clients) < extra)


def log_dirichlet(
    rng: np.random.Generator, concentration: np.ndarray | float, shape: tuple[int, ...]
) -> np.ndarray:
    """Draws logarithms of Dirichlet shares over the last axis, up to a constant per row.

    A Dirichlet draw is independent ``G_j ~ Gamma(a_j)`` over their sum. At ``a = 1e-9`` all but
    one share underflow to 0, and nothing is left to renormalise once that one class is used up.
    In logs, ``log G(a) = log G(a + 1) + log(U) / a`` with `U` uniform in `(0, 1]`, the order of
    the others survives.

    Args:
      rng: the source of randomness.
      concentration: the ``a_j > 0``, broadcast against `shape`.
      shape: of the result, e.g. `(N, K)`.

    Returns:
      float64 of `shape`; ``exp`` of a row over its sum is the draw (`shares_of`).
    """
    concentration = np.broadcast_to(np.asarray(concentration, np.float64), shape)
    large = np.log(rng.standard_gamma(concentration + 1.0))
    with np.errstate(over="ignore"):
        small = np.log(1.0 - rng.random(shape)) / concentration
    return np.maximum(large + small, -1e300)  # finite, so that a difference of two is a number


def shares_of(log_weights: np.ndarray) -> np.ndarray:
    """Turns log weights into shares that sum to 1 over the last axis (a softmax)."""
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def largest_remainder(rng: np.random.Generator, shares: np.ndarray, total: int) -> np.ndarray:
    """Splits `total` whole examples by shares (Hamilton's method); the sum is exactly `total`.

        c_i = floor(total * s_i), then one more for the largest remainders total * s_i - c_i

    Ties are broken at random, so that equal shares favour nobody.

    Args:
      rng: for ties.
      shares: `[N]`, non-negative, sum 1.
      total: how many to split.

    Returns:
      int64 `[N]`, each within one of ``total * s_i``.
    """
    quota = shares * total
    counts = np.floor(quota).astype(np.int64)
    missing = total - int(counts.sum())
    by_remainder = np.lexsort((rng.random(len(shares)), counts - quota))
    counts[by_remainder[:missing]] += 1
    return counts


def raise_to_minimum(sizes: np.ndarray, min_size: int) -> np.ndarray:
    """Raises small clients to `min_size` by levelling down the largest; the sum stays.

    The donors are cut to one common water level, found by bisection: the work is bounded
    whatever the sizes are. Drawing again until the sizes fit, as published partitioners do, may
    never end.

    Args:
      sizes: `[N]`, with ``sizes.sum() >= N * min_size``.
      min_size: the least that a client must have.

    Returns:
      int64 `[N]`, all ``>= min_size``.
    """
    needed = int(np.maximum(min_size - sizes, 0).sum())
    if needed == 0:
        return sizes.astype(np.int64)
    low, high = min_size, int(sizes.max())  # what lies above `low` suffices, above `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        if int(np.maximum(sizes - middle, 0).sum()) >= needed:
            low = middle
        else:
            high = middle
    raised = np.clip(sizes, min_size, low).astype(np.int64)
    surplus = int(np.maximum(sizes - low, 0).sum()) - needed
    raised[np.flatnonzero(sizes > low)[:surplus]] += 1
    return raised


def repair(
    rng: np.random.Generator, owners: np.ndarray, num_clients: int, min_size: int
) -> np.ndarray:
    """Moves random examples of the largest clients to those below `min_size`, once.

    Args:
      rng: chooses which examples of a donor move, and to whom.
      owners: int `[E]`.
      num_clients: `N`, with ``N * min_size <= E``.
      min_size: the least that a client must have.

    Returns:
      int64 `[E]`; unchanged where every client has enough.
    """
    sizes = np.bincount(owners, minlength=num_clients)
    wanted = raise_to_minimum(sizes, min_size)
    if np.array_equal(sizes, wanted):
        return owners
    shuffled = rng.permutation(len(owners))
    order = shuffled[np.argsort(owners[shuffled], kind="stable")]  # by client, random within
    owner = owners[order]
    place = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owner]
    moving = rng.permutation(order[place >= wanted[owner]])
    repaired = owners.copy()
    repaired[moving] = np.repeat(np.arange(num_clients), np.maximum(wanted - sizes, 0))
    return repaired


def deal(
    rng: np.random.Generator, need: int, log_weights: np.ndarray, available: np.ndarray
) -> np.ndarray:
    """Draws `need` labels without replacement; an exhausted label drops out and the rest
    is renormalised.

    The counts have the law of drawing one by one: a batch is drawn from the multinomial, what
    exceeds the stock is refused and drawn again from the labels left. A pass either fills the
    need or exhausts a label, so `K + 1` passes are enough.

    Args:
      rng: the source of randomness.
      need: how many, at most ``available.sum()``.
      log_weights: finite `[K]`, log shares up to a constant.
      available: int `[K]`, the stock of each label.

    Returns:
      int64 `[K]`, at most `available`, sum `need`.
    """
    taken = np.zeros(len(available), np.int64)
    while need > 0:
        live = np.flatnonzero(available > taken)
        drawn = rng.multinomial(need, shares_of(log_weights[live]))
        drawn = np.minimum(drawn, available[live] - taken[live])
        taken[live] += drawn
        need -= int(drawn.sum())
    return taken


def owners_from_table(rng: np.random.Generator, table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Chooses at random which examples of each class fill a table of counts.

    Args:
      rng: the source of randomness.
      table: int `[N, K]`, examples of class `k` for client `i`; columns sum to the class sizes.
      index: int `[E]`, the class of each example.

    Returns:
      int64 `[E]`.
    """
    num_clients, num_classes = table.shape
    shuffled = rng.permutation(len(index))
    order = shuffled[np.argsort(index[shuffled], kind="stable")]  # by class, random within
    owners = np.empty(len(index), np.int64)
    # Column by column: class 0 of client 0, class 0 of client 1, ..., as `order` runs.
    owners[order] = np.repeat(np.tile(np.arange(num_clients), num_classes), table.T.reshape(-1))
    return owners
