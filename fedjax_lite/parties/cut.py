"""A network cut in two, or in three: who computes which layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.checks.made import Made, made
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_floats
from fedjax_lite.models.losses import cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.parties.model import Part
from fedjax_lite.types import Array, Key, Params

Stage = Callable[[Params, Array, Key | None], Array]
"""``(params of the whole, x [B, ...], key) -> [B, ...]``, some layers of a network."""
At = int | tuple[int, int]
"""Before which stage it is cut; two numbers: the client has the last stages, too."""


class CutModel(NamedTuple):
    """A network whose first layers, and perhaps last, are the client's, the others the server's."""

    model: Model
    """The network as it was, uncut: what evaluators and pooled training are given."""
    stages: tuple[Stage, ...]
    """The client's bottom, the server's part and, in the shape of a U, the client's top; of the
    parameters of the whole each reads its own only."""
    of_server: Any
    """Bools by leaf of the parameters: which are the server's."""
    inputs: Callable[[Array], Array]
    """The raw inputs to what the first stage reads."""
    criterion: Callable[[Array, Array], Array]
    """``(outputs, y) -> [B]``."""
    made: Made | None = None
    """Which factory made it; None: your own."""

    @property
    def labels_stay(self) -> bool:
        """Whether the client computes the loss, so that no label is sent."""
        return len(self.stages) == 3

    def halves(self, params: Params) -> tuple[Params, Params]:
        """``(client's, server's)``; None stands where the other half has a leaf."""
        server, client = trees.halves(self.of_server, params)
        return client, server

    def whole(self, client: Params, server: Params) -> Params:
        """The parameters out of their `halves`."""
        return trees.whole(client, server)


@made
def cut_layers(
    layers: Sequence[Part],
    *,
    at: At,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    raw_inputs: bool = False,
) -> CutModel:
    """Cuts a list of layers.

    Args:
      layers: each a `Part` ``(init, apply)``; parameters are the tuple of theirs.
      at: the client has the first `at` layers. Two numbers: the server has ``layers[at[0]:at[1]]``,
        the client what is before and behind (U-shaped, labels stay).
      loss: ``(outputs, y) -> [B]``.
      raw_inputs: hand inputs to the first layer as they are; else uint8 is divided by 255.

    Returns:
      A `CutModel`.

    Raises:
      TypeError: if a layer is no `Part`.
      ValueError: if a side of the cut would be empty.

    Example:
      >>> dense = lambda i, o: Part(lambda key: jnp.ones((i, o)), lambda w, x, key: jnp.tanh(x @ w))
      >>> cut = cut_layers([dense(4, 3), dense(3, 2), dense(2, 2)], at=1)
      >>> params = cut.model.init(jax.random.key(0))
      >>> [len(jax.tree.leaves(half)) for half in cut.halves(params)]
      [1, 2]

    Reference: Gupta, Raskar, "Distributed learning of deep neural network over multiple agents",
    2018, arXiv:1810.06060.
    """
    if not isinstance(layers, list | tuple):
        raise TypeError(f"layers must be a list of Parts, got {shown(layers)}; [Part(init, apply)]")
    for i, layer in enumerate(layers):
        check_slot(layer, f"layers[{i}]", Part)

    def init(key: Key) -> Params:
        return tuple(layer.init(k) for layer, k in zip(layers, jax.random.split(key, len(layers))))

    def stage(i: int) -> Stage:
        return lambda params, x, key: layers[i].apply(params[i], x, key)

    bounds = _bounds(at, len(layers))
    shapes = jax.eval_shape(init, jax.random.key(0))
    of_server = tuple(
        jax.tree.map(lambda _, i=i: bounds[0] <= i < bounds[1], layer)
        for i, layer in enumerate(shapes)
    )
    stages = [stage(i) for i in range(len(layers))]
    return _cut(init, stages, bounds, of_server, loss, raw_inputs)


def cut_stages(
    init: Callable[[Key], Params],
    stages: Sequence[Stage],
    example_x: Any,
    *,
    at: At,
    loss: Callable[[Array, Array], Array],
    raw_inputs: bool,
) -> CutModel:
    """Cuts a network given as stages of one tree of parameters: who reads a leaf, owns it.

    Args:
      init: ``(key) -> params``.
      stages: in order.
      example_x: a batch of inputs; only shape and dtype are used.
      at: see `cut_layers`.
      loss: see `cut_layers`.
      raw_inputs: see `cut_layers`.

    Raises:
      ValueError: if a parameter is read on both sides, or a side would be empty.

    Example:
      >>> stages = [lambda p, x, key: x * p["a"], lambda p, x, key: x + p["b"]]
      >>> init = lambda key: {"a": jnp.ones(2), "b": jnp.zeros(2)}
      >>> loss = lambda outputs, y: (outputs.sum(1) - y) ** 2
      >>> cut_stages(init, stages, jnp.ones((3, 2)), at=1, loss=loss, raw_inputs=False).of_server
      {'a': False, 'b': True}
    """
    bounds = _bounds(at, len(stages))
    x = jax.ShapeDtypeStruct(jnp.shape(example_x), jnp.asarray(example_x).dtype)
    if not raw_inputs:
        x = jax.eval_shape(as_floats, x)
    shapes = jax.eval_shape(init, jax.random.key(0))
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    readers: list[set[bool]] = [set() for _ in names]
    for i, stage in enumerate(stages):
        used, x = _used(stage, shapes, x)
        for reader, is_used in zip(readers, used, strict=True):
            if is_used:
                reader.add(bounds[0] <= i < bounds[1])
    if shared := [name for name, sides in zip(names, readers, strict=True) if len(sides) > 1]:
        raise ValueError(
            f"at={at} must cut between layers that share nothing, but both sides read {shared[0]}; "
            "cut elsewhere, or untie the weights"
        )
    of_server = [True in sides for sides in readers]
    tree = jax.tree.unflatten(jax.tree.structure(shapes), of_server)
    return _cut(init, stages, bounds, tree, loss, raw_inputs)


def check_stages(stages: Any, example_x: Any) -> None:
    """Raises TypeError where stages are no functions, or an example no array of numbers.

    Example:
      >>> check_stages([len], jnp.ones(2))
    """
    several = stages is None or (isinstance(stages, list | tuple) and len(stages) > 0)
    if not several or any(not callable(stage) for stage in stages or ()):
        raise TypeError(
            f"stages must be functions (module, x) -> x, got {shown(stages)}; [lambda m, x: "
            "m.encoder(x), lambda m, x: m.head(x)]"
        )
    dtype = getattr(example_x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"example_x must be inputs [B, ...], got {shown(example_x)}; x[:1]")


def _used(stage: Stage, shapes: Params, x: Any) -> tuple[list[bool], Any]:
    """Which leaves of the parameters a stage reads, and the shape of what it gives."""
    from jax.interpreters import partial_eval

    key = jax.random.key(0)  # as in training: dropout reads it
    closed, out = jax.make_jaxpr(lambda p, x: stage(p, x, key), return_shape=True)(shapes, x)
    leaves = len(jax.tree.leaves(shapes))
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return list(used[:leaves]), out


def _cut(
    init: Callable[[Key], Params],
    stages: Sequence[Stage],
    bounds: tuple[int, int],
    of_server: Any,
    loss: Callable[[Array, Array], Array],
    raw_inputs: bool,
) -> CutModel:
    groups = [range(bounds[0]), range(*bounds), range(bounds[1], len(stages))]
    shapes = jax.eval_shape(init, jax.random.key(0))

    def part(group: range) -> Stage:
        def apply(params: Params, x: Array, key: Key | None) -> Array:
            # A half has None where the other has a leaf: stages that read the whole get zeros.
            full = trees.whole(params, trees.zeros(shapes))
            for i in group:
                x = stages[i](full, x, None if key is None else jax.random.fold_in(key, i))
            return x

        return apply

    parts = tuple(part(group) for group in groups if len(group))

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        for one in parts:
            x = one(params, x, key)
        return x

    model = from_functions(init, apply, loss=loss, raw_inputs=raw_inputs)
    inputs = (lambda x: x) if raw_inputs else as_floats
    return CutModel(model, parts, of_server, inputs, loss)


def _bounds(at: Any, count: int) -> tuple[int, int]:
    """The server's stages, first and behind the last.

    Raises:
      TypeError: if `at` is neither one number nor two.
      ValueError: if a side would be empty.
    """
    several = isinstance(at, tuple | list)
    given = tuple(at) if several else (at, count)
    if len(given) != 2 or any(isinstance(i, bool) or not isinstance(i, int) for i in given):
        raise TypeError(f"at must be an int, or two of them for a U, got {shown(at)}; at=1")
    first, last = given
    if not 0 < first < last <= count or (several and last == count):
        raise ValueError(
            f"at must leave layers on both sides of the cut, got {at} of {count} layers; "
            f"{f'0 < at[0] < at[1] < {count}' if several else f'give 1 to {count - 1}'}"
        )
    return first, last
