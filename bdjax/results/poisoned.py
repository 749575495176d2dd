"""What an attack makes of a data set: the training rows as a member's training sees them, and its triggered test images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bdjax.data.augment import to_uint8
from bdjax.errors import UserError
from bdjax.keys import Stream, stream
from bdjax.population import take
from bdjax.results.recreate import counted
from bdjax.results.triggers import Trigger, one_prepared
from bdjax.sweep import feasible
from bdjax.train.experiment import CHUNK, Data, apply_trigger_to_all
from bdjax.train.poison import Rows, poison_set, poisoner
from bdjax.train.trainer import first_trigger
from bdjax.types import Array, Attack, Dataset, DataSpec, Triggered


class PoisonedSet(NamedTuple):
    """The training rows of one member, on the host, before crops and flips."""

    images: NDArray[np.uint8]  # u8[n h w c], those that are poisoned with their trigger
    labels: NDArray[np.int32]  # i32[n], what is trained on
    true_labels: NDArray[np.int32]  # i32[n]
    poisoned: NDArray[np.bool_]  # bool[n]


def require_fixed(attack: Attack, name: str) -> None:
    """Refuse an attack without a poisoned training set that stays the same from the first step to the last.

    Raises:
      UserError: it poisons inside the batch, learns its trigger meanwhile, or puts it on images that were cropped and flipped.
    """
    if attack.batch is not None:
        raise _not_fixed(f"{name} poisons inside the batch: which images carry its trigger is drawn anew in every step")
    if attack.update is not None:
        raise _not_fixed(f"{name} learns its trigger while the network is trained")
    if attack.recipe.augment == "before":
        raise _not_fixed(f"the trigger of {name} comes after the crops and flips of every step (recipe.augment is 'before')")


def training_set(
    attack: Attack, name: str, dataset: Dataset, data: Data, *, seed: int, ratio: float, root_number: int = 0
) -> PoisonedSet:
    """The poisoned training set of a member, bit for bit: rows and batches come from what its trainer is built of.

    Args:
      attack: with the recipe it is trained with.
      name: of the attack, for messages.
      dataset: the training and test images.
      data: the same, staged for this attack and root (:func:`bdjax.train.experiment.stage`).
      seed: of the member.
      ratio: of all training rows.
      root_number: root of all keys.

    Raises:
      UserError: there is no fixed set (:func:`require_fixed`, or a trigger that is drawn anew in every step), or the ratio is one
        that the attack cannot carry out.
    """
    require_fixed(attack, name)
    member = take(one_prepared(attack, dataset, data, seed, ratio, root_number), 0)
    trigger = first_trigger(attack, member, data.assets)
    if data.triggered is None and _draws(attack, trigger, dataset.spec):
        raise _not_fixed(f"{name} draws a part of its trigger anew in every step")
    poisoned, possible = poison_set(attack, member, data.train.labels)
    count, total = int(poisoned.sum()), len(data.train.labels)
    reason = feasible.why_not(attack, name, ratio, total, count, bool(possible))
    if reason:
        raise UserError(reason)
    rows = Rows(data.train.images, data.train.labels, data.triggered, poisoned, member)
    poison = poisoner(attack._replace(recipe=attack.recipe._replace(augment="none")), dataset.spec)
    unused = stream(member.key, Stream.BATCH)  # no trigger is drawn from it, and nothing is augmented

    @jax.jit
    def batch(rows: Rows, trigger: Any, index: Array) -> tuple[Array, Array]:
        images, labels, _, _ = poison(rows, (index, None), trigger, unused, unused)
        return to_uint8(images), labels

    parts = [batch(rows, trigger, jnp.arange(i, min(i + CHUNK, total), dtype=jnp.int32)) for i in range(0, total, CHUNK)]
    images, labels = (np.concatenate([np.asarray(part) for part in each]) for each in zip(*parts, strict=True))
    return PoisonedSet(images, labels, np.asarray(data.train.labels), np.asarray(poisoned))


def triggered_set(attack: Attack, dataset: Dataset, data: Data, trigger: Trigger | None) -> Triggered:
    """The triggered test images that count for a member's ASR.

    Args:
      attack: of the member.
      dataset: the training and test images.
      data: the same, staged for this attack.
      trigger: of the member; None where all members share it, and then ``data`` holds the images.
    """
    images = data.test.triggered
    if images is None:
        assert trigger is not None, "a trigger that members do not share has to be given"
        images = apply_trigger_to_all(attack, trigger.value, trigger.key, dataset.test.images)
    return counted(data.test, images)


def _not_fixed(why: str) -> UserError:
    return UserError(f"{why}, so there is no poisoned training set to export; --test-only exports its triggered test images")


def _draws(attack: Attack, trigger: Any, spec: DataSpec) -> bool:
    """Whether the trigger of the training reads the key of the step."""
    stamp = attack.train_stamp or attack.stamp
    image = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    program = jax.make_jaxpr(lambda key, images: stamp(trigger, key, images))(jax.random.key(0), image).jaxpr
    return any(used is program.invars[0] for equation in program.eqns for used in equation.invars)
