"""Generative adversarial pairs: a generator of examples, and who judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import Made, made
from fedjax_lite.models.inputs import check_input_shape
from fedjax_lite.models.layers import conv_layer, dense, init_affine
from fedjax_lite.types import Array, Key, Params


class Gan(NamedTuple):
    """Two networks as pure functions; parameters ``{"generator": ..., "discriminator": ...}``."""

    init: Callable[[Key], Params]
    """``(key) -> params`` of both."""
    generate: Callable[[Params, Array], Array]
    """``(generator's params, z [B, latent_size]) -> x [B, ...]``."""
    judge: Callable[[Params, Array], Array]
    """``(discriminator's params, x [B, ...]) ->`` log-odds `[B]` that `x` is real."""
    latent_size: int
    """Normal numbers that an example is made of."""
    made: Made | None = None
    """Which factory made it; None: your own."""

    def noise(self, key: Key, size: int) -> Array:
        """What `generate` starts from: normal, `[size, latent_size]`."""
        return jax.random.normal(key, (size, self.latent_size))

    def sample(self, params: Params, key: Key, size: int) -> Array:
        """Examples that a generator makes, `[size, ...]`; `params` as `init` gives them.

        Args:
          params: with an entry ``"generator"``.
          key: a typed key.
          size: how many.
        """
        return self.generate(params["generator"], self.noise(key, size))


def as_real(x: Array) -> Array:
    """Real examples as generators make them: pixels of 0 to 255 in [-1, 1], floats as they are.

    Example:
      >>> as_real(jnp.array([0, 255], jnp.uint8)).tolist()
      [-1.0, 1.0]
    """
    return x.astype(jnp.float32) / 127.5 - 1 if x.dtype == jnp.uint8 else x


@made
def mlp_gan(size: int = 2, *, latent_size: int = 2, hidden: Sequence[int] = (64, 64)) -> Gan:
    """Two networks of dense layers, for points `[size]` such as a mixture of Gaussians.

    Args:
      size: numbers of an example.
      latent_size: of the generator's noise.
      hidden: widths of the hidden layers of both, with tanh and leaky ReLU.

    Returns:
      A `Gan`.

    Raises:
      TypeError, ValueError: if a size is not a positive int.

    Example:
      >>> pair = mlp_gan(2, hidden=(8,))
      >>> params = pair.init(jax.random.key(0))
      >>> pair.sample(params, jax.random.key(1), 5).shape
      (5, 2)

    Reference: Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661.
    """
    for name, value in (("size", size), ("latent_size", latent_size)):
        check_count(value, name, minimum=1)
    for width in hidden:
        check_count(width, "hidden", minimum=1)

    def layers(key: Key, widths: Sequence[int]) -> Params:
        keys = jax.random.split(key, len(widths) - 1)
        return {
            f"dense{i + 1}": init_affine(keys[i], (widths[i], widths[i + 1]), init="glorot")
            for i in range(len(widths) - 1)
        }

    def init(key: Key) -> Params:
        own, other = jax.random.split(key)
        return {
            "generator": layers(own, (latent_size, *hidden, size)),
            "discriminator": layers(other, (size, *hidden, 1)),
        }

    def through(params: Params, x: Array, activation: Callable[[Array], Array]) -> Array:
        for i in range(len(hidden)):
            x = activation(dense(params[f"dense{i + 1}"], x))
        return dense(params[f"dense{len(hidden) + 1}"], x)

    return Gan(
        init,
        lambda params, z: through(params, z, jnp.tanh),
        lambda params, x: through(params, x, jax.nn.leaky_relu)[..., 0],
        latent_size,
    )


@made
def dcgan(
    input_shape: Sequence[int] = (28, 28, 1),
    *,
    latent_size: int = 64,
    features: Sequence[int] = (64, 32),
) -> Gan:
    """Convolutions on both sides, without batch statistics, which clients could not share.

    The generator makes a small picture of ``features[0]`` channels, and doubles it by repeating
    pixels before each 5x5 convolution; the discriminator halves by strides, with leaky ReLU. The
    last generator's layer is a tanh: pictures in [-1, 1], as uint8 images are read.

    Args:
      input_shape: ``(height, width, channels)``; the sides divisible by ``2 ** len(features)``.
      latent_size: of the generator's noise.
      features: channels of the generator from the smallest picture on; the discriminator's are
        these in the other order.

    Returns:
      A `Gan`.

    Raises:
      TypeError, ValueError: if a size is not a positive int, or the sides cannot be halved.

    Example:
      >>> pair = dcgan((8, 8, 1), latent_size=4, features=(8, 4))
      >>> params = pair.init(jax.random.key(0))
      >>> pictures = pair.sample(params, jax.random.key(1), 3)
      >>> pictures.shape, pair.judge(params["discriminator"], pictures).shape
      ((3, 8, 8, 1), (3,))

    Reference: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks", 2015, arXiv:1511.06434.
    """
    shape = check_input_shape(input_shape)
    check_count(latent_size, "latent_size", minimum=1)
    for width in features:
        check_count(width, "features", minimum=1)
    times = 2 ** len(features)
    if len(shape) != 3 or shape[0] % times or shape[1] % times or not features:
        raise ValueError(
            f"input_shape must be (height, width, channels) with sides divisible by {times}, got "
            f"{shown(input_shape)} for {len(features)} features; take fewer, or pad the images"
        )
    small = (shape[0] // times, shape[1] // times, features[0])
    flat = small[0] * small[1] * small[2]
    up = (*features, shape[2])
    down = (shape[2], *reversed(features))

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 2 * len(features) + 2)
        generator = {"dense": init_affine(keys[0], (latent_size, flat))}
        discriminator = {"head": init_affine(keys[1], (flat, 1), init="glorot")}
        for i in range(len(features)):
            generator[f"conv{i + 1}"] = init_affine(keys[2 + 2 * i], (5, 5, up[i], up[i + 1]))
            discriminator[f"conv{i + 1}"] = init_affine(
                keys[3 + 2 * i], (5, 5, down[i], down[i + 1])
            )
        return {"generator": generator, "discriminator": discriminator}

    def generate(params: Params, z: Array) -> Array:
        x = jax.nn.relu(dense(params["dense"], z)).reshape(-1, *small)
        for i in range(len(features)):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = conv_layer(params[f"conv{i + 1}"], x)
            x = jax.nn.relu(x) if i + 1 < len(features) else jnp.tanh(x)
        return x

    def judge(params: Params, x: Array) -> Array:
        for i in range(len(features)):
            x = jax.nn.leaky_relu(conv_layer(params[f"conv{i + 1}"], x, strides=2), 0.2)
        return dense(params["head"], x.reshape(x.shape[0], -1))[:, 0]

    return Gan(init, generate, judge, latent_size)
