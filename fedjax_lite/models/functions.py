"""A Model from any pair of functions: what all reference models and adapters end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_lite.checks import check_key
from fedjax_lite.models.inputs import as_floats, check_statistics
from fedjax_lite.models.losses import check_per_example, cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params


def from_functions(
    init: Callable[[Key], Params],
    apply: Callable[[Params, Array, Key | None], Array],
    *,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw_inputs: bool = False,
) -> Model:
    """Makes a `Model` of any network on any pytree of parameters.

    Haiku: ``from_functions(lambda key: net.init(key, x), lambda p, x, key: net.apply(p, key, x))``.
    Equinox: split the module with ``eqx.partition(net, eqx.is_array)``, give the arrays as
    parameters, and combine and ``jax.vmap`` inside `apply`.

    Args:
      init: ``(key) -> params``, any pytree of arrays.
      apply: ``(params, x [B, ...], key) ->`` logits `[B, classes]`; key None: no dropout.
      loss: ``(logits, y) -> [B]``.
      mean: per channel, subtracted after scaling uint8 by 1 / 255; see `as_floats`.
      std: per channel, divided by.
      raw_inputs: hand `x` to `apply` as it is, e.g. token numbers.

    Returns:
      A `Model` on examples ``{"x": [B, ...], "y": [B]}``.

    Raises:
      ValueError: if `mean` or `std` is unusable; when traced, if the loss is not one per example.
      TypeError: when traced, if examples are not a dict with "x" and "y".

    Example:
      >>> import jax.numpy as jnp
      >>> model = from_functions(lambda key: jnp.zeros((3, 2)), lambda w, x, key: x @ w)
      >>> examples = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}
      >>> model.loss(jnp.zeros((3, 2)), examples, None).shape
      (4,)
    """
    check_statistics(mean, std)
    if raw_inputs and not (mean is None and std is None):
        raise ValueError("mean and std must be None with raw_inputs=True: nothing is scaled")

    def logits_of(params: Params, examples: Any, key: Key | None) -> Array:
        x = _field(examples, "x")
        return apply(params, x if raw_inputs else as_floats(x, mean=mean, std=std), key)

    def losses(params: Params, examples: Any, key: Key | None) -> Array:
        y = _field(examples, "y")
        return check_per_example(loss(logits_of(params, examples, key), y), y.shape[0])

    def predict(params: Params, examples: Any) -> Array:
        return logits_of(params, examples, None)

    def checked_init(key: Key) -> Params:
        if key is not None:  # a start that draws nothing may be given none
            check_key(key)
        return init(key)

    checked_init.__qualname__ = "Model.init"  # in Python's own message where the key is forgotten
    return Model(init=checked_init, loss=losses, predict=predict)


def _field(examples: Any, name: str) -> Array:
    if not isinstance(examples, Mapping) or name not in examples:
        found = list(examples) if isinstance(examples, Mapping) else type(examples).__name__
        raise TypeError(
            f'examples must be a dict with "x" and "y", no {name!r} in {found}; rename them, '
            'e.g. {"x": examples["image"], "y": examples["label"]}'
        )
    return examples[name]
