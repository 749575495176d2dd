"""Pictures of a trigger, made again from the data set and the attack that a record names."""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError


class Pictures(NamedTuple):
    """Test images of different classes, as they are and triggered."""

    images: NDArray[np.uint8]  # u8[n h w c]
    triggered: NDArray[np.uint8]  # u8[n h w c]
    names: tuple[str, ...]  # of the n classes


def pictures(record: dict[str, Any], data_dir: str | None = None, count: int = 8) -> Pictures:
    """The first test image of each of the first classes, and the same images with the record's trigger.

    Args:
      record: a row of a sweep; its data set, attack and their settings are read.
      data_dir: folder of the data archives; None = where they were prepared, or BDJAX_DATA_DIR.
      count: number of classes shown at most.

    Raises:
      UserError: the data or the attack's file are not here, or the trigger is learned in training, or known only by imported
        images, and cannot be made again.
    """
    import jax.numpy as jnp

    from bdjax.attacks import ATTACKS
    from bdjax.attacks.stored import STORED
    from bdjax.data import load
    from bdjax.evaluation import stamp_images
    from bdjax.keys import Stream, root, stream
    from bdjax.sweep.plugins import factory

    config = json.loads(record["config"])
    told = config["attack"]
    if told["name"] == STORED:
        raise UserError("of this attack only stored test images are known, and they lie in the import folder, not in the records")
    dataset = load(record["dataset"], data_dir)
    attack = factory("attack", told["name"], ATTACKS)(dataset.spec, told["config"], profile=config["profile"])
    if attack.prepare is not None or attack.update is not None or not attack.recipe.shared_trigger:
        raise UserError(
            f"the trigger of {told['name']} is learned or differs between members; its settings alone do not make it again"
        )
    labels = np.asarray(dataset.test.labels)
    classes = np.unique(labels)[:count]
    images = np.stack([dataset.test.images[int(np.argmax(labels == k))] for k in classes])
    key = root(config["root"])
    stamped = np.asarray(stamp_images(attack, attack.init(stream(key, Stream.TRIGGER), None), key, jnp.asarray(images)))
    titles = dataset.spec.class_names or tuple(str(k) for k in range(dataset.spec.classes))
    return Pictures(images, stamped, tuple(titles[k] for k in classes))
