"""Grad-Prune: prune the filters on which unlearning the trigger pulls hardest, one at a time, then fine-tune."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.defenses.grad_prune.filters import COMPANIONS, filters, masks_of, pruned
from bdjax.defenses.grad_prune.joint_tuning import Tuned, tuner, untuned
from bdjax.defenses.grad_prune.rounds import Ended, Pruned, pruner
from bdjax.defenses.grad_prune.settings import Config
from bdjax.defenses.grad_prune.triggers import SOURCES
from bdjax.errors import UserError, choose
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Key, Model, Num, Variables

SCORE_BN, WEIGHTINGS = ("eval", "first_batch_train"), ("per_image", "sum_of_batch_means")


class GradPruneHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(1e-3)  # of the tuning
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    tolerance: Any = np.float32(0.1)  # drop of the clean validation accuracy that ends the pruning, absolute, in steps of 1e-4


class GradPruneTrace(NamedTuple):
    """What happened, by round of the pruning and by epoch of the tuning.

    In the fields by round entry 0 is the network as it came; after the last round they are -1 or NaN.
    """

    address: Array  # i32[rounds + 1]: convolution of the filter that was pruned, by its number among those registered; -1 = none
    filter: Array  # i32[rounds + 1]: its output channel
    score: Array  # f32[rounds + 1]: its mean absolute gradient
    errors: Array  # i32[rounds + 1]: clean validation rows that are wrong
    unlearning: Array  # f32[rounds + 1]: cross-entropy on triggered validation rows
    validation: Array  # i32[]: validation rows
    rounds: Array  # i32[]: rounds made
    kept: Array  # i32[]: the round whose network is kept; 0 = the network as it came
    ended: Array  # i32[]: why the rounds ended: :class:`~.rounds.Ended`
    loss: Array  # f32[epochs]: cross-entropy on clean images plus that on triggered ones; NaN after the last epoch
    validated: Array  # f32[epochs]: cross-entropy on clean validation rows; NaN likewise
    untuned: Array  # f32[]: the same before the first epoch
    epochs: Array  # i32[]: epochs made
    kept_epoch: Array  # i32[]: the epoch whose network is kept; 0 = that before the tuning
    tuning_ended: Array  # i32[]: why the epochs ended
    alive: Array  # bool[]: scores, losses and gradients stayed finite
    stopped: Array  # i32[]: the first step of the tuning at which they did not; -1 = none


PRESETS = {
    "corrected": Config(
        score_bn="eval",
        batch_weighting="per_image",
        companion="own_bn",
        exclude_pruned=True,
        freeze_pruned=True,
        integer_threshold=True,
        prune_squeeze=False,
    ),
    "reference": Config(
        score_bn="first_batch_train",
        batch_weighting="sum_of_batch_means",
        companion="next_param",
        exclude_pruned=False,
        freeze_pruned=False,
        integer_threshold=False,
        prune_squeeze=True,
    ),
}


def grad_prune(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Prune, one per round, the filter with the largest gradient of the loss of unlearning the trigger; then fine-tune.

    L = CE(f(x~), y) with triggered images x~ and true labels y. Per round the filter j of all convolutions with the largest
    mean_{h,w,i} |∂L/∂W[h,w,i,j]| on the training rows becomes 0, and what goes with it. Rounds end once the clean validation
    accuracy has dropped by ``tolerance`` or L on the validation rows has not fallen for ``pruning_patience`` rounds; the network
    with the smallest L is kept. Then SGD on CE(f(x), y) + CE(f(x~), y) in train mode, until CE(f(x), y) on the validation rows
    has not fallen for ``tuning_patience`` epochs; the network with the smallest is the result. No augmentation.

    The effect has three parts, which can be separated: the drift of the norms' statistics alone is ``prune=False, tune=False,
    score_bn="first_batch_train"``, pruning alone ``tune=False, score_bn="eval"``, tuning alone ``prune=False, score_bn="eval"``.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with validation rows, which is given triggered images unless ``triggers`` says otherwise; with hyper-parameters
      :class:`GradPruneHyper` (or a source's own), masks {convolution: keep f[d]} and trace :class:`GradPruneTrace`.

    Raises:
      UserError: an unknown field, value or profile, a value out of range, or a configuration that would do nothing.

    Source: K. Dunnett, R. Arablouei, D. Miller, V. Dedeoglu, R. Jurdak, "Unlearning Backdoor Attacks through Gradient-Based Model
      Pruning", arXiv 2405.03918, 2024.
    Differs: the loops are capped, and the published evaluation on test data in every round is left out; where no filter has a
      gradient, or something is not finite, the rounds end (there the run is lost). "corrected" scores in eval mode, so that
      statistics stay and only pruning acts in the rounds; weighs images alike; prunes a filter with its bias and the scale and
      bias of the norm that it alone feeds, and nothing else (the stem, the last convolutions of blocks and the projections of
      PreActResNet have none); never chooses a filter twice; keeps it 0 while tuning; compares whole numbers of wrong rows; and
      leaves squeeze-and-excitation alone. "reference" repeats the published code: the first batch of each round is in train mode
      and moves the running statistics, which does much of the unlearning; batches weigh alike, however small; the parameter
      registered next goes with a filter, be it a scale alone, a bias or another kernel, and after PreActResNet's last convolution
      the weights of class j (for j beyond the classes, where the published code fails, nothing); a pruned filter can win again
      and grow back; accuracies are compared in double precision. In both, the tuning starts from the clean validation loss that
      the kept round measured. Beyond the paper: ``triggers`` other than "true" need no knowledge of the trigger.
    """
    config = _checked(configure(PRESETS, config, "grad_prune", profile))
    mitigate = _mitigation(model, config)
    source = SOURCES[config.triggers](model, config) if config.triggers != "true" else None

    def defend(key: Key, view: DefenderView, hyper: Any) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        making, going = jax.random.split(key)
        triggered = view.triggered if source is None else source.make(making, view.variables, view.clean, hyper)
        assert triggered is not None
        return mitigate(going, view.variables, view.clean, triggered, hyper)

    needs = {"clean", "triggered"} if source is None else {"clean"}
    return Defense(defend, GradPruneHyper() if source is None else source.hyper, frozenset(needs), config, validation=True)


def _checked(config: Config) -> Config:
    """The configuration without None, if its values are known, in range and do something."""
    at_least("grad_prune", config, rounds=1, epochs=1, batch=1, pruning_patience=1, tuning_patience=1)
    at_least("grad_prune", config, search_epochs=1, search_batch=1, attack_steps=0, pretrain_epochs=1, mask_epochs=1)
    at_least("grad_prune", config, generator_epochs=1, generator_width=1, generator_levels=1)
    allowed = {"score_bn": SCORE_BN, "batch_weighting": WEIGHTINGS, "companion": COMPANIONS, "triggers": ("true", *SOURCES)}
    for field, values in allowed.items():
        choose(f"grad_prune.{field}", str(getattr(config, field)), values)
    if not config.prune and not config.tune and config.score_bn == "eval":
        raise UserError("grad_prune without prune and tune, and with score_bn 'eval', does nothing")
    return config


def _mitigation(model: Model, config: Config) -> Callable[..., Defended]:
    """``mitigate(key, variables, clean, triggered, hyper) -> Defended``: rounds of pruning, then tuning.

    ``triggered`` are images in [0, 1], or bytes, one for every clean row.
    """
    prune, tune = pruner(model, config), tuner(model, config)

    @jax.jit
    def mitigate(key: Key, variables: Variables, clean: CleanSet, triggered: Num[Array, "n h w c"], hyper: Any) -> Defended:
        pruning, tuning = jax.random.split(key)
        params = variables["params"]
        table = filters(model.arch, params, str(config.companion), bool(config.prune_squeeze))
        rounds = prune(pruning, variables, table, clean, triggered, hyper)
        best = rounds.best
        masks = masks_of(table, best.keep)
        kept = {**variables, "params": pruned(table, params, best.keep), "batch_stats": best.statistics}
        tuned = untuned(kept, config.epochs)
        if config.tune:
            tuned = tune(tuning, kept, table, best.keep, best.clean, clean, triggered, hyper)
        return Defended(tuned.variables, masks, _trace(rounds, tuned))

    return mitigate


def _trace(rounds: Pruned, tuned: Tuned) -> GradPruneTrace:
    """What happened in the rounds and in the epochs after them."""
    return GradPruneTrace(
        **rounds.history._asdict(),
        validation=rounds.validation,
        rounds=rounds.rounds,
        kept=rounds.best.round,
        ended=rounds.ended,
        loss=tuned.loss,
        validated=tuned.validated,
        untuned=rounds.best.clean.astype(jnp.float32),
        epochs=tuned.epochs,
        kept_epoch=tuned.kept,
        tuning_ended=tuned.ended,
        alive=(rounds.ended != Ended.NON_FINITE) & (tuned.ended != Ended.NON_FINITE),
        stopped=tuned.stopped,
    )
