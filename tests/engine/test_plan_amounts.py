"""Plan: amounts of work that mean nobody trains are refused, single idle clients are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["epochs", "steps"])
@pytest.mark.parametrize(
    ("nothing", "whom"),
    [
        (0, "nobody"),
        (np.int32(0), "nobody"),
        (np.array(0), "nobody"),
        (np.zeros(3, int), "none of the 3 clients"),
        (jnp.zeros(1, int), "none of the 1 clients"),
    ],
)
def test_no_work_for_anybody_is_refused(name, nothing, whom):
    message = f"{name} must be at least 1, got 0: {whom} would train.*array with one value per"
    work: dict[str, Any] = {name: nothing}
    with pytest.raises(ValueError, match=message):
        fl.Plan(batch_size=2, **work)


@pytest.mark.parametrize("name", ["epochs", "steps"])
def test_a_straggler_may_do_nothing(name):
    amounts: list[Any] = [np.array([0, 2]), lambda key, client: jnp.where(client == 0, 0, 2)]
    for amount in amounts:
        work: dict[str, Any] = {name: amount}
        plan = fl.Plan(batch_size=5, **work)
        steps = [int(plan.num_steps(KEY, jnp.int32(i), jnp.int32(4))) for i in range(2)]
        assert steps == [0, 2]


@pytest.mark.parametrize("name", ["epochs", "steps"])
def test_traced_amounts_pass(name):
    def steps(amount):
        work: dict[str, Any] = {name: amount}
        return fl.Plan(batch_size=5, **work).num_steps(KEY, jnp.int32(0), jnp.int32(4))

    assert [int(jax.jit(steps)(amount)) for amount in (0, 3)] == [0, 3]


def test_a_bound_in_epochs_holds_for_either_amount():
    """Seven examples in batches of two are four steps an epoch."""
    steps = lambda **work: int(  # noqa: E731
        fl.Plan(batch_size=2, **work).num_steps(KEY, jnp.int32(0), jnp.int32(7))
    )
    assert steps(epochs=5, max_epochs=1) == 4
    assert steps(epochs=5, max_epochs=2) == 8
    assert steps(steps=3, max_epochs=1) == 3
    assert steps(steps=30, max_epochs=2) == 8
    assert steps(epochs=1, max_epochs=9) == 4
    with pytest.raises(ValueError, match="max_epochs"):
        fl.Plan(batch_size=2, max_epochs=0)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("work", "anchors", "trained"), [({"epochs": 3}, 4, 12), ({"steps": 1}, 2, 2)]
)
def test_option_one_of_scaffold_sees_at_most_an_epoch_first(work, anchors, trained):
    """Clients of 5 and 7 examples have 2 batches of four in an epoch each."""
    data = fl.data.from_arrays({"b": np.arange(12.0)}, np.repeat([0, 1], [5, 7]))
    algo = fl.scaffold(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        0.1,
        plan=fl.Plan(batch_size=4, **work),
        sampler=fl.everyone(),
        option=1,
    )
    _, metrics = algo.round(KEY, algo.init(KEY, jnp.float32(0.0), data), data)
    assert int(metrics["anchor_steps"]) == anchors
    assert int(metrics["num_steps"]) == anchors + trained
