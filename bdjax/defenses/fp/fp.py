"""FP: prune the head inputs that clean data leave dormant, then fine-tune."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.defenses.batches import training_rows
from bdjax.defenses.fp.levels import Rules, judge, measurer
from bdjax.defenses.tuning import Hyper, tuner
from bdjax.errors import UserError
from bdjax.train.schedules import cosine_by_epoch
from bdjax.types import Array, Curve, Defended, DefenderView, Defense, Float, Int, Key, Model, Variables


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 100  # of the tuning after pruning
    batch: int = 256
    period: int | None = None  # epochs from the first learning rate down to 0
    granularity: float = 0.01  # share of the head inputs pruned per level
    off_by_one: bool | None = None  # level k >= 1 prunes k step - 1 inputs instead of k step
    keep_failing_level: bool | None = None  # return the first level beyond the tolerance instead of the last within
    rise_stops: bool | None = None  # a rise of the validation accuracy beyond the tolerance stops, as a drop does
    augment_validation: bool | None = None  # crop and flip the validation rows, drawn anew at each level


class FPHyper(NamedTuple):
    """Traced hyper-parameters."""

    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    tolerance: Any = np.float32(0.1)  # f32[] in [0, 1]: accepted relative change of the validation accuracy, in steps of 1e-4


class FPTrace(NamedTuple):
    """What happened at the L pruning levels and while tuning."""

    pruned: Array  # i32[L]: head inputs pruned at each level
    correct: Array  # i32[L]: validation rows classified correctly
    validation: Array  # i32[]: validation rows
    level: Array  # i32[]: the level whose mask was kept
    rank: Array  # i32[d]: place of each head input in the order of pruning
    loss: Array  # f32[epochs]: mean cross-entropy of the epoch
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {
    "corrected": Config(off_by_one=False, keep_failing_level=False, rise_stops=False, augment_validation=False),
    "reference": Config(period=100, off_by_one=True, keep_failing_level=True, rise_stops=True, augment_validation=True),
}


def fp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Prune inputs of the first linear layer in the order of their mean on clean data, then fine-tune.

    With a_c the mean of input c over the training rows (eval mode, the training augmentation), level k prunes the k step inputs
    with the smallest a_c, step = ceil(granularity d). The levels go on while the drop of the number of correct validation rows
    stays within ``tolerance`` of level 0: 10000 (c_0 - c_k) <= round(10000 tolerance) c_0, in integers, so that ties pass
    exactly. The mask of the last such level stays in force while the whole network is tuned as in FT.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with validation rows, hyper-parameters :class:`FPHyper`, masks {first linear layer: keep f[d]} and trace
      :class:`FPTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: K. Liu, B. Dolan-Gavitt, S. Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID
      2018; settings of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: as in the survey, in both profiles: columns of the first linear layer instead of channels of the last convolution,
      ranked by the signed mean (features of a pre-activation network have any sign), judged on validation rows. "reference"
      repeats the survey's published code: one input fewer per level, the first level *beyond* the tolerance kept, a rise stops
      as well, validation rows augmented anew at each level, and T = 100 in the tuning of any length. In both, a network with no
      correct validation row stays unpruned (the published code divides by zero) and ties pass exactly where floating point
      decides by chance. VGG's folded head has one input per channel at 32 pixels (and four combinations of a channel's positions
      at 64) where the published code prunes the channel's 49 copies one by one; ``vgg19_bn(…, fold=False)`` has those.
    """
    config = configure(PRESETS, config, "fp", profile)
    period = config.epochs if config.period is None else config.period
    config = config._replace(period=period)
    at_least("fp", config, epochs=1, batch=1, period=1)
    if not 0 < config.granularity <= 1:
        raise UserError(f"fp.granularity must lie in (0, 1]; given {config.granularity}")
    head = model.arch.heads[0]
    rules = Rules(
        config.batch,
        config.granularity,
        bool(config.off_by_one),
        bool(config.keep_failing_level),
        bool(config.rise_stops),
        bool(config.augment_validation),
    )

    def project(params: Any, keep: Float[Array, " d"]) -> Any:
        return tree.mask_inputs(params, {head: keep})

    measure, decide = measurer(model, config.batch), judge(model, rules)
    tune = tuner(model, epochs=config.epochs, batch=config.batch, schedule=cosine_by_epoch(period), project=project)

    @jax.jit
    def prune(variables: Variables, keep: Float[Array, " d"]) -> dict[str, Any]:
        return {**variables, "params": project(variables["params"], keep)}

    def defend(key: Key, view: DefenderView, hyper: FPHyper) -> Defended:
        assert view.clean is not None
        tuning, activation, validation = jax.random.split(key, 3)
        hyper = jax.tree.map(jnp.asarray, hyper)
        inputs = measure(activation, view.variables, view.clean)
        keep, seen = decide(validation, view.variables, view.clean, inputs, hyper.tolerance)
        rates = Hyper(hyper.lr, hyper.momentum, hyper.weight_decay)
        tuned = tune(tuning, prune(view.variables, keep), view.clean, training_rows(view.clean), rates, keep)
        trace = FPTrace(**seen._asdict(), loss=tuned.loss, alive=tuned.alive, stopped=tuned.stopped)
        return Defended(tuned.variables, {head: keep}, trace)

    return Defense(defend, FPHyper(), frozenset({"clean"}), config, validation=True, curve=_curve(head, config.granularity))


def _curve(head: str, granularity: float) -> Curve:
    shares = tuple(round(i * granularity, 9) for i in range(math.ceil(round(1 / granularity, 9))))

    def at(variables: Variables, rank: Int[Array, " d"], level: Int[Array, ""]) -> Variables:
        kernel = tree.get(variables["params"], head)["kernel"]
        pruned = np.array([math.ceil(round(share * len(kernel), 9)) for share in shares], np.int32)
        keep = (rank >= jnp.asarray(pruned)[level]).astype(kernel.dtype)
        return {**variables, "params": tree.mask_inputs(variables["params"], {head: keep})}

    return Curve("share of the head's inputs", shares, ("rank",), at)
