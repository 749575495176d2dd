"""Attacks, by name: each entry is a factory ``(spec, config=None, *, profile="corrected") -> Attack``."""

from bdjax.attacks.badnets.badnets import badnets
from bdjax.attacks.blended import blended
from bdjax.attacks.bpp.bpp import bpp
from bdjax.attacks.input_aware.input_aware import input_aware
from bdjax.attacks.low_frequency.low_frequency import low_frequency
from bdjax.attacks.sig import sig
from bdjax.attacks.ssba.ssba import ssba
from bdjax.attacks.stored import STORED, stored
from bdjax.attacks.wanet.wanet import wanet

ATTACKS = {
    "badnets": badnets,
    "blended": blended,
    "sig": sig,
    "low_frequency": low_frequency,
    "ssba": ssba,
    "input_aware": input_aware,
    "wanet": wanet,
    "bpp": bpp,
}
# Attacks of which only triggered images are known, which an import folder has: each entry makes such a factory from the images.
IMAGES_ONLY = {STORED: stored}
