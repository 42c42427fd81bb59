"""mimic(): attackers repeat one honest client, so that a rule over-represents it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks, sum_blocks
from fedjax_lite.aggregation.conditions import known_population
from fedjax_lite.aggregation.geometric_median import measurable
from fedjax_lite.aggregation.stacked import check_like_model
from fedjax_lite.attacks.byzantine import Attack, Scene
from fedjax_lite.attacks.moments import honest_mean
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, Params, PyTree


class Mimicry(NamedTuple):
    """What the attackers have learned."""

    direction: PyTree
    """Unit vector along which honest clients differ most."""
    center: PyTree
    """Mean of the honest updates over the rounds so far."""
    rounds: Array
    client: Array
    """int32: whom they repeat; -1 while they learn."""


@made
def mimic(client: int | None = None, *, warmup: int = 10) -> Attack:
    r"""All attackers send what one honest client sends.

    Nothing about it is unusual, and with clients that differ a rule that picks the majority now
    listens to that client. During `warmup` rounds the direction of largest variance is learned by
    Oja's rule,

    .. math::
        z \leftarrow \frac{t z + \sum_i (\Delta_i - \mu) \langle \Delta_i - \mu, z \rangle}
                          {\lVert \cdot \rVert}, \qquad
        \mu = \text{running mean of honest updates},

    and each round's client furthest along `z` is repeated; the one of the last of these rounds is
    repeated from then on (and where it does not take part, again the one furthest along `z`).
    Honest messages that are not finite teach nothing.

    Args:
      client: id of an honest client to repeat from the start; default to learn whom.
      warmup: rounds of learning, at least 1.

    Returns:
      An `Attack`; for messages with the structure of the model.

    Raises:
      ValueError: if an argument is negative or `warmup` is 0; when a state is made, if `client`
        lies outside the population.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack, median
      >>> from fedjax_lite.attacks import byzantine
      >>> u = jnp.array([[0.0], [1.0], [2.0], [7.0], [7.0]])
      >>> attacked = byzantine(mimic(client=2), clients=[3, 4], inner=median())
      >>> aggregate_stack(attacked, u).tolist()
      [2.0]

    Reference: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", 2022, arXiv:2006.09365.
    """
    check_count(warmup, "warmup", minimum=1)
    if client is not None:
        check_count(client, "client", minimum=0)

    def init(params: Params) -> Mimicry:
        population = known_population()
        if client is not None and population is not None and client >= population:
            raise ValueError(
                f"client must be an id of the population, in [0, {population}), got {client}; name "
                "another"
            )
        zeros = trees.wide_zeros(params)
        chosen = jnp.int32(-1 if client is None else client)
        return Mimicry(zeros, zeros, jnp.int32(0), chosen)

    def make(key: Key, state: Mimicry, scene: Scene) -> tuple[Mimicry, PyTree]:
        check_like_model("mimic", state.center, scene.values)
        learned = learn(key, state, scene)
        lean = sum_blocks(
            lambda x, mu, z: ((x - mu) * z).sum(-1),
            scene.values,
            trees.cast_like(learned.center, scene.values),
            trees.cast_like(learned.direction, scene.values),
        )
        lean = jnp.where(jnp.isfinite(lean), lean, jnp.finfo(lean.dtype).min)
        furthest = jnp.argmax(jnp.where(scene.honest, lean, -jnp.inf))
        settled = scene.honest & (scene.ids == state.client)
        slot = jnp.where(settled.any(), jnp.argmax(settled), furthest)
        now = (state.client < 0) & (learned.rounds >= warmup) & scene.honest.any()
        kept = jnp.where(now, scene.ids[furthest], state.client).astype(jnp.int32)
        rows = jax.tree.map(lambda leaf: leaf[slot][None], scene.values)
        return learned._replace(client=kept), rows

    return Attack(init, make)


def learn(key: Key, state: Mimicry, scene: Scene) -> Mimicry:
    """One step of Oja's rule on the honest messages that are finite; without any nothing moves."""
    scene = scene._replace(honest=scene.honest & measurable(scene.values))
    seen = state.rounds.astype(jnp.float32)
    mean = trees.cast_like(honest_mean(scene), state.center)
    center = jax.tree.map(
        lambda mu, new: mu + (new - mu) / (seen + 1).astype(mu.dtype), state.center, mean
    )
    leaves, treedef = jax.tree.flatten(state.direction)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    fresh = state.rounds == 0
    start = jax.tree.map(
        lambda z, new: jnp.where(fresh, new, z), state.direction, treedef.unflatten(drawn)
    )
    lean = sum_blocks(lambda x, mu, z: ((x - mu) * z).sum(-1), scene.values, center, start)

    def pull(rows: Array, mu: Array, z: Array) -> Array:
        along = jnp.where(scene.honest, lean, 0).astype(rows.dtype)[:, None]
        pulls = jnp.where(along == 0, 0, along * (rows - mu))
        return seen.astype(z.dtype) * z + trees.sum_rows(pulls)

    moved = map_blocks(pull, scene.values, center, start)
    norm = trees.global_norm(moved)
    unit = jax.tree.map(lambda z: z / jnp.where(norm == 0, 1, norm).astype(z.dtype), moved)
    learned = Mimicry(unit, center, state.rounds + 1, state.client)
    # By squares: global_norm calls NaN zero, and a norm that overflows would leave no direction.
    squares = optax.tree.norm(moved, squared=True) + optax.tree.norm(center, squared=True)
    moves = scene.honest.any() & jnp.isfinite(squares)
    return jax.tree.map(lambda new, old: jnp.where(moves, new, old), learned, state)
