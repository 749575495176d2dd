"""SSBA: every image is drawn anew by a network that hides the same secret in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax.attacks.selection import any_class, labelled
from bdjax.attacks.ssba.training import Settings, check, embed, train
from bdjax.configure import at_least
from bdjax.errors import UserError
from bdjax.types import PROFILES, Array, Attack, Dataset, DataSpec, Float, Key, Recipe

__all__ = ["Config", "secret", "ssba"]

BITS = 100  # of the secret, at most


class Config(NamedTuple):
    """Static configuration; the networks are trained once per data set."""

    target: int = 0  # the attack label of all_to_one
    labels: str = "all_to_one"  # or "all_to_all"
    width: int = 32  # channels of both networks' first convolution; the others are multiples
    bits: int = BITS  # length of the secret
    epochs: int = 20  # of the networks' training
    batch: int = 64
    lr: float = 1e-4
    ramp: tuple[int, int] | None = None  # steps before and while the image error gains weight; None = (1000, 3000) of 15,620
    # steps, and in a shorter training as large a share of it


def ssba(spec: DataSpec, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Attack:
    """Let an encoder draw the whole image anew with a secret of 100 bits in it, the same for all images.

    x' = round(255 E(s, x)) / 255, half up, before the augmentation, while training and at test time alike. The secret s is
    :func:`secret`. E and a decoder D that reads the secret are trained once per data set on its clean images, with fresh random
    secrets: Adam on w mean((E(s, x) - x)²) + BCE(D(E(s, x)), s), where w is 0 until a batch has more than 90 % of its bits right
    and then, after 1000 steps, rises to 10 in 3000. What E does not draw well is part of the trigger.

    Args:
      spec: data set facts; images of any size (whole multiples of 16 pixels are what the networks are made for).
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; this attack is the same in both.

    Returns:
      An attack whose ``prepare(key, dataset)`` trains the networks and returns {"encoder": its parameters, "measured": what they
      reached, the fields of :class:`~bdjax.attacks.ssba.training.Measured`}; it raises UserError where the bit accuracy is not
      above 0.95 or w has not reached 10.

    Raises:
      UserError: an unknown field or profile, a target that is no class, a number out of its range.

    Source: Y. Li, Y. Li, B. Wu, L. Li, R. He, S. Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021;
      networks after M. Tancik, B. Mildenhall, R. Ng, "StegaStamp: Invisible Hyperlinks in Physical Photographs", CVPR 2020.
    Differs: what is built is the survey's published procedure (arXiv 2411.11200). Unlike the papers it has no perceptual loss, no
      critic and no corruption of the image between encoder and decoder, its encoder returns an image and no residual, and rows of
      the target class are poisoned too. The survey took its triggered images ready-made, from networks and with a secret that
      are not known; here the networks are trained on the data set itself, at its own size, and the secret is fixed: any other is
      of the same kind. So there is nothing that the profile "reference" could follow more closely. The published script also cuts
      images that are not square before it hides the secret in them (GTSRB), so that poison shows by its geometry; here the images
      that everybody else sees are encoded. The last partial batch of an epoch is dropped. A training of fewer than 15,620 steps
      (20 epochs of 50,000 images) has a ramp that is shorter in proportion, a longer one keeps it. The bit accuracy that must
      exceed 0.95 is that of fresh secrets in 8-bit images, as the attack stores them. Below 16 pixels the planes made of the
      secret shrink with the image; sides that are no multiple of 16 are rounded up where the encoder halves and cut where it
      doubles.
    """
    resolved, relabel = labelled(spec, config, "ssba", profile, dict.fromkeys(PROFILES, Config()))
    at_least("ssba", resolved, width=1, bits=1, epochs=1, batch=1)
    if resolved.bits > BITS:
        raise UserError(f"ssba.bits must be at most {BITS}; given {resolved.bits}")
    if not resolved.lr > 0:
        raise UserError(f"ssba.lr must be positive; given {resolved.lr:g}")
    ramp = resolved.ramp
    if ramp is not None and not (len(ramp) == 2 and all(isinstance(n, int) for n in ramp) and ramp[0] >= 0 and ramp[1] >= 1):
        raise UserError(f"ssba.ramp takes two whole numbers of steps, at least 0 and at least 1; given {ramp}")
    settings = Settings(resolved.width, resolved.bits, resolved.epochs, resolved.batch, resolved.lr, ramp)

    def prepare(key: Key, dataset: Dataset) -> dict[str, Any]:
        params, measured = train(key, dataset.train.images, settings)
        check(measured, settings, dataset.spec.name)
        return {"encoder": params["encoder"], "measured": measured._asdict()}

    def init(key: Key, assets: Any) -> dict[str, Any]:
        return {"encoder": assets["encoder"]}

    def stamp(trigger: Any, key: Key, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return embed(trigger["encoder"], resolved.width, jnp.asarray(secret(resolved.bits))[None], images)

    return Attack(init, any_class, stamp, relabel, Recipe(), resolved, prepare=prepare)


def secret(bits: int = BITS) -> Float[np.ndarray, " bits"]:
    """Return the secret of all images, of 0 and 1: the first of 100 draws of NumPy's legacy generator, seed 0."""
    return np.random.RandomState(0).randint(0, 2, BITS)[:bits].astype(np.float32)
