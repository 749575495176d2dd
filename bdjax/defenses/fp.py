"""FP: prune the head inputs that clean data leave dormant, then fine-tune."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.tuning import Hyper, training_rows, tuner
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.train.loops import steps
from bdjax.train.schedules import cosine_by_epoch
from bdjax.types import Array, CleanSet, Curve, Defended, DefenderView, Defense, Key, Model, Variables

HELD = 2**22  # numbers of masked head inputs that may exist at once while the levels are measured
DECIMALS = 10_000  # the tolerance is a whole number of 1 / DECIMALS


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
    tolerance: Any = np.float32(
        0.1
    )  # f32[] in [0, 1]: relative change of the validation accuracy that is accepted, in steps of 1e-4


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

    def project(params: Any, keep: Array) -> Any:
        return tree.mask_inputs(params, {head: keep})

    measure, judge = _measurer(model, config), _judge(model, config)
    tune = tuner(model, epochs=config.epochs, batch=config.batch, schedule=cosine_by_epoch(period), project=project)

    @jax.jit
    def prune(variables: Variables, keep: Array) -> dict[str, Any]:
        return {**variables, "params": project(variables["params"], keep)}

    def defend(key: Key, view: DefenderView, hyper: FPHyper) -> Defended:
        assert view.clean is not None
        tuning, activation, validation = jax.random.split(key, 3)
        hyper = jax.tree.map(jnp.asarray, hyper)
        inputs = measure(activation, view.variables, view.clean)
        keep, seen = judge(validation, view.variables, view.clean, inputs, hyper.tolerance)
        rates = Hyper(hyper.lr, hyper.momentum, hyper.weight_decay)
        tuned = tune(tuning, prune(view.variables, keep), view.clean, training_rows(view.clean), rates, keep)
        trace = FPTrace(*seen, tuned.loss, tuned.alive, tuned.stopped)
        return Defended(tuned.variables, {head: keep}, trace)

    return Defense(defend, FPHyper(), frozenset({"clean"}), config, validation=True, curve=_curve(head, config.granularity))


def _curve(head: str, granularity: float) -> Curve:
    shares = tuple(round(i * granularity, 9) for i in range(math.ceil(round(1 / granularity, 9))))

    def at(variables: Variables, rank: Array, level: Array) -> Variables:
        kernel = tree.get(variables["params"], head)["kernel"]
        pruned = np.array([math.ceil(round(share * len(kernel), 9)) for share in shares], np.int32)
        keep = (rank >= jnp.asarray(pruned)[level]).astype(kernel.dtype)
        return {**variables, "params": tree.mask_inputs(variables["params"], {head: keep})}

    return Curve("share of the head's inputs", shares, ("rank",), at)


def levels(features: int, granularity: float, off_by_one: bool) -> np.ndarray:
    """Number of head inputs pruned at each level, i32[L]; of 512 inputs 0, 6, 12, 18 … (``off_by_one``: 0, 5, 11, 17 …)."""
    step = math.ceil(round(granularity * features, 9))
    pruned = np.arange(-(-features // step), dtype=np.int32) * step
    return np.maximum(pruned - off_by_one, 0).astype(np.int32)


def choose_level(correct: Array, tolerance: Array, *, rise_stops: bool, keep_failing_level: bool) -> Array:
    """The level whose mask is kept.

    Args:
      correct: i32[L], correct validation rows per level; at most 200,000 (the products are 32-bit).
      tolerance: f[] in [0, 1], rounded to 1e-4.
      rise_stops: judge the absolute change instead of the drop.
      keep_failing_level: return the first level that fails, not the one before it.

    Returns:
      i32[]; 0 where level 0 has no correct row; the last level where none fails.
    """
    drop = correct[0] - correct
    change = jnp.abs(drop) if rise_stops else drop
    accepted = jnp.round(tolerance.astype(jnp.float32) * DECIMALS).astype(jnp.int32)
    fails = DECIMALS * change > accepted * correct[0]
    first = jnp.argmax(fails).astype(jnp.int32)
    level = jnp.where(jnp.any(fails), jnp.maximum(first - int(not keep_failing_level), 0), correct.shape[0] - 1)
    return jnp.where(correct[0] == 0, 0, level)


def _batches(rows: int, batch: int) -> tuple[Array, Array]:
    """All rows in order as (rows i32[trips b], present bool[trips b])."""
    size = min(batch, rows)
    every = jnp.arange(-(-rows // size) * size, dtype=jnp.int32).reshape(-1, size)
    return jnp.minimum(every, rows - 1), every < rows


def _measurer(model: Model, config: Config) -> Callable[..., Array]:
    """``measure(key, variables, clean) -> head inputs f[n d]`` in eval mode: training rows augmented, all others as they are."""
    spec = model.spec

    def step(shared: Any, inputs: Array, x: tuple[Array, Array, Array]) -> Array:
        key, variables, clean = shared
        rows, present, trip = x
        images, training = clean.images[rows], (clean.role[rows] == 1)[:, None, None, None]
        images = jnp.where(training, crop_flip(step_key(key, trip), images, spec.pad, spec.flip), images)
        found = model.apply(variables, to_float(images), record=("head",)).taps["head"]
        return inputs.at[jnp.where(present, rows, inputs.shape[0])].set(found.astype(inputs.dtype), mode="drop")

    def measure(key: Key, variables: Variables, clean: CleanSet) -> Array:
        kernel = tree.get(variables["params"], model.arch.heads[0])["kernel"]
        n = clean.labels.shape[0]
        rows, present = _batches(n, config.batch)
        inputs = jnp.zeros((n, kernel.shape[0]), kernel.dtype)
        return steps(step, inputs, (rows, present, jnp.arange(len(rows), dtype=jnp.int32)), (key, variables, clean), model.loop)

    return measure


def _judge(model: Model, config: Config) -> Callable[..., tuple[Array, tuple[Array, Array, Array, Array, Array]]]:
    """``judge(key, variables, clean, inputs, tolerance) -> (keep f[d], (pruned, correct, validation, level, rank))``."""
    spec = model.spec

    def right(variables: Variables, inputs: Array, keep: Array, labels: Array, counted: Array) -> Array:
        logits = model.apply(variables, inputs * keep[None], start="head").logits
        return jnp.sum(counted & (jnp.argmax(logits, -1).astype(labels.dtype) == labels), dtype=jnp.int32)

    @jax.jit
    def ranked(clean: CleanSet, inputs: Array) -> Array:
        training = (clean.role == 1).astype(inputs.dtype)
        mean = jnp.sum(inputs * training[:, None], 0) / jnp.maximum(jnp.sum(training), 1)
        return jnp.argsort(jnp.argsort(mean, stable=True), stable=True).astype(jnp.int32)

    @jax.jit
    def by_level(variables: Variables, clean: CleanSet, inputs: Array, rank: Array, pruned: Array) -> Array:
        held = clean.role == 2
        order = jnp.argsort(~held, stable=True).astype(jnp.int32)  # validation rows first: only their batches run
        size = min(config.batch, len(order))
        order = jnp.pad(order, (0, -len(order) % size), mode="edge")
        trips = (jnp.sum(held, dtype=jnp.int32) + size - 1) // size

        def correct(p: Array) -> Array:
            keep = (rank >= p).astype(inputs.dtype)

            def add(trip: Array, total: Array) -> Array:
                at = trip * size + jnp.arange(size, dtype=jnp.int32)
                rows = order[at]
                return total + right(variables, inputs[rows], keep, clean.labels[rows], held[rows] & (at < len(held)))

            return jax.lax.fori_loop(0, trips, add, jnp.int32(0))

        return jax.lax.map(correct, pruned, batch_size=max(1, min(len(pruned), HELD // (size * inputs.shape[1]))))

    def again(shared: Any, correct: Array, x: tuple[Array, Array, Array, Array]) -> Array:
        """One batch of one level, augmented anew."""
        key, variables, clean, rank, pruned = shared
        rows, present, level, trip = x
        images = to_float(crop_flip(step_key(key, trip), clean.images[rows], spec.pad, spec.flip))
        inputs = model.apply(variables, images, record=("head",)).taps["head"]
        keep = (rank >= pruned[level]).astype(inputs.dtype)
        return correct.at[level].add(right(variables, inputs, keep, clean.labels[rows], present & (clean.role[rows] == 2)))

    def augmented(key: Key, variables: Variables, clean: CleanSet, rank: Array, pruned: Array) -> Array:
        order = jnp.argsort(clean.role != 2, stable=True).astype(
            jnp.int32
        )  # validation rows first: most batches after them count nothing
        rows, present = _batches(clean.labels.shape[0], config.batch)
        trips, count = len(rows), len(pruned)
        xs = (
            jnp.tile(order[rows], (count, 1)),
            jnp.tile(present, (count, 1)),
            jnp.repeat(jnp.arange(count, dtype=jnp.int32), trips),
            jnp.arange(count * trips, dtype=jnp.int32),
        )
        return steps(again, jnp.zeros(count, jnp.int32), xs, (key, variables, clean, rank, pruned), model.loop)

    @jax.jit
    def decide(rank: Array, pruned: Array, correct: Array, tolerance: Array, clean: CleanSet, inputs: Array) -> Any:
        level = choose_level(
            correct, tolerance, rise_stops=bool(config.rise_stops), keep_failing_level=bool(config.keep_failing_level)
        )
        keep = (rank >= pruned[level]).astype(inputs.dtype)
        return keep, (pruned, correct, jnp.sum(clean.role == 2, dtype=jnp.int32), level, rank)

    def judge(key: Key, variables: Variables, clean: CleanSet, inputs: Array, tolerance: Array) -> Any:
        pruned = jnp.asarray(levels(inputs.shape[1], config.granularity, bool(config.off_by_one)))
        rank = ranked(clean, inputs)
        if config.augment_validation:
            correct = augmented(key, variables, clean, rank, pruned)
        else:
            correct = by_level(variables, clean, inputs, rank, pruned)
        return decide(rank, pruned, correct, tolerance, clean, inputs)

    return judge
