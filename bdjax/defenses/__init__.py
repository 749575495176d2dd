"""Defenses, by name: each entry is a factory ``(model, config=None, *, profile="corrected") -> Defense``."""

from bdjax.defenses.clp import clp
from bdjax.defenses.fp import fp
from bdjax.defenses.fst import fst
from bdjax.defenses.ft import ft
from bdjax.defenses.ft_sam import ft_sam
from bdjax.defenses.i_bau import i_bau
from bdjax.defenses.nad import nad
from bdjax.defenses.nc import nc
from bdjax.defenses.sau import sau

DEFENSES = {
    "ft": ft,
    "fp": fp,
    "nad": nad,
    "nc": nc,
    "ft_sam": ft_sam,
    "fst": fst,
    "i_bau": i_bau,
    "sau": sau,
    "clp": clp,
}

__all__ = ["DEFENSES", "clp", "fp", "fst", "ft", "ft_sam", "i_bau", "nad", "nc", "sau"]
