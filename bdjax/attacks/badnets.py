"""BadNets: an opaque white patch in the corner."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.selection import Config, any_class, labelled
from bdjax.data.augment import to_float
from bdjax.errors import UserError
from bdjax.types import Array, Attack, DataSpec, Key, Recipe

__all__ = ["Config", "badnets", "patch"]

BASE, SIDE = 32, 3  # the patch is a block of SIDE pixels on a map of BASE pixels


def badnets(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Replace the bottom-right corner by a white patch.

    x' = T where T > 0, else x, per pixel and channel, with the map T of :func:`patch`, before the augmentation, while training
    and at test time alike. A random crop may cut the patch off.

    Args:
      spec: data set facts; images of at least 3x3 pixels.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a target that is no class, or smaller images.

    Source: T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
      arXiv 1708.06733, 2017.
    Differs: as in the survey (arXiv 2411.11200) the patch lies in the very corner and rows of the target class are poisoned too;
      above 32 pixels the patch is the 32-pixel map enlarged bilinearly, so its upper and left border is dark. Below 32 pixels
      (digits) it stays a crisp 3x3 block instead of shrinking.
    """
    resolved, relabel = labelled(spec, config, "badnets", profile)
    height, width, channels = spec.image_shape
    if min(height, width) < SIDE:
        raise UserError(f"badnets needs images of at least {SIDE}x{SIDE} pixels; {spec.name} has {height}x{width}")
    pixels = np.repeat(patch(height, width)[:, :, None], channels, axis=2)

    def stamp(trigger: Any, key: Key, images: Array) -> Array:
        visible = jnp.asarray(pixels > 0)[None]
        return jnp.where(visible, to_float(jnp.asarray(pixels))[None], images)

    return Attack(lambda key, assets: {}, any_class, stamp, relabel, Recipe(), resolved)


def patch(height: int, width: int) -> np.ndarray:
    """The trigger map u8[h w]; 0 is transparent.

    T[i, j] = round(255 u_i v_j), where u and v are the rows and columns of the patch, in [0, 1]: with side H >= 32 the bilinear
    enlargement clip((i + 1/2) 32/H - 28.5, 0, 1) of a 3-pixel block at 32 pixels, with H < 32 the last 3 pixels themselves.
    """
    rows, columns = _profile(height), _profile(width)
    return np.floor(255 * rows[:, None] * columns[None, :] + 0.5).astype(np.uint8)


def _profile(side: int) -> np.ndarray:
    i = np.arange(side, dtype=np.float64)
    if side < BASE:
        return (i >= side - SIDE).astype(np.float64)
    return np.clip((i + 0.5) * BASE / side - (BASE - SIDE - 0.5), 0, 1)
