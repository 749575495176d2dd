"""The settings of RNP."""

from typing import NamedTuple


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    unlearn_epochs: int = 20  # at most
    recover_epochs: int = 20
    batch: int = 256
    attempts: int = 10  # at most; each after the first at a tenth of the rate of the one before
    unlearn_from: str = "backdoored"  # or "random": a fresh network without masks, as the published code did until April 2025
    augment_validation: bool | None = None  # crop and flip the rows on which accuracy is measured, drawn anew at each threshold
    published_eps: bool | None = None  # MobileNet has ε = 1e-5 in its norms throughout, and is evaluated so
