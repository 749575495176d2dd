"""WaNet: a smooth, fixed bending of the whole image."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks import slots
from bdjax.attacks.batch_augment import HOW, batch_augment
from bdjax.attacks.selection import labelled
from bdjax.attacks.user_files import Given, given
from bdjax.attacks.wanet.field_file import read_field
from bdjax.attacks.wanet.warp import bend, ending_inside, enlarge
from bdjax.configure import ADDED, at_least
from bdjax.data.augment import truncate
from bdjax.errors import UserError, choose
from bdjax.types import PROFILES, Array, Attack, Bool, DataSpec, Float, Int, Key, Recipe

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
    _check(spec, resolved)
    own = _field_of_file(resolved, height, width)
    if own is not None:
        resolved = resolved._replace(field=own.name)
    pixel = _pixels_per_unit(height, width)

    def displacement(trigger: Any) -> Float[Array, "1 2 h w"]:
        return trigger["field"][None] * jnp.asarray(resolved.strength * pixel)

    def init(key: Key, assets: Any) -> dict[str, Array]:
        return {"field": draw_field(key, resolved.grid, height, width) if own is None else jnp.asarray(own.array)}

    def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return truncate(bend(images, displacement(trigger)))

    def batch(
        trigger: Any, key: Key, images: Float[Array, "b h w c"], labels: Int[Array, " b"], ratio: Float[Array, ""], other: Any
    ) -> tuple[Float[Array, "b h w c"], Int[Array, " b"], Float[Array, ""], Any]:
        places = _places(images.shape[0], resolved)
        count_key, noise_key, augment_key = jax.random.split(key, 3)
        number = slots.count(count_key, ratio, images.shape[0])
        hit = slots.active(number, places.triggered)
        bent_too = slots.active(number * resolved.cross_ratio, places.cross)

        noise = _noise(noise_key, places.cross, height, width) * jnp.asarray(pixel)
        shift = _shifts(displacement(trigger), noise, places)
        images = _bend_first(images, shift, (hit, bent_too))
        labels = slots.relabelled(hit, labels, relabel)
        return batch_augment(augment_key, images, spec, resolved.augment), labels, jnp.float32(0), trigger

    recipe = Recipe(schedule="constant", augment="own", shared_trigger=False)
    return Attack(init, slots.select(resolved.max_ratio, "wanet"), stamp, relabel, recipe, resolved, batch=batch, edition=2)


def draw_field(key: Key, grid: int, height: int, width: int) -> Float[Array, "2 h w"]:
    """Return a smooth random field: the bicubic enlargement of a / mean |a|, two maps a of grid x grid numbers uniform on ±1.

    Map 0 points to the right, map 1 down; the displacement is (s/2) (1 - 1/w) or (s/2) (1 - 1/h) pixels per unit.
    """
    coarse = jax.random.uniform(key, (2, grid, grid), jnp.float32, -1, 1)
    return enlarge(coarse / jnp.mean(jnp.abs(coarse)), height, width)


def _check(spec: DataSpec, config: Config) -> None:
    height, width, _ = spec.image_shape
    if min(height, width) < 2:
        raise UserError(f"wanet needs images of at least 2x2 pixels; {spec.name} has {height}x{width}")
    at_least("wanet", config, strength=0, grid=2, cross_ratio=0)
    choose("wanet.augment", config.augment, HOW)


def _field_of_file(config: Config, height: int, width: int) -> Given | None:
    """Return the field of the user's file; None where there is no file, and every member draws its own."""
    if config.field is None:
        return None
    found = given("wanet.field", config.field, read_field, height, width)
    if config.grid != Config().grid:
        raise UserError("wanet.grid has no effect on the field of a file (wanet.field); give one of them")
    return found


def _pixels_per_unit(height: int, width: int) -> Float[np.ndarray, "1 2 1 1"]:
    """Return how far a field of 1 displaces at strength 1, in pixels: (1 - 1/w)/2 to the right, (1 - 1/h)/2 down."""
    return np.array([(width - 1) / (2 * width), (height - 1) / (2 * height)], np.float32).reshape(1, 2, 1, 1)


class _Places(NamedTuple):
    """How many places of a batch are kept, whatever the ratio: for triggered images, and behind them for cross images."""

    triggered: int
    cross: int


def _places(size: int, config: Config) -> _Places:
    """Return the places of a batch of ``size`` images.

    Raises:
      UserError: they do not fit into it.
    """
    most = slots.most(size, config.max_ratio)
    cross = most * config.cross_ratio
    if most + cross > size:
        raise UserError(
            f"wanet.max_ratio {config.max_ratio} is too large for batches of {size}: it needs {most} places for triggered "
            f"and {cross} for cross images"
        )
    return _Places(most, cross)


def _noise(key: Key, cross: int, height: int, width: int) -> Float[Array, "cross 2 h w"]:
    """Return the noise of the cross images: a number for every image, axis and pixel, uniform on ±1."""
    return jax.random.uniform(key, (cross, 2, height, width), jnp.float32, -1, 1)


def _shifts(field: Float[Array, "1 2 h w"], noise: Float[Array, "cross 2 h w"], places: _Places) -> Float[Array, "places 2 h w"]:
    """Return the displacements of all places, in pixels: the field, then field and noise, the field alone ending inside."""
    alone = jnp.broadcast_to(field, (places.triggered, *field.shape[1:]))
    return jnp.concatenate([alone, ending_inside(field) + noise])


def _bend_first(
    images: Float[Array, "b h w c"], shift: Float[Array, "places 2 h w"], turns: tuple[Bool[Array, " _"], Bool[Array, " _"]]
) -> Float[Array, "b h w c"]:
    """Bend the first images, each by its own shift, where it is its turn: those of triggered places, then of cross places."""
    head = images[: len(shift)]
    bent = bend(head, shift)
    head = jnp.where(jnp.concatenate(turns)[:, None, None, None], bent, head)
    return jnp.concatenate([head, images[len(shift) :]])
