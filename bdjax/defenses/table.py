"""Defenses, by name: each entry is a factory ``(model, config=None, *, profile="corrected") -> Defense``."""

from bdjax.defenses.anp import anp
from bdjax.defenses.awn import awn
from bdjax.defenses.bnp import bnp
from bdjax.defenses.bti_dbf.bti_dbf import bti_dbf
from bdjax.defenses.clp import clp
from bdjax.defenses.fmp.fmp import fmp
from bdjax.defenses.fp.fp import fp
from bdjax.defenses.fst import fst
from bdjax.defenses.ft import ft
from bdjax.defenses.ft_sam import ft_sam
from bdjax.defenses.grad_prune.grad_prune import grad_prune
from bdjax.defenses.i_bau import i_bau
from bdjax.defenses.ims.ims import ims
from bdjax.defenses.mm_bd import mm_bd
from bdjax.defenses.nad import nad
from bdjax.defenses.nc.nc import nc
from bdjax.defenses.nft import nft
from bdjax.defenses.npd import npd
from bdjax.defenses.pbe import pbe
from bdjax.defenses.rnp.rnp import rnp
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
    "anp": anp,
    "clp": clp,
    "rnp": rnp,
    "awn": awn,
    "bnp": bnp,
    "npd": npd,
    "pbe": pbe,
    "mm_bd": mm_bd,
    "grad_prune": grad_prune,
    "ims": ims,
    "nft": nft,
    "fmp": fmp,
    "bti_dbf": bti_dbf,
}
