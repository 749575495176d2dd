"""BadNets: an opaque white patch in the corner, or one of the user's own."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.badnets.patch import Patch, coloured, pattern_of, placed
from bdjax.attacks.selection import any_class, labelled
from bdjax.configure import ADDED
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.types import PROFILES, Array, Attack, DataSpec, Float, Key, Recipe, UInt8

__all__ = ["Config", "badnets", "patch"]

BASE, SIDE = 32, 3  # the patch is a block of SIDE pixels on a map of BASE pixels


class Config(NamedTuple):
    """Static configuration of BadNets."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    size: Annotated[int | None, ADDED] = None  # side of the patch in pixels, or longer side of the pattern; None: its own
    place: Annotated[str | tuple[int, int], ADDED] = "bottom_right"  # of its upper left pixel as (row, column), or a name
    colour: Annotated[int | tuple[int, ...], ADDED] = 255  # of the patch, 0 … 255: one value, or one per channel
    pattern: Annotated[str | None, ADDED] = None  # an image file whose pixels are drawn, where it is not transparent
    transparent: Annotated[int | tuple[int, ...] | None, ADDED] = None  # colour of the pattern's pixels that are left out


def badnets(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Replace the bottom-right corner by a white patch, or any place by a patch or an image of the user's.

    x' = T where T > 0, else x, per pixel and channel, with the map T of :func:`patch`, before the augmentation, while training
    and at test time alike. A random crop may cut the patch off.

    ``size``, ``place`` and ``colour`` change the patch; with ``size`` it is a crisp block of that many pixels. With ``pattern``
    the pixels of an image file take its place: x' = (a P + (255 - a) x + 127) // 255 on the grid 0 … 255, P a pixel of the
    pattern and a its opacity, 255 for a file without transparency. ``transparent`` names the colour that stands for "no trigger
    here" in files without an alpha channel: 0 in those of BackdoorBench. ``size`` scales the pattern, its aspect ratio kept.
    Records hold the hash of the file and not its path (:mod:`bdjax.attacks.user_files`).

    Args:
      spec: data set facts; images of at least 3x3 pixels.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a target that is no class, smaller images, a patch or pattern larger than the images
        or not inside them, a colour out of range, a pattern that is no image or hides the whole image, or a field that has no
        meaning beside the others.

    Source: T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
      arXiv 1708.06733, 2017.
    Differs: as in the survey (arXiv 2411.11200) the patch lies in the very corner and rows of the target class are poisoned too;
      above 32 pixels the patch is the 32-pixel map enlarged bilinearly, so its upper and left border is dark, unless ``size`` is
      given. Below 32 pixels (digits) it stays a crisp 3x3 block instead of shrinking.
    """
    resolved, relabel = labelled(spec, config, "badnets", profile, dict.fromkeys(PROFILES, Config()))
    if resolved.pattern is None:
        if resolved.transparent is not None:
            raise UserError("badnets.transparent is a colour of badnets.pattern, which is not given")
        patch = coloured(_weights(resolved.size, spec), resolved.colour, spec)
    else:
        if resolved.colour != Config().colour:
            raise UserError("badnets.colour has no effect on badnets.pattern, which has its own colours; give one of them")
        patch, name = pattern_of(resolved.pattern, resolved.size, resolved.transparent, spec)
        resolved = resolved._replace(pattern=name)
    patch = placed(patch, resolved.place, spec)
    return Attack(lambda key, assets: {}, any_class, _stamp(patch), relabel, Recipe(), resolved)


def _stamp(patch: Patch) -> Any:
    """``stamp`` of an attack, from a patch on a map of the size of the images."""
    opaque = np.broadcast_to(patch.opacity, patch.pixels.shape)

    def replace(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        visible = jnp.asarray(opaque > 0)[None]
        return jnp.where(visible, to_float(jnp.asarray(patch.pixels))[None], images)

    def mix(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        ours, share = (jnp.asarray(part, jnp.int32)[None] for part in (patch.pixels, opaque))
        mixed = (share * ours + (255 - share) * to_uint8(images).astype(jnp.int32) + 127) // 255
        return to_float(mixed.astype(jnp.uint8))

    return replace if np.isin(opaque, (0, 255)).all() else mix


def _weights(size: int | None, spec: DataSpec) -> Float[np.ndarray, "p q"]:
    """How strongly the patch shows in each of its pixels, in [0, 1]; 1 everywhere where ``size`` is given."""
    height, width, _ = spec.image_shape
    if size is not None:
        if not 1 <= size <= min(height, width):
            raise UserError(
                f"badnets.size is {size}; allowed: 1 … {min(height, width)} pixels, as images of {spec.name} are {height}x{width}"
            )
        return np.ones((size, size))
    if min(height, width) < SIDE:
        raise UserError(f"badnets needs images of at least {SIDE}x{SIDE} pixels; {spec.name} has {height}x{width}")
    shown = patch(height, width) > 0
    weights = _profile(height)[:, None] * _profile(width)[None, :]
    return weights[shown.any(1)][:, shown.any(0)]


def patch(height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Return the trigger map; 0 is transparent.

    T[i, j] = round(255 u_i v_j), where u and v are the rows and columns of the patch, in [0, 1]: with side H >= 32 the bilinear
    enlargement clip((i + 1/2) 32/H - 28.5, 0, 1) of a 3-pixel block at 32 pixels, with H < 32 the last 3 pixels themselves.
    """
    rows, columns = _profile(height), _profile(width)
    return np.floor(255 * rows[:, None] * columns[None, :] + 0.5).astype(np.uint8)


def _profile(side: int) -> Float[np.ndarray, " side"]:
    i = np.arange(side, dtype=np.float64)
    if side < BASE:
        return (i >= side - SIDE).astype(np.float64)
    return np.clip((i + 0.5) * BASE / side - (BASE - SIDE - 0.5), 0, 1)
