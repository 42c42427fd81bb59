"""invert(): images from an update, by making dummy images whose update is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.attacks.leakage.simulate import Simulation
from fedjax_lite.checks.arguments import check_count, check_key, check_non_negative
from fedjax_lite.types import Array, Key, Params, PyTree

Distance = Literal["cosine", "squared"]


class Inversion(NamedTuple):
    """What an attack found."""

    x: Array
    """`[B, ...]`: the reconstruction with the least objective."""
    objective: Array
    """float32 scalar: distance and penalty at `x`."""
    curve: Array
    """float32 `[R, T]`: the objective of every restart at every iteration."""


def invert(
    update: PyTree,
    simulate: Simulation,
    *,
    params: Params,
    labels: Array,
    input_shape: Sequence[int],
    key: Key,
    distance: Distance = "cosine",
    variation: float | Array = 1e-4,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    num_restarts: int = 1,
) -> Inversion:
    r"""Reconstructs a client's examples from the update that it sent.

    Dummy images `x` are moved until the training that `simulate` plays on them gives the update:

    .. math::
        \min_x\ 1 - \frac{\langle u(x), u \rangle}{\lVert u(x) \rVert\, \lVert u \rVert}
        + \alpha\, \mathrm{TV}(x) \qquad\text{("cosine", inverting gradients)}

    or :math:`\lVert u(x) - u \rVert^2 + \alpha\,\mathrm{TV}(x)` ("squared", DLG; there the scale of
    the update must be the simulation's, and `alpha` mostly 0). Iterates are clamped to `bounds`;
    the best of all iterates and restarts is kept. One compiled scan; restarts are vmapped.

    Args:
      update: what was observed: server minus client, or a gradient; shaped like `params`.
      simulate: ``(params, examples) -> update``; see `gradient_of` and `local_steps`.
      params: the model that the client started from.
      labels: int `[B]`: known, or guessed by `infer_label`.
      input_shape: of one example, ``(H, W, channels)`` for images.
      key: of the starting points, normal with deviation 1.
      distance: "cosine" or "squared".
      variation: `alpha`, weight of the total variation (the mean absolute difference of neighbours,
        both ways); counts with three axes only.
      bounds: of the values; None for none.
      optimizer: default Adam at 0.1, cut to a tenth after 3/8, 5/8 and 7/8 of the iterations, on
        the signs of the gradient with "cosine".
      num_iterations: `T`.
      num_restarts: `R`, starting points.

    Returns:
      An `Inversion`.

    Raises:
      TypeError: if the update is not shaped like the simulation's.
      ValueError: if an argument is out of range.

    Example:
      >>> from fedjax_lite.attacks.leakage.simulate import gradient_of
      >>> def loss(w, examples, key):
      ...     logits = jnp.tanh(examples["x"] @ w)
      ...     return -jax.nn.log_softmax(logits)[jnp.arange(1), examples["y"]]
      >>> w, x, y = jnp.array([[1.0, -2.0], [0.5, 1.0]]), jnp.array([[0.3, 0.8]]), jnp.array([1])
      >>> seen = gradient_of(loss)(w, {"x": x, "y": y})
      >>> found = invert(seen, gradient_of(loss), params=w, labels=y, input_shape=(2,),
      ...                key=jax.random.key(0), distance="squared", num_iterations=300)
      >>> bool(jnp.abs(found.x - x).max() < 0.01)
      True

    Reference: Zhu, Liu, Han, "Deep Leakage from Gradients", 2019, arXiv:1906.08935; Geiping,
    Bauermeister, Dröge, Moeller, "Inverting Gradients - How Easy Is It to Break Privacy in
    Federated Learning?", 2020, arXiv:2003.14053.
    """
    check_key(key)
    check_count(num_iterations, "num_iterations", minimum=1)
    check_count(num_restarts, "num_restarts", minimum=1)
    check_non_negative(variation, "variation")
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {list(get_args(Distance))}, got {distance!r}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not labels.shape[0]:
        raise ValueError(f"labels must be [B], one an example, got shape {list(labels.shape)}")
    shape = (labels.shape[0], *input_shape)
    _check_update(update, simulate, params, labels, shape)
    tx = default_optimizer(distance, num_iterations) if optimizer is None else optimizer

    def objective(x: Array, update: PyTree, params: Params) -> Array:
        sent = simulate(params, {"x": x, "y": labels})
        measure = cosine_distance if distance == "cosine" else squared_distance
        value = measure(sent, update)
        return value + variation * total_variation(x) if len(input_shape) == 3 else value

    def clamp(x: Array) -> Array:
        return x if bounds is None else jnp.clip(x, *bounds)

    @jax.jit
    def run(start: Array, update: PyTree, params: Params) -> tuple[Array, Array, Array]:
        def step(carry: tuple, _: None) -> tuple[tuple, Array]:
            x, opt_state, best_x, best = carry
            value, grad = jax.value_and_grad(objective)(x, update, params)
            better = value < best
            best_x, best = jnp.where(better, x, best_x), jnp.where(better, value, best)
            grad = jnp.where(jnp.isfinite(grad), grad, 0)
            updates, opt_state = tx.update(grad, opt_state, x)
            x = clamp(x + updates)  # type: ignore[operator]
            return (x, opt_state, best_x, best), value

        x = clamp(start)
        first = (x, tx.init(x), x, jnp.array(jnp.inf, start.dtype))
        (x, _, best_x, best), curve = jax.lax.scan(step, first, None, length=num_iterations)
        last = objective(x, update, params)
        better = last < best
        return jnp.where(better, x, best_x), jnp.where(better, last, best), curve

    starts = jax.random.normal(key, (num_restarts, *shape))
    # One restart runs unbatched: a convolution stays one.
    batched = trees.map_lanes(lambda start: run(start, update, params), num_restarts)
    x, value, curve = batched(starts)
    chosen = jnp.argmin(jnp.where(jnp.isnan(value), jnp.inf, value))
    return Inversion(x[chosen], value[chosen], curve)


def default_optimizer(distance: str, num_iterations: int) -> optax.GradientTransformation:
    """Adam at 0.1 with three cuts to a tenth; of gradient signs where the distance is a cosine."""
    cuts = {round(num_iterations * share): 0.1 for share in (3 / 8, 5 / 8, 7 / 8)}
    adam = optax.adam(optax.piecewise_constant_schedule(0.1, cuts))
    if distance != "cosine":
        return adam
    sign = optax.stateless(lambda grads, params: jax.tree.map(jnp.sign, grads))
    return optax.chain(sign, adam)


def cosine_distance(left: PyTree, right: PyTree) -> Array:
    """``1 - cos`` of the angle between two trees; 1 where one of them is zero.

    Example:
      >>> float(cosine_distance({"a": jnp.array([3.0, 0.0])}, {"a": jnp.array([0.0, 2.0])}))
      1.0
    """
    product = optax.tree.vdot(left, right)
    norms = trees.global_norm(left) * trees.global_norm(right)
    return 1 - product / jnp.where(norms > 0, norms, 1)


def squared_distance(left: PyTree, right: PyTree) -> Array:
    """The squared l2 distance of two trees.

    Example:
      >>> float(squared_distance(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])))
      5.0
    """
    return optax.tree.norm(trees.subtract(left, right), squared=True)


def total_variation(x: Array) -> Array:
    """The mean absolute difference of vertical and of horizontal neighbours, added.

    Args:
      x: `[B, H, W, channels]`.

    Returns:
      A scalar.

    Example:
      >>> float(total_variation(jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, :, :, None]))
      1.0
    """

    def mean(differences: Array) -> Array:
        return jnp.sum(jnp.abs(differences)) / max(differences.size, 1)

    return mean(jnp.diff(x, axis=1)) + mean(jnp.diff(x, axis=2))


def _check_update(
    update: PyTree, simulate: Simulation, params: Params, labels: Array, shape: tuple[int, ...]
) -> None:
    examples = {"x": jax.ShapeDtypeStruct(shape, jnp.float32), "y": labels}
    sent = jax.eval_shape(simulate, params, examples)
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (update, sent)]
    if jax.tree.structure(update) != jax.tree.structure(sent) or shapes[0] != shapes[1]:
        raise TypeError(
            f"update must be shaped like what simulate gives, {jax.tree.structure(sent)} of "
            f"shapes {shapes[1]}, got {jax.tree.structure(update)} of shapes {shapes[0]}"
        )
