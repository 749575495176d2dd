"""Which training rows are poisoned, and a batch with its poison: from that set, or made in the batch by the attack's own hook."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.data.augment import crop_flip, to_float
from bdjax.errors import choose
from bdjax.keys import Stream, stream
from bdjax.types import Array, Attack, Bool, DataSpec, Float, Int, Key, Member

AUGMENT = ("after", "before", "own", "none")


class Rows(NamedTuple):
    """The training rows of one member."""

    images: Array  # u8[n h w c]
    labels: Array  # i32[n]
    triggered: Array | None  # u8[n h w c]: triggered copies, where the trigger is the same for all members
    poisoned: Array  # bool[n]: the fixed poison set; attacks that poison inside the batch ignore it
    member: Member


Order = tuple[Int[Array, " b"], Int[Array, " b"] | None]  # (rows of the batch, those of the second batch)
Poisoned = tuple[Float[Array, "b h w c"], Int[Array, " b"], Float[Array, ""], Any]
# (images in [0, 1], labels, loss to be added to the classifier's, the trigger after the batch)
Poison = Callable[[Rows, Order, Any, Key, Key], Poisoned]  # (rows, order, trigger, key of the poison, key of the augmentation)


def poison_set(attack: Attack, member: Member, labels: Int[Array, " n"]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
    """The training rows of a member that are poisoned, and whether so many can be; none where the batch is poisoned instead."""
    poisoned, feasible = attack.select(stream(member.key, Stream.SELECT), labels, member.count)
    return poisoned, feasible


def poisoner(attack: Attack, spec: DataSpec) -> Poison:
    """Build what makes the batches of a training.

    Args:
      attack: its ``batch`` hook decides where the poison comes from, its recipe when images are augmented.
      spec: padding and flips of the augmentation.

    Raises:
      UserError: a recipe with an unknown ``augment``.
    """
    choose("augment", attack.recipe.augment, AUGMENT)
    return _fixed(attack, spec) if attack.batch is None else _inside(attack, spec)


def _augmenter(attack: Attack, spec: DataSpec) -> Callable[[Key, Array, str], Array]:
    """``augment(key, images, when)``: crops and flips where the recipe wants them ``when`` "before" or "after" the trigger."""

    def augment(key: Key, images: Array, when: str) -> Array:
        return crop_flip(key, images, spec.pad, spec.flip) if attack.recipe.augment == when else images

    return augment


def _fixed(attack: Attack, spec: DataSpec) -> Poison:
    """Batches of an attack whose poison set is fixed: rows of the set carry the trigger and the attack label."""
    augment, stamp = _augmenter(attack, spec), attack.train_stamp or attack.stamp

    def poison(rows: Rows, order: Order, trigger: Any, key: Key, crop: Key) -> Poisoned:
        batch, _ = order
        chosen, images, labels = rows.poisoned[batch], rows.images[batch], rows.labels[batch]
        labels = jnp.where(chosen, attack.relabel(labels), labels)
        chosen = chosen[:, None, None, None]
        if rows.triggered is not None and attack.recipe.augment != "before":
            images = to_float(augment(crop, jnp.where(chosen, rows.triggered[batch], images), "after"))
        else:
            images = to_float(augment(crop, images, "before"))
            images = augment(crop, jnp.where(chosen, stamp(trigger, key, images), images), "after")
        return images, labels, jnp.float32(0), trigger

    return poison


def _inside(attack: Attack, spec: DataSpec) -> Poison:
    """Batches of an attack that poisons inside the batch, with images of a second batch where its recipe asks for one."""
    augment, hook = _augmenter(attack, spec), attack.batch
    assert hook is not None

    def poison(rows: Rows, order: Order, trigger: Any, key: Key, crop: Key) -> Poisoned:
        (batch, second), (first_crop, second_crop) = order, jax.random.split(crop)
        images = to_float(augment(first_crop, rows.images[batch], "before"))
        other = None
        if second is not None:
            other = (to_float(augment(second_crop, rows.images[second], "before")), rows.labels[second])
        images, labels, loss, after = hook(trigger, key, images, rows.labels[batch], rows.member.ratio, other)
        return augment(first_crop, images, "after"), labels, loss, after

    return poison
