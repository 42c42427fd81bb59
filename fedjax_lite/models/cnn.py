"""The default image model: a small convolutional network with group normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.models.conv import Form
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_shape, check_input_shape
from fedjax_lite.models.layers import (
    Init,
    check_init,
    conv_layer,
    dense,
    group_norm,
    init_affine,
    init_group_norm,
)
from fedjax_lite.models.model import Model
from fedjax_lite.models.pooling import max_pool
from fedjax_lite.types import Array, Key, Params


@made
def cnn(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    *,
    widths: Sequence[int] = (32, 48, 64),
    num_groups: int = 4,
    stem_size: int = 5,
    init: Init = "lecun",
    mean: Sequence[float] | None = (0.5,),
    std: Sequence[float] | None = (0.25,),
    form: Form = "auto",
) -> Model:
    """A small CNN with group normalisation, sized for a CPU: 46,874 parameters.

    Blocks of convolution, 2x2 max pooling (as long as 4 pixels are left), group normalisation and
    ReLU; then the logits. The first convolution halves images of 24 pixels or more. At 32x32x3 the
    default costs 3.9 MFLOP forward an example (stem 1.2, then 1.8 and 0.9), an eighth of the
    published CIFAR models; trained centrally by plain SGD (rate 0.1, batches of 50, no
    augmentation) it reaches 62 % on CIFAR-10's test images in 2 epochs, 67 % in 4 and 70 % in
    6 to 9. Group normalisation keeps no batch statistics, so it needs no decision on how clients
    share them.

    Args:
      num_classes: outputs.
      input_shape: ``(height, width, channels)``, also 28x28x1 and 8x8x1.
      widths: channels of the blocks, multiples of `num_groups`.
      num_groups: of each normalisation.
      stem_size: kernel size of the first block; the others' is 3.
      init: of the convolutions, see `layers.init_affine`. Normalisation makes their scale
        irrelevant to the output; a smaller start learns faster. The logits' is "lecun".
      mean: per channel, subtracted after scaling uint8 by 1 / 255; see `from_functions`.
      std: per channel, divided by.
      form: of the convolutions, see `conv.conv`.

    Returns:
      A `Model`; parameters "block1", ... (each "conv" and "norm") and "head".

    Raises:
      ValueError: if an argument does not fit.

    Example:
      >>> params = cnn(widths=(8, 8), input_shape=(8, 8, 1)).init(jax.random.key(0))
      >>> sorted(params)
      ['block1', 'block2', 'head']

    Reference: Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", 2020,
      arXiv:1910.00189 (why group normalisation).
    """
    shape = check_input_shape(input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}")
    check_init(init)
    check_count(num_classes, "num_classes", minimum=1)
    check_count(num_groups, "num_groups", minimum=1)
    check_count(stem_size, "stem_size", minimum=1)
    if not widths or any(n < 1 or n % num_groups for n in widths):
        raise ValueError(
            f"widths must be positive multiples of num_groups={num_groups}, got {tuple(widths)}"
        )
    strides = 2 if min(shape[:2]) >= 24 else 1
    names = [f"block{i + 1}" for i in range(len(widths))]
    sizes = _spatial_sizes(shape, strides, len(widths))

    def init_params(key: Key) -> Params:
        keys = jax.random.split(key, len(names) + 1)
        channels = (shape[-1], *widths)
        params = {}
        for i, name in enumerate(names):
            window = stem_size if i == 0 else 3
            params[name] = {
                "conv": init_affine(
                    keys[i], (window, window, channels[i], channels[i + 1]), init=init
                ),
                "norm": init_group_norm(channels[i + 1]),
            }
        height, width = sizes[-1]
        params["head"] = init_affine(
            keys[-1], (height * width * widths[-1], num_classes), init="lecun"
        )
        return params

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        del key
        x = as_shape(x, shape)
        for i, name in enumerate(names):
            x = conv_layer(params[name]["conv"], x, strides=strides if i == 0 else 1, form=form)
            # Pooling first leaves a quarter of the activations to normalise.
            if x.shape[1:3] != sizes[i]:
                x = max_pool(x)
            x = jax.nn.relu(group_norm(params[name]["norm"], x, num_groups=num_groups))
        return dense(params["head"], x.reshape(x.shape[0], -1))

    return from_functions(init_params, apply, mean=mean, std=std)


def _spatial_sizes(shape: tuple[int, ...], strides: int, num_blocks: int) -> list[tuple[int, int]]:
    """Height and width after each block: halved by pooling as long as 4 or more are left."""
    height, width = (-(-n // strides) for n in shape[:2])
    sizes = []
    for _ in range(num_blocks):
        if min(height, width) >= 4:
            height, width = height // 2, width // 2
        sizes.append((height, width))
    return sizes
