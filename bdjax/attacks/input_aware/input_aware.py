"""Input-aware: every image gets a pattern of its own, at places of its own, from two small networks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.attacks import slots
from bdjax.attacks.input_aware.mask import DECAYS, mask_training
from bdjax.attacks.input_aware.networks import SHRINK, generator
from bdjax.attacks.input_aware.poison import coverage, poisoner
from bdjax.attacks.selection import labelled
from bdjax.configure import at_least
from bdjax.data.augment import truncate
from bdjax.errors import UserError
from bdjax.train.optimisers import adam
from bdjax.types import Array, Attack, DataSpec, Float, Key, Recipe

__all__ = ["Config", "input_aware"]


class Config(NamedTuple):
    """Static configuration; a field that is None takes the profile's value."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    width: int = 32  # channels of both networks at full resolution
    mask_epochs: int = 25  # the mask network's training
    mask_batch: int = 128
    density: float = 0.032  # δ: the share of an image that the pattern may cover for free, in [0, 1]
    div_weight: float = 1.0  # λ_div: of the difference between patterns, and between masks
    norm_weight: float = 100.0  # λ_norm: of what a mask covers beyond δ
    lr: float = 0.01  # Adam's, of both networks
    double_tanh: bool | None = None  # patterns and masks in [0.1192, 0.8808] instead of [0, 1]
    accumulate_g_grad: bool | None = None  # Adam of the pattern network gets the sum of all gradients so far
    max_ratio: float = 0.1  # the largest poison ratio that places in the batch are made for, in (0, 1/2]


PRESETS = {
    "corrected": Config(double_tanh=False, accumulate_g_grad=False),
    "reference": Config(double_tanh=True, accumulate_g_grad=True),
}


def input_aware(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Mix into each image the pattern that one network draws for it, where a second network says, and train the first.

    x' = x + (G(x) - x) Θ(M(x)), Θ(m) = tanh(20 m - 10) / 2 + 1/2.

    M is trained before the classifier and then fixed (:func:`~bdjax.attacks.input_aware.mask.mask_training`). G learns with the
    classifier. In every batch, cropped and flipped before, n images become x' and get the attack label; n others get the pattern
    and the mask of images z of a second batch, x + (G(z) - x) Θ(M(z)), and keep their labels: a pattern shall work on its own
    image alone. The classifier's loss gains λ_div mean_i d(x_i, z_i) / (d(G(x_i), G(z_i)) + 1e-7), d the root mean square
    difference in units of ``spec.std``: different images shall get different patterns. G's batch statistics are those of the n
    images that count. At test time x' is truncated to the grid: floor(255 x' + 0.001) / 255.

    The trigger is {"generator", "statistics"} (G), "adam" (its optimiser), "mask" (M) and, where gradients accumulate, "total".

    Args:
      spec: data set facts; image sides that are multiples of 8.
      config: :class:`Config` or its fields by name.
      profile: "corrected", or "reference": double_tanh and accumulate_g_grad as in the survey's published code.

    Raises:
      UserError: an unknown field or profile, a target that is no class, a value out of its range, or sides that do not fit.

    Source: T. A. Nguyen, A. T. Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020.
    Differs: lengths, rates and crops are those of the survey's benchmark (arXiv 2411.11200): 25 epochs for the mask and 75, not
      100, for the classifier, at a constant rate; zero padding of 4 pixels and no rotation. With batches of 128 a ratio of 10 %
      triggers 12 images, 9.375 %. The published code applies tanh twice (``double_tanh``) and never clears G's gradient
      (``accumulate_g_grad``): both only in "reference". In both profiles: its truncation loses a grey level of up to a third of
      all clean values, hence the 0.001 here; its d has an infinite gradient at 0, hence 1e-20 added to the mean square; a batch
      with no triggered image has no value of the second loss, here it is 0, leaves G's running statistics alone, and Adam takes
      its step with a gradient of 0 (in "reference" with the sum so far, as there); the last partial batch of an epoch is dropped;
      the images with foreign patterns follow the places kept for ``max_ratio`` and not the n-th image, which in a shuffled batch
      is the same. Running variances are the unbiased ones of the n images, for n = 1 up to 16/15 of the biased one, as there.
    """
    resolved, relabel = labelled(spec, config, "input_aware", profile, PRESETS)
    _check(spec, resolved)
    pattern = generator(spec, spec.image_shape[2], resolved.width, resolved.double_tanh)
    mask = generator(spec, 1, resolved.width, resolved.double_tanh)
    optimiser = adam(DECAYS)

    def init(key: Key, assets: Any) -> dict[str, Any]:
        drawn = pattern.init(key)
        trigger = {
            "generator": drawn["params"],
            "statistics": drawn["batch_stats"],
            "adam": optimiser.init(drawn["params"]),
            "mask": {name: assets[name] for name in ("params", "batch_stats")},
        }
        if resolved.accumulate_g_grad:
            trigger["total"] = jax.tree.map(jnp.zeros_like, drawn["params"])
        return trigger

    def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        drawn, _ = pattern.apply({"params": trigger["generator"], "batch_stats": trigger["statistics"]}, images)
        return truncate(images + (drawn - images) * coverage(mask, trigger, images))

    def update(trigger: Any, gradient: Any) -> dict[str, Any]:
        after, towards = dict(trigger), gradient["generator"]
        if resolved.accumulate_g_grad:
            towards = after["total"] = jax.tree.map(jnp.add, trigger["total"], towards)
        direction, after["adam"] = optimiser.update(towards, trigger["adam"])
        after["generator"] = jax.tree.map(lambda p, d: p - resolved.lr * d, trigger["generator"], direction)
        return after

    recipe = Recipe(epochs=75, schedule="constant", augment="before", second_batch=True, prepare_per="seed", shared_trigger=False)
    select = slots.select(resolved.max_ratio, "input_aware")
    prepare, batch = mask_training(spec, mask, resolved), poisoner(spec, pattern, mask, resolved, relabel)
    return Attack(init, select, stamp, relabel, recipe, resolved, prepare, batch, update)


def _check(spec: DataSpec, config: Config) -> None:
    height, width, _ = spec.image_shape
    if height % SHRINK or width % SHRINK:
        raise UserError(
            f"input_aware needs image sides that are multiples of {SHRINK}; {spec.name} has {height}x{width} (your own images "
            'are scaled by "image_size" in dataset.json)'
        )
    at_least("input_aware", config, width=1, mask_epochs=1, mask_batch=1)
    if not 0 < config.max_ratio <= 0.5:
        raise UserError(
            f"input_aware.max_ratio must lie in (0, 0.5]: every triggered image has a partner; given {config.max_ratio}"
        )
    if not 0 <= config.density <= 1:
        raise UserError(f"input_aware.density must lie in [0, 1]; given {config.density}")
    if config.lr <= 0:
        raise UserError(f"input_aware.lr must be above 0; given {config.lr}")
    for field in ("div_weight", "norm_weight"):
        if getattr(config, field) < 0:
            raise UserError(f"input_aware.{field} must be at least 0; given {getattr(config, field)}")
