"""An attack of which only the triggered test images are known, as a checkpoint of other software holds them."""

from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.types import Attack, Recipe

STORED = "stored"  # its name in records and flags


class Config(NamedTuple):
    """What is known of it."""

    images: str  # sha256 of the triggered images and their labels
    target: int | None  # the one attack label, or None where there are several


def stored(config: Config) -> Attack:
    """An attack that is measured on its stored images and cannot stamp others.

    Args:
      config: see :class:`Config`.

    Returns:
      An attack whose trigger is empty; stamping, selecting and relabelling raise UserError.

    Source: none; it stands for whatever attack made the checkpoint.
    """

    def refuse(*_: Any) -> Any:
        raise UserError(
            "of this attack only the stored test images are known, which cannot train a model or stamp other images; "
            "name the attack with --attack to use its trigger"
        )

    return Attack(lambda key, assets: {}, refuse, refuse, refuse, Recipe(), config)
