"""Attacks, by name: each entry is a factory ``(spec, config=None, *, profile="corrected") -> Attack``."""

from bdjax.attacks.table import ATTACKS

__all__ = ["ATTACKS"]
