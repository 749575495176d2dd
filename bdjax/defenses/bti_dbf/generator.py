"""BTI-DBF's generator: a U-net that draws an image anew."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax.attacks.input_aware.networks import standardise
from bdjax.errors import UserError
from bdjax.nn.activations import leaky_relu
from bdjax.nn.convolution import convolve_transposed, lowering_here
from bdjax.nn.initial import Drawer, constant, parameter, uniform_fan_in
from bdjax.nn.layers import Conv, Pass
from bdjax.nn.normalisation import at_least_float32, row
from bdjax.nn.pooling import max_pool
from bdjax.types import Array, DataSpec, Float, Key

EPS = 1e-5  # added to the variance in the norms


class Generator(NamedTuple):
    """The network as pure functions (static)."""

    init: Callable[[Key], dict[str, Any]]  # (key) -> parameters
    apply: Callable[[Any, Array], Array]  # (parameters, images f[b h w c] in pixels) -> f[b h w c] in pixels, not cut to [0, 1]


def generator(spec: DataSpec, width: int, levels: int) -> Generator:
    """A U-net from normalised images to normalised images; at width 32 and four halvings 10,987,011 parameters.

    Levels of w, 2 w, 4 w … channels, each of two 3x3 convolutions with instance norm and leaky ReLU, and a max-pooling between
    two of them; on the way up transposed convolutions, beside whose outputs the level's own are laid. The last convolution is
    1x1; nothing bounds what it gives.

    Args:
      spec: its mean and std standardise images.
      width: w, channels at full resolution; 32 in the published code.
      levels: halvings, at most; 4 in the published code.

    Raises:
      UserError: images that cannot be halved once, with a side that is odd or shorter than 4.

    Source: the generator of X. Xu, K. Huang, Y. Li, Z. Qin, K. Ren, "Towards Reliable and Efficient Backdoor Trigger Inversion
      via Decoupling Benign Features", ICLR 2024, and its published code.
    Differs: an image is halved only as often as leaves whole maps of at least 2x2 positions: four times from 32 pixels on.
    """
    height, wide, channels = spec.image_shape
    halved = 0
    while halved < levels and all(side % 2 ** (halved + 1) == 0 and side >> halved >= 4 for side in (height, wide)):
        halved += 1
    if not halved:
        raise UserError(f"BTI-DBF's generator halves images, of even sides of at least 4 pixels; given {height}x{wide}")

    def network() -> _UNet:
        return _UNet(width, halved, channels, lowering_here())  # asked for when a program is traced, where the platform is known

    draw = Drawer(lambda key, mutable: network().init(key, jnp.zeros((1, *spec.image_shape)), mutable=mutable))

    def apply(params: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dtype = jax.tree.leaves(params)[0].dtype
        y: Array = network().apply({"params": params}, standardise(images.astype(dtype), spec))  # type: ignore[assignment]
        return y * row(jnp.asarray(spec.std, dtype), y) + row(jnp.asarray(spec.mean, dtype), y)

    return Generator(lambda key: draw(key)["params"], apply)


class _InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + ε) scale + bias, mean and biased variance over the positions of each image and channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        scale = parameter(self, "scale", constant(1), x.shape[-1:])
        bias = parameter(self, "bias", constant(0), x.shape[-1:])
        wide = x.astype(at_least_float32(x.dtype))
        away = wide - jnp.mean(wide, (1, 2), keepdims=True)
        deviation = jnp.sqrt(jnp.mean(jnp.square(away), (1, 2), keepdims=True) + jnp.asarray(EPS, wide.dtype))
        y = away / deviation * row(scale.astype(wide.dtype), x) + row(bias.astype(wide.dtype), x)
        return y.astype(x.dtype)


class _Up(nn.Module):
    """A transposed 3x3 convolution to twice the size and as many channels; it starts as PyTorch's does."""

    lowering: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w d"]:
        channels, size = x.shape[-1], (2 * x.shape[1], 2 * x.shape[2])
        shape = (3, 3, channels, channels)
        kernel = parameter(self, "kernel", uniform_fan_in, shape)
        bias = parameter(self, "bias", lambda _: uniform_fan_in(shape), (channels,))
        y = convolve_transposed(x, kernel, stride=2, padding=1, size=size, lowering=self.lowering)
        return y + row(bias, y)


class _UNet(nn.Module):
    width: int
    levels: int
    outputs: int
    lowering: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        conv = functools.partial(Conv, lowering=self.lowering, use_bias=True, bias_init=None)

        def block(x: Float[Array, "b h w _"], factor: int, name: str) -> Float[Array, "b h w d"]:
            for i in (1, 2):
                x = conv(factor * self.width, 3, name=f"{name}_conv{i}")(x, Pass())
                x = leaky_relu(_InstanceNorm(name=f"{name}_norm{i}")(x))
            return x

        beside = []
        for level in range(self.levels):
            beside.append(block(x, 2**level, f"down{level}"))
            x = max_pool(beside[-1])
        x = block(x, 2**self.levels, "middle")
        for level in reversed(range(self.levels)):
            up = leaky_relu(_Up(self.lowering, name=f"enlarge{level}")(x))
            x = block(jnp.concatenate([up, beside[level]], -1), 2**level, f"up{level}")
        y: Array = conv(self.outputs, 1, name="out")(x, Pass())
        return y
