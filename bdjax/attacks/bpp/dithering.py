"""Floyd-Steinberg dithering: fewer colours, whose rounding error is passed on to the pixels that follow."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from bdjax.types import Array, Int, UInt8

FINE = 15  # bits: pixels are whole numbers of 2^-15 / (levels - 1) grey levels, so that no platform rounds otherwise


def dithered(pixels: UInt8[Array, "n h w c"], levels: int) -> UInt8[Array, "n h w c"]:
    """Return images with fewer values per channel, quantised with Floyd-Steinberg dithering.

    Pixels are visited row by row from the left. v = pixel + the error it was passed; k = floor(v (levels - 1) / 255 + 1/2), cut
    to 0 … levels - 1; the error v - 255 k / (levels - 1) is passed on: 7/16 of it to the right, 1/16 down and right, 5/16 down,
    3/16 down and left. What would leave the image is lost. Channels and images are independent.

    A pixel needs only those to its left and above, so all pixels with one x + 2 y are computed at once, in w + 2 h - 2 steps of a
    scan. The arithmetic is that of whole numbers of 2^-15 / (levels - 1) grey levels: equal on every platform, compiled or not.

    Args:
      pixels: of the images.
      levels: 2 … 256, static.

    Returns:
      round(255 k / (levels - 1)), which has the level k.

    Source: R. W. Floyd, L. Steinberg, "An Adaptive Algorithm for Spatial Grey Scale", Proceedings of the Society for Information
      Display 17, 1976; for Bpp: Z. Wang, J. Zhai, S. Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural
      Networks via Image Quantization and Contrastive Adversarial Learning", CVPR 2022.
    Differs: the published code of Bpp computes in floating point and rounds ties to even; here an error passed on is rounded to
      2^-15 / (levels - 1) grey levels and ties go up. Both choose another level only where a value lies that close to the middle
      between two.
    """
    n, h, w, c = pixels.shape
    step = 255 << FINE  # between two levels
    y = np.arange(h)
    column = np.arange(w + 2 * (h - 1))[:, None] - 2 * y  # i64[steps h]: the column that row y has come to
    inside = (column >= 0) & (column < w)
    waiting = pixels.transpose(1, 2, 0, 3)[y, np.clip(column, 0, w - 1)].astype(jnp.int32) * ((levels - 1) << FINE)

    def above(error: Int[Array, "h n c"]) -> Int[Array, "h n c"]:
        """Return the error of the row above, at every row; nothing is above the first."""
        return jnp.concatenate([jnp.zeros_like(error[:1]), error[:-1]])

    def visit(errors: tuple[Array, Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], Array]:
        one, two, three = errors  # of the last steps: to the left and above right, above, above left
        value, real = at
        passed = 7 * one + 3 * above(one) + 5 * above(two) + above(three)
        value = value + ((passed + 8) >> 4)
        k = jnp.clip((value + step // 2) // step, 0, levels - 1)
        error = jnp.where(real[:, None, None], value - k * step, 0)
        return (error, one, two), k

    nothing = jnp.zeros((h, n, c), jnp.int32)
    _, found = lax.scan(visit, (nothing, nothing, nothing), (waiting, jnp.asarray(inside)))
    level = found[np.arange(w)[None, :] + 2 * y[:, None], y[:, None]].transpose(2, 0, 1, 3)
    return ((2 * 255 * level + levels - 1) // (2 * (levels - 1))).astype(jnp.uint8)
