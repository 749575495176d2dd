"""LF: a smooth dome of colour added to the image."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.greyscale import three_channels
from bdjax.attacks.low_frequency.dome import COLOURS, FALLBACK, UNSCALED, dome
from bdjax.attacks.low_frequency.settings import Config
from bdjax.attacks.selection import any_class, labelled
from bdjax.configure import at_least
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError, choose
from bdjax.types import Array, Attack, Dataset, DataSpec, Float, Key, Recipe, UInt8

ARCHITECTURES = ("cnn", *COLOURS["cifar10"])
TRIGGERS = ("dome", "optimised")
EDITION = 1
PRESETS = {"corrected": Config(vgg_without_effect=False), "reference": Config(vgg_without_effect=True)}
SEARCHES = Config._fields[Config._fields.index("classifier_width") :]


def low_frequency(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Add one smooth, non-negative pattern T to the image.

    x' = min(x + T, 255) on the grid 0 … 255, before the augmentation, while training and at test time alike;
    T = :func:`bdjax.attacks.low_frequency.dome.dome`, or what :func:`bdjax.attacks.low_frequency.search.search` finds.

    Args:
      spec: data set facts; images with 3 channels.
      config: :class:`Config` or its fields by name.
      profile: "corrected", or "reference": the published arrays of VGG-19-BN lie in [0, 0.2] and are added to levels 0 … 255, so
        that no pixel changes and the poison is label noise (``vgg_without_effect``); and there is no published search that ends
        in a trigger.

    Raises:
      UserError: an unknown field, profile, trigger or architecture, a target that is no class, a colour that is not 3 whole
        levels or all but black, settings of the trigger that is not chosen, or images without 3 channels.

    Source: Y. Zeng, W. Park, Z. M. Mao, R. Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021,
      the smooth trigger.
    Differs: the dome is the limit that the published search tends to, times a colour; the survey's arrays (arXiv 2411.11200), one
      per data set and architecture, lie within a mean of 1.2 levels of it (at most 4; MobileNet and EfficientNet on Tiny-ImageNet
      4.8, at most 20), and the colours of the table are theirs. Other data sets, ``cnn``, and no architecture take (18, 0, 51).
      Those arrays are unscaled for VGG-19-BN; "corrected" scales them by 255. Rows of the target class are poisoned too.
    """
    resolved, relabel = labelled(spec, config, "low_frequency", profile, PRESETS)
    height, width, channels = spec.image_shape
    if channels != 3:
        raise three_channels("low_frequency", "trigger", spec)
    _check(resolved, profile)

    def add(pattern: UInt8[Array, "h w c"], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        lifted = to_uint8(images).astype(jnp.int32) + pattern.astype(jnp.int32)[None]
        return to_float(jnp.minimum(lifted, 255).astype(jnp.uint8))

    if resolved.trigger == "optimised":
        from bdjax.models import by_name  # networks, which other attacks need not import

        def prepare(key: Key, dataset: Dataset) -> dict[str, Array]:
            from bdjax.attacks.low_frequency.search import search  # it trains a classifier, which others need not import

            return search(key, dataset, resolved)

        def found(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
            return add(trigger["pattern"], images)

        classifier = by_name(resolved.architecture or "cnn", spec)  # the pattern changes where the network does
        return Attack(
            lambda key, assets: {"pattern": assets["pattern"]}, any_class, found, relabel, Recipe(), resolved, prepare=prepare,
            edition=EDITION + classifier.edition - 1,
        )  # fmt: skip

    rows = COLOURS.get(spec.name, {})
    pixels = dome(height, width, resolved.colour or rows.get(resolved.architecture or "", FALLBACK))
    if resolved.vgg_without_effect and resolved.architecture in UNSCALED and resolved.colour is None:
        pixels = np.zeros_like(pixels)  # floor(x + v) = x for whole x and v in [0, 0.2]

    def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return add(jnp.asarray(pixels), images)

    return Attack(lambda key, assets: {}, any_class, stamp, relabel, Recipe(), resolved, edition=EDITION)


def _check(config: Config, profile: str) -> None:
    choose("low_frequency.trigger", config.trigger, TRIGGERS)
    if config.architecture is not None:
        choose("low_frequency.architecture", config.architecture, ARCHITECTURES)
    if config.trigger == "dome":
        idle = [field for field in SEARCHES if getattr(config, field) != getattr(Config(), field)]
        if idle:
            raise UserError(f"low_frequency.{idle[0]} belongs to the trigger 'optimised'; the trigger is 'dome'")
        if config.colour is not None and not _levels(config.colour):
            raise UserError(
                "low_frequency.colour takes 3 whole levels 0 … 255 (not shares of 1), one of them at least 2; "
                f"given {config.colour}"
            )
        return
    if profile == "reference":
        raise UserError("low_frequency has no trigger 'optimised' in the profile 'reference': the published search writes none")
    if config.colour is not None:
        raise UserError("low_frequency.colour belongs to the trigger 'dome'; the trigger is 'optimised'")
    at_least("low_frequency", config, classifier_epochs=1, classifier_batch=1, images=1, passes=1, deepfool_steps=3)
    if not 0 < config.fooling_rate <= 1:
        raise UserError(f"low_frequency.fooling_rate must lie in (0, 1]; given {config.fooling_rate}")
    if config.classifier_lr <= 0:
        raise UserError(f"low_frequency.classifier_lr must be above 0; given {config.classifier_lr}")


def _levels(colour: tuple[Any, ...]) -> bool:
    levels = all(isinstance(level, int) and not isinstance(level, bool) and 0 <= level <= 255 for level in colour)
    return levels and len(colour) == 3 and max(colour) > 1
