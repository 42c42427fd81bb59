"""A Model from any pair of functions: what all reference models and adapters end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_key
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of, with_counts
from fedjax_lite.models.inputs import as_floats, check_statistics
from fedjax_lite.models.losses import check_per_example, cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params, RoundState


@made
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
      loss: ``(logits, y) -> [B]``; what it says of labels that count (`with_counts`) holds for the
        model's examples.
      mean: per channel, subtracted after scaling uint8 by 1 / 255; see `as_floats`.
      std: per channel, divided by.
      raw_inputs: hand `x` to `apply` as it is, e.g. token numbers.

    Returns:
      A `Model` on examples ``{"x": [B, ...], "y": [B]}``.

    Raises:
      ValueError: if `mean` or `std` is unusable; when traced, if the loss is not one per example,
        or if `apply` fails on parameters that are not like those of `init`.
      TypeError: when traced, if examples are not a dict with "x" and "y", or a state is given
        for parameters.

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
        _check_params(params)
        x = _field(examples, "x")
        x = x if raw_inputs else as_floats(x, mean=mean, std=std)
        try:
            return apply(params, x, key)
        except Exception as error:  # each framework raises its own; nothing is compared before
            if differs := _difference(init, params):
                raise ValueError(f"params belong to another model: {differs}") from error
            raise

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
    counts = counts_of(loss)
    if counts is not None:
        losses = with_counts(losses, lambda examples: counts(_field(examples, "y")))
    return Model(init=checked_init, loss=losses, predict=predict)


def _check_params(params: Any) -> None:
    kind, remedy = "", ""
    if isinstance(params, RoundState):
        kind, remedy = "RoundState", "state.server.params"
    elif isinstance(params, tuple) and params and isinstance(params[0], RoundState):
        kind, remedy = "tuple that begins with a RoundState", "its [0].server.params"
    if kind:
        raise TypeError(f"params must be the model's parameters, got a {kind}; pass {remedy}")


def _difference(init: Callable[[Key], Params], params: Any) -> str:
    """How `params` differ from those of `init`, in words; "" where they do not, or nobody knows."""
    try:
        expected = _shapes(jax.eval_shape(init, jax.random.key(0)))
        found = _shapes(params)
    except Exception:  # what failed first is told
        return ""
    if expected.keys() != found.keys():
        return f"expected keys {_some(expected, found)}, got {_some(found, expected)}"
    wrong = [name for name in expected if expected[name] != found[name]]
    if not wrong:
        return ""
    name = wrong[0]
    return f"expected {name or 'an array'} {list(expected[name])}, got {list(found[name])}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): jnp.shape(leaf)
        for path, leaf in leaves
    }


def _some(names: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The first names, those that the others lack before the rest."""
    ordered = sorted(names, key=lambda name: name in others)
    return f"[{', '.join(ordered[:4])}{', ...' if len(ordered) > 4 else ''}]"


def _field(examples: Any, name: str) -> Array:
    if not isinstance(examples, Mapping):
        found = "an array" if hasattr(examples, "dtype") else f"a {type(examples).__name__}"
        raise TypeError(
            f'examples must be a dict with "x" and "y", got {found}; wrap it, {{"x": inputs, "y": '
            "labels}, in fl.data.from_arrays or in the call"
        )
    if name not in examples:
        raise TypeError(
            f'examples must be a dict with "x" and "y", no {name!r} in {list(examples)}; rename '
            'them, e.g. {"x": examples["image"], "y": examples["label"]}'
        )
    return examples[name]
