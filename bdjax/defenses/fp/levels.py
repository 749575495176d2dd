"""FP's pruning levels: how many head inputs each prunes, the accuracy that it leaves, and the level that is kept."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.data.augment import crop_flip, to_float
from bdjax.keys import step_key
from bdjax.train.loops import steps
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Model, Variables

AT_ONCE = 2**22  # numbers of masked head inputs that may exist at once while the levels are measured
DECIMALS = 10_000  # the tolerance is a whole number of 1 / DECIMALS


class Rules(NamedTuple):
    """Static rules of the levels: the fields of FP's configuration that concern them."""

    batch: int
    granularity: float
    off_by_one: bool
    keep_failing_level: bool
    rise_stops: bool
    augment_validation: bool


class Judged(NamedTuple):
    """What was found at the L levels."""

    pruned: Array  # i32[L]: head inputs pruned at each level
    correct: Array  # i32[L]: validation rows classified correctly
    validation: Array  # i32[]: validation rows
    level: Array  # i32[]: the level whose mask is kept
    rank: Array  # i32[d]: place of each head input in the order of pruning


def levels(features: int, granularity: float, off_by_one: bool) -> Int[np.ndarray, " L"]:
    """Number of head inputs pruned at each level; of 512 inputs 0, 6, 12, 18 … (``off_by_one``: 0, 5, 11, 17 …)."""
    step = math.ceil(round(granularity * features, 9))
    pruned = np.arange(-(-features // step), dtype=np.int32) * step
    return np.maximum(pruned - off_by_one, 0).astype(np.int32)


def choose_level(
    correct: Int[Array, " L"], tolerance: Float[Array, ""], *, rise_stops: bool, keep_failing_level: bool
) -> Int[Array, ""]:
    """The level whose mask is kept.

    Args:
      correct: correct validation rows per level; at most 200,000 (the products are 32-bit).
      tolerance: in [0, 1], rounded to 1e-4.
      rise_stops: judge the absolute change instead of the drop.
      keep_failing_level: return the first level that fails, not the one before it.

    Returns:
      0 where level 0 has no correct row; the last level where none fails.
    """
    drop = correct[0] - correct
    change = jnp.abs(drop) if rise_stops else drop
    accepted = jnp.round(tolerance.astype(jnp.float32) * DECIMALS).astype(jnp.int32)
    fails = DECIMALS * change > accepted * correct[0]
    first = jnp.argmax(fails).astype(jnp.int32)
    level = jnp.where(jnp.any(fails), jnp.maximum(first - int(not keep_failing_level), 0), correct.shape[0] - 1)
    return jnp.where(correct[0] == 0, 0, level)


def measurer(model: Model, batch: int) -> Callable[..., Array]:
    """``measure(key, variables, clean) -> head inputs`` in eval mode: training rows augmented, all others as they are."""
    spec = model.spec

    def step(
        shared: Any, inputs: Float[Array, "n d"], x: tuple[Int[Array, " b"], Bool[Array, " b"], Int[Array, ""]]
    ) -> Float[Array, "n d"]:
        key, variables, clean = shared
        rows, present, trip = x
        images, training = clean.images[rows], (clean.role[rows] == 1)[:, None, None, None]
        images = jnp.where(training, crop_flip(step_key(key, trip), images, spec.pad, spec.flip), images)
        found = model.apply(variables, to_float(images), record=("head",)).taps["head"]
        return inputs.at[jnp.where(present, rows, inputs.shape[0])].set(found.astype(inputs.dtype), mode="drop")

    def measure(key: Key, variables: Variables, clean: CleanSet) -> Float[Array, "n d"]:
        kernel = tree.get(variables["params"], model.arch.heads[0])["kernel"]
        n = clean.labels.shape[0]
        rows, present = _batches(n, batch)
        inputs = jnp.zeros((n, kernel.shape[0]), kernel.dtype)
        return steps(step, inputs, (rows, present, jnp.arange(len(rows), dtype=jnp.int32)), (key, variables, clean), model.loop)

    return measure


def judge(model: Model, rules: Rules) -> Callable[..., tuple[Array, Judged]]:
    """``decide(key, variables, clean, inputs, tolerance) -> (keep, Judged)``."""
    by_level = _augmented(model, rules.batch) if rules.augment_validation else _as_they_are(model, rules.batch)

    @jax.jit
    def kept(
        rank: Int[Array, " d"],
        pruned: Int[Array, " L"],
        correct: Int[Array, " L"],
        tolerance: Float[Array, ""],
        clean: CleanSet,
        inputs: Float[Array, "n d"],
    ) -> tuple[Float[Array, " d"], Judged]:
        how = {"rise_stops": rules.rise_stops, "keep_failing_level": rules.keep_failing_level}
        level = choose_level(correct, tolerance, **how)
        keep = (rank >= pruned[level]).astype(inputs.dtype)
        return keep, Judged(pruned, correct, jnp.sum(clean.role == 2, dtype=jnp.int32), level, rank)

    def decide(
        key: Key, variables: Variables, clean: CleanSet, inputs: Float[Array, "n d"], tolerance: Float[Array, ""]
    ) -> tuple[Float[Array, " d"], Judged]:
        pruned = jnp.asarray(levels(inputs.shape[1], rules.granularity, rules.off_by_one))
        rank = _ranked(clean, inputs)
        correct = by_level(key, variables, clean, inputs, rank, pruned)
        return kept(rank, pruned, correct, tolerance, clean, inputs)

    return decide


@jax.jit
def _ranked(clean: CleanSet, inputs: Float[Array, "n d"]) -> Int[Array, " d"]:
    """The place of each head input by its mean over the training rows, the smallest first."""
    training = (clean.role == 1).astype(inputs.dtype)
    mean = jnp.sum(inputs * training[:, None], 0) / jnp.maximum(jnp.sum(training), 1)
    return jnp.argsort(jnp.argsort(mean, stable=True), stable=True).astype(jnp.int32)


def _right(
    model: Model,
    variables: Variables,
    inputs: Float[Array, "b d"],
    keep: Float[Array, " d"],
    labels: Int[Array, " b"],
    counted: Bool[Array, " b"],
) -> Int[Array, ""]:
    """How many rows count and are classified correctly from their head inputs times ``keep``."""
    logits = model.apply(variables, inputs * keep[None], start="head").logits
    return jnp.sum(counted & (jnp.argmax(logits, -1).astype(labels.dtype) == labels), dtype=jnp.int32)


def _as_they_are(model: Model, batch: int) -> Callable[..., Array]:
    """``by_level(key, variables, clean, inputs, rank, pruned) -> correct`` on the recorded head inputs, without a draw."""

    @jax.jit
    def by_level(
        variables: Variables, clean: CleanSet, inputs: Float[Array, "n d"], rank: Int[Array, " d"], pruned: Int[Array, " L"]
    ) -> Int[Array, " L"]:
        validation = clean.role == 2
        order = jnp.argsort(~validation, stable=True).astype(jnp.int32)  # validation rows first: only their batches run
        size = min(batch, len(order))
        order = jnp.pad(order, (0, -len(order) % size), mode="edge")
        trips = (jnp.sum(validation, dtype=jnp.int32) + size - 1) // size

        def correct(p: Int[Array, ""]) -> Int[Array, ""]:
            keep = (rank >= p).astype(inputs.dtype)

            def add(trip: Int[Array, ""], total: Int[Array, ""]) -> Int[Array, ""]:
                at = trip * size + jnp.arange(size, dtype=jnp.int32)
                rows = order[at]
                counted = validation[rows] & (at < len(validation))
                return total + _right(model, variables, inputs[rows], keep, clean.labels[rows], counted)

            return jax.lax.fori_loop(0, trips, add, jnp.int32(0))

        return jax.lax.map(correct, pruned, batch_size=max(1, min(len(pruned), AT_ONCE // (size * inputs.shape[1]))))

    return lambda key, *args: by_level(*args)


def _augmented(model: Model, batch: int) -> Callable[..., Array]:
    """``by_level(key, variables, clean, inputs, rank, pruned) -> correct`` on crops and flips, drawn for each level."""
    spec = model.spec

    def again(
        shared: Any,
        correct: Int[Array, " L"],
        x: tuple[Int[Array, " b"], Bool[Array, " b"], Int[Array, ""], Int[Array, ""]],
    ) -> Int[Array, " L"]:
        """One batch of one level."""
        key, variables, clean, rank, pruned = shared
        rows, present, level, trip = x
        images = to_float(crop_flip(step_key(key, trip), clean.images[rows], spec.pad, spec.flip))
        inputs = model.apply(variables, images, record=("head",)).taps["head"]
        keep = (rank >= pruned[level]).astype(inputs.dtype)
        counted = present & (clean.role[rows] == 2)
        return correct.at[level].add(_right(model, variables, inputs, keep, clean.labels[rows], counted))

    def by_level(
        key: Key, variables: Variables, clean: CleanSet, _: Array, rank: Int[Array, " d"], pruned: Int[Array, " L"]
    ) -> Int[Array, " L"]:
        # Validation rows first: most batches after them count nothing.
        order = jnp.argsort(clean.role != 2, stable=True).astype(jnp.int32)
        rows, present = _batches(clean.labels.shape[0], batch)
        trips, count = len(rows), len(pruned)
        xs = (
            jnp.tile(order[rows], (count, 1)),
            jnp.tile(present, (count, 1)),
            jnp.repeat(jnp.arange(count, dtype=jnp.int32), trips),
            jnp.arange(count * trips, dtype=jnp.int32),
        )
        return steps(again, jnp.zeros(count, jnp.int32), xs, (key, variables, clean, rank, pruned), model.loop)

    return by_level


def _batches(rows: int, batch: int) -> tuple[Int[Array, "t b"], Bool[Array, "t b"]]:
    """All rows in order, in batches, and which entries are rows."""
    size = min(batch, rows)
    every = jnp.arange(-(-rows // size) * size, dtype=jnp.int32).reshape(-1, size)
    return jnp.minimum(every, rows - 1), every < rows
