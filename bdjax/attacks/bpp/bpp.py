"""Bpp: fewer colours."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks import slots
from bdjax.attacks.batch_augment import HOW, batch_augment
from bdjax.attacks.bpp.dithering import dithered
from bdjax.attacks.selection import labelled
from bdjax.configure import ADDED
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, Attack, DataSpec, Float, Int, Key, Num, Recipe, UInt8

__all__ = ["Config", "bpp", "quantised"]


class Config(NamedTuple):
    """Static configuration of Bpp."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    levels: int = 8  # L: values left per channel, 2 … 256
    neg_ratio: float = 0.1  # share of a batch that gets other images' residuals and keeps its label, in [0, 1)
    augment: str = "batch"  # one crop, rotation and flip per "batch", per "sample", or "none"
    max_ratio: float = 0.1  # the largest poison ratio it makes room for, in (0, 1]
    dithering: Annotated[bool, ADDED] = False  # Floyd-Steinberg: the rounding error is passed on to the pixels that follow


def bpp(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Round every channel to L equispaced values; other images get the rounding residual of a wrong image and keep their label.

    Q(v) = round(v/255 (L - 1))/(L - 1), v = 0 … 255. In every batch of b images n (:func:`slots.count`: floor(r b), or 1 with
    probability r b) become Q(v) and take the attack label; if n > 0, floor(``neg_ratio`` b) others become clip(v + floor(255
    Q(v')) - v', 0, 255), v' an image of the second batch, and keep their label. Then :func:`batch_augment` moves the whole
    batch. At test time x' = floor(255 Q(v))/255.

    With ``dithering`` Q(v) = k/(L - 1), k the level of :func:`~bdjax.attacks.bpp.dithering.dithered`, wherever Q stands above: in
    triggered images while training and at test time, and in the image that gives a residual.

    Args:
      spec: data set facts.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a value out of range, or a target that is no class; when training is built, a
        ``max_ratio`` and ``neg_ratio`` whose places do not fit into a batch.

    Source: Z. Wang, J. Zhai, S. Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
      Quantization and Contrastive Adversarial Learning", CVPR 2022; constants as in "Countering Backdoor Attacks in
      Image Recognition: A Survey and Evaluation of Mitigation Strategies", arXiv 2411.11200, 2024.
    Differs: as in the survey's published code, the same in both profiles: no dithering by default (there its command line reads
      any text as true; its dithered images are rounded to whole grey levels in training too, here they are like those without
      dithering), and no adversarial examples beside the negatives;
      negatives are 10 % of the batch at every ratio (authors: 20 % for both) with 8-bit residuals, and none where n = 0; the
      share of triggered images is floor(r b)/b, 9.375 % for 10 % of 128; images of the target class are triggered too; training
      sees Q unrounded, the test its truncation; 100 epochs at a constant learning rate; one augmentation draw per batch, where
      the authors draw per image ("sample"). Not as there: the last partial batch of an epoch is dropped; residuals come from a
      second shuffle of the training set, so an image gives one residual per epoch at most, instead of from indices drawn with
      replacement; clean copies stay exact, where normalising and back again costs that code a level for part of the colours;
      its diagnostic negatives of the opposite sign at test time are left out.
    """
    resolved, relabel = labelled(spec, config, "bpp", profile, dict.fromkeys(PROFILES, Config()))
    if not 2 <= resolved.levels <= 256:
        raise UserError(f"bpp.levels must lie in 2 … 256; given {resolved.levels}")
    if not 0 <= resolved.neg_ratio < 1:
        raise UserError(f"bpp.neg_ratio must lie in [0, 1); given {resolved.neg_ratio}")
    choose("bpp.augment", resolved.augment, HOW)
    fine, stored = quantised(resolved.levels)

    def levelled(table: Num[np.ndarray, "256"], pixels: UInt8[Array, "b h w c"]) -> Num[Array, "b h w c"]:
        return _read(table, dithered(pixels, resolved.levels) if resolved.dithering else pixels)

    def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return to_float(levelled(stored, to_uint8(images)))

    def batch(
        trigger: Any, key: Key, images: Float[Array, "b h w c"], labels: Int[Array, " b"], ratio: Float[Array, ""], other: Any
    ) -> tuple[Float[Array, "b h w c"], Int[Array, " b"], Float[Array, ""], Any]:
        size = images.shape[0]
        most, negatives = slots.most(size, resolved.max_ratio), math.floor(size * resolved.neg_ratio + 1e-6)
        if most + negatives > size:
            raise UserError(
                f"bpp.max_ratio {resolved.max_ratio} and bpp.neg_ratio {resolved.neg_ratio} are too large for batches of {size}: "
                f"they need {most} places for triggered images and {negatives} for negatives"
            )
        count_key, augment_key = jax.random.split(key)
        number = slots.count(count_key, ratio, size)
        hit = slots.active(number, most)
        triggered = levelled(fine, to_uint8(images[:most]))
        parts = [jnp.where(hit[:, None, None, None], triggered, images[:most])]
        if negatives:
            plain, donor = images[most : most + negatives], to_uint8(other[0][:negatives])
            residual = levelled(stored, donor).astype(jnp.int32) - donor.astype(jnp.int32)
            shifted = jnp.clip(to_uint8(plain).astype(jnp.int32) + residual, 0, 255).astype(jnp.uint8)
            parts.append(jnp.where(number > 0, to_float(shifted), plain))
        images = jnp.concatenate([*parts, images[most + negatives :]])
        labels = slots.relabelled(hit, labels, relabel)
        return batch_augment(augment_key, images, spec, resolved.augment), labels, jnp.float32(0), trigger

    recipe = Recipe(schedule="constant", augment="own", second_batch=resolved.neg_ratio > 0, shared_trigger=True)
    return Attack(lambda key, assets: {}, slots.select(resolved.max_ratio, "bpp"), stamp, relabel, recipe, resolved, batch=batch)


def quantised(levels: int) -> tuple[Float[np.ndarray, "256"], UInt8[np.ndarray, "256"]]:
    """Q of every value 0 … 255: in [0, 1], and truncated to whole levels.

    With k = round(v (L - 1)/255), in whole numbers (a tie would need 2 v (L - 1) to be odd): k/(L - 1), and ⌊255 k/(L - 1)⌋.
    """
    value = np.arange(256)
    k = (2 * value * (levels - 1) + 255) // 510
    return (k / (levels - 1)).astype(np.float32), (255 * k // (levels - 1)).astype(np.uint8)


def _read(table: Num[np.ndarray, "256"], pixels: UInt8[Array, "*s"]) -> Num[Array, "*s"]:
    """``table[pixels]``."""
    return jnp.asarray(table).at[pixels.astype(jnp.int32)].get(mode="promise_in_bounds")
