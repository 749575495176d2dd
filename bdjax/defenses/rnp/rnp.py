"""RNP: unlearn the clean data, let masks alone recover them, prune what the recovery gave up."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.defenses.batches import training_rows
from bdjax.defenses.channels import (
    GRID,
    curve,
    kept,
    pruned_by_limit,
    published_norms,
    rounded,
    seen_through,
    threshold_curve,
)
from bdjax.defenses.rnp.attempts import attempter
from bdjax.defenses.rnp.settings import Config
from bdjax.errors import choose
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables

STEP = 200  # between two thresholds, in 1 / GRID
LIMITS = (-1, *range(-1, 50 * STEP - 1, STEP))  # the network as it is, then masks below 0, 0.02 … 0.98
STARTS = ("backdoored", "random")


class RNPHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(1e-3)  # of the unlearning, down to 0 along a cosine
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-2)  # of the unlearning, on the masks too
    stop: Any = np.float32(0.2)  # training accuracy at which the unlearning ends
    recover_lr: Any = np.float32(0.2)
    tolerance: Any = np.float32(0.02)  # drop of the accuracy that is accepted, absolute, in steps of 1e-4


class RNPTrace(NamedTuple):
    """What happened in the last attempt, and at the levels: the network as it is, then thresholds 0, 0.02 … 0.98."""

    unlearned: Array  # f32[unlearn epochs]: accuracy on the training passes of the epoch; NaN once it was low enough
    recovered: Array  # f32[recover epochs]: mean cross-entropy of the epoch
    attempts: Array  # i32[]: attempts made
    pruned: Array  # i32[51]: channels pruned at each level
    correct: Array  # i32[51]: clean rows classified correctly
    validation: Array  # i32[]: clean rows
    level: Array  # i32[]: the level that was kept
    masks: Array  # f32[channels]: the recovered masks, norm after norm in execution order
    alive: Array  # bool[]: an attempt stayed finite
    stopped: Array  # i32[]: the step of the last attempt at which it did not; -1 = none


PRESETS = {
    "corrected": Config(augment_validation=False, published_eps=False),
    "reference": Config(augment_validation=True, published_eps=True),
}


def rnp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Make the network forget the clean data, let masks of the norms' scales learn them again, prune channels that do not help.

    Unlearn: ascend the cross-entropy in train mode with all parameters and one mask per norm channel, SGD with weight decay on
    both, until the accuracy of an epoch's own passes is at most ``stop``. Recover: freeze everything but the masks, which descend
    the cross-entropy in train mode at a constant rate, clipped to [0, 1] after each step. Then, in the network as it came,
    channels with a mask, rounded to 1e-4, below 0, 0.02 … 0.98 lose their scale (not their bias); the last threshold before the
    accuracy on the clean rows drops by more than ``tolerance`` wins. An attempt that is not finite is made again at a tenth of
    the rate; where all fail nothing is pruned and the member is marked.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`RNPHyper`, masks {norm: keep f[d]} and trace :class:`RNPTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: Y. Li, X. Lyu, X. Ma, N. Koren, L. Lyu, B. Li, Y.-G. Jiang, "Reconstructive Neuron Pruning for Backdoor Defense", ICML
      2023; settings of K. Dunnett et al., arXiv 2411.11200, 2024 (the original unlearns at 0.01).
    Differs: no gradient clipping in either profile: the published code clips before there is a gradient. "reference" crops and
      flips the rows of every accuracy, so that chance can end the pruning before it begins, and has ε = 1e-5 in MobileNet's
      norms, in the returned network too. The published code crashes where all attempts fail.
    """
    config = configure(PRESETS, config, "rnp", profile)
    at_least("rnp", config, unlearn_epochs=1, recover_epochs=1, batch=1, attempts=1)
    choose("rnp.unlearn_from", config.unlearn_from, STARTS)
    masked = published_norms(model) if config.published_eps else model
    attempt = attempter(masked, config)
    correct_by_level = curve(masked, config.batch, bool(config.augment_validation))
    norms = model.arch.norms

    @jax.jit
    def found(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        masks, course, alive, stopped = attempt(key, variables, clean, hyper)
        grid = rounded({norm: jnp.where(alive, m, 1) for norm, m in masks.items()})
        return grid, jnp.asarray(LIMITS, jnp.int32), training_rows(clean), course, alive, stopped

    @jax.jit
    def decide(
        variables: Variables, grid: Masks, limits: Int[Array, " L"], correct: Int[Array, " L"], counted: Array, hyper: Any
    ) -> Any:
        rows = jnp.sum(counted, dtype=jnp.int32)
        level = chosen(correct, rows, hyper.tolerance)
        params = variables["params"]
        keep = kept(grid, limits[level], jax.tree.leaves(params)[0].dtype)
        pruned = pruned_by_limit(grid, limits)
        masks = jnp.concatenate([grid[norm] for norm in norms]).astype(jnp.float32) / GRID
        defended = {**variables, "params": tree.mask_norms(params, keep, bias=False)}
        return seen_through(model, masked.norm_eps, defended), keep, (pruned, correct, rows, level, masks)

    def defend(key: Key, view: DefenderView, hyper: RNPHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        trying, judging = jax.random.split(key)
        grid, limits, counted, course, alive, stopped = found(trying, view.variables, view.clean, hyper)
        correct = correct_by_level(judging, view.variables, view.clean, counted, grid, limits)
        variables, keep, seen = decide(view.variables, grid, limits, correct, counted, hyper)
        return Defended(variables, keep, RNPTrace(*(*course, *seen, alive, stopped)))

    along = threshold_curve(norms, LIMITS, STEP, model, masked.norm_eps)
    return Defense(defend, RNPHyper(), frozenset({"clean"}), config, curve=along)


def chosen(correct: Int[Array, " L"], rows: Int[Array, ""], tolerance: Float[Array, ""]) -> Int[Array, ""]:
    """The last level before the accuracy drops too far below that of level 0; levels after the first failure do not count.

    Args:
      correct: correct rows by level; level 0 first.
      rows: at most 200,000 (the products are 32-bit).
      tolerance: in [0, 1], rounded to 1e-4.
    """
    accepted = jnp.round(tolerance.astype(jnp.float32) * GRID).astype(jnp.int32)
    passes = GRID * (correct[0] - correct) <= accepted * rows
    return jnp.sum(jnp.cumprod(passes.astype(jnp.int32)), dtype=jnp.int32) - 1
