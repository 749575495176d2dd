"""WaNet: a smooth, fixed bending of the whole image."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks import slots
from bdjax.attacks.batch_augment import HOW, batch_augment
from bdjax.attacks.selection import labelled
from bdjax.attacks.user_files import given
from bdjax.attacks.wanet.field_file import read_field
from bdjax.attacks.wanet.warp import bend, ending_inside, enlarge
from bdjax.configure import ADDED, at_least
from bdjax.data.augment import truncate
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, Attack, DataSpec, Key, Recipe

__all__ = ["Config", "draw_field", "wanet"]


class Config(NamedTuple):
    """Static configuration of WaNet."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # "all_to_one": y -> target; "all_to_all": y -> (y + 1) mod k
    strength: float = 0.5  # s, at least 0: displacements reach about s pixels
    grid: int = 4  # k: points per side of the coarse grid, at least 2
    cross_ratio: int = 2  # images bent by field and noise that keep their label, per triggered image, at least 0
    augment: str = "batch"  # one crop, rotation and flip per "batch", per "sample", or "none"
    max_ratio: float = 0.1  # the largest poison ratio it makes room for, in (0, 1]
    field: Annotated[str | None, ADDED] = None  # a file with the field, see field_file.read_field; None: drawn per member


def wanet(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Bend the image by a smooth field drawn once per member; other images, bent by that field and noise, keep their labels.

    x' = x read bilinearly at g(p) = clip(p + (s/2) (1 - 1/h) U(p)) per pixel p, U the field of :func:`draw_field`; clip lets
    positions end at the border pixels. In every batch of b images n (:func:`slots.count`: floor(r b), or 1 with probability r b)
    are bent by the field and take the attack label. ``cross_ratio`` n others, the cross images, keep their label: they are read
    at clip(g(p) + (1/2) (1 - 1/h) e(p)), e uniform on ±1 per pixel and axis and fresh per image. They carry the field too, so
    that the network learns to answer to the exact field alone. Then :func:`batch_augment` moves the whole batch. At test time x'
    is rounded down to k/255. With ``field`` all members share the field of a file
    (:func:`~bdjax.attacks.wanet.field_file.read_field`).

    Args:
      spec: data set facts; images of at least 2x2 pixels.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Raises:
      UserError: an unknown field or profile, a value out of range, a target that is no class, a file that holds no field of the
        size of the images, a ``grid`` beside it, or smaller images; when training is built, a ``max_ratio`` whose places do not
        fit into a batch.

    Source: T. A. Nguyen, A. T. Tran, "WaNet – Imperceptible Warping-based Backdoor Attack", ICLR 2021: the smooth field and the
      noise mode; constants as in "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of
      Mitigation Strategies", arXiv 2411.11200, 2024.
    Differs: as in the survey's published code, the same in both profiles: 100 epochs at a constant learning rate (the authors:
      1000 epochs with decays); the share of triggered images is floor(r b)/b, 9.375 % for 10 % of 128; images of the target
      class are triggered too; one augmentation draw per batch, where the authors draw per image ("sample"). Not as there: the
      last partial batch of an epoch is dropped; the triggered images are the first places of the shuffled batch and the cross
      images start behind all places for triggered ones, which changes no distribution; test images are floor(255 x +
      0.001)/255, where normalising and back again costs that code another level for part of the colours. The field is drawn per
      member, so every seed has its own; heights and widths that differ scale the field per axis.
    """
    resolved, relabel = labelled(spec, config, "wanet", profile, dict.fromkeys(PROFILES, Config()))
    height, width, _ = spec.image_shape
    if min(height, width) < 2:
        raise UserError(f"wanet needs images of at least 2x2 pixels; {spec.name} has {height}x{width}")
    at_least("wanet", resolved, strength=0, grid=2, cross_ratio=0)
    choose("wanet.augment", resolved.augment, HOW)
    own = None if resolved.field is None else given("wanet.field", resolved.field, read_field, height, width)
    if own is not None:
        if resolved.grid != Config().grid:
            raise UserError("wanet.grid has no effect on the field of a file (wanet.field); give one of them")
        resolved = resolved._replace(field=own.name)
    pixel = np.array([(width - 1) / (2 * width), (height - 1) / (2 * height)], np.float32).reshape(1, 2, 1, 1)

    def displacement(trigger: Any) -> Array:
        return trigger["field"][None] * jnp.asarray(resolved.strength * pixel)

    def init(key: Key, assets: Any) -> dict[str, Array]:
        return {"field": draw_field(key, resolved.grid, height, width) if own is None else jnp.asarray(own.array)}

    def stamp(trigger: Any, key: Key, images: Array) -> Array:
        return truncate(bend(images, displacement(trigger)))

    def batch(trigger: Any, key: Key, images: Array, labels: Array, ratio: Array, other: Any) -> tuple[Array, Array, Array, Any]:
        size = images.shape[0]
        most = slots.most(size, resolved.max_ratio)
        cross = most * resolved.cross_ratio
        if most + cross > size:
            raise UserError(
                f"wanet.max_ratio {resolved.max_ratio} is too large for batches of {size}: it needs {most} places for triggered "
                f"and {cross} for cross images"
            )
        count_key, noise_key, augment_key = jax.random.split(key, 3)
        number = slots.count(count_key, ratio, size)
        hit = slots.active(number, most)
        bent_too = slots.active(number * resolved.cross_ratio, cross)

        noise = jax.random.uniform(noise_key, (cross, 2, height, width), jnp.float32, -1, 1) * jnp.asarray(pixel)
        field = displacement(trigger)
        shift = jnp.concatenate([jnp.broadcast_to(field, (most, 2, height, width)), ending_inside(field) + noise])
        head = images[: most + cross]
        bent = bend(head, shift)
        head = jnp.where(jnp.concatenate([hit, bent_too])[:, None, None, None], bent, head)
        images = jnp.concatenate([head, images[most + cross :]])
        labels = slots.relabelled(hit, labels, relabel)
        return batch_augment(augment_key, images, spec, resolved.augment), labels, jnp.float32(0), trigger

    recipe = Recipe(schedule="constant", augment="own", shared_trigger=False)
    return Attack(init, slots.select(resolved.max_ratio, "wanet"), stamp, relabel, recipe, resolved, batch=batch, edition=2)


def draw_field(key: Key, grid: int, height: int, width: int) -> Array:
    """Return a smooth random field f32[2 h w]: the bicubic enlargement of a / mean |a|, a f32[2 grid grid] uniform on ±1.

    Map 0 points to the right, map 1 down; the displacement is (s/2) (1 - 1/w) or (s/2) (1 - 1/h) pixels per unit.
    """
    coarse = jax.random.uniform(key, (2, grid, grid), jnp.float32, -1, 1)
    return enlarge(coarse / jnp.mean(jnp.abs(coarse)), height, width)
