"""A grid over what samplers are told is one program, and each member is its own run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl

SECONDS = np.arange(1.0, 9.0)
DATA = fl.data.from_arrays({"b": np.linspace(-2, 5, 16, dtype=np.float32)}, np.arange(16) // 2)


def away(key, info, traffic):
    return jnp.asarray(SECONDS, float)[info.id]


def make(deadline, patience):
    """A clock around a choice that learns: both numbers decide who comes."""
    learning = fl.selection.oort(5, seconds=SECONDS, patience=patience, exploration=0.5)
    sampler = fl.selection.counted(fl.clocked(learning, away, deadline=deadline), of="trained")
    loss = lambda w, e, key: 0.5 * (w - e["b"]) ** 2  # noqa: E731
    return fl.fedavg(loss, optax.sgd(0.3), plan=fl.Plan(batch_size=1), sampler=sampler)


def test_members_are_their_own_runs():
    grid = {"deadline": [4.0, 7.5], "patience": [1.0, 6.0]}
    options = {"init": lambda key: jnp.float32(0), "data": DATA, "num_rounds": 5}
    result = fl.sweep(make, grid, seeds=[3], progress=False, **options)
    one_round = jax.jit(
        lambda deadline, patience, key, state: make(deadline, patience).round(key, state, DATA)
    )
    ends = []
    for index, point in enumerate(result.points):
        key, setting = jax.random.key(3), (point["deadline"], point["patience"])
        state = make(*setting).init(key, jnp.float32(0), DATA)
        for _ in range(5):
            state, metrics = one_round(*setting, key, state)
        found = jax.tree.map(lambda leaf: leaf[index], result.states)  # noqa: B023
        np.testing.assert_allclose(found.server.params, state.server.params, rtol=1e-5)
        np.testing.assert_array_equal(found.sampler.times, state.sampler.times)
        assert metrics["round_seconds"] <= point["deadline"]
        late = found.sampler.times[point["deadline"] < SECONDS]
        assert late.sum() == 0  # whoever takes longer never trains
        ends.append(float(found.server.params))
    assert len({round(end, 6) for end in ends}) == 4
