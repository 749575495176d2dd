"""Triggers made again: from an attack and a seed, from a record, or taken from the network that was trained with it."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax import population
from bdjax.errors import UserError, command
from bdjax.keys import Stream, member_key, root, stream
from bdjax.results import member, recreate
from bdjax.results.as_recorded import method
from bdjax.store.location import Location
from bdjax.train import assets as stored_assets
from bdjax.train.experiment import Data, apply_trigger_to_all, stage
from bdjax.types import Attack, Dataset, Key, Member

Say = Callable[[str], None]


class Trigger(NamedTuple):
    """What ``Attack.stamp`` takes besides the images."""

    value: Any
    key: Key


class Pictures(NamedTuple):
    """Test images of different classes, as they are and triggered."""

    images: NDArray[np.uint8]  # u8[n h w c]
    triggered: NDArray[np.uint8]  # u8[n h w c]
    names: tuple[str, ...]  # of the n classes
    note: str = ""  # whose trigger it is, where members have their own


def unlearned(attack: Attack, dataset: Dataset, seed: int, root_number: int, say: Say | None = None) -> Trigger:
    """The trigger that the members of a seed carry, of an attack that settles it before the network is trained.

    Args:
      attack: what it prepares is read from disk, or prepared now and stored there.
      dataset: the training and test images of the members.
      seed: of the members; it matters where their triggers differ.
      root_number: root of all keys.
      say: is called with a line if a trigger is prepared for this seed now.

    Raises:
      UserError: the attack learns its trigger while the network is trained.
    """
    if attack.update is not None:
        raise UserError("this attack learns its trigger while the network is trained; its settings alone do not make it again")
    start, own = root(root_number), member_key(root(root_number), seed)
    assets = None
    if attack.prepare is not None:
        data = staged(attack, dataset, root_number)
        assets = data.assets
        if attack.recipe.prepare_per == "seed":
            assets = one_prepared(attack, dataset, data, seed, 0.0, root_number, say).assets
            assets = population.take(assets, 0)
    if attack.recipe.shared_trigger:
        return Trigger(attack.init(stream(start, Stream.TRIGGER), assets), start)
    return Trigger(attack.init(stream(own, Stream.TRIGGER), assets), stream(own, Stream.TRIGGER))


def learned(found: member.Trained, attack: Attack, dataset: Dataset) -> Trigger:
    """The trigger that a network of a folder of results was trained with.

    Args:
      found: the network.
      attack: that of its record.
      dataset: of the record's data set, any number of images.
    """
    root_number = json.loads(found.row["config"])["root"]
    value = recreate.trigger_of(found, attack, dataset, staged(attack, dataset, root_number))
    return Trigger(value, stream(member_key(root(root_number), found.row["seed"]), Stream.TRIGGER))


def staged(attack: Attack, dataset: Dataset, root_number: int) -> Data:
    """The data set on the device with what the attack prepares for it, without triggered copies."""
    alone = attack._replace(recipe=attack.recipe._replace(shared_trigger=False))
    return stage(alone, dataset, root(root_number))


def one_prepared(
    attack: Attack, dataset: Dataset, data: Data, seed: int, ratio: float, root_number: int, say: Say | None = None
) -> Member:
    """A stack of one member with what the attack prepares for its seed."""
    stacked, _ = population.members([seed], [ratio], len(dataset.train.labels), root_number=root_number)
    return population.prepare(attack, stacked, dataset, data, say=say)


def pictures(
    record: dict[str, Any], data_dir: str | None = None, count: int = 8, out: "str | Location | None" = None
) -> Pictures:
    """The first test image of each of the first classes, and the same images with the record's trigger.

    Nothing is prepared or trained for it: that may take hours.

    Args:
      record: a row of a sweep; its data set, attack, seed and their settings are read.
      data_dir: folder of the data archives; None = where they were prepared, or BDJAX_DATA_DIR.
      count: number of classes shown at most.
      out: folder of the sweep, which holds the triggers that are learned while the network is trained.

    Raises:
      UserError: the data, the attack's file, what it prepared, or the weights of a network with a learned trigger are not here or
        not those of the record; or the trigger is known only by imported images.
    """
    from bdjax.attacks.table import ATTACKS, IMAGES_ONLY
    from bdjax.data import load

    config = json.loads(record["config"])
    settings, name = config["attack"], record["dataset"]
    if settings["name"] in IMAGES_ONLY:
        raise UserError("of this attack only stored test images are known, and they lie in the import folder, not in the records")
    full = load(name, data_dir)  # the pictures are the same for all records of a data set
    attack = method("attack", settings, ATTACKS)(full.spec, settings["config"], profile=config["profile"])
    own = full
    if attack.prepare is not None:  # from the very images of the record
        own = load(name, data_dir, train_images=record["train_images"], test_images=record["test_images"])
        recreate.same_images(record, own)
        _require_assets(attack, own, record, config["root"])
    if attack.update is None:
        trigger = unlearned(attack, own, record["seed"], config["root"])
    elif out is None:
        raise UserError(
            f"the trigger of {settings['name']} is learned while the network is trained: name the folder of its results"
        )
    else:
        trigger = learned(member.find(out, {fact: record[fact] for fact in member.FACTS}), attack, own)
    labels = np.asarray(full.test.labels)
    classes = np.unique(labels)[:count]
    images = np.stack([full.test.images[int(np.argmax(labels == k))] for k in classes])
    triggered = np.asarray(apply_trigger_to_all(attack, *trigger, images))
    titles = full.spec.class_names or tuple(str(k) for k in range(full.spec.classes))
    note = "" if attack.recipe.shared_trigger else f"seed {record['seed']}"
    return Pictures(images, triggered, tuple(titles[k] for k in classes), note)


def _require_assets(attack: Attack, dataset: Dataset, record: dict[str, Any], root_number: int) -> None:
    """Raise :class:`UserError` if what the attack prepared is needed and is not on this machine."""
    per_seed = attack.recipe.prepare_per == "seed"
    if per_seed and attack.update is not None:
        return  # it is part of the trigger, which is stored with the weights
    start = root(root_number)
    key = stream(member_key(start, record["seed"]) if per_seed else start, Stream.PREPARE)
    if stored_assets.load(stored_assets.place(attack, dataset, key)) is None:
        name = record["attack"]
        raise UserError(
            f"what {name} prepared for its trigger is not kept here; with the settings of the run, this makes it again: "
            + command("show-attack", name, "--dataset", record["dataset"], "--train-images", record["train_images"])
        )
