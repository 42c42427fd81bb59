"""One client at a time is unbatched code: no loop carries an axis of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

DATA = fl.data.from_arrays(
    {"x": np.ones((12, 37), np.float32), "y": np.ones((12, 19), np.float32)}, np.arange(12) // 4
)
PARAMS = {"kernel": jnp.zeros((37, 19))}


def squared(params, batch, key):
    return 0.5 * ((batch["x"] @ params["kernel"] - batch["y"]) ** 2).sum(axis=-1)


def loops(jaxpr):
    """Shapes of what every loop of a program carries, the loops inside of loops included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("while", "scan"):
            yield [variable.aval.shape for variable in equation.outvars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from loops(inner)


@pytest.mark.parametrize(
    ("strategy", "axis"), [(fl.sequential(), ()), (fl.chunked(1), ()), (fl.chunked(2), (2,))]
)
def test_what_the_loop_over_steps_carries(strategy, axis):
    algo = fl.fedavg(
        squared,
        optax.sgd(0.1),
        plan=fl.Plan(batch_size=2),
        sampler=fl.everyone(),
        strategy=strategy,
    )
    key = jax.random.key(0)
    state = algo.init(key, PARAMS, DATA)
    carried = list(loops(jax.make_jaxpr(algo.round)(key, state, DATA).jaxpr))
    kernels = {shape for loop in carried for shape in loop if shape[-2:] == (37, 19)}
    assert kernels == {(37, 19), (*axis, 37, 19)}  # of the accumulator, of the lanes
