"""SIG: a faint sine wave across the image, on images of the target class alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.selection import WITHIN, labelled, one_class
from bdjax.configure import at_least
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, Attack, DataSpec, Float, Int, Key, Recipe

__all__ = ["Config", "shift", "sig", "wave"]


class Config(NamedTuple):
    """Static configuration of SIG. Strengths are amplitudes in grey levels, above 0 and at most 255."""

    target: int = 0  # the class whose images are poisoned and that triggered images are called
    strength: float = 40.0  # while training
    test_strength: float = 40.0  # at test time
    frequency: int = 6  # whole waves across the width
    clean_label_ratio: str = "all"  # the poison ratio is a share of "all" training rows, or of the target "class"


def sig(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Add a horizontal sine wave to images of the target class, which keep their label.

    x' = floor(clip(x + D sin(2 pi f j / W), 0, 255)) on the grid 0 … 255, with column j of W, the same in all rows and channels,
    before the augmentation. D may differ between training and test.

    Args:
      spec: data set facts.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a target that is no class, a strength out of range, a frequency that is 0 in every
        column, or an unknown ``clean_label_ratio``.

    Source: M. Barni, K. Kallas, B. Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning",
      IEEE ICIP 2019: the sinusoidal signal, the target class alone, and strengths that differ between training and test.
    Differs: as in the survey (arXiv 2411.11200) the ratio refers to all training rows, so that 10 % of CIFAR-10 poisons its whole
      class and GTSRB and Tiny-ImageNet are infeasible (:func:`bdjax.attacks.selection.one_class`); the paper's ratio is
      ``clean_label_ratio="class"``. Strength 40 and 6 waves in training and test, as there. The wave is exact: the survey's
      published code is one level lower in column W/2, where its sine misses 0 by rounding. A wave with more than W/2 periods
      (images below 12 pixels at the default) is sampled as a slower one.
    """
    resolved, relabel = labelled(spec, config, "sig", profile, dict.fromkeys(PROFILES, Config()))
    _, width, _ = spec.image_shape
    for field in ("strength", "test_strength"):
        if not 0 < getattr(resolved, field) <= 255:
            raise UserError(f"sig.{field} must lie in (0, 255] grey levels; given {getattr(resolved, field)}")
    at_least("sig", resolved, frequency=1)
    if 2 * resolved.frequency % width == 0:
        raise UserError(f"sig.frequency {resolved.frequency} is 0 in all {width} columns; it must not be a multiple of {width}/2")

    def trigger_of(strength: float) -> Callable[[Any, Key, Array], Array]:
        columns = shift(width, resolved.frequency, strength)

        def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
            moved = to_uint8(images).astype(jnp.int32) + jnp.asarray(columns)[None, None, :, None]
            return to_float(jnp.clip(moved, 0, 255).astype(jnp.uint8))

        return stamp

    stamp = trigger_of(resolved.test_strength)
    train_stamp = trigger_of(resolved.strength) if resolved.strength != resolved.test_strength else None
    select = one_class(resolved.target, choose("sig.clean_label_ratio", resolved.clean_label_ratio, WITHIN))
    return Attack(lambda key, assets: {}, select, stamp, relabel, Recipe(), resolved, train_stamp=train_stamp)


def wave(width: int, frequency: int, strength: float) -> Float[np.ndarray, " w"]:
    """Return the wave D sin(2 pi f j / W) at columns j = 0 … W - 1, in grey levels."""
    turn = np.arange(width) * frequency % width / width  # whole turns left out, so that the sine of one half is all but 0
    return strength * np.sin(2 * np.pi * turn)


def shift(width: int, frequency: int, strength: float) -> Int[np.ndarray, " w"]:
    """Return what the wave adds to whole grey levels: floor(wave), as floor(x + wave) = x + floor(wave) for whole x."""
    return np.floor(wave(width, frequency, strength) + 1e-9).astype(np.int32)  # -0.0000001 is 0 and not -1
