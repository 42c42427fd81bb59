"""EWC's penalty: known answers on quadratics, one task or several, and what asks for the loss."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.objectives.ewc import old_tasks_penalty
from fedjax_lite.objectives.penalised import penalised

TASKS = [(2.0, 1.0), (3.0, 0.5)]
"""Fisher information and optimum of two old tasks; the new one has curvature 4 and optimum -1."""


def learnt(tasks, start=0.0):
    old = fl.no_old_tasks(jnp.array(start))
    for fisher, optimum in tasks:
        old = fl.remember(old, jnp.array(fisher), jnp.array(optimum))
    return old


def descend(lam, tasks):
    """Where gradient descent on the new task ends."""
    tx = optax.chain(fl.ewc_penalty(lam, learnt(tasks)), optax.sgd(0.05))

    def step(_, theta):
        updates, _ = tx.update(4 * (theta + 1), tx.init(theta), theta)
        return theta + updates

    return float(jax.lax.fori_loop(0, 400, step, jnp.array(0.7)))


@pytest.mark.parametrize(
    ("lam", "tasks", "expected"),
    [(0.0, TASKS[:1], -1), (1.0, TASKS[:1], -1 / 3), (3.0, TASKS[:1], 0.2), (1.0, TASKS, -1 / 18)],
)
def test_known_answers(lam, tasks, expected):
    """4 (theta + 1) + lam sum_k F_k (theta - t_k) = 0."""
    curvature = 4 + lam * sum(f for f, _ in tasks)
    assert (-4 + lam * sum(f * t for f, t in tasks)) / curvature == pytest.approx(expected)
    with jax.enable_x64(True):
        assert abs(descend(lam, tasks) - expected) < 1e-9


def test_one_quadratic_is_the_sum_of_all():
    """Of five tasks on a tree, some entries unknown to some or all; value and gradient."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = {"w": (3, 2), "b": (2,)}
        draw = lambda f: {k: jnp.array(f(s)) for k, s in shapes.items()}  # noqa: E731
        known = draw(lambda s: rng.random(s) < 0.8)
        tasks = []
        for _ in range(5):
            fisher = draw(lambda s: rng.exponential(size=s) * (rng.random(s) < 0.7))
            fisher = jax.tree.map(jnp.multiply, fisher, known)
            tasks.append((fisher, draw(lambda s: rng.normal(size=s))))
        old = fl.no_old_tasks(tasks[0][1])
        for task in tasks:
            old = fl.remember(old, *task)
        theta = draw(lambda s: rng.normal(size=s))

        def total(theta):
            each = [
                jax.tree.map(lambda f, t, x: (f * (x - t) ** 2).sum() / 2, *task, theta)
                for task in tasks
            ]
            return 0.7 * sum(jax.tree.leaves(each))

        penalty = old_tasks_penalty(0.7, old)
        np.testing.assert_allclose(penalty(theta, None), total(theta), rtol=1e-12)
        tx = fl.ewc_penalty(0.7, old)
        zero = jax.tree.map(jnp.zeros_like, theta)
        got, _ = tx.update(zero, tx.init(theta), theta)
        for one, other in zip(*map(jax.tree.leaves, (got, jax.grad(total)(theta))), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_anchor_of_one_task_is_kept_in_every_bit():
    """So that a model that has not moved is not pulled at all."""
    theta = jax.random.normal(jax.random.key(3), (50,))
    old = fl.remember(fl.no_old_tasks(theta + 1), jnp.abs(theta) * 1e3, theta)
    tx = fl.ewc_penalty(1e6, old)
    assert not tx.update(jnp.zeros(50), tx.init(theta), theta)[0].any()


def test_an_optimizer_that_asks_for_the_loss_gets_the_objectives():
    """Polyak's step is value / |gradient|^2: 2 (0 + 1)^2 + 3 / 2 . 2 (0 - 1)^2 = 5, and 4 - 6."""
    old, theta = learnt(TASKS[:1]), jnp.array(0.0)
    tx = optax.chain(
        fl.ewc_penalty(3.0, old), penalised(optax.polyak_sgd(10.0), old_tasks_penalty(3.0, old))
    )
    value_fn = lambda w: 2 * (w + 1) ** 2  # noqa: E731
    extra = {"value": value_fn(theta), "value_fn": value_fn, "anchor": theta}
    got, _ = tx.update(jnp.array(4.0), tx.init(theta), theta, **extra)
    np.testing.assert_allclose(got, -5 / 4 * -2, rtol=1e-6)


def test_bad_arguments():
    old = learnt(TASKS)
    for lam in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="lam must"):
            fl.ewc_penalty(lam, old)
    with pytest.raises(TypeError, match="old must be an OldTasks"):
        fl.remember(cast(Any, {"w": 1.0}), jnp.array(1.0), jnp.array(1.0))
    with pytest.raises(ValueError, match=r"fisher must have the model's shape \[\], got \[2\]"):
        fl.remember(old, jnp.ones(2), jnp.array(1.0))
    with pytest.raises(ValueError, match="optimum must be a tree like the model"):
        fl.remember(old, jnp.array(1.0), {"w": jnp.array(1.0)})
    with pytest.raises(ValueError, match="params must be given"):
        fl.ewc_penalty(1.0, old).update(jnp.array(1.0), (), None)
