"""Imported networks measured with a trigger that is not the one they were trained with: how it shows, and what to say of it.

A network that comes from elsewhere may have been trained with another field, picture or patch than the attack of that name has
here. Then its ASR is that of a network without a backdoor, and a defense seems to remove what was never measured.
"""

from typing import Any

from bdjax.store.rows import Row
from bdjax.train.evaluate import EvalSet

MARGIN = 0.05  # an ASR that is at most so much above that of a network without a backdoor shows none
OWN = {  # fields of a configuration with which a user gives the trigger, and what to write
    "badnets": (("size", "place", "colour", "pattern"), "badnets.pattern=FILE, or its size, place and colour"),
    "blended": (("picture",), "blended.picture=FILE"),
    "wanet": (("field",), "wanet.field=FILE"),
}


def clean_as_triggered(test: EvalSet) -> EvalSet:
    """The clean test images in the place of the triggered ones: "attacked" then counts clean ones called their attack label."""
    return test._replace(triggered=test.images)


def shows_no_backdoor(asr: float, target_rate: float, classes: int) -> bool:
    """Whether an ASR is what a network without a backdoor has.

    ASR <= max(t, 1 / k) + 0.05, t the rate at which the network itself calls clean test images of other classes their attack
    label, and 1 / k the rate of guessing among k classes, to which a network comes whose images a trigger has spoilt.

    Args:
      asr: before any defense, in [0, 1].
      target_rate: t, in [0, 1].
      classes: k.
    """
    return asr <= max(target_rate, 1 / classes) + MARGIN


def warning(attack: str, config: Any, images_there: bool) -> str:
    """What a record and its tables say of a network that does not answer the trigger; the same for all members of a cell.

    Args:
      attack: name of the attack.
      config: its configuration.
      images_there: whether triggered images were imported with the network.
    """
    fields, flag = OWN.get(attack, ((), f"{attack}.FIELD=VALUE"))
    default = type(config)._field_defaults if hasattr(config, "_field_defaults") else {}
    given = [field for field in fields if getattr(config, field, None) != default.get(field)]
    whose = f"the one given with {' and '.join(f'{attack}.{field}' for field in given)}" if given else "bdjax's own"
    images = ", or leave --attack out to measure the triggered images that were imported with it" if images_there else ""
    return (
        f"the imported network does not answer the trigger of {attack}: its ASR before the defense is that of one without a "
        f"backdoor. The trigger is {whose}, and the network may have been trained with another: give that with --config {flag}"
        f"{images}"
    )


def warned(row: Row, target_rate: float, classes: int, text: str) -> Row:
    """The columns of a record that say how the network answers the trigger.

    Args:
      row: of a measured member, as it was imported.
      target_rate: see :func:`shows_no_backdoor`.
      classes: number of classes.
      text: of :func:`warning`.
    """
    attacked = row["ratio"] > 0 and row["asr"] is not None
    doubtful = attacked and shows_no_backdoor(row["asr"], target_rate, classes)
    return {"target_rate": target_rate, "warning": text if doubtful else None}
