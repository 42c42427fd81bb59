"""LoRA: a frozen model whose kernels move by products of two thin matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_positive, check_tree, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.models.low_rank_products import MovedKernel, by_factors
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params, PyTree

Layers = Callable[[str, Array], int]
"""``(path, leaf) ->`` how many leading axes of the leaf are inputs; 0: it gets no adapter."""


class LowRank(NamedTuple):
    """What a kernel `[m, n]` moves by: the product ``a @ b``."""

    a: Array
    """`[m, r]`."""
    b: Array
    """`[r, n]`, zero at the start."""


class Adapted(NamedTuple):
    """The parameters of a model made with `lora`."""

    base: Params
    """The model that was there before; frozen."""
    adapters: Params
    """As `base`, with a `LowRank` in place of an adapted kernel and None in place of all else."""
    scale: Array
    """Scalar, ``alpha / rank``; frozen."""


@made
def lora(
    model: Model,
    base: Params,
    *,
    rank: int,
    alpha: float | Array | None = None,
    layers: Layers | None = None,
) -> Model:
    r"""The same model, of which only low-rank updates of its kernels are to be trained.

    .. math::  W = W_0 + \tfrac{\alpha}{r} A B, \qquad A \in \mathbb{R}^{m \times r},\;
               B \in \mathbb{R}^{r \times n}, \qquad A_{ij} \sim N(0, 1/m),\; B = 0

    (the paper writes :math:`B A` for kernels `[out, in]`). It works on parameters, not on modules,
    so for any model of this library, of flax nnx or linen (`from_nnx`, `from_linen`) or your own: a
    kernel of several axes, as attention has, is a matrix of its inputs by its outputs. Train it
    with `fedlora`; `fedavg` would train the base, too.

    The loss takes products with a kernel as :math:`x W_0 + \tfrac{\alpha}{r} (x A) B`, wherever
    that is less work than a step on :math:`W` itself: no gradient of a whole kernel is made.
    Predictions, which have none, fold the adapters in once.

    Args:
      model: any `Model`.
      base: its parameters before adaptation, floating point.
      rank: `r`, at least 1.
      alpha: above 0; None: `rank`, so that the scale is 1. It may be traced.
      layers: which kernels get an adapter, ``(path, leaf) ->`` the number of leading axes that are
        inputs, 0 for none; paths are written ``"block1.query.kernel"``. Default
        ``dense_kernels()``: those of all dense and attention layers.

    Returns:
      A `Model` with parameters `Adapted`: before training it computes what the base computes. Its
      `init` gives ``base`` with new adapters.

    Raises:
      TypeError: if `model` is no `Model`.
      ValueError: if no kernel is chosen, or `rank` or `alpha` are out of range.

    Example:
      >>> from fedjax_lite.models.dense_nets import mlp
      >>> model = mlp((16,), input_shape=(8, 8, 1))
      >>> adapted = lora(model, model.init(jax.random.key(0)), rank=2)
      >>> params = adapted.init(jax.random.key(1))
      >>> jax.tree.map(jnp.shape, params.adapters["head"])
      {'bias': None, 'kernel': LowRank(a=(16, 2), b=(2, 10))}

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
    arXiv:2106.09685.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {shown(model)}; lora(model, base, rank=4)")
    check_count(rank, "rank", minimum=1)
    if alpha is not None:
        check_positive(alpha, "alpha")
    chosen = dense_kernels() if layers is None else layers
    init_adapters(jax.random.key(0), base, rank=rank, layers=chosen)  # says early what is wrong

    def init(key: Key) -> Adapted:
        scale = jnp.asarray(1.0 if alpha is None else alpha / rank, jnp.result_type(float))
        return Adapted(base, init_adapters(key, base, rank=rank, layers=chosen), scale)

    in_parts = by_factors(model.loss)

    def loss(params: Adapted, examples: PyTree, key: Key | None) -> Array:
        return in_parts(_factored(params), examples, key)

    return Model(
        init=init,
        loss=keep_counts(loss, model.loss),
        predict=lambda params, examples: model.predict(merged(params), examples),
    )


def dense_kernels(*names: str) -> Layers:
    """The kernels of dense and attention layers, for `lora`.

    A leaf called "kernel" of two axes is one of a dense layer. One of three axes is one of an
    attention layer of flax: `[in, heads, size]` for query, key and value, `[heads, size, out]`
    under the name "out". Biases, embeddings, norms and convolutions are left alone.

    Args:
      *names: only those under a layer of one of these names, such as "query", "value"; none: all.

    Returns:
      ``(path, leaf) ->`` the number of leading input axes.

    Example:
      >>> choose = dense_kernels("query", "out")
      >>> choose("block.query.kernel", jnp.zeros((8, 2, 4))), choose("head.kernel", jnp.eye(2))
      (1, 0)
      >>> choose("block.out.kernel", jnp.zeros((2, 4, 8)))
      2
    """
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"names must be strings, names of layers, got {shown(name)}; 'query'")

    def choose(path: str, leaf: Array) -> int:
        *above, last = path.split(".")
        if last != "kernel" or jnp.ndim(leaf) not in (2, 3):
            return 0
        if names and not set(names) & set(above):
            return 0
        return 2 if jnp.ndim(leaf) == 3 and above[-1:] == ["out"] else 1

    return choose


def init_adapters(key: Key, base: Params, *, rank: int, layers: Layers) -> Params:
    """New adapters: `a` normal with variance ``1 / m``, `b` zero, so that nothing changes yet.

    Args:
      key: consumed.
      base: parameters.
      rank: `r`.
      layers: see `lora`.

    Returns:
      `base` with `LowRank` in place of adapted kernels and None in place of the others.

    Raises:
      TypeError: if `layers` does not answer with a number.
      ValueError: if it chooses no leaf, or all axes of one.

    Example:
      >>> init_adapters(jax.random.key(0), {"kernel": jnp.ones((3, 2))}, rank=1,
      ...               layers=dense_kernels())["kernel"].b.tolist()
      [[0.0, 0.0]]
    """
    check_tree(base, "base")
    leaves, structure = jax.tree_util.tree_flatten_with_path(base)
    made = []
    for i, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        inputs = layers(name, leaf)
        if isinstance(inputs, bool) or not isinstance(inputs, int):
            raise TypeError(
                f"layers must return how many leading axes are inputs, got {shown(inputs)} for "
                f"{name}; 1 for a dense kernel [in, out], 0 for no adapter"
            )
        if inputs == 0:
            made.append(None)
            continue
        shape = jnp.shape(leaf)
        if not 0 < inputs < len(shape):
            raise ValueError(
                f"layers must leave an axis of outputs, got {inputs} of {name} {list(shape)}; 1 "
                "for a dense kernel [in, out], 0 for no adapter"
            )
        m, n, dtype = math.prod(shape[:inputs]), math.prod(shape[inputs:]), jnp.result_type(leaf)
        a = jax.random.normal(jax.random.fold_in(key, i), (m, rank), dtype) / m**0.5
        made.append(LowRank(a, jnp.zeros((rank, n), dtype)))
    if all(one is None for one in made):
        names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]
        found = shown(base) if names == [""] else names[:6]
        raise ValueError(
            f"layers chose none of base's leaves, got {found}; give for example "
            "layers=lambda path, leaf: int(leaf.ndim == 2)"
        )
    return jax.tree.unflatten(structure, made)


def merged(params: Adapted) -> Params:
    r"""The adapters folded into the base, :math:`W_0 + \text{scale} \cdot A B`.

    Args:
      params: of a model made with `lora`.

    Returns:
      Parameters of the model that was adapted, for use without adapters.

    Raises:
      TypeError: if they are none.

    Example:
      >>> ones = LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))
      >>> merged(Adapted({"kernel": jnp.eye(2)}, {"kernel": ones}, 0.5))["kernel"].tolist()
      [[1.5, 0.5], [0.5, 1.5]]
    """
    return _moved(params, params.base if isinstance(params, Adapted) else None, 1)


def unmerged(weights: Params, params: Adapted) -> Adapted:
    """The inverse of `merged`: adapters taken out of weights that they were folded into.

    Args:
      weights: as ``merged(params)``, perhaps trained on.
      params: whose adapters and scale are taken out.

    Returns:
      `Adapted` with a base such that ``merged`` of it is `weights`, to rounding.

    Example:
      >>> ones = LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))
      >>> params = Adapted({"kernel": jnp.eye(2)}, {"kernel": ones}, 0.5)
      >>> unmerged(merged(params), params).base["kernel"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(params, Adapted):
        mine, theirs = map(jax.tree.structure, (params.base, weights))
        if mine != theirs:
            raise TypeError(
                f"weights must have the structure of the base, {mine}, got {shown(weights)}; "
                "give merged(params)"
            )
    return params._replace(base=_moved(params, weights, -1))


def stacked_adapters(adapters: Params, weights: Array) -> Params:
    r"""Adapters of rank `C r` whose product is exactly the weighted mean of `C` clients' products.

    .. math::  \sum_i p_i A_i B_i = [A_1 \dots A_C]\, [p_1 B_1; \dots; p_C B_C], \qquad
               p_i = w_i / \textstyle\sum_j w_j

    Args:
      adapters: `LowRank`s with leaves `[C, m, r]` and `[C, r, n]`.
      weights: `[C]`, at least 0, not all of them 0.

    Returns:
      `LowRank`s with leaves `[m, C r]` and `[C r, n]`.

    Example:
      >>> two = LowRank(jnp.eye(2)[:, :, None], jnp.eye(2)[:, None, :])
      >>> a, b = stacked_adapters(two, jnp.array([3.0, 1.0]))
      >>> (a @ b).tolist()
      [[0.75, 0.0], [0.0, 0.25]]

    Reference: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
    Low-Rank Adaptations", 2024, arXiv:2409.05976.
    """
    pairs = jax.tree.leaves(adapters, is_leaf=is_low_rank)
    wrong = [pair for pair in pairs if not is_low_rank(pair) or jnp.ndim(pair.a) != 3]
    if wrong or not pairs:
        raise TypeError(
            "adapters must be LowRanks with leaves [C, m, r] and [C, r, n], got "
            f"{shown(wrong[0] if wrong else adapters)}; stack those of all clients first: "
            "jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)"
        )
    num_clients = pairs[0].a.shape[0]
    if jnp.shape(weights) != (num_clients,):
        raise ValueError(
            f"weights must have one number a client, [{num_clients}], got {shown(weights)}; such "
            "as the numbers of examples"
        )
    if not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights)
        if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
            raise ValueError(
                f"weights must be at least 0 and not all of them 0, got {values.tolist()}; such as "
                "the numbers of examples"
            )
    shares = jnp.asarray(weights) / jnp.sum(weights)

    def one(pair: LowRank) -> LowRank:
        a, b = pair.a, pair.b * shares[:, None, None].astype(pair.b.dtype)
        return LowRank(jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), b.reshape(-1, b.shape[-1]))

    return jax.tree.map(one, adapters, is_leaf=is_low_rank)


def is_low_rank(node: Any) -> bool:
    """Whether this is an adapter.

    Example:
      >>> is_low_rank(None)
      False
    """
    return isinstance(node, LowRank)


def _factored(params: Adapted) -> Params:
    """The base with a `MovedKernel` in place of each adapted kernel."""
    _check_adapted(params)

    def one(pair: LowRank | None, kernel: Array) -> Any:
        if pair is None:
            return kernel
        shape, (m, rank) = jnp.shape(kernel), pair.a.shape
        k = next(k for k in range(1, len(shape)) if math.prod(shape[:k]) == m)
        a, b = pair.a.reshape(*shape[:k], rank), (params.scale * pair.b).reshape(rank, *shape[k:])
        return MovedKernel(kernel, a.astype(kernel.dtype), b.astype(kernel.dtype))

    return jax.tree.map(one, params.adapters, params.base, is_leaf=_pair_or_none)


def _check_adapted(params: Any) -> None:
    if not isinstance(params, Adapted):
        raise TypeError(
            f"params must be Adapted, those of a model made with lora, got {shown(params)}; "
            "fl.models.lora(model, base, rank=4).init(key)"
        )


def _moved(params: Adapted, weights: Params, sign: int) -> Params:
    _check_adapted(params)

    def one(pair: LowRank | None, kernel: Array) -> Array:
        if pair is None:
            return kernel
        product = sign * params.scale * (pair.a @ pair.b)
        return kernel + product.reshape(jnp.shape(kernel)).astype(kernel.dtype)

    return jax.tree.map(one, params.adapters, weights, is_leaf=_pair_or_none)


def _pair_or_none(node: Any) -> bool:
    return node is None or is_low_rank(node)
