"""Defenses, by name: each entry is a factory ``(model, config=None, *, profile="corrected") -> Defense``."""

from bdjax.defenses.table import DEFENSES

__all__ = ["DEFENSES"]
