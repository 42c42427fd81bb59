"""A tiny federated algorithm with keyed noise, client rows and a key in its state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.types import FederatedAlgorithm, RoundState


class Server(NamedTuple):
    params: Any
    last_key: Any


def toy(counter: list[int] | None = None, *, diverge_at: int = -1) -> FederatedAlgorithm:
    """Estimates the mean of `data` `[N]` from one noisy client a round."""

    def init(key, params, data):
        server = Server(jnp.array(params, jnp.float32), jax.random.key(9))
        return RoundState(jnp.int32(0), server, jnp.zeros(data.shape[0]), (), (), ())

    def one_round(key, state, data, cohort=None):
        if counter is not None:
            counter.append(1)
        key = jax.random.fold_in(key, state.round)
        who = jax.random.randint(key, (), 0, data.shape[0])
        noise = jax.random.normal(key, state.server.params.shape)
        target = data[who] + 0.1 * noise + 0.01 * jnp.sin(state.clients[who])
        params = state.server.params + 0.3 * (target - state.server.params)
        loss = jnp.mean((params - data.mean()) ** 2)
        shown = jnp.where(state.round + 1 == diverge_at, jnp.nan, loss)
        state = state._replace(
            round=state.round + 1,
            server=Server(params, key),
            clients=state.clients.at[who].add(loss),
        )
        return state, {"train_loss": shown, "who": who}

    return FederatedAlgorithm(init, one_round)


DATA = jnp.array([1.0, 2.0, 6.0, -1.0])


def start(algo):
    key = jax.random.key(5)
    return key, algo.init(key, jnp.zeros(3), DATA)


def score(state):
    return {"test_loss": float(jnp.abs(state.server.params).sum())}


def raw(state):
    """The state as bytes, keys included."""
    words = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    )
    return [(str(x.dtype), x.shape, jax.device_get(x).tobytes()) for x in words]


def timeless(rows):
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]
