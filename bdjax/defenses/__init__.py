"""Defenses, by name: each entry is a factory ``(model, config=None, *, profile="corrected") -> Defense``."""

from bdjax.defenses.clp import clp
from bdjax.defenses.fp import fp
from bdjax.defenses.ft import ft

DEFENSES = {"ft": ft, "fp": fp, "clp": clp}

__all__ = ["DEFENSES", "clp", "fp", "ft"]
