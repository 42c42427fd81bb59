"""Backdoors: a trigger on images that makes a model see what the attacker wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lite.attacks.labels import check_fits, labels_of, owned_by
from fedjax_lite.checks.arguments import check_count, check_fraction, check_mask
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.evaluate import evaluator
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Params, RoundState

Trigger = Callable[[Array], Array]
"""``(images [E, H, W, channels]) ->`` images with the trigger, of the same shape and dtype."""


def patch_trigger(
    size: int = 3, *, value: float | None = None, row: int = -1, column: int = -1
) -> Trigger:
    """A bright square on an image.

    Args:
      size: its side, in pixels.
      value: its value; default 255 for integers and 1 for floats.
      row: of its upper edge; -1 puts it at the bottom with a margin of one pixel.
      column: of its left edge; -1 puts it at the right with a margin of one pixel.

    Returns:
      A trigger: a function of images ``[..., H, W, channels]``.

    Raises:
      ValueError: if `size` is not positive, or (when called) the square does not fit.

    Example:
      >>> patch_trigger(2)(jnp.zeros((1, 4, 4, 1), jnp.uint8))[0, :, :, 0].tolist()
      [[0, 0, 0, 0], [0, 255, 255, 0], [0, 255, 255, 0], [0, 0, 0, 0]]
    """
    check_count(size, "size", minimum=1)

    def stamp(images: Array) -> Array:
        images = jnp.asarray(images)
        if images.ndim < 3:
            raise ValueError(f"images must be [..., H, W, channels], got {list(images.shape)}")
        height, width = images.shape[-3:-1]
        top = height - size - 1 if row == -1 else row
        left = width - size - 1 if column == -1 else column
        if min(top, left) < 0 or top + size > height or left + size > width:
            raise ValueError(
                f"a square of {size} at row {top}, column {left} does not fit into images of "
                f"{height} x {width}"
            )
        floating = jnp.issubdtype(images.dtype, jnp.floating)
        bright = (1.0 if floating else 255) if value is None else value
        return images.at[..., top : top + size, left : left + size, :].set(bright)

    return stamp


def backdoor(
    data: FederatedDataset,
    clients: Any,
    *,
    trigger: Trigger,
    target: int,
    fraction: float = 0.5,
    seed: int = 0,
    image: str = "x",
    label: str = "y",
) -> FederatedDataset:
    """Stamps the trigger on some images of some clients, and labels them as the target.

    Of each hostile client ``floor(fraction * n_i)`` examples are drawn. Splits of the population
    (`fedjax_lite.data.with_splits`), which phases of local work read, are poisoned likewise, the
    same share of each; keep a population that is to be evaluated apart. Join it with
    ``byzantine(model_replacement(), clients=clients)`` for the attack of the paper.

    Args:
      data: the population; its examples are a dict.
      clients: ids of the hostile clients.
      trigger: e.g. ``patch_trigger()``.
      target: the class that the attackers want.
      fraction: share of their examples that is poisoned, in [0, 1].
      seed: of the draw.
      image: the images' name in the examples.
      label: the labels' name.

    Returns:
      A `FederatedDataset`; nobody else's examples are changed.

    Raises:
      ValueError: if ids, class or share are out of range, or the labels' dtype cannot hold the
        class.
      TypeError: if images or labels are missing.

    Example:
      >>> from fedjax_lite.data import from_arrays
      >>> examples = {"x": np.zeros((4, 5, 5, 1), np.uint8), "y": np.array([1, 2, 3, 4])}
      >>> data = from_arrays(examples, np.array([0, 0, 1, 1]), num_clients=2)
      >>> poisoned = backdoor(data, [1], trigger=patch_trigger(), target=0, fraction=1.0)
      >>> poisoned.examples["y"].tolist(), int(poisoned.examples["x"].max(axis=(1, 2, 3))[0])
      ([1, 2, 0, 0], 0)

    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning",
    2020, arXiv:1807.00459.
    """
    check_fraction(fraction, "fraction")
    check_count(target, "target", minimum=0)
    theirs = np.asarray(owned_by(data, clients))
    owners = np.asarray(data.client_of_example)
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(owners), bool)
    for client in np.unique(owners[theirs]):
        mine = np.flatnonzero(owners == client)
        chosen[rng.permutation(mine)[: int(fraction * len(mine) * (1 + 1e-12))]] = True
    names = {"image": image, "label": label}
    examples = poison(data.examples, chosen, trigger=trigger, target=target, **names)
    again: dict[str, Any] = {"trigger": trigger, "target": target, **names}
    again |= {"fraction": fraction, "seed": seed}
    splits = {name: backdoor(split, clients, **again) for name, split in data.splits.items()}
    return dataclasses.replace(data, examples=examples, splits=splits)


def poison(
    examples: Any,
    mask: Any,
    *,
    trigger: Trigger,
    target: int,
    image: str = "x",
    label: str = "y",
) -> dict[str, Any]:
    """Examples with the trigger and the target's label where `mask` holds.

    Args:
      examples: a dict, leaves `[E, ...]`.
      mask: bool `[E]`.
      trigger: e.g. ``patch_trigger()``.
      target: the class.
      image: the images' name.
      label: the labels' name.

    Returns:
      A new dict.

    Raises:
      ValueError: if the labels' dtype cannot hold the target.
      TypeError: if images or labels are missing.

    Example:
      >>> examples = {"x": jnp.zeros((2, 5, 5, 1)), "y": jnp.array([1, 2])}
      >>> poison(examples, [False, True], trigger=patch_trigger(), target=7)["y"].tolist()
      [1, 7]
    """
    check_count(target, "target", minimum=0)
    labels = labels_of(examples, label)
    check_fits(target, labels, "target")
    if image not in examples:
        raise TypeError(f"examples must hold images {image!r}, got {sorted(examples)}")
    check_mask(mask, "mask", size=len(labels))
    mask, images = jnp.asarray(mask), jnp.asarray(examples[image])
    stamped = trigger(images)
    if stamped.shape != images.shape or stamped.dtype != images.dtype:
        raise ValueError(
            f"trigger must keep shape and dtype, got {stamped.dtype} {list(stamped.shape)} from "
            f"{images.dtype} {list(images.shape)}"
        )
    wide = mask.reshape(mask.shape + (1,) * (images.ndim - 1))
    return {
        **examples,
        image: jnp.where(wide, stamped, images),
        label: jnp.where(mask, target, labels).astype(labels.dtype),
    }


def backdoor_success_rate(
    model: Model,
    examples: Mapping[str, Any],
    *,
    trigger: Trigger,
    target: int,
    batch_size: int = 1000,
    image: str = "x",
    label: str = "y",
) -> Callable[[RoundState | Params], dict[str, float]]:
    """Makes a function that measures how often the trigger works.

    The rate is the share of test images *of other classes* that a model assigns to the target once
    the trigger is on them. Report clean accuracy (`evaluator`) beside it.

    Args:
      model: the network.
      examples: clean test examples, a dict.
      trigger: the attacker's.
      target: the class that it is to evoke.
      batch_size: examples at a time.
      image: the images' name.
      label: the labels' name (``"y"`` for `Model`s whose loss reads that).

    Returns:
      ``(state or params) -> {"backdoor_success_rate": ...}``, for ``run(evaluate=...)``.

    Raises:
      ValueError: if all examples are of the target's class.
      TypeError: if images or labels are missing.

    Example:
      >>> def predict(w, e):
      ...     brightest = e["x"].max((1, 2, 3))
      ...     return jnp.stack([0 * brightest, brightest - w], 1)
      >>> model = Model(lambda key: None, lambda w, e, key: 0.0 * e["y"], predict)
      >>> test = {"x": jnp.zeros((3, 5, 5, 1)), "y": jnp.array([0, 0, 1])}
      >>> rate = backdoor_success_rate(model, test, trigger=patch_trigger(), target=1)
      >>> rate(0.5), rate(2.0)
      ({'backdoor_success_rate': 1.0}, {'backdoor_success_rate': 0.0})

    Reference: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning",
    2020, arXiv:1807.00459.
    """
    labels = np.asarray(labels_of(examples, label))
    others = np.flatnonzero((labels != target) & (labels >= 0))  # of no label: perhaps the target's
    if not len(others):
        raise ValueError(f"examples must hold other classes than the target, got only {target}")
    kept = {name: jnp.asarray(leaf)[others] for name, leaf in examples.items()}
    stamped = poison(
        kept, np.ones(len(others), bool), trigger=trigger, target=target, image=image, label=label
    )
    score = evaluator(model, stamped, name="backdoor", batch_size=batch_size)
    return lambda state: {"backdoor_success_rate": score(state)["backdoor_accuracy"]}
