"""Empirical privacy: audits, membership inference and gradient leakage."""

from __future__ import annotations

import functools
import math

import numpy as np

from fedjax_lite.verify.records import Check

W = np.cos(np.outer(np.arange(3), np.arange(4)) + 1)
X = np.array([[0.1, -0.2, 0.3, 0.4], [0.5, 0.0, -0.3, 0.2]])
Y = np.array([1, 2])


def residuals() -> np.ndarray:
    """``softmax(W x) - onehot(y)`` of each example, in numpy."""
    z = np.exp(X @ W.T)
    return z / z.sum(1, keepdims=True) - np.eye(3)[Y]


def logit(p: float) -> float:
    """``log(p / (1 - p))``."""
    return math.log(p / (1 - p))


def checks() -> list[Check]:
    """Bounds of audits, AUC and advantage, what a linear layer gives away."""
    return [*audits(), *memberships(), *leaks()]


def audits() -> list[Check]:
    """Repeated runs and one run; ends of Clopper-Pearson intervals where they have a formula."""
    from fedjax_lite.privacy.audit import (
        clopper_pearson,
        epsilon_from_counts,
        one_run_epsilon,
        roc_mu,
    )

    runs = {"positives": 1000, "negatives": 1000, "delta": 1e-5}
    end = 0.025 ** (1 / 1000)
    return [
        Check(
            "Clopper-Pearson ends of 900 and 100 in 1000",
            [0.8797120635, 0.1202879365],
            lambda: [
                clopper_pearson(900, 1000, significance=0.025)[0],
                clopper_pearson(100, 1000, significance=0.025)[1],
            ],
            1e-10,
        ),
        Check(
            "1000 + 1000 runs, 900 and 100",
            1.9896949,
            lambda: epsilon_from_counts(900, 100, **runs),
            5e-8,
        ),
        Check(
            "1000 + 1000 runs, all right",
            math.log((end - 1e-5) / (1 - end)),
            lambda: epsilon_from_counts(1000, 0, **runs),
        ),
        Check("mu of the point (.1, .9)", 2.5631031310892007, lambda: roc_mu(0.9, 0.1)),
        Check(
            "one run: 70 of 100, 700 of 1000",
            [0.4716719, 0.7320109],
            lambda: [one_run_epsilon(70, 100), one_run_epsilon(700, 1000)],
            6e-8,
        ),
        Check(
            "one run: 100 of 100, 1000 of 1000",
            [logit(0.05 ** (1 / 100)), logit(0.05 ** (1 / 1000))],
            lambda: [one_run_epsilon(100, 100), one_run_epsilon(1000, 1000)],
        ),
        Check("one run: 58 of 100 prove nothing", 0.0, lambda: one_run_epsilon(58, 100)),
    ]


def memberships() -> list[Check]:
    """AUC, advantage and what privacy leaves of it."""
    from fedjax_lite.attacks.membership import (
        advantage_bound,
        gdp_advantage_bound,
        membership_report,
    )

    epsilons = np.array([0.1, 0.5, 1.0, 2.0])
    return [
        Check(
            "membership: AUC and advantage",
            [8 / 9, 2 / 3],
            lambda: (lambda r: [r.auc, r.advantage])(
                membership_report([-0.1, -0.2, -0.4], [-0.3, -0.5, -0.6])
            ),
        ),
        Check(
            "membership: advantage under epsilon-DP",
            (np.exp(epsilons) - 1) / (np.exp(epsilons) + 1),
            lambda: [advantage_bound(epsilon) for epsilon in epsilons],
        ),
        Check(
            "membership: advantage under 1-GDP",
            math.erf(0.5 / math.sqrt(2)),
            lambda: gdp_advantage_bound(1.0),
        ),
    ]


def leaks() -> list[Check]:
    """An input and a label read off a gradient; decibels."""
    import jax
    import jax.numpy as jnp

    from fedjax_lite.attacks.leakage import infer_label, linear_input, linear_inputs, psnr
    from fedjax_lite.models.layers import dense
    from fedjax_lite.models.losses import cross_entropy

    @functools.cache
    def gradient(count: int) -> dict[str, jax.Array]:
        x, y = X[:count], Y[:count]
        layer = {"kernel": jnp.asarray(W.T), "bias": jnp.zeros(3)}
        slope = jax.grad(lambda layer: cross_entropy(dense(layer, jnp.asarray(x)), y).mean())
        return jax.jit(slope)(layer)

    def mixture() -> jax.Array:
        grads = gradient(2)
        return jax.jit(linear_inputs)(grads["kernel"], grads["bias"])

    def single() -> jax.Array:
        grads = gradient(1)
        return jax.jit(linear_input)(grads["kernel"], grads["bias"])

    weights = residuals()
    return [
        Check("leakage: bias gradient", weights[0], lambda: gradient(1)["bias"]),
        Check("leakage: input of a linear layer", X[0], single),
        Check("leakage: label of one example", 1.0, lambda: infer_label(gradient(1)["bias"])),
        Check(
            "leakage: two examples, mixtures",
            (weights.T @ X) / weights.sum(0)[:, None],
            mixture,
        ),
        Check(
            "leakage: PSNR of an error of .1",
            20.0,
            lambda: jax.jit(psnr)(np.zeros((1, 4)), np.full((1, 4), 0.1))[0],
        ),
    ]
