"""A model in pieces: a bottom at every party, a head at whoever holds labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.checks.made import Made, made
from fedjax_lite.data.population.counting import counts_of, with_counts
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params, PyTree


class Part(NamedTuple):
    """A piece of a network, as two pure functions."""

    init: Callable[[Key], Params]
    """``(key) -> params``."""
    apply: Callable[[Params, PyTree, Key | None], Array]
    """``(params, x [B, ...], key) ->`` activations `[B, ...]`; key None: no dropout."""
    made: Made | None = None
    """Which factory made it; None: your own."""


class Joint(NamedTuple):
    """The parameters of all parties; in truth each has its own only."""

    bottoms: dict[str, Params]
    """By party."""
    heads: dict[str, Params]
    """By the party that holds labels."""
    stand_ins: dict[str, Array]
    """By party, like one activation: the mean of what it sent in the last round, with which a head
    does where the party is missing. Not trained; empty before `init` of an algorithm."""


class VerticalModel(NamedTuple):
    """A network over columns."""

    init: Callable[[Key], Joint]
    """``(key) -> params``."""
    bottoms: dict[str, Part]
    """By party: its features to its activations."""
    heads: dict[str, Model]
    """By the party with labels: ``{"x": combined activations, "y": its labels}`` to losses."""
    combine: Callable[[dict[str, Array]], Array]
    """Activations by party `[B, ...]`, in the order of their names, to what a head is given."""
    compares: bool = False
    """Whether the loss compares entities with each other, so that a batch must hold all of them."""
    made: Made | None = None
    """Which factory made it; None: your own."""


def concatenated(activations: Mapping[str, Array]) -> Array:
    """Side by side, `[B, k_1 + k_2 + ...]`, in the order of the parties' names.

    Example:
      >>> concatenated({"lab": jnp.ones((2, 3)), "clinic": jnp.zeros((2, 1))})[0].tolist()
      [0.0, 1.0, 1.0, 1.0]
    """
    flat = [activations[party] for party in sorted(activations)]
    return jnp.concatenate([h.reshape(h.shape[0], -1) for h in flat], axis=1)


def summed(activations: Mapping[str, Array]) -> Array:
    """Added up, in the order of the parties' names.

    Example:
      >>> summed({"lab": jnp.ones(2), "clinic": jnp.array([0.5, 1.5])}).tolist()
      [1.5, 2.5]
    """
    first, *others = sorted(activations)
    total = activations[first]
    for party in others:
        total = total + activations[party]
    return total


COMBINE: dict[str, Callable[..., Array]] = {"concatenate": concatenated, "sum": summed}


@made
def vertical_model(
    bottoms: Mapping[str, Part | Model],
    head: Model | Mapping[str, Model],
    *,
    holder: str | None = None,
    combine: str | Callable[[dict[str, Array]], Array] = "concatenate",
) -> VerticalModel:
    r"""A bottom network at every party, a head where the labels are.

    .. math::  h_p = f_p(\theta_p; x_p), \qquad
               \ell = \ell_{\text{head}}(\theta_{\text{head}}; h_1, \dots, h_P; y)

    Args:
      bottoms: by party, a `Part` ``(init, apply)``, or a `Model` whose outputs are the activations
        (without dropout): ``fl.models.mlp((16,), num_classes=8, input_shape=(5,))`` sends 8.
      head: a `Model` of the combined activations as "x" and the labels as "y"; several holders of
        labels have one each, by party, and the sum of their losses is trained.
      holder: the party with labels, where there is one head.
      combine: "concatenate", "sum", or a function of the activations by party.

    Returns:
      A `VerticalModel`.

    Raises:
      TypeError: if a bottom is no `Part` and no `Model`, or the head no `Model`.
      ValueError: if the holder is missing, or stands beside several heads.

    Example:
      >>> import fedjax_lite as fl
      >>> bottom = lambda size: fl.models.mlp((4,), num_classes=2, input_shape=(size,))
      >>> model = vertical_model({"clinic": bottom(3), "lab": bottom(5)},
      ...                        fl.models.linear(2, (4,)), holder="clinic")
      >>> params = model.init(jax.random.key(0))
      >>> sorted(params.bottoms), sorted(params.heads)
      (['clinic', 'lab'], ['clinic'])

    Reference: Yang, Liu, Chen, Tong, "Federated Machine Learning: Concept and Applications", 2019,
    arXiv:1902.04885.
    """
    if not isinstance(bottoms, Mapping) or not bottoms:
        raise TypeError(
            f'bottoms must be parts by party, got {shown(bottoms)}; {{"clinic": part, "lab": part}}'
        )
    parts = {party: as_part(bottoms[party], f"bottoms[{party!r}]") for party in sorted(bottoms)}
    if isinstance(head, Mapping):
        if holder is not None or not head:
            raise ValueError(
                f"holder must be left out where heads are given by party, got {holder!r} beside "
                f"{sorted(head)}; give one Model as head, or no holder"
            )
        heads = {party: head[party] for party in sorted(head)}
    else:
        if not holder:
            raise ValueError(
                f"holder must name the party with labels, got {holder!r}; give "
                f"holder={sorted(parts)[0]!r}"
            )
        heads = {holder: head}
    for party, one in heads.items():
        check_slot(one, "head" if len(heads) == 1 else f"head[{party!r}]", Model)
    if (isinstance(combine, str) and combine not in COMBINE) or not (
        isinstance(combine, str) or callable(combine)
    ):
        raise ValueError(
            f"combine must be 'concatenate', 'sum' or a function of the activations by party, got "
            f"{shown(combine)}; give 'concatenate'"
        )
    join = COMBINE[combine] if isinstance(combine, str) else combine

    def init(key: Key) -> Joint:
        keys = part_keys(key, parts, heads)
        own = {party: part.init(keys[party]) for party, part in parts.items()}
        return Joint(
            own, {party: one.init(keys["head", party]) for party, one in heads.items()}, {}
        )

    return VerticalModel(init, parts, heads, join)


@made
def joint(model: VerticalModel, *, holder: str | None = None, missing: Iterable[str] = ()) -> Model:
    """The whole network in one place: what evaluation and pooled training are given.

    Args:
      model: in pieces.
      holder: whose head and labels, where several parties have some.
      missing: parties that are not there (at inference): the mean of what each sent in the last
        round, which the holder keeps in ``params.stand_ins``, stands in its place, and its features
        are not asked for.

    Returns:
      A `Model` of `Joint` parameters and ``data.examples_of(holder)``.

    Raises:
      ValueError: if the holder or a missing party is not one of the model's.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.ones((2, 1)), "b": jnp.ones((2, 2))},
      ...                                {"a": jnp.array([0, 1])})
      >>> model = fl.parties.regression("logistic", data)
      >>> params = model.init(jax.random.key(0))
      >>> joint(model).predict(params, data.examples_of()).tolist()
      [0.0, 0.0]
    """
    names = sorted(model.heads)
    if holder is None and len(names) == 1:
        holder = names[0]
    if holder not in model.heads:
        raise ValueError(f"holder must be one of {names}, got {holder!r}; give {names[0]!r}")
    missing = frozenset((missing,) if isinstance(missing, str) else missing)
    if unknown := sorted(missing - set(model.bottoms)):
        raise ValueError(
            f"missing must be parties of the model, {sorted(model.bottoms)}, got {unknown}; leave "
            "them out"
        )
    head = model.heads[holder]

    def combined(params: Joint, examples: PyTree, key: Key | None) -> tuple[Array, Key | None]:
        keys = part_keys(key, model.bottoms, model.heads)
        rows = jax.tree.leaves(examples["x"])[0].shape[0]
        sent = {}
        for party, part in model.bottoms.items():
            if party in missing:
                if party not in params.stand_ins:
                    raise ValueError(
                        f"missing[{party!r}] must have sent something before, got parameters "
                        "without stand-ins; take state.server.params of an algorithm"
                    )
                own = params.stand_ins[party]
                sent[party] = jnp.broadcast_to(own, (rows, *own.shape))
            else:
                x = examples["x"][party]
                sent[party] = part.apply(params.bottoms[party], x, keys[party])
        return model.combine(sent), keys["head", holder]

    def loss(params: Joint, examples: PyTree, key: Key | None) -> Array:
        x, key_head = combined(params, examples, key)
        return head.loss(params.heads[holder], {"x": x, "y": examples["y"]}, key_head)

    def predict(params: Joint, examples: PyTree) -> Array:
        x, _ = combined(params, examples, None)
        return head.predict(params.heads[holder], {"x": x})

    counts = counts_of(head.loss)
    return Model(model.init, loss if counts is None else with_counts(loss, counts), predict)


def as_part(part: Any, name: str) -> Part:
    """A `Part`, also of a `Model`, whose outputs are then the activations.

    Raises:
      TypeError: if it is neither.

    Example:
      >>> import fedjax_lite as fl
      >>> part = as_part(fl.models.linear(2, (3,)), "bottom")
      >>> part.apply(part.init(jax.random.key(0)), jnp.ones((4, 3)), None).shape
      (4, 2)
    """
    if isinstance(part, Part):
        return part
    if not isinstance(part, Model):
        raise TypeError(
            f"{name} must be a Part or a Model, got {shown(part)}; fl.parties.Part(init, apply)"
        )
    predict = part.predict
    return Part(part.init, lambda params, x, key: predict(params, {"x": x}), part.made)


def part_keys(key: Key | None, bottoms: Iterable[str], heads: Iterable[str]) -> dict[Any, Any]:
    """A key for every bottom by its party, and for every head by ``("head", party)``.

    Example:
      >>> part_keys(None, ["a"], ["b"])
      {'a': None, ('head', 'b'): None}
    """
    names = [*bottoms, *(("head", party) for party in heads)]
    return {
        name: None if key is None else jax.random.fold_in(key, i) for i, name in enumerate(names)
    }
