"""Batch normalisation with a declared policy for its statistics: averaged, local or batch."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.checks.arguments import check_count, check_fraction, check_positive, check_tree
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import hidden_arguments
from fedjax_lite.types import Array, Params, PyTree

Policy = Literal["averaged", "local", "batch"]

STATISTICS_NAMES: dict[str, str] = {"averaged": "batch_stats", "local": "local_stats"}
"""The name of the dict of running statistics inside the parameters, by policy."""

SCALE = 2.0**40
"""Of the gradient of a statistic; a power of two, so exact. It is there so that a plain optimizer
that takes it for an ordinary gradient diverges instead of averaging at a wrong rate unnoticed."""

Tree = TypeVar("Tree")


def check_policy(statistics: Any, *, found: str = "batch normalisation") -> None:
    """Refuses an undecided or unknown policy for batch statistics.

    Args:
      statistics: the user's choice.
      found: what asks for it, for the message.

    Raises:
      ValueError: unless it is "averaged", "local" or "batch".

    Example:
      >>> check_policy("averaged")
    """
    if statistics not in ("averaged", "local", "batch"):
        raise ValueError(
            f"statistics must be chosen, got {statistics!r} with {found}; undecided use of batch "
            "statistics is an error: choose statistics='averaged' (running statistics travel and "
            "the server averages them), 'local' (FedBN: they never leave the client) or 'batch' "
            "(those of the batch at hand, also in evaluation); or replace it by group or instance "
            "normalisation, which have none"
        )


def init_batch_norm(num_channels: int, *, statistics: Policy | None = None) -> Params:
    """Parameters of a batch normalisation; the policy is part of their structure.

    Args:
      num_channels: `C`.
      statistics: "averaged", "local" or "batch"; there is no default.

    Returns:
      ``{"scale": [C], "bias": [C]}`` and, except for "batch", the raw moments
      ``{"mean": [C], "square": [C]}`` under "batch_stats" (averaged) or "local_stats" (local).

    Raises:
      ValueError: if the policy is not chosen.

    Example:
      >>> sorted(init_batch_norm(3, statistics="averaged"))
      ['batch_stats', 'bias', 'scale']
    """
    check_policy(statistics)
    check_count(num_channels, "num_channels", minimum=1)
    params: Params = {"scale": jnp.ones(num_channels), "bias": jnp.zeros(num_channels)}
    if statistics in STATISTICS_NAMES:
        moments = {"mean": jnp.zeros(num_channels), "square": jnp.ones(num_channels)}
        params[STATISTICS_NAMES[statistics]] = moments
    return params


def batch_norm(
    params: Params,
    x: Array,
    *,
    training: bool,
    momentum: float | Array = 0.9,
    epsilon: float = 1e-5,
) -> Array:
    r"""Standardises each channel over the batch; in evaluation by its running statistics.

    .. math::
        \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \mathrm{scale} + \mathrm{bias}, \qquad
        \mu' = m \mu' + (1 - m) \mu_B, \quad \sigma'^2 = m \sigma'^2 + (1 - m) \sigma^2_B

    with the mean and the population variance of the batch in training (and always under "batch",
    where a prediction then depends on the rest of its batch). The running ones (primed) are
    updated by the forward pass: the layer hands their new values on as the "gradient" of the old
    ones, and `with_statistics` around the client's optimizer puts them in place, whatever the
    learning rate. Local training refuses an optimizer that lacks it.

    Running statistics are stored as raw moments, `mean` and ``square = var + mean**2``: then the
    server's plain weighted mean gives the variance of the pooled clients,
    :math:`\sum_i p_i (\sigma_i^2 + (\mu_i - \mu)^2)`, not the mean of their variances. In float32
    that loses the variance of a channel whose mean is over about 1000 standard deviations.

    The padding of a short batch is not masked, for a loss does not see the mask: it repeats the
    client's own examples from the start of the epoch's order, so a short batch is standardised by
    (and counts in the running statistics as) a full one that holds some of them again. Batch
    sizes that divide the client's size avoid it; whole-data batches (``batch_size=None``, `fedsgd`)
    are as long as the largest client, so there its size must be a multiple of every other.

    Clipping or noise on the wire act on the statistics as on parameters; and a gradient clipped
    per example has no batch to speak of. Prefer group normalisation for differential privacy.

    Args:
      params: as `init_batch_norm` makes them. Used twice in a network, the two changes add up.
      x: `[B, ..., C]`.
      training: use, and record, the statistics of the batch; ``key is not None`` in a loss.
      momentum: `m`, the share of the old running statistics.
      epsilon: added to the variance.

    Returns:
      The same shape.

    Raises:
      ValueError: if the shapes do not fit, or momentum is outside `[0, 1]`.
      TypeError: if running statistics are float16, too narrow for their gradient.

    Example:
      >>> params = init_batch_norm(1, statistics="averaged")
      >>> batch_norm(params, jnp.array([[1.0], [3.0]]), training=True).round(3).ravel().tolist()
      [-1.0, 1.0]

    Reference: Ioffe and Szegedy, "Batch Normalization", 2015, arXiv:1502.03167. Trouble in
    federated learning: Hsieh et al., 2020, arXiv:1910.00189.
    """
    if not isinstance(momentum, jax.core.Tracer):
        check_fraction(momentum, "momentum")
    check_positive(epsilon, "epsilon")
    if x.ndim < 2 or x.shape[-1:] != params["scale"].shape:
        raise ValueError(
            f"x must be [B, ..., {params['scale'].shape[0]}] like scale, got {list(x.shape)}"
        )
    name = next((n for n in STATISTICS_NAMES.values() if n in params), None)
    if training or name is None:
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axis=axes)
        variance = jnp.mean(jnp.square(x - mean), axis=axes)
    else:
        mean, variance = from_moments(params[name])
    y = (x - mean) * jax.lax.rsqrt(variance + epsilon) * params["scale"] + params["bias"]
    if training and name is not None:
        old = params[name]
        old_mean, old_variance = from_moments(old)
        new_mean = momentum * old_mean + (1 - momentum) * mean
        new_variance = momentum * old_variance + (1 - momentum) * variance
        y = record_statistics(y, old, to_moments(new_mean, new_variance))
    return y


def to_moments(mean: Array, variance: Array) -> dict[str, Array]:
    """The raw moments that mean and variance are stored as.

    Example:
      >>> to_moments(jnp.array(2.0), jnp.array(1.0))["square"].item()
      5.0
    """
    return {"mean": mean, "square": variance + jnp.square(mean)}


def from_moments(moments: dict[str, Array]) -> tuple[Array, Array]:
    """Mean and variance from raw moments; rounding cannot make the variance negative.

    Example:
      >>> [float(v) for v in from_moments({"mean": jnp.array(2.0), "square": jnp.array(5.0)})]
      [2.0, 1.0]
    """
    mean = moments["mean"]
    return mean, jnp.maximum(moments["square"] - jnp.square(mean), 0)


@jax.custom_vjp
def record_statistics(y: Tree, old: PyTree, new: PyTree) -> Tree:
    """Returns `y`; the gradient with respect to `old` tells `with_statistics` to make it `new`.

    The gradient is the scaled residual ``old - new``, whatever comes back through `y`: neither the
    loss nor the mean over the batch may scale it. For layers of one's own that keep statistics.

    Args:
      y: an output that the loss depends on.
      old: running statistics, leaves of ``params[...]["batch_stats"]`` or ``["local_stats"]``.
      new: their new values; nothing is differentiated through them.

    Example:
      >>> f = lambda w: record_statistics(2.0, w["batch_stats"], {"mean": 3.0})
      >>> w = {"batch_stats": {"mean": 1.0}}
      >>> tx = with_statistics(optax.sgd(0.1))
      >>> tx.update(jax.grad(f)(w), tx.init(w), w)[0]["batch_stats"]["mean"].item()
      2.0
    """
    del new
    _check_range(old)
    return y


def _record_forward(y: Tree, old: PyTree, new: PyTree) -> tuple[Tree, tuple[PyTree, PyTree]]:
    _check_range(old)
    return y, (old, new)


def _check_range(old: PyTree) -> None:
    if any(jnp.asarray(leaf).dtype == jnp.float16 for leaf in jax.tree.leaves(old)):
        raise TypeError("running statistics must not be float16; keep them in float32 or bfloat16")


def _record_backward(kept: tuple[PyTree, PyTree], cotangent: Any) -> tuple[Any, PyTree, PyTree]:
    old, new = kept
    residual = jax.tree.map(
        lambda o, n: jnp.asarray((o - n) * SCALE, jnp.asarray(o).dtype), old, new
    )
    return cotangent, residual, jax.tree.map(jnp.zeros_like, new)


record_statistics.defvjp(_record_forward, _record_backward)


@made
def with_statistics(optimizer: Any) -> Any:
    r"""Lets an optimizer train the parameters, and the forward pass set the running statistics.

    The optimizer sees neither gradient nor value of a statistic (no momentum, decay, clipping or
    proximal pull touches them); a statistic becomes what the last forward pass made of it.

    It belongs wherever gradients of the loss arrive, outermost: around the whole client optimizer
    of `fedavg`, `fedprox` and the adaptive ones, or the server's of `fedsgd`. Methods that take a
    bare learning rate (SCAFFOLD, FedNova, Mime) have no place for it, and FedDyn's server corrects
    statistics like parameters; they refuse statistics: use "batch" or group normalisation there.

    Args:
      optimizer: an optax optimizer, or ``(round) -> optimizer``.

    Returns:
      The same kind.

    Raises:
      TypeError: if it is neither.

    Example:
      >>> tx = with_statistics(optax.sgd(0.5))
      >>> w = init_batch_norm(1, statistics="averaged")
      >>> loss = lambda w: batch_norm(w, jnp.array([[0.0], [20.0]]), training=True).sum()
      >>> step, _ = tx.update(jax.grad(loss)(w), tx.init(w), w)
      >>> w["batch_stats"]["mean"] + step["batch_stats"]["mean"]  # 0.9 * 0 + 0.1 * 10
      Array([1.], dtype=float32)
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return _apart(optimizer, SCALE)
    if not callable(optimizer) or isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be an optax optimizer or a function (round) -> optimizer, "
            f"got {optimizer!r}; optax.sgd(0.1), not 0.1"
        )

    # wraps keeps the signature: an uncalled optax.sgd is still found out.
    @functools.wraps(optimizer)
    def at_round(round: Array) -> Any:
        result = optimizer(round)
        return _apart(result, SCALE) if isinstance(result, optax.GradientTransformation) else result

    return at_round


@made
def with_averaged_statistics(
    server_optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets a server optimizer move the parameters, and averages the running statistics plainly.

    With plain averaging, ``optax.sgd(1.0)``, it changes nothing; momentum or Adam on the server
    need it, for a statistic that overshoots or moves by Adam's unit steps is none.

    Args:
      server_optimizer: descends on pseudo-gradients, server minus client.

    Returns:
      An optimizer.

    Raises:
      TypeError: if it is no optax optimizer.

    Example:
      >>> tx = with_averaged_statistics(optax.sgd(0.5))
      >>> w = {"w": jnp.ones(()), "batch_stats": {"mean": jnp.ones(())}}
      >>> {k: float(v) for k, v in tx.update(w, tx.init(w), w)[0]["batch_stats"].items()}
      {'mean': -1.0}
    """
    if not isinstance(server_optimizer, optax.GradientTransformation):
        raise TypeError(f"server_optimizer must be an optax optimizer, got {server_optimizer!r}")
    return _apart(server_optimizer, 1.0)


def _apart(
    optimizer: optax.GradientTransformation, scale: float
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` on everything but statistics, which descend by exactly their gradient / scale."""
    inner = optax.with_extra_args_support(optimizer)

    def hide(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda is_one, leaf: jnp.zeros_like(leaf) if is_one else leaf,
            statistics_mask(tree),
            tree,
        )

    def update(
        updates: PyTree, state: PyTree, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        extra = hidden_arguments(extra, updates, params, statistics_mask(updates))
        new, state = inner.update(
            hide(updates), state, None if params is None else hide(params), **extra
        )
        return jax.tree.map(
            lambda is_one, ours, grad: -grad / scale if is_one else ours,
            statistics_mask(updates),
            new,
            updates,
        ), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(hide(params)), update)


def statistics_mask(params: Params) -> PyTree:
    """True for running statistics (anything under "batch_stats" or "local_stats"), else False.

    Args:
      params: of a model.

    Returns:
      bools in the structure of `params`.

    Example:
      >>> mask = statistics_mask(init_batch_norm(2, statistics="local"))
      >>> mask["scale"], mask["local_stats"]["mean"]
      (False, True)
    """
    check_tree(params, "params")
    return jax.tree_util.tree_map_with_path(lambda path, _: _place(path) is not None, params)


def batch_norm_mask(params: Params) -> PyTree:
    """True for all of a batch normalisation: its statistics, scale and bias (FedBN's choice).

    Args:
      params: of a model; a layer is known by the statistics beside its scale and bias.

    Returns:
      bools in the structure of `params`.

    Example:
      >>> batch_norm_mask({"norm": init_batch_norm(2, statistics="local"), "w": 1.0})["w"]
      False
    """
    check_tree(params, "params")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = {path[:place] for path in paths if (place := _place(path)) is not None}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _place(path) is not None or path[:-1] in layers, params
    )


def check_no_local_statistics(params: Params) -> None:
    """Refuses parameters that were declared to stay on the clients where a server takes them.

    Args:
      params: what a server is about to hold.

    Raises:
      ValueError: if a leaf lies under "local_stats".

    Example:
      >>> check_no_local_statistics(init_batch_norm(2, statistics="averaged"))
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        place = _place(path)
        if place is not None and getattr(path[place], "key", None) == STATISTICS_NAMES["local"]:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} was declared local (statistics='local') and "
                "must not reach the server; build the algorithm with fedbn or local_leaves, or "
                "declare statistics='averaged'"
            )


def _place(path: tuple[Any, ...]) -> int | None:
    """Where in a path the name of a dict of statistics stands."""
    names = STATISTICS_NAMES.values()
    return next((i for i, key in enumerate(path) if getattr(key, "key", None) in names), None)
