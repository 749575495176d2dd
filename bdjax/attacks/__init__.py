"""Attacks, by name: each entry is a factory ``(spec, config=None, *, profile="corrected") -> Attack``."""

from bdjax.attacks.badnets import badnets
from bdjax.attacks.blended import blended

ATTACKS = {"badnets": badnets, "blended": blended}

__all__ = ["ATTACKS", "badnets", "blended"]
