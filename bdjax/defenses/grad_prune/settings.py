"""The settings of Grad-Prune."""

from typing import NamedTuple


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    rounds: int = 300  # of pruning, at most; each prunes one filter
    epochs: int = 300  # of the tuning, at most
    batch: int = 128
    pruning_patience: int = 10  # rounds in a row without a smaller loss that end the pruning
    tuning_patience: int = 10  # epochs likewise
    prune: bool = True  # without it the rounds, if norms move in them, only move norms
    tune: bool = True
    score_bn: str | None = None  # norms in the rounds: "eval", or "first_batch_train": in train mode, with drifting statistics
    batch_weighting: str | None = None  # "per_image", or "sum_of_batch_means": a small last batch weighs as much as a full one
    companion: str | None = None  # what goes with a filter: "own_bn" or "next_param", see :func:`~.filters.filters`
    exclude_pruned: bool | None = None  # what is pruned is not chosen again
    freeze_pruned: bool | None = None  # what is pruned stays 0 while tuning
    integer_threshold: bool | None = None  # the drop of the accuracy is compared in whole numbers, not in double precision
    prune_squeeze: bool | None = None  # filters of squeeze-and-excitation may be pruned too
    triggers: str = "true"  # whose images: the attack's own, or one of :data:`~.triggers.SOURCES`
    search_epochs: int = 80  # of the "universal" pattern, at most
    search_batch: int = 256  # of it
    attack_steps: int = 7  # of a "sample" perturbation
    pretrain_epochs: int = 50  # of the "generator", which learns to copy images; then
    mask_epochs: int = 20  # of what it may change, and
    generator_epochs: int = 30  # of the generator that changes it
    generator_width: int = 32  # its channels at full resolution
    generator_levels: int = 4  # its halvings of the image, at most
