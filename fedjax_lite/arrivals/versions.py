"""Models that clients in flight hold: each version is kept until nobody has it any more."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.engine.phases import Step, around
from fedjax_lite.round.downlink import put_back
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Message,
    Params,
    PyTree,
)


class Versions(NamedTuple):
    """The state of an asynchronous server."""

    inner: PyTree
    """The server's own."""
    held: list[Array]
    """What was broadcast, by place, leaves `[concurrency, ...]`; constants that clients hold from
    the start are not among them."""

    @property
    def params(self) -> Params:
        """The newest model."""
        return self.inner.params


class Broadcast(NamedTuple):
    """What clients train from: each from its own version."""

    downloaded: PyTree
    """The newest, whole."""
    held: list[Array]

    def at(self, place: Array) -> PyTree:
        """The version that is kept at a place."""
        return put_back(self.downloaded, [_row(leaf, place) for leaf in self.held])


def from_versions(client: ClientUpdate) -> ClientUpdate:
    """Local training that starts from the version that the client downloaded.

    Args:
      client: any local training; its place is in ``info.found``.

    Returns:
      A `ClientUpdate` whose broadcast is a `Broadcast`.
    """

    def start(key: Key, row: PyTree, broadcast: Broadcast, info: ClientInfo) -> PyTree:
        place = info.found["place"]
        return place, client.start(key, row, broadcast.at(place), info._replace(found=()))

    def of_version(inner_step: Step) -> Step:
        def step(broadcast: Broadcast, carry: PyTree, batch: Batch) -> PyTree:
            place, inner = carry
            return place, inner_step(broadcast.at(place), inner, batch)

        return step

    def finish(broadcast: Broadcast, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        place, inner = carry
        return client.finish(broadcast.at(place), inner)

    return client._replace(start=start, step=around(client.step, of_version), finish=finish)


def discounted(
    inner: Aggregator, weights: Array, broadcast: Broadcast, places: Array, *, anchored: bool
) -> Aggregator:
    """An aggregator that hears each message times its weight.

    After the uplink, for a client knows nothing of its staleness; and not divided by the sum of the
    weights: a buffer of old messages moves the model less.

    Args:
      inner: what becomes of the messages.
      weights: `[K]`.
      broadcast: of the round.
      places: int32 `[K]`, where each client's version is kept.
      anchored: a message is the client's model less the server's *newest*, not its own download.
    """

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        mine = jnp.clip(slots, 0, weights.shape[0] - 1)

        def scaled(value: Array, moved: Array | None = None) -> Array:
            factor = _row(weights, mine).astype(value.dtype)
            factor = factor.reshape((-1,) + (1,) * (value.ndim - 1))
            return factor * (value if moved is None else value + moved)

        value = messages.value
        if anchored:
            now, old = broadcast.downloaded, jax.vmap(broadcast.at)(_row(places, mine))
            drift = jax.tree.map(lambda x, y: x - y, now, old)
            value = jax.tree.map(scaled, value, drift)
        else:
            value = jax.tree.map(scaled, value)
        return inner.add(acc, messages._replace(value=value), slots, mask)

    return inner._replace(add=add)


def _row(table: Array, index: Array) -> Array:
    """``table[index]``, also of a table that devices are not told of, which brackets refuse."""
    return jnp.take(table, index, axis=0, mode="clip")
