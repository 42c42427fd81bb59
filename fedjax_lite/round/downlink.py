"""downlink: the broadcast goes over a thin wire, too, and its cost is counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import (
    Array,
    Cohort,
    Key,
    Known,
    Params,
    PyTree,
    ServerUpdate,
    Transform,
    Wire,
)

OF = ("update", "model")


class Downlink(NamedTuple):
    """How the broadcast is sent."""

    transform: Transform
    of: str = "update"
    """"update": what is sent is the change since the last broadcast, and every client of the
    population listens to every round, since it could not follow otherwise: N copies are paid.
    "model": the whole broadcast is coded anew each round, for the cohort only."""


class Downlinked(NamedTuple):
    """A server whose broadcast is compressed."""

    inner: PyTree
    """The server's own state, exact."""
    received: PyTree
    """What clients hold of all that travels, a list of leaves: what they train from."""
    transform: PyTree
    """The transform's state: one, since all clients get the same."""
    wire: Wire
    """What the newest broadcast costs, for one client."""
    everyone_listens: Array
    """bool: whether all clients of the population are sent it, or the cohort only."""

    @property
    def params(self) -> Params:
        """The server's exact model."""
        return self.inner.params


@made
def downlinked(server: ServerUpdate, downlink: Downlink | Transform) -> ServerUpdate:
    r"""Compresses what the server broadcasts.

    .. math::
        \hat x \leftarrow \hat x + C(x - \hat x) \quad\text{("update")} \qquad\text{or}\qquad
        \hat x \leftarrow C(x) \quad\text{("model")},

    where :math:`\hat x` is what clients train from. The first form corrects its own error: what
    was not sent in one round remains in the difference of the next. The initial model is sent
    exactly.

    "update" needs a `C` that is a contraction, or nearly one: `top_k`, `scaled_sign`, `powersgd`,
    `drive`, ``qsgd(s, per_leaf=True)`` with `s` above the root of the largest leaf's size. With one
    of large variance, such as ``qsgd(15)`` on a million coordinates, it diverges. It feeds errors
    back by itself, so `error_feedback` and `ef21` are refused there.

    Args:
      server: the server to wrap.
      downlink: a `Downlink`, or a `Transform` for ``Downlink(transform, of="update")``; it is given
        the broadcast's leaves as a list.

    Returns:
      A `ServerUpdate` whose state is `Downlinked`; ``state.server.params`` remains the exact
      model of the server.

    Raises:
      TypeError: if `downlink` is neither.
      ValueError: if ``downlink.of`` is unknown, or "update" is joined with another feedback.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.server import optimizer_server
      >>> half = lambda key, state, leaves: (state, [leaf / 2 for leaf in leaves])
      >>> halve = Transform(lambda leaves: (), half)
      >>> server = downlinked(optimizer_server(optax.sgd(1.0)), halve)
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> state = server.init(jnp.array(0.0), Population.of([1]))
      >>> state = server.update(jax.random.key(0), state, jnp.array(-1.0), cohort, {})
      >>> float(state.params), float(server.broadcast(state))
      (1.0, 0.5)

    Reference: Tang, Yu, Lian, Zhang, Liu, "DoubleSqueeze", 2019, arXiv:1905.05957; Caldas,
    Konečný, McMahan, Talwalkar, "Expanding the Reach of Federated Learning by Reducing Client
    Resource Requirements", 2018, arXiv:1812.07210.
    """
    downlink = Downlink(downlink) if isinstance(downlink, Transform) else downlink
    if not isinstance(downlink, Downlink) or not isinstance(downlink.transform, Transform):
        raise TypeError(
            f"downlink must be a Transform or a Downlink, got {shown(downlink)}; for example "
            "downlink=fl.qsgd(15); was a factory not called?"
        )
    if downlink.of not in OF:
        raise ValueError(f"downlink.of must be one of {OF}, got {downlink.of!r}")
    transform = downlink.transform
    if downlink.of == "update" and "feedback" in transform.kinds:
        raise ValueError(
            "downlink of the update feeds errors back by itself: give the compressor alone, such "
            "as top_k(0.1), or Downlink(transform, of='model')"
        )

    def init(params: Params, population: Population) -> Downlinked:
        inner = server.init(params, population)
        sent = [jnp.array(leaf) for leaf in travelling(server.broadcast(inner))]
        bits = jnp.float32(trees.num_bits(sent))
        everyone = jnp.array(downlink.of == "update")
        return Downlinked(inner, sent, transform.init(sent), Wire(bits, bits), everyone)

    def update(
        key: Key, state: Downlinked, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> Downlinked:
        key_server, key_wire = jax.random.split(key)
        inner = server.update(key_server, state.inner, value, cohort, metrics)
        exact = travelling(server.broadcast(inner))
        wanted = exact
        if downlink.of == "update":
            wanted = jax.tree.map(jnp.subtract, exact, state.received)
        transform_state, got, wire = send(transform, key_wire, state.transform, wanted)
        if downlink.of == "update":
            got = jax.tree.map(jnp.add, state.received, got)
        got = trees.cast_like(got, exact)
        return Downlinked(inner, got, transform_state, wire, state.everyone_listens)

    def broadcast(state: Downlinked) -> PyTree:
        return put_back(server.broadcast(state.inner), state.received)

    return ServerUpdate(init, broadcast, update)


def downlink_cost(
    server: PyTree,
    broadcast: PyTree,
    *,
    took_part: Array,
    num_clients: int,
    counted: Array | None = None,
    preface: tuple[PyTree, Array] = ((), 0),
) -> dict[str, Array]:
    """What the broadcast of a round cost, over all who were sent it.

    Args:
      server: the server's state that was broadcast; its ``downloaded_share``, where it has one, is
        the part of the broadcast that a client downloads.
      broadcast: what clients downloaded.
      took_part: how many.
      counted: how many of them counted; default as many. A change that everyone hears is billed in
        the round that uses it: where nobody counts the server stands still, and the next round
        has the same broadcast, which is not to be billed twice.
      num_clients: the population.
      preface: a prologue's aggregate, and how many clients downloaded it.

    Returns:
      ``downlink_bits`` and ``downlink_entropy_bits``.

    Example:
      >>> cost = downlink_cost((), jnp.zeros(10), took_part=jnp.int32(3), num_clients=100)
      >>> float(cost["downlink_bits"])
      960.0
    """
    share = getattr(server, "downloaded_share", 1.0)  # of several models a client may need one
    size = trees.num_bits(travelling(broadcast))
    bits = jnp.float32(size * share) * took_part
    cost = Wire(bits, bits)
    if isinstance(server, Downlinked):
        heard = jnp.where((took_part if counted is None else counted) > 0, num_clients, 0)
        receivers = jnp.where(server.everyone_listens, heard, took_part)
        cost = Wire(*(one * receivers for one in server.wire))
    if beside := trees.num_bits(preface[0]):
        cost = Wire(*(one + jnp.float32(beside) * preface[1] for one in cost))
    return {"downlink_bits": cost.bits, "downlink_entropy_bits": cost.entropy}


def travelling(broadcast: PyTree) -> list[Array]:
    """The leaves that are sent: not those that clients hold from the start.

    Example:
      >>> [leaf.shape for leaf in travelling({"w": jnp.zeros(2), "base": Known(jnp.zeros(9))})]
      [(2,)]
    """
    leaves = jax.tree.leaves(broadcast, is_leaf=_is_known)
    return [leaf for leaf in leaves if not _is_known(leaf)]


def put_back(broadcast: PyTree, sent: list[Array]) -> PyTree:
    """A broadcast with other leaves in place of those that travel.

    Example:
      >>> put_back({"base": Known(3.0), "w": 1.0}, [2.0])
      {'base': Known(value=3.0), 'w': 2.0}
    """
    rest = iter(sent)
    return jax.tree.map(
        lambda node: node if _is_known(node) else next(rest), broadcast, is_leaf=_is_known
    )


def _is_known(node: Any) -> bool:
    return isinstance(node, Known)
