"""An attack of which only the triggered test images are known, as a checkpoint of other software has them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bdjax.configure import configure
from bdjax.errors import UserError
from bdjax.types import PROFILES, Attack, DataSpec, Recipe, Triggered

STORED = "stored"  # its name in records and flags


class Config(NamedTuple):
    """What is known of it."""

    images: str  # sha256 of the triggered images and their labels
    target: int | None  # the one attack label, or None where there are several


def stored(known: Config, triggered: Callable[[], Triggered], origin: str) -> Callable[..., Attack]:
    """Return the factory of an attack that is measured on its stored images and can neither train nor trigger others.

    Args:
      known: see :class:`Config`.
      triggered: returns the images.
      origin: where they lie, for messages.

    Returns:
      ``make(spec, config=None, *, profile) -> Attack``, whose trigger is empty. ``config`` may repeat what is known, as a record
      does. Applying the trigger, selecting rows and relabelling raise UserError.

    Source: none; it stands for whatever attack made the checkpoint.
    """

    def make(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
        given = configure(dict.fromkeys(PROFILES, known), config, STORED, profile)
        if given.images != known.images:
            raise UserError(f"the triggered images of {origin} are others than those that the configuration names")
        if given != known:
            raise UserError(f"the stored images of {origin} have their attack labels: a target has no effect")
        return Attack(lambda key, assets: {}, _refuse, _refuse, _refuse, Recipe(), known, triggered=triggered)

    return make


def _refuse(*_: Any) -> Any:
    raise UserError(
        "of this attack only the stored test images are known, which cannot train a model or stamp other images; "
        "name the attack with --attack to use its trigger"
    )
