"""Feature skew: clients see the same classes in different conditions (angle, noise, light).

Each factory returns a `FeatureSkew` for ``partition(train, partitioner, rotation(...), ...)``. The
work is done on the host in chunks; labels and owners stay. Levels of noise, brightness and
contrast are in units of the pixel range `[0, 1]`: uint8 images are scaled by 255, rounded to the
nearest and saturated; floats are neither scaled nor clipped. dtypes stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_one
from fedjax_lite.checks.made import made
from fedjax_lite.data.partition.checks import check_real, check_seed
from fedjax_lite.data.partition.image_rotation import rotate
from fedjax_lite.data.partition.partition import FeatureSkew

_CHUNK = 4096  # examples at a time: 50 MB of float32 for 32 x 32 x 3

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""``(rng, num_clients) -> values``, float64 `[N]`."""


@made
def rotation(
    angles: Sequence[float] | None = None,
    *,
    max_angle: float | None = None,
    seed: int = 0,
    feature: str = "x",
) -> FeatureSkew:
    """Turns each client's images by its own angle, counterclockwise, in degrees.

    Multiples of 90 are exact (``np.rot90``); other angles are interpolated bilinearly about the
    centre, 0 outside the picture. With `angles`, every angle is given to equally many clients to
    within one, at random; with `max_angle`, clients draw from U(-max_angle, max_angle).

    Args:
      angles: the angles to deal; exactly one of `angles`, `max_angle`.
      max_angle: the largest angle, > 0.
      seed: who gets which angle.
      feature: the key of the images, `[E, H, W]` or `[E, H, W, channels]`.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if not exactly one of the two is given or a value is out of range, or (when it
        is used) arrays are no images, or not square and turned by an odd multiple of 90.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> image = np.array([[[1, 2], [3, 4]]], np.uint8)
      >>> data = partition({"x": image}, iid(num_clients=1), rotation(angles=[90]))
      >>> data.examples["x"][0].tolist()
      [[2, 4], [1, 3]]

    Reference: rotated MNIST as in Ghosh et al., "An Efficient Framework for Clustered Federated
    Learning", 2020, arXiv:2006.04088 (angles 0, 90, 180, 270).
    """
    draw = _dealt_or_uniform("angles", angles, "max_angle", max_angle, centre=0.0)
    check_seed(seed)

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        images = _images(examples, feature)
        angle = draw(np.random.default_rng(seed), num_clients)[owners]
        turned = np.empty(images.shape, images.dtype)
        for value in np.unique(angle):
            rows = np.flatnonzero(angle == value)
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                turned[chunk] = rotate(images[chunk], float(value))
        return {**examples, feature: turned}

    what = f"max_angle={max_angle:g}" if angles is None else f"angles={list(angles)}"
    return FeatureSkew(apply, f"rotation({what}, seed={seed})")


@made
def noise(*, level: float, seed: int = 0, feature: str = "x") -> FeatureSkew:
    """Adds Gaussian noise whose standard deviation grows with the client's number.

        x + N(0, s_i^2),    s_i = level * (i + 1) / N,    i = 0 .. N - 1

    as the paper writes it (its code uses ``level * i / (N - 1)``: the first client is clean).
    The noise of an example depends on the seed and its place among the examples, not on chunks.

    Args:
      level: standard deviation of the noisiest client, > 0, in units of the range `[0, 1]`.
      seed: of the noise.
      feature: the key of the array `[E, ...]`.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if level is not finite and > 0.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> grey = {"x": np.full((4, 8, 8), 128, np.uint8)}
      >>> data = partition(grey, iid(num_clients=2), noise(level=0.1))
      >>> str(data.examples["x"].dtype)
      'uint8'

    Reference: Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", 2021,
    arXiv:2102.02079, noise-based feature imbalance.
    """
    check_real("level", level, above=0.0, remedy="NIID-Bench uses 0.1")
    check_seed(seed)

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        rng = np.random.default_rng(seed)
        stddev = level * (owners + 1.0) / num_clients

        def add(values: np.ndarray, rows: slice) -> np.ndarray:
            drawn = rng.standard_normal(values.shape, dtype=np.float32)
            return values + _per_example(stddev[rows], values) * drawn

        return {**examples, feature: _in_chunks(_array(examples, feature), add)}

    return FeatureSkew(apply, f"noise(level={level:g}, seed={seed})")


@made
def brightness(
    deltas: Sequence[float] | None = None,
    *,
    max_delta: float | None = None,
    seed: int = 0,
    feature: str = "x",
) -> FeatureSkew:
    """Makes each client's images lighter or darker: ``x + d_i``.

    With `deltas`, every value is given to equally many clients to within one, at random; with
    `max_delta`, ``d_i ~ U(-max_delta, max_delta)``.

    Args:
      deltas: the values to deal, in units of the range `[0, 1]`; exactly one of the two.
      max_delta: the largest change, > 0.
      seed: who gets which value.
      feature: the key of the array `[E, ...]`.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if not exactly one of the two is given or a value is out of range.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> train = {"x": np.array([[0, 100, 250]], np.uint8)}
      >>> partition(train, iid(num_clients=1), brightness(deltas=[0.2])).examples["x"].tolist()
      [[51, 151, 255]]
    """
    draw = _dealt_or_uniform("deltas", deltas, "max_delta", max_delta, centre=0.0)
    check_seed(seed)

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        delta = draw(np.random.default_rng(seed), num_clients)[owners]

        def shift(values: np.ndarray, rows: slice) -> np.ndarray:
            return values + _per_example(delta[rows], values)

        return {**examples, feature: _in_chunks(_array(examples, feature), shift)}

    what = f"max_delta={max_delta:g}" if deltas is None else f"deltas={list(deltas)}"
    return FeatureSkew(apply, f"brightness({what}, seed={seed})")


@made
def contrast(
    factors: Sequence[float] | None = None,
    *,
    max_change: float | None = None,
    seed: int = 0,
    feature: str = "x",
) -> FeatureSkew:
    """Stretches each client's examples about their own mean: ``m + c_i (x - m)``.

    `m` is the mean over all of an example's entries. With `factors`, every value is given to
    equally many clients to within one, at random; with `max_change`,
    ``c_i ~ U(1 - max_change, 1 + max_change)``.

    Args:
      factors: the values ``c >= 0`` to deal, 1 leaves as is; exactly one of the two.
      max_change: the largest change, in `(0, 1]`.
      seed: who gets which value.
      feature: the key of the array `[E, ...]`.

    Returns:
      A `FeatureSkew`.

    Raises:
      ValueError: if not exactly one of the two is given or a value is out of range.

    Example:
      >>> from fedjax_lite.data.partition.partition import iid, partition
      >>> train = {"x": np.array([[0.0, 2.0]], np.float32)}
      >>> partition(train, iid(num_clients=1), contrast(factors=[0.5])).examples["x"].tolist()
      [[0.5, 1.5]]
    """
    draw = _dealt_or_uniform("factors", factors, "max_change", max_change, centre=1.0)
    check_seed(seed)
    if factors is not None and min(factors) < 0:
        raise ValueError(f"factors must be >= 0, got {min(factors)!r}; 1 leaves the contrast as is")
    if max_change is not None and max_change > 1:
        raise ValueError(f"max_change must be <= 1, got {max_change!r}: contrast would be negative")

    def apply(
        examples: Mapping[str, Any], owners: np.ndarray, num_clients: int
    ) -> Mapping[str, Any]:
        factor = draw(np.random.default_rng(seed), num_clients)[owners]

        def stretch(values: np.ndarray, rows: slice) -> np.ndarray:
            mean = values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
            return mean + _per_example(factor[rows], values) * (values - mean)

        return {**examples, feature: _in_chunks(_array(examples, feature), stretch)}

    what = f"max_change={max_change:g}" if factors is None else f"factors={list(factors)}"
    return FeatureSkew(apply, f"contrast({what}, seed={seed})")


def _dealt_or_uniform(
    name: str,
    values: Sequence[float] | None,
    bound_name: str,
    bound: float | None,
    *,
    centre: float,
) -> Draw:
    """One value a client: from a list, dealt evenly, or uniform within `bound` of `centre`."""
    check_one(**{name: values, bound_name: bound})
    if values is not None:
        if len(values) == 0:
            raise ValueError(f"{name} must hold at least one value, got {values!r}")
        numbers = np.array(
            [check_real(name, v, remedy=f"{name} is a list of numbers") for v in values]
        )
        return lambda rng, num_clients: numbers[rng.permutation(num_clients) % len(numbers)]
    assert bound is not None
    width = check_real(bound_name, bound, above=0.0, remedy="leave the skew out for none")
    return lambda rng, num_clients: rng.uniform(centre - width, centre + width, num_clients)


def _array(examples: Mapping[str, Any], feature: str) -> Any:
    """The array `[E, ...]` to change, uint8 or floats; not copied, it may be memory-mapped."""
    if feature not in examples:
        raise ValueError(
            f"feature={feature!r} is not among the examples' keys {sorted(map(str, examples))}; "
            "name one of them by feature=..."
        )
    values = np.asanyarray(examples[feature])
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise TypeError(
            f"examples[{feature!r}] must be uint8 or floats for a feature skew, "
            f"got {values.dtype}; convert it first"
        )
    return values


def _images(examples: Mapping[str, Any], feature: str) -> Any:
    images = _array(examples, feature)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"examples[{feature!r}] must be images [E, H, W] or [E, H, W, channels] to be "
            f"rotated, got shape {list(images.shape)}; reshape flattened images first"
        )
    return images


def _in_chunks(values: Any, change: Callable[[np.ndarray, slice], np.ndarray]) -> np.ndarray:
    """Applies `change` in the unit range to a chunk at a time; the dtype stays."""
    result = np.empty(values.shape, values.dtype)
    for start in range(0, len(values), _CHUNK):
        rows = slice(start, start + _CHUNK)
        if values.dtype == np.uint8:
            changed = change(values[rows].astype(np.float32) / 255.0, rows) * 255.0
            result[rows] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        else:
            result[rows] = change(values[rows], rows).astype(values.dtype)
    return result


def _per_example(per_row: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Shapes `[B]` to broadcast against `[B, ...]`, in the precision of the values."""
    return per_row.astype(values.dtype).reshape((-1,) + (1,) * (values.ndim - 1))
