"""Compression: what is sent of v = (3, -4, 1, 2), its error and its bits."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import transforms as tr
from fedjax_lite.transforms.drive import drive_scale
from fedjax_lite.transforms.hadamard import walsh_hadamard
from fedjax_lite.transforms.powersgd import low_rank
from fedjax_lite.transforms.qsgd import qsgd_variance
from fedjax_lite.types import Transform
from fedjax_lite.verify.records import Check

V = np.array([3.0, -4.0, 1.0, 2.0])
SQUARES, TOTAL = float(V @ V), float(abs(V).sum())


def sent(transform: Transform, value: Any = V, *, seed: int = 0) -> np.ndarray:
    """What the receiver decodes."""
    return messages(transform, value, 1, seed=seed)[0]


def bits(transforms: list[Transform], size: int) -> list[float]:
    """The packed sizes of a float32 vector of ones."""

    def one(transform: Transform, value: Any) -> Any:
        return transform.send(jax.random.key(0), transform.init(value), value)[2].bits  # type: ignore[misc]

    @jax.jit
    def run(value: Any) -> list[Any]:
        return [one(transform, value) for transform in transforms]

    return [float(size) for size in run(np.ones(size, np.float32))]


def messages(transform: Transform, value: Any, number: int, *, seed: int = 0) -> np.ndarray:
    """What is sent of the same value again and again, in one program."""

    @jax.jit
    def run(value: Any) -> Any:
        def step(state: Any, key: Any) -> tuple[Any, Any]:
            return transform.update(key, state, value)

        keys = jax.vmap(jax.random.key)(seed + jnp.arange(number))
        return jax.lax.scan(step, transform.init(value), keys)[1]

    return np.asarray(run(jnp.asarray(value, jnp.result_type(float))))


def zeros(transforms: list[Transform]) -> list[np.ndarray]:
    """What is sent of nothing."""

    @jax.jit
    def run(value: Any) -> list[Any]:
        key = jax.random.key(0)
        return [transform.update(key, transform.init(value), value)[1] for transform in transforms]

    return [np.asarray(out) for out in run(jnp.zeros(4))]


def rounding_variance(levels: int) -> float:
    """``|v|^2 / s^2 sum phi (1 - phi)``."""
    part = levels * abs(V) / np.sqrt(SQUARES) % 1
    return SQUARES / levels**2 * float((part * (1 - part)).sum())


def all_outcomes(transform: Transform) -> np.ndarray:
    """The different vectors that 300 keys give."""

    @jax.jit
    def run(value: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 300)
        return jax.vmap(lambda key: transform.update(key, (), value)[1])(keys)

    return np.unique(np.asarray(run(jnp.asarray(V))), axis=0)


def drive_over_patterns() -> np.ndarray:
    """DRIVE averaged over all sixteen patterns of signs."""

    @jax.jit
    def run(signs: Any) -> Any:
        z = walsh_hadamard(jnp.asarray(V) * signs)
        scale = drive_scale(z, unbiased=True)[:, None]
        return walsh_hadamard(scale * jnp.where(z < 0, -1.0, 1.0)) * signs

    return np.mean(run(np.array(list(itertools.product((1.0, -1.0), repeat=4)))), 0)


def drive_means() -> np.ndarray:
    """The same in numpy, with the matrix of H."""
    two = np.array([[1.0, 1.0], [1.0, -1.0]])
    h = np.kron(two, two) / 2
    found = []
    for pattern in itertools.product((1.0, -1.0), repeat=4):
        z = h @ (V * pattern)
        found.append(h @ (SQUARES / abs(z).sum() * np.sign(z)) * pattern)
    return np.mean(found, 0)


def power_errors() -> list[float]:
    """Errors of three steps of PowerSGD on diag(3, 1) from Q = (1, 1)."""
    step = jax.jit(low_rank)
    matrix, q, errors = np.diag([3.0, 1.0]), np.ones((2, 1)), []
    for _ in range(3):
        left, q = map(np.asarray, step(matrix, q))
        errors.append(float(((left @ q.T - matrix) ** 2).sum()))
    return errors


def power_iteration() -> list[float]:
    """The same in numpy: P = M Q / |M Q|, Q = M^T P."""
    matrix, q, errors = np.diag([3.0, 1.0]), np.ones(2), []
    for _ in range(3):
        p = matrix @ q / np.linalg.norm(matrix @ q)
        q = matrix.T @ p
        errors.append(float(((np.outer(p, q) - matrix) ** 2).sum()))
    return errors


def checks() -> list[Check]:
    """Values, variances, sizes, and what feedback makes of them."""
    mean = TOTAL / 4
    feedback, ef21 = tr.error_feedback(tr.top_k(1)), tr.ef21(tr.top_k(1))
    sizes = [2032, 4032, 5032, 1032, 2032, 420, 320, 1056]
    coded = [tr.qsgd(1), tr.qsgd(4), tr.qsgd(15), tr.scaled_sign(), tr.ternary(), tr.top_k(10)]
    coded += [tr.random_k(10), tr.drive()]
    return [
        Check("scaled sign", mean * np.sign(V), lambda: sent(tr.scaled_sign())),
        Check("sparse ternary, k=2", [3.5, -3.5, 0, 0], lambda: sent(tr.sparse_ternary(2))),
        Check("top-2", [3, -4, 0, 0], lambda: sent(tr.top_k(2)), 0.0),
        Check("top-4 = identity", V, lambda: sent(tr.top_k(4)), 0.0),
        Check(
            "QSGD variance, s=1, 4",
            [rounding_variance(1), rounding_variance(4)],
            lambda: [qsgd_variance(jnp.asarray(V), s) for s in (1, 4)],
        ),
        Check("random-2: mean of all subsets", V, lambda: all_outcomes(tr.random_k(2)).mean(0)),
        Check(
            "random-2: variance (d/k - 1)|v|^2",
            SQUARES,
            lambda: ((all_outcomes(tr.random_k(2)) - V) ** 2).sum(1).mean(),
        ),
        Check("Hadamard", [1, 3, -2, 4], lambda: walsh_hadamard(jnp.asarray(V))),
        Check("rotation and back", V, lambda: sent(tr.rotated(tr.top_k(1.0)))),
        Check("DRIVE: <sent, v> = |v|^2", SQUARES, lambda: sent(tr.drive(), seed=3) @ V),
        Check("DRIVE over all signs", drive_means(), drive_over_patterns),
        Check("PowerSGD: errors of 3 steps", power_iteration(), power_errors),
        Check(
            "error feedback, top-1 of (1, .6)",
            [[1, 0], [0, 1.2], [2, 0]],
            lambda: messages(feedback, [1.0, 0.6], 3),
        ),
        Check("EF21, top-1 of (1, .6)", [[1, 0], [1, 0.6]], lambda: messages(ef21, [1.0, 0.6], 2)),
        Check("bits for d=1000", sizes, lambda: bits(coded, 1000), 0.0),
        Check("C(0) = 0", np.zeros((8, 4)), lambda: zeros(coded), 0.0),
    ]
