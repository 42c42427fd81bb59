"""The hidden units of a network: along which axes of which parameters they lie."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array, Params

Along = tuple[str, int]
"""A parameter, by its path such as ``dense1/kernel``, and one of its axes."""


class Layer(NamedTuple):
    """A layer of `width` hidden units; permuting all of these axes alike changes no output.

    An axis may be a multiple of `width` long, the unit being what changes fastest: the four gates
    of an LSTM, or the pixels of a channel where an image is flattened.
    """

    width: int
    out: tuple[Along, ...]
    """What makes the units: kernel, bias, scale and shift of a norm."""
    into: tuple[Along, ...]
    """What reads them: the next layer's kernel; of an LSTM its recurrent one, too."""


def hidden_layers(params: Params) -> tuple[Layer, ...]:
    """Finds the hidden layers of a chain of dense, convolution and LSTM layers.

    Modules are taken in the order of their names (``conv1``, ``dense1`` ..., the head last). Units
    of a kernel `[..., D, H]` are its last axis, of an LSTM those of ``recurrent`` `[H, 4H]`;
    vectors `[H]` beside it (bias, norms) go with it; the next kernel reads them along its last axis
    but one. A norm may mix the units of a group, as `fedjax_lite.models.cnn`'s do, and parameters
    do not tell: of networks with norms give the layers by hand, none where a group has several
    units.

    Args:
      params: of a network without branches, such as `fedjax_lite.models.mlp`, `conv_net`, `lenet`,
        `char_lstm`; shapes are enough.

    Returns:
      The layers in order, without the output layer.

    Raises:
      ValueError: if there is no kernel, a kernel does not read the units before it, or there are
        norms, or vectors in a module without a kernel: give the layers of such a network by hand.

    Example:
      >>> import fedjax_lite as fl
      >>> params = fl.models.mlp((5,), num_classes=3, input_shape=(4,)).init(jax.random.key(0))
      >>> hidden_layers(params)[0].out, hidden_layers(params)[0].into
      ((('dense1/bias', -1), ('dense1/kernel', -1)), (('head/kernel', -2),))
    """
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves_of(params).items()}
    modules: dict[str, list[str]] = {}
    for path in sorted(shapes, key=_natural):
        # A norm beside its convolution is of the same module: block1/conv, block1/norm.
        modules.setdefault(path.split("/")[0], []).append(path)
    chain, without = [], []
    for paths in modules.values():
        reading = [path for path in paths if len(shapes[path]) >= 2]
        main = [path for path in reading if not path.endswith("recurrent")]
        if len(main) == 1 and not paths[0].startswith("embedding"):
            chain.append((main[0], paths, [path for path in reading if path not in main]))
        elif len(main) > 1:
            raise ValueError(
                f"params must be a chain of layers of one kernel each, got {main} in one module; "
                "give the layers by hand, layers=[fl.matching.Layer(...)]"
            )
        else:
            without += [path for path in paths if len(shapes[path]) == 1]
    if not chain:
        raise ValueError(
            f"params must hold a kernel, a matrix, got {shown(params)} with "
            f"{sorted(shapes)}; "
            "give the parameters of a network"
        )
    norms = [path for _, paths, _ in chain for path in paths if _is_of_norm(path)]
    if len(chain) > 1 and (norms or without):
        raise ValueError(
            f"params must have kernels and biases only, got {norms or without}: whether units may "
            "change places depends on what such a vector is used for (a group norm mixes those of "
            "a group); give the layers by hand, layers=[fl.matching.Layer(...)]"
        )
    layers = []
    for (kernel, paths, recurrent), (reader, _, _) in itertools.pairwise(chain):
        width = shapes[recurrent[0]][0] if recurrent else shapes[kernel][-1]
        longest = shapes[kernel][-1]
        out = tuple((path, -1) for path in paths if shapes[path][-1:] == (longest,))
        into = tuple((path, -2) for path in (*recurrent, reader))
        if any(shapes[path][-2] % width for path, _ in into):
            raise ValueError(
                f"params must be a chain, but {reader} {list(shapes[reader])} does not read the "
                f"{width} units of {kernel}; give them by hand, layers=[fl.matching.Layer(...)]"
            )
        layers.append(Layer(width, out, into))
    return tuple(layers)


def leaves_of(params: Params) -> dict[str, Any]:
    """The leaves by path, ``dense1/kernel``.

    Example:
      >>> list(leaves_of({"a": {"b": 1}, "c": 2}))
      ['a/b', 'c']
    """
    return {
        "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def with_leaves(params: Params, new: dict[str, Any]) -> Params:
    """The same tree with some leaves replaced.

    Example:
      >>> with_leaves({"a": {"b": 1}, "c": 2}, {"c": 3})
      {'a': {'b': 1}, 'c': 3}
    """
    found = leaves_of(params)
    return jax.tree.unflatten(jax.tree.structure(params), [new.get(p, found[p]) for p in found])


def reorder(params: Params, layer: Layer, order: Array) -> Params:
    """The network with a layer's units in another order: the same function.

    Args:
      params: the network.
      layer: which units.
      order: int `[H]`: unit `h` of the result is unit ``order[h]`` of what is given.

    Returns:
      Parameters of the same shapes.

    Raises:
      ValueError: if the layer names parameters that are not there, or of another width.

    Example:
      >>> layer = Layer(2, (("w", -1),), (("v", -2),))
      >>> net = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[3.0], [4.0]])}
      >>> reorder(net, layer, jnp.array([1, 0]))["v"].tolist()
      [[4.0], [3.0]]
    """
    check_layers(params, [layer])
    found, new = leaves_of(params), {}
    for path, axis in (*layer.out, *layer.into):
        leaf = new.get(path, found[path])
        split = jnp.moveaxis(leaf, axis, -1)
        shape = split.shape
        split = split.reshape(*shape[:-1], -1, layer.width)[..., order].reshape(shape)
        new[path] = jnp.moveaxis(split, -1, axis)
    return with_leaves(params, new)


def check_layers(params: Params, layers: Sequence[Layer]) -> None:
    """Raises ValueError where layers are not those of a network.

    Example:
      >>> check_layers({"w": jnp.zeros((3, 2))}, [Layer(2, (("w", -1),), ())])
    """
    found = leaves_of(params)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(
                f"layers must be Layers, got {shown(layer)}; fl.matching.hidden_layers(params)"
            )
        for path, axis in (*layer.out, *layer.into):
            shape = jnp.shape(found.get(path, ()))
            if not -len(shape) <= axis < len(shape) or shape[axis] % layer.width:
                raise ValueError(
                    f"layers must name axes of {layer.width} units, got ({path!r}, {axis}), "
                    f"of shape {list(shape)}, among {sorted(found)}; "
                    "fl.matching.hidden_layers(params) finds those of a chain"
                )


def units_of(
    params: Params, layers: Sequence[Layer], which: int, *, outgoing: bool = True
) -> Array:
    """What the units of a layer are compared by, `[H, D]`.

    Their own weights and biases: what they read has been matched before. Of the last layer also
    the weights by which outputs read them, since outputs have names.

    Args:
      params: the network.
      layers: all of them, in order.
      which: of them.
      outgoing: False leaves out by what outputs read the last layer.

    Example:
      >>> layer = Layer(2, (("w", -1),), (("v", -2),))
      >>> net = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[3.0], [4.0]])}
      >>> units_of(net, [layer], 0).tolist()
      [[1.0, 3.0], [2.0, 4.0]]
      >>> units_of(net, [layer], 0, outgoing=False).tolist()
      [[1.0], [2.0]]
    """
    layer, found = layers[which], leaves_of(params)
    mixed = {path for path, _ in layer.into}
    compared = [along for along in layer.out if along[0] not in mixed]
    if outgoing and which == len(layers) - 1:
        owned = {path for one in layers for path, _ in one.out}
        compared += [along for along in layer.into if along[0] not in owned]
    columns = []
    for path, axis in compared:
        split = jnp.moveaxis(found[path], axis, -1)
        columns.append(split.reshape(-1, layer.width).T)
    return jnp.concatenate(columns, 1)


def _is_of_norm(path: str) -> bool:
    """A norm's scale and shift go by these names, in our models and in flax's."""
    *modules, leaf = path.lower().split("/")
    return leaf == "scale" or any("norm" in module for module in modules)


def _natural(path: str) -> tuple:
    """Names in order: the embedding first, the head last, dense2 before dense10."""
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
    kinds = [isinstance(part, int) for part in parts]  # of one length and kinds they compare
    return (path.startswith("head"), not path.startswith("embedding"), kinds, parts)
