"""Count correct predictions on clean and triggered test images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.data.augment import to_float, to_uint8
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import steps
from bdjax.types import Array, ArrayTree, Attack, Bool, Int, Key, Model, UInt8, Variables

# Rows per step. On a CPU 128 rows of 32x32 images stay in its cache: 1.3 times as fast as 512, 2.4 times as 2048
# (benchmarks/results/scaling_cpu.md); accelerators are not measured yet.
BATCH = {"cpu": 128, "": 512}


class EvalSet(NamedTuple):
    """Test rows and triggered rows; of these, the ones whose attack label is not their true one count for ASR and RA."""

    images: Array  # u8[n h w c]
    labels: Array  # i32[n]
    triggered: Array | None  # u8[m h w c], the test images with the trigger; None where the trigger differs between members
    attack_labels: Array  # i32[m]
    truth: Array | None = None  # i32[m]: true labels of the triggered rows; None: they are the test rows, in order


class ByClass(NamedTuple):
    """The counts of :class:`Counts` for every true class, i32[k] each; they add up to those."""

    clean: Array
    correct: Array
    triggered: Array
    attacked: Array
    recovered: Array


class Counts(NamedTuple):
    """Integers, so that rates are exact: ACC = correct / clean, ASR = attacked / triggered, RA = recovered / triggered.

    ``predicted`` shows whether a network calls every image the same class: its ASR of 100 % or 0 % then says nothing;
    ``by_class`` shows which classes the mistakes are of.
    """

    clean: Array  # clean rows
    correct: Array  # clean rows predicted as their label
    triggered: Array  # triggered rows that count
    attacked: Array  # triggered rows predicted as their attack label
    recovered: Array  # triggered rows predicted as their true label
    predicted: Array  # i32[k]: clean rows predicted as each class, whatever their label
    by_class: ByClass


def apply_trigger(attack: Attack, trigger: Any, key: Key, images: UInt8[Array, "n h w c"]) -> UInt8[Array, "..."]:
    """Triggered copies of images, exact on the grid k/255."""
    return to_uint8(attack.stamp(trigger, key, to_float(images)))


def evaluator(model: Model, attack: Attack | None = None, batch: int | None = None) -> Callable[..., Counts]:
    """Build the evaluation of one member in eval mode.

    Args:
      model: network.
      attack: applies the trigger to the test images where ``EvalSet.triggered`` is None.
      batch: rows per step, at least 1; None = :data:`BATCH` of the platform in use. Counts do not depend on it.

    Returns:
      ``evaluate(variables, test: EvalSet, trigger=None, key=None) -> Counts``.
    """

    def step(shared: Any, counts: Counts, x: Int[Array, " b"]) -> Counts:
        variables, test, trigger, key = shared
        n, m = len(test.labels), len(test.attack_labels)
        clean, other = jnp.minimum(x, n - 1), jnp.minimum(x, m - 1)
        images, labels, goals = test.images[clean], test.labels[clean], test.attack_labels[other]
        truth = labels if test.truth is None else test.truth[other]
        if test.triggered is None:
            assert attack is not None, "per-member triggers need the attack"
            triggered = apply_trigger(attack, trigger, key, images)
        else:
            triggered = test.triggered[other]
        present, counted = x < n, (x < m) & (goals != truth)
        on_clean, on_triggered = (jnp.argmax(model.apply(variables, to_float(i)).logits, -1) for i in (images, triggered))
        clean_rows = present, present & (on_clean == labels)
        triggered_rows = counted, counted & (on_triggered == goals), counted & (on_triggered == truth)
        label, true, called = (one_hot(y) for y in (labels, truth, on_clean))
        by_class = ByClass(*(row[:, None] & label for row in clean_rows), *(row[:, None] & true for row in triggered_rows))
        found = Counts(*clean_rows, *triggered_rows, present[:, None] & called, by_class)
        return jax.tree.map(lambda total, new: total + jnp.sum(new, 0, dtype=jnp.int32), counts, found)

    def one_hot(y: Int[Array, " b"]) -> Bool[Array, "b k"]:
        return y[:, None] == jnp.arange(classes, dtype=y.dtype)[None, :]

    classes = model.spec.classes
    rows_at_once = BATCH.get(jax.default_backend(), BATCH[""]) if batch is None else batch

    @jax.jit
    def plan(test: EvalSet) -> tuple[Counts, Int[Array, "trips b"]]:
        rows = max(len(test.labels), len(test.attack_labels))
        size = min(rows_at_once, rows)
        trips = -(-rows // size)
        none, of_none = jnp.int32(0), jnp.zeros(classes, jnp.int32)
        zero = Counts(none, none, none, none, none, of_none, ByClass(*[of_none] * 5))
        return zero, jnp.arange(trips * size, dtype=jnp.int32).reshape(trips, size)

    def evaluate(variables: Variables, test: EvalSet, trigger: Any = None, key: Key | None = None) -> Counts:
        zero, rows = plan(test)
        return steps(step, zero, rows, (variables, test, trigger, key), model.loop)

    return evaluate


def finite(tree: ArrayTree) -> Bool[Array, ""]:
    """Whether every floating leaf of a tree is finite everywhere.

    A product with 0 is 0, or NaN where a number is not finite, and so is the sum of such products: an accelerator adds it up
    while it computes the leaf, where a test of every number reads the leaf once more.
    """
    floating = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    sums = [jnp.sum(leaf.astype(at_least_float32(leaf.dtype)) * 0) for leaf in floating]
    return jnp.all(jnp.stack([total == 0 for total in sums]))
