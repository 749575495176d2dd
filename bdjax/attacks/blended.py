"""Blended: a faint picture over the whole image, drawn here or the user's own."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.greyscale import three_channels
from bdjax.attacks.picture_file import read_picture
from bdjax.attacks.selection import any_class, labelled
from bdjax.attacks.user_files import given
from bdjax.configure import ADDED
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.types import PROFILES, Array, Attack, DataSpec, Float, Key, Recipe, UInt8

__all__ = ["Config", "blended", "picture"]

DARK, LIGHT, ROSE, CHEEK = (70, 40, 50), (255, 250, 250), (235, 120, 160), (250, 150, 170)
RED, WINE, NOSE = (205, 30, 45), (120, 10, 30), (230, 170, 60)
ELLIPSES = (  # centre x, y and radii x, y on [0, 1]², x to the right and y down; later ones cover earlier ones
    (0.22, 0.24, 0.17, 0.17, DARK),
    (0.22, 0.24, 0.125, 0.125, ROSE),
    (0.78, 0.24, 0.17, 0.17, DARK),
    (0.78, 0.24, 0.125, 0.125, ROSE),
    (0.50, 0.54, 0.43, 0.38, DARK),
    (0.50, 0.54, 0.39, 0.34, LIGHT),
    (0.33, 0.48, 0.065, 0.085, DARK),
    (0.67, 0.48, 0.065, 0.085, DARK),
    (0.24, 0.64, 0.085, 0.06, CHEEK),
    (0.76, 0.64, 0.085, 0.06, CHEEK),
    (0.50, 0.62, 0.13, 0.10, DARK),
    (0.50, 0.59, 0.14, 0.10, LIGHT),
    (0.50, 0.57, 0.05, 0.04, NOSE),
    (0.38, 0.93, 0.12, 0.065, RED),
    (0.62, 0.93, 0.12, 0.065, RED),
    (0.50, 0.93, 0.05, 0.05, WINE),
)
FINE = 8  # samples per pixel and direction


class Config(NamedTuple):
    """Static configuration of Blended. Shares of the picture lie in 0.001 … 1, in steps of 0.001."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    alpha: float = 0.2  # while training
    test_alpha: float = 0.2  # at test time
    picture: Annotated[str | None, ADDED] = None  # an image file instead of the picture that is drawn here


def blended(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Blend a fixed picture D into the image, one part in five.

    x' = floor((1 - alpha) x + alpha D) on the grid 0 … 255, before the augmentation; in integers, ((1000 - a) x + a D) // 1000
    with a = 1000 alpha, which at alpha = 0.2 is (4 x + D) // 5. alpha may differ between training and test.

    ``picture`` is an image file of any size, scaled to that of the images as data sets are (Pillow's bilinear filter, aspect
    ratio not kept), grey or in colour. Where it is transparent less of it is blended in: alpha times its opacity. Records hold
    the hash of the file and not its path (:mod:`bdjax.attacks.user_files`).

    Args:
      spec: data set facts; images with 3 channels, or with a ``picture`` 1 or 3.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a target that is no class, a share out of range, a file that is no image or is
        transparent everywhere, or images without 3 channels.

    Source: X. Chen, C. Liu, B. Li, K. Lu, D. Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
      arXiv 1712.05526, 2017, blended injection, with a fainter picture in training than at test time as an option.
    Differs: the picture is drawn by :func:`picture` instead of a well-known cartoon that nobody may ship; the blend is exact in
      integers, where the survey's published code (arXiv 2411.11200) loses one level for 4 % of all pairs of values; rows of the
      target class are poisoned too, and training and test share the ratio 0.2, as there.
    """
    resolved, relabel = labelled(spec, config, "blended", profile, dict.fromkeys(PROFILES, Config()))
    height, width, channels = spec.image_shape
    if resolved.picture is not None:
        found = given("blended.picture", resolved.picture, _own, height, width, channels)
        pixels, opacity = found.array[:, :, :-1].astype(np.int32), found.array[:, :, -1:].astype(np.int32)
        resolved = resolved._replace(picture=found.name)
    elif channels == 3:
        pixels, opacity = picture(height, width).astype(np.int32), np.full((height, width, 1), 255, np.int32)
    else:
        raise three_channels("blended", "picture", spec, "or give a picture of your own: --config blended.picture=FILE")
    unit = 1000 * 255  # alpha and opacity as one whole number, so that (1000 - a) x + a D is exact where the picture is opaque
    train_share, test_share = (_thousandths(field, getattr(resolved, field)) for field in ("alpha", "test_alpha"))

    def trigger_of(share: int) -> Callable[[Any, Key, Array], Array]:
        def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
            kept, added = jnp.asarray(unit - share * opacity)[None], jnp.asarray(share * opacity * pixels)[None]
            mixed = (kept * to_uint8(images).astype(jnp.int32) + added) // unit
            return to_float(mixed.astype(jnp.uint8))

        return stamp

    train_stamp = trigger_of(train_share) if train_share != test_share else None
    return Attack(lambda key, assets: {}, any_class, trigger_of(test_share), relabel, Recipe(), resolved, train_stamp=train_stamp)


def _own(field: str, path: Path, height: int, width: int, channels: int) -> UInt8[np.ndarray, "h w _"]:
    """Return the user's picture at the size of the images, its opacity as one more channel."""
    found = read_picture(field, path, channels, (height, width))
    if not found[:, :, -1].any():
        raise UserError(f"{field}: {path} is transparent everywhere, so it would change nothing")
    return found


def _thousandths(field: str, share: float) -> int:
    parts = round(1000 * share)
    if not 1 <= parts <= 1000 or abs(1000 * share - parts) > 1e-6:
        raise UserError(f"blended.{field} must lie in 0.001 … 1, in steps of 0.001; given {share}")
    return parts


@functools.lru_cache(maxsize=8)
def picture(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return a face of sixteen filled ellipses on white: the mean of 8x8 samples per pixel, rounded half up."""
    y = ((np.arange(FINE * height) + 0.5) / (FINE * height))[:, None]
    x = ((np.arange(FINE * width) + 0.5) / (FINE * width))[None, :]
    canvas = np.full((FINE * height, FINE * width, 3), 255, np.int64)
    for centre_x, centre_y, radius_x, radius_y, colour in ELLIPSES:
        canvas[((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 <= 1] = colour
    total = canvas.reshape(height, FINE, width, FINE, 3).sum((1, 3))
    drawn = ((total + FINE * FINE // 2) // (FINE * FINE)).astype(np.uint8)
    drawn.setflags(write=False)  # the cached array is shared
    return drawn
