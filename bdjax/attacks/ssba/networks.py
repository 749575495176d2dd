"""SSBA's two networks: an encoder that draws an image anew with a secret in it, and a decoder that reads the secret."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bdjax.nn.convolution import lowering_here
from bdjax.nn.initial import Drawer
from bdjax.nn.layers import Conv, Linear, Pass
from bdjax.types import Array, Float, Key

MAP, PLANES = 16, 3  # the secret becomes PLANES planes of at most MAP x MAP numbers


class _Conv(nn.Module):
    """A convolution whose kernel and bias start as PyTorch's do."""

    features: int
    lowering: str
    window: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = Conv(self.features, self.window, self.stride, self.lowering, use_bias=True, bias_init=None, name="conv")
        return layer(x, Pass())


class Encoder(nn.Module):
    """A U-net over the image and three planes made of the secret; at ``width`` 32 and 32x32 pixels 1,069,315 parameters."""

    width: int
    lowering: str

    @nn.compact
    def __call__(self, secret: Float[Array, "#b bits"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def conv(x: Array, factor: int, name: str, stride: int = 1) -> Array:
            return nn.relu(_Conv(factor * self.width, self.lowering, stride=stride, name=name)(x))

        def up(x: Array, like: Array, factor: int, name: str) -> Array:
            # Zeros on the right and below only: padded on all sides, the first row and column are too many.
            x = _Conv(factor * self.width, self.lowering, window=2, name=name)(enlarged(x, like))
            return nn.relu(x[:, 1:, 1:, :])

        inputs = jnp.concatenate([self._planes(secret, images), images], -1)
        c1 = conv(inputs, 1, "c1")
        c2 = conv(c1, 1, "c2", 2)
        c3 = conv(c2, 2, "c3", 2)
        c4 = conv(c3, 4, "c4", 2)
        c5 = conv(c4, 8, "c5", 2)
        c6 = conv(jnp.concatenate([c4, up(c5, c4, 4, "u6")], -1), 4, "c6")
        c7 = conv(jnp.concatenate([c3, up(c6, c3, 2, "u7")], -1), 2, "c7")
        c8 = conv(jnp.concatenate([c2, up(c7, c2, 1, "u8")], -1), 1, "c8")
        c9 = conv(jnp.concatenate([c1, up(c8, c1, 1, "u9"), inputs], -1), 1, "c9")
        c10 = conv(c9, 1, "c10")
        return nn.sigmoid(_Conv(images.shape[-1], self.lowering, window=1, name="out")(c10))

    def _planes(self, secret: Float[Array, "#b bits"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        rows, columns = (min(MAP, side) for side in images.shape[1:3])
        planes = nn.relu(Linear(PLANES * rows * columns, name="secret")(secret))
        planes = planes.reshape(-1, PLANES, rows, columns).transpose(0, 2, 3, 1)
        return jnp.broadcast_to(enlarged(planes, images), (*images.shape[:3], PLANES))


class Decoder(nn.Module):
    """Seven convolutions and two linear layers, from images to the logits of the bits."""

    width: int
    bits: int
    lowering: str

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b bits"]:
        x = images
        for i, (factor, stride) in enumerate(((1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2)), 1):
            x = nn.relu(_Conv(factor * self.width, self.lowering, stride=stride, name=f"d{i}")(x))
        x = nn.relu(Linear(16 * self.width, name="hidden")(x.reshape(x.shape[0], -1)))
        return Linear(self.bits, name="logits")(x)


def enlarged(x: Float[Array, "b _ _ d"], like: Float[Array, "_ h w _"]) -> Float[Array, "b h w d"]:
    """Repeat every number of a map by whole factors, then cut at the right and below to the height and width of ``like``."""
    height, width = like.shape[1:3]
    x = jnp.repeat(jnp.repeat(x, -(-height // x.shape[1]), 1), -(-width // x.shape[2]), 2)
    return x[:, :height, :width]


def encode(params: Any, width: int, secret: Float[Array, "#b bits"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Return images with the secret in them.

    Args:
      params: the encoder's.
      width: channels of its first convolution; static.
      secret: of 0 and 1; one for every image, or one for all alike.
      images: in [0, 1], as the result is.
    """
    drawn: Array = Encoder(width, lowering_here()).apply({"params": params}, secret, images)  # type: ignore[assignment]
    return drawn


def decode(params: Any, width: int, bits: int, images: Float[Array, "b h w c"]) -> Float[Array, "b bits"]:
    """Return what the decoder reads from images in [0, 1]: logits of the bits; ``width`` and ``bits`` are static."""
    logits: Array = Decoder(width, bits, lowering_here()).apply({"params": params}, images)  # type: ignore[assignment]
    return logits


def drawers(width: int, bits: int, shape: tuple[int, int, int]) -> dict[str, Callable[[Key], dict[str, Any]]]:
    """How the parameters of both networks are drawn: {"encoder", "decoder"} of functions ``key -> {"params": …}``.

    Args:
      width: channels of the first convolutions.
      bits: length of the secret.
      shape: (h, w, c) of the images.
    """
    secret, images = jnp.zeros((1, bits), jnp.float32), jnp.zeros((1, *shape), jnp.float32)
    encoder, decoder = Encoder(width, lowering_here()), Decoder(width, bits, lowering_here())
    return {
        "encoder": Drawer(lambda key, mutable: encoder.init(key, secret, images, mutable=mutable)),
        "decoder": Drawer(lambda key, mutable: decoder.init(key, images, mutable=mutable)),
    }


def size(params: Any) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
